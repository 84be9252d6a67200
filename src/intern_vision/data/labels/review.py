"""The table of uncertain classes that a person edits, and the table of all mappings, as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from intern_vision.data.labels.concept import LabelSystem
from intern_vision.data.labels.merge import NEW, SAME, ClassMapping
from intern_vision.data.labels.vocabulary import Vocabulary
from intern_vision.errors import DataError

REVIEW_COLUMNS = (
    "vocabulary",
    "family",
    "index",
    "class",
    "kind",
    "confidence",
    "proposal",
    "proposal_name",
    "proposal_sources",
    "decision",
)
MAPPING_COLUMNS = (
    "vocabulary",
    "family",
    "index",
    "class",
    "concept",
    "concept_name",
    "kind",
    "confidence",
    "status",
)
ClassKey = tuple[str, str, int]
"""Vocabulary, family and index of a class."""


def review_csv(mappings: Iterable[ClassMapping], system: LabelSystem) -> str:
    """The classes that a person has to decide on, or has decided on; the column ``decision`` is theirs.

    It takes ``same`` (the proposal is right), ``new`` (it is not, and no other concept is) or the id of another
    concept; empty leaves the class a concept of its own and in the table.
    """
    rows = []
    for mapping in mappings:
        if not mapping.proposal and not mapping.decision:
            continue
        proposal = system[mapping.proposal] if mapping.proposal else None
        decision = SAME if mapping.decision and mapping.decision == mapping.proposal else mapping.decision
        rows.append(
            {
                **_class_cells(mapping),
                "proposal": mapping.proposal,
                "proposal_name": proposal.name if proposal else "",
                "proposal_sources": " ".join(proposal.sources) if proposal else "",
                "decision": decision,
            }
        )
    return _csv(REVIEW_COLUMNS, rows)


def mappings_csv(mappings: Iterable[ClassMapping], system: LabelSystem) -> str:
    """Every class with its concept; ``status`` is ``certain``, ``decided``, or ``review`` where a person has to."""
    rows = [
        {
            **_class_cells(mapping),
            "concept": mapping.concept,
            "concept_name": system[mapping.concept].name,
            "status": "review" if mapping.is_uncertain else "decided" if mapping.decision else "certain",
        }
        for mapping in mappings
    ]
    return _csv(MAPPING_COLUMNS, rows)


def read_decisions(path: Path, vocabularies: Sequence[Vocabulary]) -> dict[ClassKey, str]:
    """The decisions of an edited table: ``new`` or the id of a concept, by class.

    Raises:
        DataError: no such file, another table, or a row that names no class or decides what cannot be; with its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: no such file; give the review.csv that intern data label wrote") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    table = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in REVIEW_COLUMNS if name not in (table.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: no column {missing[0]}; keep the columns {', '.join(REVIEW_COLUMNS)}")
    known = {(vocabulary.name, vocabulary.family): vocabulary for vocabulary in vocabularies}
    decisions: dict[ClassKey, str] = {}
    for row in table:
        where = f"{path}:{table.line_num}"
        if None in row or None in row.values():
            raise DataError(f"{where}: expected {len(REVIEW_COLUMNS)} cells; quote cells that hold commas")
        key = _class_key(row, known, where)
        decision = row["decision"].strip()
        if not decision:
            continue
        if decision.lower() == SAME:
            decision = row["proposal"].strip()
            if not decision:
                raise DataError(f"{where}: decision: {SAME} needs a proposal; write {NEW} or the id of a concept")
        elif decision.lower() == NEW:
            decision = NEW
        if decisions.setdefault(key, decision) != decision:
            raise DataError(f"{where}: {row['vocabulary']} {row['class']} is decided twice; keep one row")
    return decisions


def _class_key(row: Mapping[str, str], known: Mapping[tuple[str, str], Vocabulary], where: str) -> ClassKey:
    vocabulary = known.get((row["vocabulary"], row["family"]))  # type: ignore[call-overload]
    if vocabulary is None:
        raise DataError(f"{where}: no vocabulary {row['vocabulary']} ({row['family']}) is merged; remove the row")
    index = int(row["index"]) if row["index"].isdigit() else -1
    if not 0 <= index < len(vocabulary.classes) or vocabulary.classes[index].name != row["class"]:
        raise DataError(
            f"{where}: {row['vocabulary']} has no class {row['index']} called {row['class']!r}; edit the column "
            "decision only, and decide on a table of the same vocabularies"
        )
    return vocabulary.name, vocabulary.family, index


def _class_cells(mapping: ClassMapping) -> dict[str, str]:
    return {
        "vocabulary": mapping.vocabulary,
        "family": mapping.family,
        "index": str(mapping.index),
        "class": mapping.class_name,
        "kind": mapping.kind,
        "confidence": f"{mapping.confidence:g}",
    }


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
