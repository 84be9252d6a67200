"""The benchmark table: errors of every arm under every protocol, and the candidate's relative reductions.

Pure functions over ``Scores``. The reductions follow the headline of INTERN (arXiv 2111.08687; its announcement of 17
November 2021), whose exact formula was not published; both readings that fit it are given: the mean of the per-set
reductions, and the reduction of the mean error.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import Field

from intern_vision.bench.comparisons import (
    Reduction,
    column_of,
    compared_pairs,
    matching_arms,
    mean,
    parse_protocol,
    reduce_errors,
    relative_reduction,
    sorted_protocols,
    split_column,
    wilson_interval,
)
from intern_vision.bench.scores import PROPORTION_FAMILIES, PROPORTION_METRICS, Gap, ProtocolScore, Scores, unit_of
from intern_vision.config import Config
from intern_vision.errors import DataError
from intern_vision.task import Family

FAMILIES: tuple[Family, ...] = get_args(Family)
# A mean over one or two sets says little about a family.
MAX_THIN_SETS = 2
# Average relative error reduction of INTERN against CLIP-R50x16 in percent, both adapted with 10 % of the labels of
# GV-B's 26 photographic datasets (announcement of arXiv 2111.08687, 17 November 2021): other data, another scale.
PAPER_REDUCTIONS: Mapping[Family, float] = {"classify": 40.2, "detect": 47.3, "segment": 34.8, "depth": 9.4}


class ArmCost(Config):
    """What the pre-training of one arm took.

    Attributes:
        image_passes: forward-and-backward passes of one image.
        cpu_s: processor seconds.
        wall_s: elapsed seconds summed over stages, whether or not these ran side by side.
    """

    image_passes: float = Field(ge=0.0)
    cpu_s: float = Field(ge=0.0)
    wall_s: float = Field(default=0.0, ge=0.0)


class TableRow(Config):
    """One dataset.

    Attributes:
        dataset: its name.
        family: its family.
        errors: error in the row's unit by column, for example ``intern@10``; a mean where there are several draws.
        reductions: relative error reduction in percent by comparison, for example ``intern@10 vs clip@100``; positive
            where the candidate errs less, ``None`` where the other's error is 0.
        num_train: labelled training images by column.
        num_test: images scored by column.
        methods: adaptation method by column.
        intervals: 95 % interval of the error in the row's unit by column, as the scorer gave it or (Wilson) where the
            error is a share of images: chance in which test images were drawn, and nothing else.
        metric: name of the metric; empty for the family's default.
        draws: errors of the single draws by column, where the error is their mean.
        runs: address of the tracked run by arm, where there was a server.
    """

    dataset: str
    family: Family
    errors: dict[str, float]
    reductions: dict[str, float | None]
    num_train: dict[str, int]
    num_test: dict[str, int]
    methods: dict[str, str]
    intervals: dict[str, tuple[float, float]] = {}
    metric: str = ""
    draws: dict[str, tuple[float, ...]] = {}
    runs: dict[str, str] = {}

    @property
    def unit(self) -> str:
        """Unit of the errors, ``%`` or ``m``."""
        return unit_of(self.metric)


class FamilyRow(Config):
    """The mean of a family.

    Attributes:
        family: the family.
        num_sets: its sets in the table.
        thin: it has too few sets for its mean to say much.
        incomplete: some of its sets lack a column that others have; that column's mean is over fewer sets.
        errors: mean error in ``unit`` by column; empty where its sets have several units, of which there is no mean.
        reductions: by comparison, over the sets that have both columns.
        num_scored: sets that have the column, by column.
        unit: of the errors, ``%`` or ``m``; empty where its sets have several.
    """

    family: Family
    num_sets: int
    thin: bool
    incomplete: bool
    errors: dict[str, float]
    reductions: dict[str, Reduction]
    num_scored: dict[str, int] = {}
    unit: str = "%"


class BenchmarkTable(Config):
    """Every arm over a set of datasets; the JSON of ``table.json``.

    Attributes:
        baseline: name of the model compared with.
        candidate: name of the model under test.
        columns: columns present, ``<model>@<protocol>``.
        comparisons: comparisons present, ``<candidate>@<protocol> vs <other>@<protocol>``, the baseline's first.
        families: a row a family, in the order of ``FAMILIES``.
        rows: a row a dataset, by family and name.
        overall: by comparison over all sets; only its counts and ``mean_of_reductions`` are meaningful
            across families, so ``reduction_of_mean`` is ``None``.
        costs: pre-training cost by model.
        arms: models in the order of display.
        best_arms: for a column ``best <pattern>@<protocol>`` of a comparison, the model it stands for by family.
        gaps: datasets and arms that were asked for and have no score.
    """

    baseline: str
    candidate: str
    columns: tuple[str, ...]
    comparisons: tuple[str, ...]
    families: tuple[FamilyRow, ...]
    rows: tuple[TableRow, ...]
    overall: dict[str, Reduction]
    costs: dict[str, ArmCost]
    arms: tuple[str, ...] = ()
    best_arms: dict[str, dict[Family, str]] = {}
    gaps: tuple[Gap, ...] = ()


@dataclass(slots=True)
class _Set:
    """Scores on one dataset by column."""

    dataset: str
    family: Family
    metric: str
    scores: dict[str, ProtocolScore]
    draws: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What turns a score's error into the row's unit."""
        return 1.0 if unit_of(self.metric) == "m" else 100.0

    @property
    def errors(self) -> dict[str, float]:
        """Errors in the row's unit by column."""
        return {column: self.scale * score.error for column, score in self.scores.items()}


def build_table(
    scores: Iterable[Scores],
    *,
    baseline: str,
    candidate: str,
    costs: Mapping[str, ArmCost] | None = None,
    arms: Sequence[str] = (),
    references: Sequence[str] = (),
    cost_baseline: str = "",
    gaps: Sequence[Gap] = (),
    runs: Mapping[tuple[str, str], str] | None = None,
) -> BenchmarkTable:
    """Joins the scores of any number of models.

    Args:
        scores: one entry a dataset and model, or several that differ in protocol.
        baseline: name of the model compared with.
        candidate: name of the model under test.
        costs: pre-training cost by model.
        arms: order of display; models not named follow as found. Without it the baseline and the candidate come first.
        references: further models that the candidate is compared with at equal labels. A pattern such as ``expert*``
            stands for the one of its models with the lowest mean error in a family, which favours the reference:
            that choice is made on the test error.
        cost_baseline: the baseline trained at the candidate's processor seconds; compared as the baseline is.
        gaps: what was asked for and has no score.
        runs: address of the tracked run by dataset and model.

    Raises:
        DataError: no score of either model, a score given twice, or a dataset with two families or metrics.
    """
    scores = list(scores)
    if not any(item.model in (baseline, candidate) and item.protocols for item in scores):
        raise DataError(f"scores: none is of model {baseline!r} or {candidate!r}; give scores of these or name others")
    sets = _collect(scores)
    found = dict.fromkeys(item.model for item in scores if item.protocols)
    order = [arm for arm in dict.fromkeys((*(arms or (baseline, candidate)), *found)) if arm in found]
    present = {column for each in sets for column in each.scores}
    protocols = sorted_protocols(present)
    columns = [column_of(arm, protocol) for protocol in protocols for arm in order]
    columns = [column for column in columns if column in present]
    compared, best_arms = _references(sets, references, order, (baseline, candidate, cost_baseline), protocols)
    pairs = compared_pairs((*columns, *best_arms), candidate, (baseline, cost_baseline), compared)
    rows = [_row(each, columns, pairs, runs or {}) for each in sets]
    by_family = {family: [each for each in sets if each.family == family] for family in FAMILIES}
    families = [_family_row(family, members, columns, pairs) for family, members in by_family.items() if members]
    errors = [each.errors for each in sets]
    overall = {name: reduce_errors(errors, *pair) for name, pair in pairs.items()}
    return BenchmarkTable(
        baseline=baseline,
        candidate=candidate,
        columns=tuple(columns),
        comparisons=tuple(pairs),
        families=tuple(families),
        rows=tuple(rows),
        overall={name: each.model_copy(update={"reduction_of_mean": None}) for name, each in overall.items()},
        costs=dict(costs or {}),
        arms=tuple(order),
        best_arms=best_arms,
        gaps=tuple(gaps),
    )


def _collect(scores: Iterable[Scores]) -> list[_Set]:
    """Sets by family and name."""
    sets: dict[str, _Set] = {}
    for item in scores:
        found = sets.setdefault(item.dataset, _Set(item.dataset, item.family, item.metric, {}))
        for ours, theirs in ((found.family, item.family), (found.metric, item.metric)):
            if ours != theirs:
                raise DataError(f"scores: dataset {item.dataset} is {ours} in one entry and {theirs} in another")
        for protocol, score in item.protocols.items():
            column = column_of(item.model, protocol)
            if column in found.scores:
                raise DataError(f"scores: {column} on {item.dataset} is given twice; keep one of them")
            found.scores[column] = score
    scored = [each for each in sets.values() if each.scores]
    for each in scored:
        _join_draws(each)
    return sorted(scored, key=lambda each: (FAMILIES.index(each.family), each.dataset))


def _join_draws(each: _Set) -> None:
    """Replaces the few-shot draws of a column by their mean."""
    groups: dict[str, list[str]] = {}
    for column in each.scores:
        arm, name = split_column(column)
        protocol = parse_protocol(name)
        if protocol.draw is not None:
            groups.setdefault(column_of(arm, protocol.mean_name), []).append(column)
    for joined, columns in groups.items():
        if joined in each.scores:
            raise DataError(f"scores: {joined} on {each.dataset} is given as a mean and as draws; keep one of them")
        scores = [each.scores.pop(column) for column in sorted(columns)]
        each.draws[joined] = tuple(each.scale * score.error for score in scores)
        names = [name for name in scores[0].metrics if all(name in score.metrics for score in scores)]
        each.scores[joined] = scores[0].model_copy(
            update={
                "error": mean([score.error for score in scores]),
                "metrics": {name: mean([score.metrics[name] for score in scores]) for name in names},
                "num_train": round(mean([score.num_train for score in scores])),
                "interval": None,
            }
        )


def _references(
    sets: Sequence[_Set],
    references: Sequence[str],
    arms: Sequence[str],
    excluded: Sequence[str],
    protocols: Sequence[str],
) -> tuple[list[str], dict[str, dict[Family, str]]]:
    """Arms to compare with; where a pattern has several, the scores of the best are added to ``sets`` as a column."""
    names: list[str] = []
    best_arms: dict[str, dict[Family, str]] = {}
    for pattern in references:
        matches = matching_arms(pattern, arms, excluded)
        if len(matches) < 2:
            names += matches
            continue
        names.append(f"best {pattern}")
        for protocol in protocols:
            column = column_of(names[-1], protocol)
            for family in dict.fromkeys(each.family for each in sets):
                members = [each for each in sets if each.family == family]
                best = _best_arm(members, matches, protocol)
                if best is None:
                    continue
                best_arms.setdefault(column, {})[family] = best
                for each in members:
                    if (score := each.scores.get(column_of(best, protocol))) is not None:
                        each.scores[column] = score
    return list(dict.fromkeys(names)), best_arms


def _best_arm(members: Sequence[_Set], arms: Sequence[str], protocol: str) -> str | None:
    """The arm with the lowest mean error among those scored on the most sets; ``None`` where none is scored."""
    ranked = []
    for arm in arms:
        errors = [each.errors[column] for each in members if (column := column_of(arm, protocol)) in each.scores]
        if errors:
            ranked.append((-len(errors), mean(errors), arm))
    return min(ranked)[2] if ranked else None


def _row(
    each: _Set, columns: Sequence[str], pairs: Mapping[str, tuple[str, str]], runs: Mapping[tuple[str, str], str]
) -> TableRow:
    def by_column(read: Any) -> dict[str, Any]:
        return {column: read(each.scores[column]) for column in columns if column in each.scores}

    all_errors = each.errors
    intervals = {column: _interval(each, column) for column in columns if column in each.scores}
    arms = dict.fromkeys(split_column(column)[0] for column in columns if column in each.scores)
    return TableRow(
        dataset=each.dataset,
        family=each.family,
        errors=by_column(lambda score: each.scale * score.error),
        reductions={
            name: relative_reduction(all_errors[ours], all_errors[theirs])
            for name, (ours, theirs) in pairs.items()
            if ours in all_errors and theirs in all_errors
        },
        num_train=by_column(lambda score: score.num_train),
        num_test=by_column(lambda score: score.num_test),
        methods=by_column(lambda score: score.method),
        intervals={column: interval for column, interval in intervals.items() if interval},
        metric=each.metric,
        draws={column: each.draws[column] for column in columns if column in each.draws},
        runs={arm: runs[each.dataset, arm] for arm in arms if runs.get((each.dataset, arm))},
    )


def _interval(each: _Set, column: str) -> tuple[float, float] | None:
    """The scorer's interval, or Wilson's where the error of one training is a share of images."""
    score = each.scores[column]
    bounds = score.interval
    is_share = each.family in PROPORTION_FAMILIES and each.metric in PROPORTION_METRICS and column not in each.draws
    if bounds is None and is_share and score.num_test and score.error <= 1:
        bounds = wilson_interval(score.error, score.num_test)
    return None if bounds is None else (each.scale * bounds[0], each.scale * bounds[1])


def _family_row(
    family: Family, sets: Sequence[_Set], columns: Sequence[str], pairs: Mapping[str, tuple[str, str]]
) -> FamilyRow:
    errors = [each.errors for each in sets]
    units = {unit_of(each.metric) for each in sets}
    unit = units.pop() if len(units) == 1 else ""
    reductions = {name: reduce_errors(errors, *pair) for name, pair in pairs.items()}
    if not unit:
        reductions = {n: each.model_copy(update={"reduction_of_mean": None}) for n, each in reductions.items()}
    by_column = {column: [row[column] for row in errors if column in row] for column in columns}
    scored = {column: values for column, values in by_column.items() if values}
    return FamilyRow(
        family=family,
        num_sets=len(sets),
        thin=len(sets) <= MAX_THIN_SETS,
        incomplete=any(len(values) < len(sets) for values in scored.values()),
        errors={column: mean(values) for column, values in scored.items()} if unit else {},
        reductions={name: reduction for name, reduction in reductions.items() if reduction.num_sets},
        num_scored={column: len(values) for column, values in scored.items()},
        unit=unit,
    )
