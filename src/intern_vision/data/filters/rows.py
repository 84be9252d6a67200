"""The rows that a rule looks at, and the table without those it takes out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.data.manifest import manifest_writer
from intern_vision.data.tables import ROWS_PER_GROUP, iter_rows
from intern_vision.events import Progress

if TYPE_CHECKING:
    from intern_vision.data.labels.concept import LabelSystem

MAX_EXAMPLES = 12


@dataclass(slots=True, kw_only=True)
class FilterRows:
    """The rows of a manifest that are still in use, and what rules may ask for besides.

    Attributes:
        path: the manifest's table.
        removed: reason by position, of rows that earlier rules took out.
        out_dir: folder for what a rule writes beside the manifest.
        scratch_dir: folder for anything else.
        progress: where images done are reported.
        num_threads: images opened at once.
        system: concepts to look for; None where no label system was given.
        class_names: class names of all sources.
        model_dir: folder of the input ``model``; None where none was given.
    """

    path: Path
    removed: dict[int, str]
    out_dir: Path
    scratch_dir: Path
    progress: Progress
    num_threads: int = 1
    system: "LabelSystem | None" = None
    class_names: tuple[str, ...] = ()
    model_dir: Path | None = None

    def rows(self, *columns: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Position and columns of the rows with status ``ok`` that no rule took out, in order."""
        for position, row in enumerate(iter_rows(self.path, (*columns, "status"))):
            if row["status"] == "ok" and position not in self.removed:
                yield position, row

    def num_rows(self) -> int:
        """How many there are."""
        return sum(1 for _ in self.rows())

    def examples(self, found: Mapping[int, str]) -> list[str]:
        """Keys of the first rows that a rule took out."""
        wanted = set(sorted(found)[:MAX_EXAMPLES])
        return [row["key"] for position, row in self.rows("key") if position in wanted] if wanted else []


def write_without(path: Path, target: Path, removed: Mapping[int, str]) -> None:
    """Writes a manifest again with the status ``removed`` and the reason at these positions.

    Args:
        path: the table.
        target: the new one.
        removed: reason by position.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file, manifest_writer(target) as writer:
        start = 0
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
            table = pa.Table.from_batches([batch])
            positions = range(start, start + len(table))
            for column, values in (
                ("status", ["removed" if position in removed else None for position in positions]),
                ("reason", [removed.get(position) for position in positions]),
            ):
                new = pa.array(values, pa.string())
                place = table.schema.get_field_index(column)
                table = table.set_column(place, column, pa.compute.coalesce(new, table[column].combine_chunks()))
            writer.add_table(table)
            start += len(table)
