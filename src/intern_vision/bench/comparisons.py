"""What the benchmark compares with what: protocols, columns, pairs of columns and relative reductions of the error.

A *protocol* says how a model was adapted: ``10`` and ``100`` are percent of the training labels with a frozen
backbone, ``10+ft`` and ``100+ft`` the same labels with strong fine-tuning, ``0`` is zero-shot. A *column* is
``<arm>@<protocol>``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from intern_vision.config import Config

Recipe = Literal["frozen", "fine-tuned", "zero-shot"]
RECIPES: tuple[Recipe, ...] = ("frozen", "fine-tuned", "zero-shot")
FINE_TUNED_SUFFIX = "+ft"
ZERO_SHOT = "0"
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


def is_protocol(name: str) -> bool:
    """Whether ``name`` is ``0``, or a percentage in (0, 100] with or without ``+ft``."""
    try:
        return name == ZERO_SHOT or 0 < percent_of(name) <= 100
    except ValueError:
        return False


def percent_of(protocol: str) -> float:
    """Percent of the training labels that a protocol uses; ValueError where it names none."""
    return float(protocol.removesuffix(FINE_TUNED_SUFFIX))


def recipe_of(protocol: str) -> Recipe:
    """How a protocol adapts."""
    if protocol == ZERO_SHOT:
        return "zero-shot"
    return "fine-tuned" if protocol.endswith(FINE_TUNED_SUFFIX) else "frozen"


def sorted_protocols(columns: Iterable[str]) -> list[str]:
    """The protocols of columns by recipe in the order of ``RECIPES``, fewer labels first."""
    protocols = {split_column(column)[1] for column in columns}
    return sorted(protocols, key=lambda protocol: (RECIPES.index(recipe_of(protocol)), percent_of(protocol)))


def protocols_by_recipe(columns: Iterable[str]) -> dict[Recipe, list[str]]:
    """``sorted_protocols`` grouped by recipe; a recipe that no column has is left out."""
    groups: dict[Recipe, list[str]] = {}
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

    With a baseline, each protocol is compared with itself and, within a recipe, the candidate's fewest labels with the
    baseline's most; with a reference, each protocol with itself.

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
        if len(protocols) > 1:
            pairs.insert(1, (protocols[0], protocols[-1]))
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
