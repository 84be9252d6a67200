"""Rows of a manifest that are labelled, those that may be asked about, and the table with changes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.annotation.rectify import KINDS
from intern_vision.data.annotation.tasks import Question
from intern_vision.data.manifest import manifest_writer
from intern_vision.data.tables import iter_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from intern_vision.data.labels.concept import LabelSystem

_COLUMNS = ("key", "uri", "width_px", "height_px", "source", "split", "labels", "boxes", "status", "reason")
_CHUNK_ROWS = 1024


@dataclass(slots=True, frozen=True, kw_only=True)
class Rows:
    """Some rows of a manifest, held as a table.

    Attributes:
        table: their columns.
        positions_N: int64, where they are in the manifest, ascending.
    """

    table: "pa.Table"
    positions_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions_N)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=_CHUNK_ROWS):
            yield from batch.to_pylist()

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        """Those at these places of this table."""
        return Rows(table=self.table.take(rows), positions_N=self.positions_N[rows])

    def column(self, name: str) -> list[Any]:
        """A column's values."""
        return self.table[name].to_pylist()


def labelled_and_pool(path: Path, question: Question, sources: Sequence[str]) -> tuple[Rows, Rows]:
    """The labelled rows to learn from, and the rows without an annotation that may be asked about.

    Both are of the training part: asking about test images by what a model does not know would make the test harder
    than it is. What an earlier round took out of the pool is judged again. Rows known to show no box are neither.

    Args:
        path: the manifest's table.
        question: whether ``labels`` or ``boxes`` are asked for.
        sources: of the pool; empty for all.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=list(_COLUMNS))
    column = table["labels" if question == "label" else "boxes"]
    in_training = pc.is_in(table["split"], pa.array(["", "train"]))
    is_ok = pc.equal(table["status"], "ok")
    is_ours = pc.and_(
        pc.equal(table["status"], "removed"),
        pc.match_substring_regex(table["reason"], f"^({'|'.join(KINDS)}):"),
    )
    is_annotated = pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0)
    is_pool = pc.and_(pc.or_(is_ok, is_ours), pc.and_(pc.is_null(column), in_training))
    if sources:
        is_pool = pc.and_(is_pool, pc.is_in(table["source"], pa.array(sources)))
    masks = (pc.and_(pc.and_(is_ok, is_annotated), in_training), is_pool)
    return tuple(
        Rows(table=table.filter(mask), positions_N=np.flatnonzero(mask.to_numpy(zero_copy_only=False)))
        for mask in masks
    )  # type: ignore[return-value]


def main_label(row: Mapping[str, Any], question: Question) -> str:
    """What a labelled row is taken to show: its first label, or the label of its largest box."""
    if question == "label":
        return row["labels"][0]
    return max(row["boxes"], key=lambda box: (box["x1"] - box["x0"]) * (box["y1"] - box["y0"]))["label"]


def label_counts(labels: Sequence[str], class_names: Sequence[str], system: "LabelSystem | None") -> list[int]:
    """Labelled images of each class; with a label system those of the concepts below it count too.

    Args:
        labels: one an image.
        class_names: whose counts are asked for.
        system: concepts; a class that it does not know counts by its name alone.
    """
    own = Counter(labels)
    if system is None:
        return [own[name] for name in class_names]
    ids = {name: next(iter(system.find(name)), "") for name in {*labels, *class_names}}
    rolled_up = system.rolled_up_counts([(ids[label],) for label in labels if ids[label]])
    return [rolled_up.get(ids[name], 0) if ids[name] else own[name] for name in class_names]


def rewrite(path: Path, target: Path, changes: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Writes a manifest again with other values at some positions.

    Args:
        path: the table.
        target: the new one.
        changes: columns and values by position.

    Returns:
        Rows with status ``ok`` before (``num_in``) and after (``num_out``).
    """
    num_in = num_out = 0
    with manifest_writer(target) as writer:
        for position, row in enumerate(iter_rows(path)):
            num_in += row["status"] == "ok"
            row |= changes.get(position, {})
            num_out += row["status"] == "ok"
            writer.add(row)
    return {"num_in": num_in, "num_out": num_out}
