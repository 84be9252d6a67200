"""Files of a round of questions, beside its manifest."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.config import Config
from intern_vision.data.annotation.answers import Asked, Vote
from intern_vision.data.annotation.tasks import Question
from intern_vision.data.manifest import ManifestBox, manifest_schema
from intern_vision.data.tables import iter_rows

if TYPE_CHECKING:
    import pyarrow as pa

TASKS_FILE = "tasks.json"
LABELLING_FILE = "labelling.xml"
ROUND_FILE = "round.json"
SELECTION_FILE = "selection.parquet"
SCORES_FILE = "scores.parquet"
VOTES_FILE = "votes.parquet"
AGREEMENT_FILE = "agreement.json"


class Round(Config):
    """What a round asks.

    Attributes:
        question: ``label`` or ``box``.
        class_names: the classes that an answer may name.
    """

    question: Question
    class_names: tuple[str, ...]


def write_tasks(tasks: Iterable[dict[str, Any]], path: Path) -> int:
    """Writes Label Studio tasks one by one as a JSON array; gives their number."""
    number = 0
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        for number, each in enumerate(tasks, 1):
            file.write(("" if number == 1 else ",") + "\n" + json.dumps(each, ensure_ascii=False))
        file.write("\n]\n")
    return number


def selection_schema() -> "pa.Schema":
    """Columns of ``selection.parquet``: an item a row; the scores are 0 for audits."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("item", "key", "role", "proposed", "known")]
    scores = ("informativeness", "p_ood", "noise", "covariate_shift", "semantic_shift")
    sizes = [(name, pa.int64()) for name in ("width_px", "height_px")]
    return pa.schema([*texts, *sizes, *((name, pa.float64()) for name in scores)])


def scores_schema() -> "pa.Schema":
    """Columns of ``scores.parquet``: a pool row each; ``kind`` is empty where the row stays in the pool."""
    import pyarrow as pa

    scores = ("informativeness", "p_ood", "noise", "covariate_shift", "semantic_shift")
    texts = [(name, pa.string()) for name in ("key", "proposed", "kind")]
    return pa.schema([*texts, *((name, pa.float64()) for name in scores)])


def votes_schema() -> "pa.Schema":
    """Columns of ``votes.parquet``: the fields of ``Vote``."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("item", "annotator", "verdict", "label")]
    return pa.schema([*texts, ("boxes", manifest_schema().field("boxes").type), ("updated", pa.string())])


def read_asked(path: Path) -> dict[str, Asked]:
    """The items of ``selection.parquet`` by name."""
    names = ("key", "role", "proposed", "known", "width_px", "height_px")
    return {row["item"]: Asked(**{name: row[name] for name in names}) for row in iter_rows(path, ("item", *names))}


def read_saved_votes(path: Path) -> Iterator[Vote]:
    """The votes of ``votes.parquet``."""
    for row in iter_rows(path):
        yield Vote(**row | {"boxes": tuple(ManifestBox(**box) for box in row["boxes"])})
