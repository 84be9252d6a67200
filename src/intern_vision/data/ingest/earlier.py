"""Rows of an earlier ingest, found by key, so that images which have not changed are not opened again."""

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

STAMPS_NAME = "stamps.parquet"
_FACTS = ("key", "uri", "digest", "width_px", "height_px", "num_bytes", "mask", "depth", "status")


def stamps_schema() -> "pa.Schema":
    """A row an image: its key, where it lay in its source, and a stamp of the files that the row was made from."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("key", "place", "stamp")])


class Earlier:
    """The usable rows of an earlier manifest; Arrow columns, some 400 bytes a row.

    Args:
        manifest: its table, sorted by key.
        stamps: the ``stamps.parquet`` that was written with it.

    Raises:
        DataError: the two files do not belong together.
    """

    def __init__(self, manifest: Path, stamps: Path) -> None:
        import pyarrow.parquet as pq

        rows = pq.read_table(manifest, columns=list(_FACTS))
        stamped = pq.read_table(stamps)
        if not rows["key"].equals(stamped["key"]):
            raise DataError(f"{stamps}: is not of the manifest beside it; ingest anew without the earlier result")
        table = rows.append_column("place", stamped["place"]).append_column("stamp", stamped["stamp"])
        # One chunk a column: finding a row in many would take a walk over them.
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        self._num_rows = len(table)

    def find(self, key: str, place: str, stamp: str) -> dict[str, Any] | None:
        """The facts of a row that was usable and whose files have not changed since; else None."""
        index = bisect_left(range(self._num_rows), key, key=lambda row: self._columns["key"][row].as_py())
        if index == self._num_rows or self._columns["key"][index].as_py() != key:
            return None
        facts = {name: column[index].as_py() for name, column in self._columns.items()}
        is_same = (facts["place"], facts["stamp"], facts["status"]) == (place, stamp, "ok")
        return facts if is_same else None
