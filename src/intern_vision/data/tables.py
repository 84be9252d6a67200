"""Parquet files written and read a row group at a time, so that memory does not grow with the number of rows."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 2**14


class TableWriter:
    """Writes rows to a Parquet file; equal rows give equal bytes, in whatever pieces they arrive.

    A context manager: the file appears when the block ends well, and not at all when it raises.

    Attributes:
        num_rows: rows given so far.

    Args:
        path: the file.
        schema: its columns.
    """

    def __init__(self, path: Path, schema: "pa.Schema") -> None:
        self.num_rows = 0
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._schema = schema
        self._rows: list[Mapping[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._num_waiting = 0
        self._writer: Any = None

    def __enter__(self) -> "TableWriter":
        import pyarrow.parquet as pq

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._partial, self._schema, compression="zstd")
        return self

    def __exit__(self, *exc: Any) -> None:
        is_well = exc[0] is None
        try:
            if is_well:
                self._flush_rows()
                self._write_groups(at_end=True)
            self._writer.close()
            if is_well:
                os.replace(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row, a value a column; a column left out is null."""
        self.num_rows += 1
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush_rows()

    def add_table(self, table: "pa.Table") -> None:
        """Appends the rows of a table that has the file's columns; further columns are left out."""
        self.num_rows += len(table)
        self._flush_rows()
        self._append(table.select(self._schema.names).cast(self._schema))

    def _flush_rows(self) -> None:
        if self._rows:
            import pyarrow as pa

            rows, self._rows = self._rows, []
            self._append(pa.Table.from_pylist(rows, schema=self._schema))

    def _append(self, table: "pa.Table") -> None:
        self._tables.append(table)
        self._num_waiting += len(table)
        self._write_groups()

    def _write_groups(self, at_end: bool = False) -> None:
        import pyarrow as pa

        if not self._num_waiting or (self._num_waiting < ROWS_PER_GROUP and not at_end):
            return
        waiting = pa.concat_tables(self._tables)
        end = len(waiting) if at_end else len(waiting) // ROWS_PER_GROUP * ROWS_PER_GROUP
        for start in range(0, end, ROWS_PER_GROUP):
            # In one chunk: the chunks of a column would decide where its pages end.
            group = waiting.slice(start, min(ROWS_PER_GROUP, end - start)).combine_chunks()
            self._writer.write_table(group, row_group_size=ROWS_PER_GROUP)
        self._tables = [waiting.slice(end)] if end < len(waiting) else []
        self._num_waiting = len(waiting) - end


def iter_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows in order as plain dicts with the columns asked for, by default all; memory holds a row group."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=None if columns is None else list(columns)):
            yield from batch.to_pylist()
