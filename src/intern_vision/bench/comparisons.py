"""What the benchmark compares with what: protocols, columns, pairs of columns and relative reductions of the error.

A *protocol* says which labels and which method adapted a model. Labels: ``10`` and ``100`` are percent of the training
labels, ``4shot.1`` four images a class in the draw of seed 1, ``4shot`` the mean over such draws, ``0`` none
(zero-shot). Methods follow as suffixes: none is a frozen backbone, ``+ft`` strong fine-tuning, and so on (``METHODS``).
A *column* is ``<arm>@<protocol>``.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import Field

from intern_vision.config import Config

FROZEN, ZERO_SHOT_RECIPE = "frozen", "zero-shot"
METHODS: Mapping[str, str] = {
    "ft": "fine-tuned",
    "lora": "low-rank",
    "mf": "multi-stage",
    "wise": "ensemble",
    "knn": "k-NN",
}
"""What the suffixes of a protocol say, in the order of display."""
ZERO_SHOT = "0"
_PROTOCOL = re.compile(
    r"(?:(?P<percent>\d+(?:\.\d+)?(?:e-\d+)?)|(?P<shots>[1-9]\d*)shot(?:\.(?P<draw>\d+))?)(?P<suffixes>(?:\+[a-z]+)*)"
)
# The standard normal quantile of a two-sided 95 % interval.
_Z_95 = 1.959963984540054


class Reduction(Config):
    """A comparison of two columns over several sets.

    Attributes:
        mean_of_reductions: mean of the sets' relative reductions in percent; ``None`` where none is defined.
        reduction_of_mean: relative reduction in percent of the mean error over the same sets.
        num_sets: sets that have both columns.
        num_wins: sets where the candidate errs less.
        num_ties: sets where both err the same.
    """

    mean_of_reductions: float | None
    reduction_of_mean: float | None
    num_sets: int = Field(ge=0)
    num_wins: int = Field(ge=0)
    num_ties: int = Field(ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The parts of a protocol's name.

    Attributes:
        percent: of the training labels, in [0, 100]; ``None`` where images a class are counted.
        shots: images a class; ``None`` where percent are counted.
        draw: seed of a few-shot draw; ``None`` for a mean over draws.
        suffixes: names of the methods, as written; empty for a frozen backbone.
    """

    percent: float | None
    shots: int | None
    draw: int | None
    suffixes: tuple[str, ...]

    @property
    def labels(self) -> str:
        """The labels alone, such as ``10`` or ``4shot``."""
        return f"{self.percent:g}" if self.shots is None else f"{self.shots}shot"

    @property
    def mean_name(self) -> str:
        """The protocol that joins all draws; the protocol's own name where it has no draw."""
        return "+".join((self.labels, *self.suffixes))


def parse_protocol(name: str) -> Protocol:
    """The parts of a protocol's name; ValueError where it is none."""
    match = _PROTOCOL.fullmatch(name)
    if match is None:
        raise ValueError(name)
    suffixes = tuple(match["suffixes"].split("+")[1:])
    percent = None if match["percent"] is None else float(match["percent"])
    if set(suffixes) - set(METHODS) or len(set(suffixes)) < len(suffixes):
        raise ValueError(name)
    if percent is not None and (percent > 100 or (percent == 0 and name != ZERO_SHOT)):
        raise ValueError(name)
    shots, draw = (None if match[part] is None else int(match[part]) for part in ("shots", "draw"))
    return Protocol(percent=percent, shots=shots, draw=draw, suffixes=suffixes)


def is_protocol(name: str) -> bool:
    """Whether ``name`` is a protocol, see the top of this module."""
    try:
        parse_protocol(name)
    except ValueError:
        return False
    return True


def labels_text(protocol: str) -> str:
    """The labels of a protocol in words, such as ``10 %`` or ``4 a class``."""
    parts = parse_protocol(protocol)
    return f"{parts.percent:g} %" if parts.shots is None else f"{parts.shots} a class"


def recipe_of(protocol: str) -> str:
    """How a protocol adapts: ``frozen``, ``zero-shot``, or the names of its methods."""
    if protocol == ZERO_SHOT:
        return ZERO_SHOT_RECIPE
    return " + ".join(METHODS[suffix] for suffix in parse_protocol(protocol).suffixes) or FROZEN


def sorted_protocols(columns: Iterable[str]) -> list[str]:
    """The protocols of columns by recipe, zero-shot last; of a recipe percent, then images a class, fewer first."""

    def order(name: str) -> tuple[object, ...]:
        protocol, methods = parse_protocol(name), tuple(METHODS)
        recipe = [methods.index(suffix) for suffix in protocol.suffixes]
        few = (protocol.shots or 0, protocol.percent or 0)
        return (name == ZERO_SHOT, len(recipe) > 1, recipe, few, -1 if protocol.draw is None else protocol.draw)

    return sorted({split_column(column)[1] for column in columns}, key=order)


def protocols_by_recipe(columns: Iterable[str]) -> dict[str, list[str]]:
    """``sorted_protocols`` grouped by recipe; a recipe that no column has is left out."""
    groups: dict[str, list[str]] = {}
    for protocol in sorted_protocols(columns):
        groups.setdefault(recipe_of(protocol), []).append(protocol)
    return groups


def column_of(arm: str, protocol: str) -> str:
    """``<arm>@<protocol>``."""
    return f"{arm}@{protocol}"


def split_column(column: str) -> tuple[str, str]:
    """Arm and protocol of a column."""
    arm, _, protocol = column.rpartition("@")
    return arm, protocol


def split_comparison(name: str) -> tuple[str, str]:
    """The two columns of ``<column> vs <column>``."""
    ours, _, theirs = name.partition(" vs ")
    return ours, theirs


def compared_pairs(
    columns: Sequence[str], candidate: str, baselines: Sequence[str], references: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Pairs of columns by comparison name, those with the first baseline first.

    With a baseline, each protocol is compared with itself and, within a recipe, the candidate's lowest percentage of
    the labels with the baseline's highest; with a reference, each protocol with itself.

    Args:
        columns: columns that exist.
        candidate: the arm under test.
        baselines: arms compared in full.
        references: arms compared at equal labels.
    """
    recipes = protocols_by_recipe(columns).values()
    equal = [(protocol, protocol) for protocols in recipes for protocol in protocols]
    full = []
    for protocols in recipes:
        pairs = [(protocol, protocol) for protocol in protocols]
        percents = [protocol for protocol in protocols if parse_protocol(protocol).shots is None]
        if len(percents) > 1:
            pairs.insert(pairs.index((percents[0],) * 2) + 1, (percents[0], percents[-1]))
        full += pairs
    wanted = [
        (column_of(candidate, ours), column_of(arm, theirs))
        for arms, pairs in ((baselines, full), (references, equal))
        for arm in arms
        for ours, theirs in pairs
    ]
    return {f"{ours} vs {theirs}": (ours, theirs) for ours, theirs in wanted if {ours, theirs} <= set(columns)}


def matching_arms(pattern: str, arms: Iterable[str], excluded: Iterable[str]) -> list[str]:
    """Arms that a name or a pattern such as ``expert*`` stands for, without the excluded ones."""
    return [arm for arm in arms if fnmatchcase(arm, pattern) and arm not in set(excluded)]


def relative_reduction(error: float, baseline_error: float) -> float | None:
    """``100 * (1 - error / baseline_error)``: percent of the baseline's error that is gone; ``None`` for 0."""
    return 100 * (1 - error / baseline_error) if baseline_error > 0 else None


def reduce_errors(errors: Iterable[Mapping[str, float]], ours: str, theirs: str) -> Reduction:
    """Compares two columns over the sets that have both.

    Args:
        errors: a mapping a set, from column to error.
        ours: the candidate's column.
        theirs: the column compared with.
    """
    pairs = [(row[ours], row[theirs]) for row in errors if ours in row and theirs in row]
    defined = [value for pair in pairs if (value := relative_reduction(*pair)) is not None]
    means = [mean(values) for values in zip(*pairs, strict=True)]
    return Reduction(
        mean_of_reductions=mean(defined) if defined else None,
        reduction_of_mean=relative_reduction(*means) if means else None,
        num_sets=len(pairs),
        num_wins=sum(error < baseline for error, baseline in pairs),
        num_ties=sum(error == baseline for error, baseline in pairs),
    )


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, JASA 22, 1927, 209-212).

    Args:
        share: observed proportion in [0, 1].
        num: independent trials, at least 1.

    Returns:
        Lower and upper bound in [0, 1].
    """
    squared = _Z_95**2 / num
    centre = (share + squared / 2) / (1 + squared)
    half = _Z_95 / (1 + squared) * math.sqrt(share * (1 - share) / num + squared / (4 * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)
