"""Rules that balance: caps per concept and shares of sources, drawn by digest and so in any order the same."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from intern_vision.config import text_digest
from intern_vision.data.filters.rows import FilterRows
from intern_vision.data.filters.rules import CapRule, ShareRule
from intern_vision.data.labels.concept import ENGLISH, LabelSystem
from intern_vision.data.labels.names import NameFinder
from intern_vision.errors import ConfigError, DataError

_HEX_DIGITS = 13
"""52 bits of a digest: as many as a float64 holds without rounding."""


def cap_faults(rule: CapRule, rows: FilterRows) -> dict[int, str]:
    """Rows that the draw does not take: reason by position.

    Raises:
        ConfigError: there is nothing to look for: no label system, no class and no labelled row.
    """
    finder = concept_names(rows.system, rows.class_names)
    counts: Counter[str] = Counter()
    columns = ("key", "caption", "labels", "boxes", "concepts")
    for _, row in rows.rows(*columns):
        counts.update(row_concepts(row, finder, in_text=rule.text))
    if not counts and not len(finder):
        raise ConfigError("rule cap: no concept to count; give labels, or the manifest that the label step wrote")
    found = {}
    for position, row in rows.rows(*columns):
        concepts = row_concepts(row, finder, in_text=rule.text)
        if not concepts:
            if rule.unmatched == "remove":
                found[position] = "cap: no concept"
            continue
        taken = any(
            counts[concept] <= rule.per_concept
            or uniform(rule.seed, row["key"], concept) < rule.per_concept / counts[concept]
            for concept in concepts
        )
        if not taken:
            rarest = min(concepts, key=lambda concept: (counts[concept], concept))
            found[position] = f"cap: {counts[rarest]} rows of {rarest} and of no rarer concept"
    return found


def share_faults(rule: ShareRule, rows: FilterRows) -> dict[int, str]:
    """Rows of sources that have more than their share: reason by position.

    Raises:
        DataError: a source with a share has no row.
    """
    counts: Counter[str] = Counter(row["source"] for _, row in rows.rows("source"))
    empty = sorted(source for source in rule.sources if not counts[source])
    if empty:
        raise DataError(f"rule share: no row of source {empty[0]!r}; the manifest has {', '.join(sorted(counts))}")
    whole = sum(rule.sources.values())
    num_kept = min(counts[source] * whole / share for source, share in rule.sources.items())
    limits = {source: round(num_kept * share / whole) for source, share in rule.sources.items()}
    ranked: dict[str, list[tuple[float, int]]] = {source: [] for source in limits}
    for position, row in rows.rows("key", "source"):
        if row["source"] in ranked:
            ranked[row["source"]].append((uniform(rule.seed, row["key"], ""), position))
    return {
        position: f"share: {source} has {counts[source]} rows, {limits[source]} are its share"
        for source, own in ranked.items()
        for _, position in sorted(own)[limits[source] :]
    }


def concept_names(system: LabelSystem | None, class_names: Iterable[str]) -> NameFinder:
    """The concepts of a label system by their English names; without one, class names that stand for themselves."""
    if system is None:
        return NameFinder((name, name) for name in class_names)
    return NameFinder((name, id) for id, concept in system.concepts.items() for name in concept.names.get(ENGLISH, ()))


def row_concepts(row: Mapping[str, Any], finder: NameFinder, *, in_text: bool) -> frozenset[str]:
    """Concepts that a row shows: those of the label step, else of its labels and boxes; and names in its caption."""
    found = set(row["concepts"] or ())
    if row["concepts"] is None:
        names = [*(row["labels"] or ()), *(box["label"] for box in row["boxes"] or ())]
        for name in names:
            found |= finder.named(name) or {name}
    if in_text and row["caption"]:
        found |= finder.find(row["caption"])
    return frozenset(found)


def uniform(seed: int, key: str, what: str) -> float:
    """A number in [0, 1) that follows from the seed, a row and a purpose."""
    return int(text_digest(f"{seed}:{key}:{what}")[:_HEX_DIGITS], 16) / 16**_HEX_DIGITS
