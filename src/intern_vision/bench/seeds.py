"""Several runs of one benchmark, for example with different seeds: mean, standard deviation and every value.

A reduction is computed within each run first, from arms of the same run, and only then averaged: what the runs share
(an easy or a hard draw of labels) cancels. Standard deviations are those of a sample (divided by n - 1); with few runs
they are themselves rough, so every value is shown.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intern_vision.bench.charts import DotRow, Mark, Panel, dot_chart
from intern_vision.bench.comparisons import (
    column_of,
    parse_protocol,
    protocols_by_recipe,
    sorted_protocols,
    split_column,
    split_comparison,
)
from intern_vision.bench.table import BenchmarkTable, FamilyRow
from intern_vision.bench.table_text import (
    PAPER_LABEL,
    PAPER_NOTE,
    TEXT_WIDTH,
    arms_of,
    console_text,
    escaped,
    format_error,
    format_signed,
    new_grid,
    paper_cells,
    recipe_title,
    text_console,
)
from intern_vision.config import Config
from intern_vision.errors import DataError
from intern_vision.task import Family

RUNS_FOLDER = "runs"
TABLE_PATHS = ("report/table.json", "table.json")
TEMPLATE_NAME = "seeds.html.j2"
_READINGS = {
    "mean_of_reductions": "mean of the sets' reductions",
    "reduction_of_mean": "reduction of the mean error",
}


class Spread(Config):
    """One figure over runs.

    Attributes:
        values: one a run, ``None`` where the run has none.
        mean: over the values there are; ``None`` without any.
        std: standard deviation of the sample; ``None`` below two values.
        unit: of all of them, ``m`` where an error is in metres and ``sets`` where sets are counted.
    """

    values: tuple[float | None, ...]
    mean: float | None
    std: float | None
    unit: str = "%"

    @property
    def known(self) -> list[float]:
        """The values there are."""
        return [value for value in self.values if value is not None]


class SeedFamily(Config):
    """A family over runs.

    Attributes:
        family: the family.
        num_sets: its sets, the same in every run.
        thin: too few sets for its mean to say much.
        errors: mean error in percent by column.
        mean_of_reductions: relative reduction in percent by comparison, mean of the sets' reductions.
        reduction_of_mean: the same, of the mean error.
    """

    family: Family
    num_sets: int
    thin: bool
    errors: dict[str, Spread]
    mean_of_reductions: dict[str, Spread]
    reduction_of_mean: dict[str, Spread]


class SeedTable(Config):
    """Several runs of one benchmark.

    Attributes:
        runs: names of the runs, in the order of all values.
        baseline: name of the model compared with.
        candidate: name of the model under test.
        arms: models in the order of display.
        columns: columns that at least one run has.
        comparisons: comparisons that at least one run has.
        families: a row a family.
        wins: sets on which the candidate errs less, by comparison.
    """

    runs: tuple[str, ...]
    baseline: str
    candidate: str
    arms: tuple[str, ...]
    columns: tuple[str, ...]
    comparisons: tuple[str, ...]
    families: tuple[SeedFamily, ...]
    wins: dict[str, Spread]


def spread_of(values: Sequence[float | None], unit: str = "%") -> Spread:
    """Mean and standard deviation of the values that are there."""
    known = [value for value in values if value is not None]
    return Spread(
        values=tuple(values),
        mean=statistics.fmean(known) if known else None,
        std=statistics.stdev(known) if len(known) > 1 else None,
        unit=unit,
    )


def read_tables(runs: Sequence[str], state_dir: Path) -> dict[str, BenchmarkTable]:
    """The tables of runs by name.

    Args:
        runs: names of runs below the state folder, or paths of a run's folder, a report's folder or a ``table.json``.
        state_dir: folder for everything local.

    Raises:
        DataError: a run has no table, or is named twice.
    """
    tables: dict[str, BenchmarkTable] = {}
    for run in runs:
        path = _table_path(run, state_dir)
        folder = path.parent.parent if path.parent.name == "report" else path.parent
        name = run if folder.name in tables else folder.name
        if name in tables:
            raise DataError(f"run {run!r} is given twice; name each run once")
        tables[name] = BenchmarkTable.from_json(path.read_text(), at=str(path))
    return tables


def combine(tables: Mapping[str, BenchmarkTable]) -> SeedTable:
    """Joins the tables of runs that differ in their seeds.

    Raises:
        DataError: no run, or two runs of different arms under comparison, sets or numbers of test images.
    """
    if not tables:
        raise DataError("runs: expected at least 1, got none")
    for name in tables:
        _check_alike(next(iter(tables)), name, tables)
    found = list(tables.values())
    arms = tuple(dict.fromkeys(arm for table in found for arm in arms_of(table)))
    present = {column for table in found for column in table.columns}
    columns = [column_of(arm, protocol) for protocol in sorted_protocols(present) for arm in arms]
    comparisons = tuple(dict.fromkeys(name for table in found for name in table.comparisons))
    columns = [column for column in columns if column in present]
    return SeedTable(
        runs=tuple(tables),
        baseline=found[0].baseline,
        candidate=found[0].candidate,
        arms=arms,
        columns=tuple(columns),
        comparisons=comparisons,
        families=tuple(_family(row.family, found, columns, comparisons) for row in found[0].families),
        wins={
            name: spread_of(
                [table.overall[name].num_wins if name in table.overall else None for table in found], "sets"
            )
            for name in comparisons
        },
    )


def render_text(table: SeedTable, width: int = TEXT_WIDTH) -> str:
    """Means with standard deviations, then the values of every run; plain text that ends with a newline."""
    console = text_console(width)
    console.print(f"{_num_runs(table)}: {', '.join(table.runs)}", markup=False)
    if len(table.runs) > 1:
        console.print("mean \u00b1 standard deviation of the sample (n - 1) over runs", markup=False)
    console.print()
    for part in _mean_tables(table):
        console.print(f"mean error in %, lower is better; {part['title']}")
        names = [f"{family.family}\n@{parse_protocol(protocol).labels}" for family, protocol in part["keys"]]
        grid = new_grid("arm", names)
        for arm, spreads in part["rows"]:
            grid.add_row(arm, *map(format_spread, spreads))
        console.print(grid)
    for reading, title in _READINGS.items() if table.comparisons else ():
        console.print(f"relative reduction of the error in %, {title}; in brackets the runs with a lower error")
        grid = new_grid("comparison", [*(row.family for row in table.families), "wins"])
        for name in table.comparisons:
            cells = [format_gain(getattr(row, reading).get(name)) for row in table.families]
            grid.add_row(name, *cells, format_spread(table.wins[name]))
        grid.add_section()
        grid.add_row(escaped(PAPER_LABEL), *paper_cells(row.family for row in table.families), "-")
        console.print(grid)
    if table.comparisons:
        console.print(PAPER_NOTE, markup=False)
        console.print()
    _print_values(console, table)
    thin = [f"{row.family} ({row.num_sets})" for row in table.families if row.thin]
    if thin:
        console.print(f"thin, a mean over one or two sets: {', '.join(thin)}", markup=False)
    return console_text(console)


def render_page(table: SeedTable) -> str:
    """One self-contained HTML page."""
    from intern_vision.bench.report import page_environment
    from intern_vision.bench.table_view import sign_class

    return (
        page_environment()
        .get_template(TEMPLATE_NAME)
        .render(
            table=table,
            num_runs=_num_runs(table),
            means=_mean_tables(table),
            readings=_READINGS,
            charts=_charts(table),
            paper=paper_cells(row.family for row in table.families),
            paper_note=PAPER_NOTE,
            family_label=_label,
            sign_class=sign_class,
            format_spread=format_spread,
            format_gain=format_gain,
            format_values=format_values,
        )
    )


def format_spread(spread: Spread | None) -> str:
    """For example ``44.6 \u00b1 1.3``; without the deviation where there is one value, ``-`` where there is none."""
    if spread is None or spread.mean is None:
        return "-"
    deviation = "" if spread.std is None else f" \u00b1 {format_error(spread.std, spread.unit)}"
    return format_error(spread.mean, spread.unit) + deviation


def format_gain(spread: Spread | None) -> str:
    """For example ``+21.8 \u00b1 1.3 (3/3)``: in brackets the runs in which the candidate errs less."""
    if spread is None or spread.mean is None:
        return "-"
    deviation = "" if spread.std is None else f" \u00b1 {spread.std:.1f}"
    num_better = sum(value > 0 for value in spread.known)
    return f"{format_signed(spread.mean)}{deviation} ({num_better}/{len(spread.known)})"


def format_values(spread: Spread | None) -> str:
    """Every run's value, ``-`` where a run has none."""
    return "-" if spread is None else " ".join(format_error(value, spread.unit) for value in spread.values)


def _table_path(run: str, state_dir: Path) -> Path:
    given = Path(run)
    candidates = [given] if given.is_file() else []
    candidates += [folder / name for folder in (given, state_dir / RUNS_FOLDER / run) for name in TABLE_PATHS]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted(path.parent.parent.name for path in (state_dir / RUNS_FOLDER).glob(f"*/{TABLE_PATHS[0]}"))
    place = state_dir / RUNS_FOLDER
    raise DataError(
        f"run {run!r}: no table.json there nor in {place / run}; runs in {place}: {', '.join(known) or 'none'}"
    )


def _check_alike(first: str, name: str, tables: Mapping[str, BenchmarkTable]) -> None:
    def sides(table: BenchmarkTable) -> tuple[str, str]:
        return table.baseline, table.candidate

    def sizes(table: BenchmarkTable) -> dict[str, list[int]]:
        return {row.dataset: sorted(set(row.num_test.values())) for row in table.rows}

    ours, theirs = tables[name], tables[first]
    if sides(ours) != sides(theirs):
        raise DataError(f"run {name} compares {sides(ours)}, run {first} {sides(theirs)}; give runs of one benchmark")
    differing = sorted(
        dataset
        for dataset in sizes(ours).keys() | sizes(theirs).keys()
        if sizes(ours).get(dataset) != sizes(theirs).get(dataset)
    )
    if differing:
        raise DataError(
            f"runs {name} and {first} differ in set {differing[0]} (missing, or another number of test images); "
            "give runs that differ in their seeds alone"
        )


def _family(
    family: Family, tables: Sequence[BenchmarkTable], columns: Sequence[str], comparisons: Sequence[str]
) -> SeedFamily:
    rows = [next(row for row in table.families if row.family == family) for table in tables]

    def spreads(names: Sequence[str], read: Callable[[FamilyRow, str], float | None]) -> dict[str, Spread]:
        found = {name: spread_of([read(row, name) for row in rows]) for name in names}
        return {name: spread for name, spread in found.items() if spread.known}

    def reading(field: str) -> dict[str, Spread]:
        return spreads(comparisons, lambda row, name: getattr(row.reductions.get(name), field, None))

    return SeedFamily(
        family=family,
        num_sets=rows[0].num_sets,
        thin=rows[0].thin,
        errors={
            name: spread.model_copy(update={"unit": rows[0].unit})
            for name, spread in spreads(columns, lambda row, name: row.errors.get(name)).items()
        },
        mean_of_reductions=reading("mean_of_reductions"),
        reduction_of_mean=reading("reduction_of_mean"),
    )


def _print_values(console: Any, table: SeedTable) -> None:
    """What every run measured."""
    families = [row.family for row in table.families]
    for protocol in sorted_protocols(table.columns):
        console.print(f"mean error in % of every run @{protocol}, lower is better")
        grid = new_grid("arm", families)
        for arm in table.arms:
            column = column_of(arm, protocol)
            if column in table.columns:
                grid.add_row(arm, *(format_values(row.errors.get(column)) for row in table.families))
        console.print(grid)
    if table.comparisons:
        console.print("mean of the sets' reductions in every run, in %")
        grid = new_grid("comparison", families)
        for name in table.comparisons:
            grid.add_row(name, *(format_values(row.mean_of_reductions.get(name)) for row in table.families))
        console.print(grid)


def _mean_tables(table: SeedTable) -> list[dict[str, Any]]:
    """A table a recipe: families and protocols as columns, arms as rows."""
    tables = []
    for recipe, protocols in protocols_by_recipe(table.columns).items():
        keys = [
            (family, protocol)
            for family in table.families
            for protocol in protocols
            if any(column_of(arm, protocol) in family.errors for arm in table.arms)
        ]
        rows = []
        for arm in table.arms:
            spreads = [family.errors.get(column_of(arm, protocol)) for family, protocol in keys]
            if any(spreads):
                rows.append((arm, spreads))
        tables.append({"title": recipe_title(recipe), "keys": keys, "rows": rows})
    return tables


def _charts(table: SeedTable) -> list[Panel]:
    """A chart a comparison with the baseline: every run's reduction (hollow) and their mean (filled) by family."""
    charts = []
    for name in table.comparisons:
        if split_column(split_comparison(name)[1])[0] != table.baseline:
            continue
        rows = []
        for family in table.families:
            spread = family.mean_of_reductions.get(name)
            if spread is not None and spread.mean is not None:
                runs = zip(table.runs, spread.values, strict=True)
                marks = [
                    Mark(value=value, colour="muted", is_hollow=True, title=f"{run}: {value:+.1f} %")
                    for run, value in runs
                    if value is not None
                ]
                title = f"mean {spread.mean:+.1f} %"
                marks.append(Mark(value=spread.mean, colour="ours" if spread.mean > 0 else "theirs", title=title))
                rows.append(DotRow(label=family.family, marks=marks, is_joined=True))
        charts.append(Panel(title=name, svg=dot_chart(rows, f"Relative reduction in %, {name}, by family and run")))
    return [chart for chart in charts if chart.svg]


def _num_runs(table: SeedTable) -> str:
    return f"{len(table.runs)} run{'s' if len(table.runs) > 1 else ''}"


def _label(family: SeedFamily) -> str:
    sets = f"{family.num_sets} set{'s' if family.num_sets > 1 else ''}"
    return f"{family.family} ({sets}{', thin' if family.thin else ''})"
