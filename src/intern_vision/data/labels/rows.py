"""The concepts that a manifest's labels and boxes mean, written into its rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intern_vision.data.labels.merge import Merged
from intern_vision.data.manifest import manifest_writer
from intern_vision.data.tables import ROWS_PER_GROUP, iter_rows

_LABEL_FAMILIES = ("classify", "multilabel")


class RowConcepts:
    """Looks up what the class names of rows mean.

    Attributes:
        num_labelled: rows that were given concepts.
        num_uncertain: labels and boxes left out because a person has to decide on their class.
        num_unknown: labels and boxes left out because their class is none of their source's.

    Args:
        merged: with the classes of each source as a vocabulary of its name.
    """

    def __init__(self, merged: Merged) -> None:
        self.num_labelled = self.num_uncertain = self.num_unknown = 0
        self._concepts = {
            (mapping.vocabulary, mapping.family, mapping.class_name): "" if mapping.is_uncertain else mapping.concept
            for mapping in merged.mappings
        }

    def of(self, row: Mapping[str, Any]) -> list[str] | None:
        """Sorted ids of a row's concepts; ``None`` where it has neither labels nor boxes."""
        if row["labels"] is None and row["boxes"] is None:
            return None
        self.num_labelled += 1
        found = {self._concept(row["source"], _LABEL_FAMILIES, name) for name in row["labels"] or ()}
        found |= {self._concept(row["source"], ("detect",), box["label"]) for box in row["boxes"] or ()}
        return sorted(found - {""})

    def _concept(self, source: str, families: tuple[str, ...], name: str) -> str:
        for family in families:
            concept = self._concepts.get((source, family, name))
            if concept is not None:
                self.num_uncertain += not concept
                return concept
        self.num_unknown += 1
        return ""


def write_concepts(path: Path, target: Path, concepts: RowConcepts) -> None:
    """Writes a manifest again with the column ``concepts`` filled in the rows of status ``ok``.

    Args:
        path: the table.
        target: the new one.
        concepts: what rows mean.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file, manifest_writer(target) as writer:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP):
            table = pa.Table.from_batches([batch])
            rows = table.select(["source", "labels", "boxes", "concepts", "status"]).to_pylist()
            found = [concepts.of(row) if row["status"] == "ok" else row["concepts"] for row in rows]
            place = table.schema.get_field_index("concepts")
            writer.add_table(table.set_column(place, "concepts", pa.array(found, pa.list_(pa.string()))))


def count_concepts(path: Path, merged: Merged) -> dict[str, int]:
    """Images of status ``ok`` that show each concept or one below it, by id; an image counts once for each."""
    rows = iter_rows(path, ("concepts", "status"))
    return merged.system.rolled_up_counts(row["concepts"] or () for row in rows if row["status"] == "ok")
