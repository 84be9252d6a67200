"""Answers taken up: votes become labels and boxes of the manifest's rows, and what is still open is asked again."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intern_vision.data.annotation.agreement import Ballot, Decision
from intern_vision.data.annotation.answers import Asked, Vote, latest, read_votes
from intern_vision.data.annotation.files import (
    AGREEMENT_FILE,
    TASKS_FILE,
    VOTES_FILE,
    Round,
    read_saved_votes,
    votes_schema,
    write_tasks,
)
from intern_vision.data.annotation.settings import AnswerFile, VoteConfig
from intern_vision.data.manifest import ManifestBox, SourceInfo
from intern_vision.data.manifest_store import read_bytes
from intern_vision.data.tables import TableWriter, iter_rows
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Task

MAX_EXPORT_BYTES = 2**30
_REASONS = {
    "rejected": "rejected: annotators say that it does not show {proposed}",
    "unsure": "unsure: annotators cannot tell what it shows",
    "disputed": "disputed: annotators disagree about it",
}


def gather_votes(
    files: tuple[AnswerFile, ...], earlier: Path | None, asked: Mapping[str, Asked], about: Round
) -> dict[str, list[Vote]]:
    """All votes of a round by item: those of earlier imports and of these exports.

    Args:
        files: exports.
        earlier: ``votes.parquet`` of an earlier import of the same round.
        asked: the round's items.
        about: what was asked.

    Raises:
        ConfigError: an export has another digest.
        DataError: it cannot be understood, or no task of it belongs to this round.
    """
    import hashlib

    votes = list(read_saved_votes(earlier)) if earlier else []
    for file in files:
        data = read_bytes(file.uri, MAX_EXPORT_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        if digest != file.sha256:
            raise ConfigError(
                f"annotate.answers: {file.uri} has the digest {digest}, not {file.sha256}; check the file"
            )
        try:
            own = list(read_votes(data.decode("utf-8"), file.uri, asked, about.question))
        except UnicodeDecodeError:
            raise DataError(f"{file.uri}: expected UTF-8 text; export as JSON") from None
        if not own:
            raise DataError(f"{file.uri}: holds no answer to this round's tasks; give the export of their project")
        votes += own
    strange = {vote.label for vote in votes if vote.label} | {box.label for vote in votes for box in vote.boxes}
    unknown = sorted(strange - set(about.class_names))
    if unknown:
        raise DataError(f"answers: label {unknown[0]!r} is no class of this round; use labelling.xml unchanged")
    return latest(votes)


def count_votes(
    votes: Mapping[str, list[Vote]], asked: Mapping[str, Asked], manifest: Path, about: Round, config: VoteConfig
) -> Ballot:
    """Decides; the right boxes of audits are those of the manifest's rows.

    Args:
        votes: by item.
        asked: the round's items.
        manifest: its table.
        about: what was asked.
        config: when answers count.
    """
    audits = {one.key: item for item, one in asked.items() if one.role == "audit"}
    known: dict[str, tuple[ManifestBox, ...]] = {}
    if about.question == "box":
        for row in iter_rows(manifest, ("key", "boxes")):
            if row["key"] in audits:
                known[audits[row["key"]]] = tuple(ManifestBox(**box) for box in row["boxes"])
    return Ballot(votes, asked, known, about.question, config)


def changes_of(ballot: Ballot, asked: Mapping[str, Asked], manifest: Path) -> dict[int, dict[str, Any]]:
    """What the decisions change in the manifest, by position; open ones change nothing."""
    by_key = {asked[item].key: (asked[item], decision) for item, decision in ballot.decisions.items()}
    changes: dict[int, dict[str, Any]] = {}
    for position, row in enumerate(iter_rows(manifest, ("key",))):
        if row["key"] in by_key:
            one, decision = by_key[row["key"]]
            if decision.outcome != "open":
                changes[position] = _change(one, decision, ballot.question)
    return changes


def _change(one: Asked, decision: Decision, question: str) -> dict[str, Any]:
    if decision.outcome != "labelled":
        return {"status": "removed", "reason": _REASONS[decision.outcome].format(proposed=one.proposed)}
    fields: dict[str, Any] = {"status": "ok", "reason": "", "width_px": one.width_px, "height_px": one.height_px}
    if question == "label":
        return fields | {"labels": [decision.label]}
    return fields | {"boxes": [asdict(box) for box in decision.boxes]}


def sources_with_classes(
    sources: tuple[SourceInfo, ...], manifest: Path, changes: Mapping[int, Mapping[str, Any]], about: Round
) -> tuple[SourceInfo, ...]:
    """The sources, those with new labels with the round's classes after their own."""
    column, family = ("labels", "classify") if about.question == "label" else ("boxes", "detect")
    rows = enumerate(iter_rows(manifest, ("source",)))
    answered = {row["source"] for position, row in rows if column in changes.get(position, {})}
    found = []
    for source in sources:
        if source.name in answered and "multilabel" not in source.tasks:
            own = source.tasks[family].class_names if family in source.tasks else ()
            names = tuple(dict.fromkeys((*own, *about.class_names)))
            tasks = source.tasks | {family: Task(family=family, class_names=names)}
            source = source.model_copy(update={"tasks": tasks})
        found.append(source)
    return tuple(found)


def write_answers(ballot: Ballot, votes: Mapping[str, list[Vote]], tasks: Path, out: Path) -> int:
    """Writes the votes, ``agreement.json`` and the tasks that need another annotator; gives their number.

    Args:
        ballot: the decisions.
        votes: all votes, those that are left out too.
        tasks: the round's ``tasks.json``.
        out: folder for the files.
    """
    with TableWriter(out / VOTES_FILE, votes_schema()) as table:
        for own in votes.values():
            for vote in own:
                table.add(asdict(vote))
    (out / AGREEMENT_FILE).write_text(json.dumps(ballot.summary(), indent=1) + "\n", encoding="utf-8")

    def still_open() -> Iterator[dict[str, Any]]:
        for each in json.loads(tasks.read_text(encoding="utf-8")):
            decision = ballot.decisions.get(each["data"]["item"])
            if decision is not None and decision.outcome == "open":
                yield each

    return write_tasks(still_open(), out / TASKS_FILE)
