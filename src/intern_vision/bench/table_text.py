"""The benchmark table as plain text: family means of all arms, reductions, then every set."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from intern_vision.bench.comparisons import (
    FROZEN,
    ZERO_SHOT_RECIPE,
    Reduction,
    column_of,
    parse_protocol,
    protocols_by_recipe,
    sorted_protocols,
    split_column,
    split_comparison,
)
from intern_vision.bench.scores import Gap
from intern_vision.bench.table import PAPER_REDUCTIONS, BenchmarkTable, FamilyRow, TableRow
from intern_vision.task import Family

TEXT_WIDTH = 120
SETS_HEADING = "error in % by set"
"""How the part below the family means begins."""
# What the recipes are called above a table; a combination of methods goes by its own name.
RECIPE_TITLES: Mapping[str, str] = {
    FROZEN: "frozen backbone",
    "fine-tuned": "strong fine-tuning",
    "low-rank": "low-rank adapters",
    "multi-stage": "multi-stage fine-tuning",
    "ensemble": "ensemble of frozen and fine-tuned weights",
    "k-NN": "nearest neighbours on a frozen backbone",
    ZERO_SHOT_RECIPE: "zero-shot, no training image",
}
PAPER_LABEL = "paper: INTERN@10 vs CLIP@10 [1]"
PAPER_NOTE = (
    "[1] announcement of arXiv 2111.08687: average error against CLIP-R50x16 at equal data, on 26 photographic sets "
    "with models and data of another scale; a direction, not a target for these sets."
)
REDUCTION_NOTE = (
    "Reductions are relative, in %: mean of the sets' reductions / reduction of the mean error; + means a lower error."
)
# Blanks between two columns, and the narrowest column of errors.
_GAP_CHARS, _MIN_COLUMN_CHARS = 2, 5


def render_text(table: BenchmarkTable, width: int = TEXT_WIDTH) -> str:
    """The table as plain text without escape sequences, ``width`` characters wide at most; ends with a newline."""
    console = text_console(width)
    has_more_arms = bool(set(arms_of(table)) - {table.baseline, table.candidate})
    for recipe, protocols in protocols_by_recipe(table.columns).items():
        for part in by_kind_of_labels(protocols):
            _print_families(console, table, recipe, part)
    for line in _family_notes(table):
        console.print(line, markup=False)
    console.print()
    if table.comparisons:
        _print_reductions(console, table)
        console.print()
    gaps = {gap.dataset: gap.status for gap in table.gaps if not gap.arm}
    for protocols in protocols_by_recipe(table.columns).values():
        for part in by_kind_of_labels(protocols):
            _print_pair(console, table, part, has_more_arms, gaps, width)
            gaps = {}  # once is enough
    if has_more_arms:
        for protocol in sorted_protocols(table.columns):
            _print_arms(console, table, protocol, width)
    _print_gaps(console, table.gaps)
    for line in summary_lines(table):
        console.print(line, markup=False)
    return console_text(console)


def recipe_title(recipe: str) -> str:
    """What a recipe is called above a table."""
    return RECIPE_TITLES.get(recipe, recipe)


def text_console(width: int) -> Any:
    """A console that keeps what is printed as plain text; see ``console_text``."""
    from rich.console import Console

    return Console(file=StringIO(), width=width, color_system=None, highlight=False, emoji=False)


def console_text(console: Any) -> str:
    """Everything printed, without blanks at line ends; ends with one newline."""
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n") + "\n"


def new_grid(first: str, columns: Iterable[str]) -> Any:
    """An empty table with a text column ``first`` and columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column(first)
    for name in columns:
        grid.add_column(Text(name), justify="right", vertical="bottom")
    return grid


def arms_of(table: BenchmarkTable) -> tuple[str, ...]:
    """The arms in the order of display; tables of earlier versions name them in their columns only."""
    return table.arms or tuple(dict.fromkeys(split_column(column)[0] for column in table.columns))


def main_comparisons(table: BenchmarkTable) -> list[str]:
    """Comparisons of the candidate with the baseline itself."""
    return [name for name in table.comparisons if split_column(split_comparison(name)[1])[0] == table.baseline]


def summary_lines(table: BenchmarkTable) -> list[str]:
    """What stands below the table: wins over the baseline and the cost of each arm."""
    lines = []
    for name in main_comparisons(table):
        total = table.overall[name]
        ties = f", ties on {total.num_ties}" if total.num_ties else ""
        lines.append(f"{name}: lower error on {total.num_wins} of {total.num_sets} sets{ties}")
    for model, cost in table.costs.items():
        lines.append(f"{model}: {cost.image_passes:,.0f} image passes and {cost.cpu_s:,.0f} CPU-s of pre-training")
    return lines


def best_arm_lines(table: BenchmarkTable) -> list[str]:
    """Which arm a ``best <pattern>`` column stands for, by family."""
    return [
        f"{column}: " + ", ".join(f"{arm} ({family})" for family, arm in arms.items()) + ", chosen on these test errors"
        for column, arms in table.best_arms.items()
    ]


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


def format_error(value: float | None, unit: str) -> str:
    """An error in percent with one decimal, or in metres with two and its unit; ``-`` where there is no value."""
    return f"{value:.2f} m" if value is not None and unit == "m" else format_number(value)


def format_draws(row: TableRow, column: str) -> str:
    """For example ``\u00b1 1.3``: standard deviation (n - 1) over few-shot draws; empty where there are not several."""
    draws = row.draws.get(column, ())
    return f"\u00b1 {format_error(statistics.stdev(draws), row.unit)}" if len(draws) > 1 else ""


def format_cell(row: TableRow, column: str) -> str:
    """The error of a column on one set, with its spread over few-shot draws."""
    return f"{format_error(row.errors.get(column), row.unit)} {format_draws(row, column)}".rstrip()


def format_mean(family: FamilyRow, column: str) -> str:
    """The family's mean error of a column; ``*`` where it is over fewer sets than the family has."""
    text = format_error(family.errors.get(column), family.unit)
    return text + "*" * (0 < family.num_scored.get(column, family.num_sets) < family.num_sets and text != "-")


def format_reduction(reduction: Reduction | None) -> str:
    """Both readings, or ``-`` where there is no reduction."""
    if reduction is None:
        return "-"
    return f"{format_signed(reduction.mean_of_reductions)} / {format_signed(reduction.reduction_of_mean)}"


def paper_cells(families: Iterable[Family]) -> list[str]:
    """The paper's reduction of each family, ``-`` where it gives none."""
    return [format_signed(PAPER_REDUCTIONS.get(family)) for family in families]


def escaped(text: str) -> str:
    """Text whose brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def _print_families(console: Any, table: BenchmarkTable, recipe: str, protocols: Sequence[str]) -> None:
    keys = [(family, protocol) for family in table.families for protocol in protocols]
    keys = [key for key in keys if _has(key[0], table, key[1])]
    names = [f"{family.family}\n@{parse_protocol(protocol).labels}" for family, protocol in keys]
    console.print(f"mean error in % by family, lower is better; {recipe_title(recipe)}")
    grid = new_grid("arm", names)
    for arm in arms_of(table):
        cells = [format_mean(family, column_of(arm, protocol)) for family, protocol in keys]
        if set(cells) != {"-"}:
            grid.add_row(arm, *cells)
    console.print(grid)


def _has(family: FamilyRow, table: BenchmarkTable, protocol: str) -> bool:
    return any(column_of(arm, protocol) in family.errors for arm in arms_of(table))


def _family_notes(table: BenchmarkTable) -> list[str]:
    lines = ["families: " + ", ".join(family_label(family) for family in table.families)]
    if any(family.thin for family in table.families):
        lines.append("thin: a mean over one or two sets says little about a family")
    if any(family.incomplete for family in table.families):
        lines.append("*: incomplete, a mean over fewer sets than the family has; compare it with no other mean")
    mixed = [family.family for family in table.families if not family.unit]
    lines += [f"{family}: errors in several units, so there is no mean" for family in mixed]
    return lines


def _print_reductions(console: Any, table: BenchmarkTable) -> None:
    names = [family.family for family in table.families]
    console.print("relative reduction of the error in %")
    grid = new_grid("comparison", [*names, "wins"])
    for name in table.comparisons:
        total = table.overall[name]
        cells = [format_reduction(family.reductions.get(name)) for family in table.families]
        grid.add_row(name, *cells, f"{total.num_wins}/{total.num_sets}")
    grid.add_section()
    grid.add_row(escaped(PAPER_LABEL), *paper_cells(names), "-")
    console.print(grid)
    for line in (REDUCTION_NOTE, PAPER_NOTE, *best_arm_lines(table)):
        console.print(line, markup=False)


def by_kind_of_labels(protocols: Sequence[str]) -> list[list[str]]:
    """Protocols of one recipe as those with a percentage of the labels and those with images a class, if any."""
    few = [protocol for protocol in protocols if parse_protocol(protocol).shots is not None]
    return [part for part in ([protocol for protocol in protocols if protocol not in few], few) if part]


def _print_pair(
    console: Any,
    table: BenchmarkTable,
    protocols: Sequence[str],
    has_more_arms: bool,
    gaps: Mapping[str, str],
    width: int,
) -> None:
    """Baseline and candidate on every set with the reductions between them; one alone is left to ``_print_arms``.

    What has no score is named in the place of its first error.
    """
    wanted = [column_of(arm, protocol) for protocol in protocols for arm in (table.baseline, table.candidate)]
    columns = [column for column in wanted if column in table.columns]
    comparisons = [name for name in main_comparisons(table) if split_comparison(name)[0] in columns]
    if parse_protocol(protocols[0]).shots is not None:
        comparisons = []  # those of the families say enough of so many columns
    if not columns or (has_more_arms and not comparisons):
        return
    console.print(f"{SETS_HEADING}, lower is better")
    rows = [row for row in table.rows if set(columns) & set(row.errors)]
    first_chars = max(len(name) for name in (*gaps, *(row.dataset for row in rows)))
    cells = {column: [format_cell(row, column) for row in rows] for column in columns}
    cells |= {name: [format_signed(row.reductions.get(name)) for row in rows] for name in comparisons}
    for part in _fitting(list(cells), width - first_chars - 2 * _GAP_CHARS, cells):
        grid = new_grid("set", map(_broken, part))
        for number, row in enumerate(rows):
            grid.add_row(row.dataset, *(cells[name][number] for name in part))
        for dataset, status in gaps.items():
            grid.add_row(dataset, status)
        console.print(grid)


def _print_arms(console: Any, table: BenchmarkTable, protocol: str, width: int) -> None:
    """Every arm on every set under one protocol, in as many tables as the width needs."""
    arms = [arm for arm in arms_of(table) if column_of(arm, protocol) in table.columns]
    rows = [row for row in table.rows if any(column_of(arm, protocol) in row.errors for arm in arms)]
    first_chars = max(len(row.dataset) for row in rows)
    cells = {arm: [format_cell(row, column_of(arm, protocol)) for row in rows] for arm in arms}
    for part in _fitting(arms, width - first_chars - 2 * _GAP_CHARS, cells):
        console.print(f"{SETS_HEADING}, all arms @{protocol}")
        grid = new_grid("set", map(_broken, part))
        for number, row in enumerate(rows):
            grid.add_row(row.dataset, *(cells[arm][number] for arm in part))
        console.print(grid)


def _print_gaps(console: Any, gaps: Sequence[Gap]) -> None:
    """What was asked for and has no score, with how to get it or what went wrong."""
    if gaps:
        console.print("not scored")
        for gap in gaps:
            console.print(f"  {gap_name(gap)}: {gap.status}; {gap.text}", markup=False, soft_wrap=True)
        console.print()


def gap_name(gap: Gap) -> str:
    """The dataset, with the arm where the others were scored."""
    return f"{gap.dataset}, {gap.arm}" if gap.arm else gap.dataset


def _fitting(names: Sequence[str], width: int, cells: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Cuts columns into runs that fit into ``width`` characters; a name may break, its cells do not."""
    parts: list[list[str]] = []
    room = 0
    for name in names:
        texts = (*_broken(name).split("\n"), *cells[name])
        chars = _GAP_CHARS + max(_MIN_COLUMN_CHARS, *map(len, texts))
        if not parts or chars > room:
            parts.append([])
            room = width
        parts[-1].append(name)
        room -= chars
    return parts


def _broken(name: str) -> str:
    """The name of an arm, column or comparison over as many lines as it has parts."""
    return name.replace(" vs ", "\nvs ").replace("-", "-\n").replace("@", "\n@")
