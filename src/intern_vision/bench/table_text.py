"""The benchmark table as plain text: family means of all arms, reductions, then every set."""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from intern_vision.bench.comparisons import (
    Recipe,
    Reduction,
    column_of,
    percent_of,
    protocols_by_recipe,
    sorted_protocols,
    split_column,
    split_comparison,
)
from intern_vision.bench.table import PAPER_REDUCTIONS, BenchmarkTable, FamilyRow
from intern_vision.task import Family

TEXT_WIDTH = 120
SETS_HEADING = "error in % by set"
"""How the part below the family means begins."""
# What the recipes are called above a table.
RECIPE_TITLES: Mapping[Recipe, str] = {
    "frozen": "frozen backbone",
    "fine-tuned": "strong fine-tuning",
    "zero-shot": "zero-shot, no training image",
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
        _print_families(console, table, recipe, protocols)
    for line in _family_notes(table):
        console.print(line, markup=False)
    console.print()
    if table.comparisons:
        _print_reductions(console, table)
        console.print()
    for protocols in protocols_by_recipe(table.columns).values():
        _print_pair(console, table, protocols, has_more_arms)
    if has_more_arms:
        for protocol in sorted_protocols(table.columns):
            _print_arms(console, table, protocol, width)
    for line in summary_lines(table):
        console.print(line, markup=False)
    return console_text(console)


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


def format_mean(family: FamilyRow, column: str) -> str:
    """The family's mean error of a column; ``*`` where it is over fewer sets than the family has."""
    text = format_number(family.errors.get(column))
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


def _print_families(console: Any, table: BenchmarkTable, recipe: Recipe, protocols: Sequence[str]) -> None:
    keys = [(family, protocol) for family in table.families for protocol in protocols]
    keys = [key for key in keys if _has(key[0], table, key[1])]
    names = [f"{family.family}\n@{percent_of(protocol):g}" for family, protocol in keys]
    console.print(f"mean error in % by family, lower is better; {RECIPE_TITLES[recipe]}")
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


def _print_pair(console: Any, table: BenchmarkTable, protocols: Sequence[str], has_more_arms: bool) -> None:
    """Baseline and candidate on every set with the reductions between them; one alone is left to ``_print_arms``."""
    wanted = [column_of(arm, protocol) for protocol in protocols for arm in (table.baseline, table.candidate)]
    columns = [column for column in wanted if column in table.columns]
    comparisons = [name for name in main_comparisons(table) if split_comparison(name)[0] in columns]
    if not columns or (has_more_arms and not comparisons):
        return
    console.print(f"{SETS_HEADING}, lower is better")
    grid = new_grid("set", [*columns, *comparisons])
    for row in table.rows:
        if not set(columns) & set(row.errors):
            continue
        errors = [format_number(row.errors.get(column)) for column in columns]
        grid.add_row(row.dataset, *errors, *(format_signed(row.reductions.get(name)) for name in comparisons))
    console.print(grid)


def _print_arms(console: Any, table: BenchmarkTable, protocol: str, width: int) -> None:
    """Every arm on every set under one protocol, in as many tables as the width needs."""
    arms = [arm for arm in arms_of(table) if column_of(arm, protocol) in table.columns]
    rows = [row for row in table.rows if any(column_of(arm, protocol) in row.errors for arm in arms)]
    first_chars = max(len(row.dataset) for row in rows)
    for part in _fitting(arms, width - first_chars - 2 * _GAP_CHARS):
        names = [_broken(arm) for arm in part]
        console.print(f"{SETS_HEADING}, all arms @{protocol}")
        grid = new_grid("set", names)
        for row in rows:
            grid.add_row(row.dataset, *(format_number(row.errors.get(column_of(arm, protocol))) for arm in part))
        console.print(grid)


def _fitting(arms: Sequence[str], width: int) -> list[list[str]]:
    """Cuts arms into runs whose columns fit into ``width`` characters; a name may break after its hyphens."""
    parts: list[list[str]] = []
    room = 0
    for arm in arms:
        chars = _GAP_CHARS + max(_MIN_COLUMN_CHARS, *map(len, _broken(arm).split("\n")))
        if not parts or chars > room:
            parts.append([])
            room = width
        parts[-1].append(arm)
        room -= chars
    return parts


def _broken(arm: str) -> str:
    """An arm's name over as many lines as it has parts."""
    return arm.replace("-", "-\n")
