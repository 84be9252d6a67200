"""The benchmark table: errors of two models at 10 % and 100 % of the labels and their relative reductions.

Pure functions over ``Scores``. The reductions follow GV-B's headline (INTERN, arXiv 2111.08687, section 3), whose exact
formula was not published; both readings that fit it are given: the mean of the per-set reductions, and the
reduction of the mean error.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import Field

from intern_vision.config import Config
from intern_vision.errors import DataError
from intern_vision.task import Family

SCORES_FILE = "scores.json"
FAMILIES: tuple[Family, ...] = get_args(Family)
# A mean over one or two sets says little about a family.
MAX_THIN_SETS = 2


class ProtocolScore(Config):
    """What one adapted model scores on one dataset.

    Attributes:
        error: the family's error, lower is better: 1 - top-1, 1 - mAP, 1 - AP50, 1 - mIoU, or the mean absolute
            relative depth error; a fraction, not percent.
        metrics: every metric computed, by name.
        num_train: labelled training images the adaptation used.
        num_test: images scored.
        method: how the model was adapted, for example ``probe``.
    """

    error: float = Field(ge=0.0, allow_inf_nan=False)
    metrics: dict[str, float]
    num_train: int = Field(ge=0)
    num_test: int = Field(ge=0)
    method: str


class Scores(Config):
    """One model on one dataset; the JSON of ``scores.json``.

    Attributes:
        dataset: name of the dataset.
        model: which arm was adapted, for example ``clip`` or ``intern``.
        family: what is predicted.
        protocols: score by the share of training labels used, in percent: ``10`` and ``100`` in GV-B.
    """

    dataset: str
    model: str
    family: Family
    protocols: dict[str, ProtocolScore]

    def faults(self) -> list[str]:
        """Protocols are percentages."""
        wrong = [name for name in self.protocols if not _is_percentage(name)]
        return [f"protocols: expected percentages in (0, 100] such as 10, got {wrong[0]!r}"] if wrong else []


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
        errors: error in percent by column, for example ``intern@10``.
        reductions: relative error reduction in percent by comparison, for example ``intern@10 vs clip@100``; positive
            where the candidate errs less, ``None`` where the baseline's error is 0.
        num_train: labelled training images by column.
        num_test: images scored by column.
        methods: adaptation method by column.
    """

    dataset: str
    family: Family
    errors: dict[str, float]
    reductions: dict[str, float | None]
    num_train: dict[str, int]
    num_test: dict[str, int]
    methods: dict[str, str]


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
    num_sets: int
    num_wins: int
    num_ties: int


class FamilyRow(Config):
    """The mean of a family.

    Attributes:
        family: the family.
        num_sets: its sets in the table.
        thin: it has too few sets for its mean to say much.
        incomplete: some of its sets lack a column that others have; that column's mean is over fewer sets.
        errors: mean error in percent by column.
        reductions: by comparison, over the sets that have both columns.
    """

    family: Family
    num_sets: int
    thin: bool
    incomplete: bool
    errors: dict[str, float]
    reductions: dict[str, Reduction]


class BenchmarkTable(Config):
    """Two models over a set of datasets.

    Attributes:
        baseline: name of the model compared with.
        candidate: name of the model under test.
        columns: columns present, ``<model>@<protocol>``.
        comparisons: comparisons present, ``<candidate>@<protocol> vs <baseline>@<protocol>``.
        families: a row a family, in the order of ``FAMILIES``.
        rows: a row a dataset, by family and name.
        overall: by comparison over all sets; only its counts and ``mean_of_reductions`` are meaningful
            across families, so ``reduction_of_mean`` is ``None``.
        costs: pre-training cost by model.
    """

    baseline: str
    candidate: str
    columns: tuple[str, ...]
    comparisons: tuple[str, ...]
    families: tuple[FamilyRow, ...]
    rows: tuple[TableRow, ...]
    overall: dict[str, Reduction]
    costs: dict[str, ArmCost]


def relative_reduction(error: float, baseline_error: float) -> float | None:
    """``100 * (1 - error / baseline_error)``: percent of the baseline's error that is gone; ``None`` for 0."""
    return 100 * (1 - error / baseline_error) if baseline_error > 0 else None


def build_table(
    scores: Iterable[Scores], *, baseline: str, candidate: str, costs: Mapping[str, ArmCost] | None = None
) -> BenchmarkTable:
    """Joins the scores of two models; those of other models are left out.

    Args:
        scores: one entry a dataset and model, or several that differ in protocol.
        baseline: name of the model compared with.
        candidate: name of the model under test.
        costs: pre-training cost by model.

    Raises:
        DataError: no score of either model, a score given twice, or a dataset with two families.
    """
    results = _collect(scores, (baseline, candidate))
    if not results:
        raise DataError(f"scores: none is of model {baseline!r} or {candidate!r}; give scores of these or name others")
    present = {column for _, columns in results.values() for column in columns}
    protocols = sorted({column.rpartition("@")[2] for column in present}, key=float)
    # Fewer labels first, the baseline first within a protocol.
    ordered = [_column(model, protocol) for protocol in protocols for model in (baseline, candidate)]
    columns = tuple(column for column in ordered if column in present)
    pairs = _pairs(protocols, present, baseline, candidate)
    rows = sorted(
        (_row(dataset, family, by_column, columns, pairs) for dataset, (family, by_column) in results.items()),
        key=lambda row: (FAMILIES.index(row.family), row.dataset),
    )
    families = [_family_row(family, [row for row in rows if row.family == family], pairs) for family in FAMILIES]
    overall = {
        name: _reduce(rows, *pair).model_copy(update={"reduction_of_mean": None}) for name, pair in pairs.items()
    }
    return BenchmarkTable(
        baseline=baseline,
        candidate=candidate,
        columns=columns,
        comparisons=tuple(pairs),
        families=tuple(row for row in families if row.num_sets),
        rows=tuple(rows),
        overall=overall,
        costs=dict(costs or {}),
    )


def render_text(table: BenchmarkTable, width: int = 132) -> str:
    """The table as plain text without escape sequences, ``width`` characters wide at most; ends with a newline."""
    from io import StringIO

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    grid = Table(box=SIMPLE_HEAD, title="error in %, lower is better", title_justify="left")
    grid.add_column("family / dataset")
    for name in (*table.columns, *table.comparisons):
        grid.add_column(name, justify="right")
    for family in table.families:
        grid.add_row(family_label(family), *_family_cells(table, family))
    grid.add_section()
    for row in table.rows:
        errors = [format_number(row.errors.get(column)) for column in table.columns]
        grid.add_row(row.dataset, *errors, *(format_signed(row.reductions.get(name)) for name in table.comparisons))
    console.print(grid)
    for line in summary_lines(table):
        console.print(line, markup=False)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def summary_lines(table: BenchmarkTable) -> list[str]:
    """What stands below the table: how to read it, wins by comparison and the cost of each arm."""
    lines = ["Reductions are relative, in %; family rows: mean of the sets' reductions / reduction of the mean error."]
    for name, total in table.overall.items():
        ties = f", ties on {total.num_ties}" if total.num_ties else ""
        lines.append(f"{name}: lower error on {total.num_wins} of {total.num_sets} sets{ties}")
    for model, cost in table.costs.items():
        lines.append(f"{model}: {cost.image_passes:,.0f} image passes and {cost.cpu_s:,.0f} CPU-s of pre-training")
    return lines


def family_label(family: FamilyRow) -> str:
    """The family's name with its number of sets and what limits its mean."""
    marks = [f"{family.num_sets} set{'s' if family.num_sets > 1 else ''}"]
    marks += ["thin"] if family.thin else []
    marks += ["incomplete"] if family.incomplete else []
    return f"{family.family} ({', '.join(marks)})"


def format_number(value: float | None) -> str:
    """One decimal, or ``-`` where there is no value."""
    return "-" if value is None else f"{value:.1f}"


def format_signed(value: float | None) -> str:
    """One decimal with its sign, or ``-`` where there is no value."""
    return "-" if value is None else f"{value:+.1f}"


def _family_cells(table: BenchmarkTable, family: FamilyRow) -> list[str]:
    cells = [format_number(family.errors.get(column)) for column in table.columns]
    for name in table.comparisons:
        both = family.reductions.get(name)
        text = (
            "-"
            if both is None
            else f"{format_signed(both.mean_of_reductions)} / {format_signed(both.reduction_of_mean)}"
        )
        cells.append(text)
    return cells


def _column(model: str, protocol: str) -> str:
    return f"{model}@{protocol}"


def _is_percentage(name: str) -> bool:
    try:
        return 0 < float(name) <= 100
    except ValueError:
        return False


def _pairs(protocols: Sequence[str], present: set[str], baseline: str, candidate: str) -> dict[str, tuple[str, str]]:
    """Each protocol against itself, and after the first the candidate's fewest labels against the baseline's most."""
    compared = [(protocol, protocol) for protocol in protocols]
    if len(protocols) > 1:
        compared.insert(1, (protocols[0], protocols[-1]))
    columns = [(_column(candidate, ours), _column(baseline, theirs)) for ours, theirs in compared]
    return {f"{ours} vs {theirs}": (ours, theirs) for ours, theirs in columns if {ours, theirs} <= present}


def _collect(scores: Iterable[Scores], models: Sequence[str]) -> dict[str, tuple[Family, dict[str, ProtocolScore]]]:
    results: dict[str, tuple[Family, dict[str, ProtocolScore]]] = {}
    for item in scores:
        if item.model not in models:
            continue
        family, columns = results.setdefault(item.dataset, (item.family, {}))
        if family != item.family:
            raise DataError(f"scores: dataset {item.dataset} is {family} in one entry and {item.family} in another")
        for protocol, score in item.protocols.items():
            column = _column(item.model, protocol)
            if column in columns:
                raise DataError(f"scores: {column} on {item.dataset} is given twice; keep one of them")
            columns[column] = score
    return {dataset: result for dataset, result in results.items() if result[1]}


def _row(
    dataset: str,
    family: Family,
    by_column: dict[str, ProtocolScore],
    columns: Sequence[str],
    pairs: Mapping[str, tuple[str, str]],
) -> TableRow:
    def each(read: Any) -> dict[str, Any]:
        return {column: read(by_column[column]) for column in columns if column in by_column}

    errors = each(lambda score: 100 * score.error)
    return TableRow(
        dataset=dataset,
        family=family,
        errors=errors,
        reductions={
            name: relative_reduction(errors[ours], errors[theirs])
            for name, (ours, theirs) in pairs.items()
            if ours in errors and theirs in errors
        },
        num_train=each(lambda score: score.num_train),
        num_test=each(lambda score: score.num_test),
        methods=each(lambda score: score.method),
    )


def _family_row(family: Family, rows: Sequence[TableRow], pairs: Mapping[str, tuple[str, str]]) -> FamilyRow:
    columns = list(dict.fromkeys(column for row in rows for column in row.errors))
    reductions = {name: _reduce(rows, *pair) for name, pair in pairs.items()}
    return FamilyRow(
        family=family,
        num_sets=len(rows),
        thin=len(rows) <= MAX_THIN_SETS,
        incomplete=any(len(row.errors) < len(columns) for row in rows),
        errors={column: _mean([row.errors[column] for row in rows if column in row.errors]) for column in columns},
        reductions={name: reduction for name, reduction in reductions.items() if reduction.num_sets},
    )


def _reduce(rows: Sequence[TableRow], ours: str, theirs: str) -> Reduction:
    pairs = [(row.errors[ours], row.errors[theirs]) for row in rows if ours in row.errors and theirs in row.errors]
    defined = [value for pair in pairs if (value := relative_reduction(*pair)) is not None]
    means = [_mean(errors) for errors in zip(*pairs, strict=True)]
    return Reduction(
        mean_of_reductions=_mean(defined) if defined else None,
        reduction_of_mean=relative_reduction(*means) if means else None,
        num_sets=len(pairs),
        num_wins=sum(error < baseline for error, baseline in pairs),
        num_ties=sum(error == baseline for error, baseline in pairs),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
