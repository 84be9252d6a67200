"""The benchmark table as rows and cells for the report's page; plain values that its template prints."""

from typing import Any

from intern_vision.bench.comparisons import (
    column_of,
    labels_text,
    parse_protocol,
    protocols_by_recipe,
    sorted_protocols,
    split_column,
    split_comparison,
)
from intern_vision.bench.table import ArmCost, BenchmarkTable, FamilyRow, TableRow
from intern_vision.bench.table_text import (
    arms_of,
    by_kind_of_labels,
    format_draws,
    format_error,
    format_mean,
    format_reduction,
    main_comparisons,
    paper_cells,
    recipe_title,
)


def tiles(table: BenchmarkTable) -> list[dict[str, Any]]:
    """The first comparison by family, large at the top of the page."""
    names = main_comparisons(table)
    if not names:
        return []
    ours, theirs = split_comparison(names[0])
    return [
        {
            "family": family,
            "value": family.reductions[names[0]].mean_of_reductions,
            "ours": format_mean(family, ours),
            "theirs": format_mean(family, theirs),
            "num_sets": family.reductions[names[0]].num_sets,
            "wins": f"{family.reductions[names[0]].num_wins} of {family.reductions[names[0]].num_sets}",
        }
        for family in table.families
        if names[0] in family.reductions
    ]


def mean_tables(table: BenchmarkTable) -> list[dict[str, Any]]:
    """A table a recipe: mean error of every arm by family and share of the labels, the lowest marked."""
    tables = []
    for recipe, protocols in protocols_by_recipe(table.columns).items():
        heads = []
        for family in table.families:
            known = [p for p in protocols if any(column_of(arm, p) in family.errors for arm in arms_of(table))]
            if known:
                heads.append((family, known))
        rows = []
        for arm in arms_of(table):
            cells = [
                {
                    "text": format_mean(family, column_of(arm, protocol)),
                    "best": _is_lowest(family, arm, protocol, table),
                }
                for family, known in heads
                for protocol in known
            ]
            if any(cell["text"] != "-" for cell in cells):
                rows.append({"arm": arm, "role": _role(arm, table), "cells": cells})
        shares = [(family, [labels_text(protocol) for protocol in known]) for family, known in heads]
        tables.append({"title": recipe_title(recipe), "heads": shares, "rows": rows})
    return tables


def _is_lowest(family: FamilyRow, arm: str, protocol: str, table: BenchmarkTable) -> bool:
    """Whether the arm errs least among those scored on all sets of the family."""
    whole = {
        other: family.errors[column]
        for other in arms_of(table)
        if (column := column_of(other, protocol)) in family.errors
        and family.num_scored.get(column, family.num_sets) == family.num_sets
    }
    return len(whole) > 1 and arm in whole and whole[arm] == min(whole.values())


def reduction_rows(table: BenchmarkTable) -> list[dict[str, Any]]:
    """A row a comparison, and the paper's own figures as the last; a rule starts each group of one other arm."""
    rows: list[dict[str, Any]] = []
    other = ""
    for name in table.comparisons:
        arm = split_column(split_comparison(name)[1])[0]
        cells = []
        for family in table.families:
            both = family.reductions.get(name)
            cells.append(
                {
                    "text": format_reduction(both),
                    "sign": sign_class(both.mean_of_reductions if both else None),
                    "wins": f"{both.num_wins}/{both.num_sets}" if both else "",
                }
            )
        total = table.overall[name]
        wins = f"{total.num_wins} of {total.num_sets}"
        rows.append({"name": name, "starts": arm != other, "cells": cells, "wins": wins, "paper": False})
        other = arm
    if rows:
        paper = paper_cells(family.family for family in table.families)
        cells = [{"text": text, "sign": "", "wins": ""} for text in paper]
        rows.append({"name": "", "starts": True, "cells": cells, "wins": "-", "paper": True})
    return rows


def pair_tables(table: BenchmarkTable) -> list[dict[str, Any]]:
    """A table a recipe: baseline and candidate on every set, with the reductions between them."""
    tables: list[dict[str, Any]] = []
    for recipe, protocols in protocols_by_recipe(table.columns).items():
        for part in by_kind_of_labels(protocols):
            wanted = [column_of(arm, protocol) for protocol in part for arm in (table.baseline, table.candidate)]
            columns = [column for column in wanted if column in table.columns]
            comparisons = [name for name in main_comparisons(table) if split_comparison(name)[0] in columns]
            rows = [row for row in table.rows if set(columns) & set(row.errors)]
            is_few_shot = parse_protocol(part[0]).shots is not None
            if rows and (comparisons or len(arms_of(table)) == 1):
                # What has no score stands in the first table alone.
                gaps = [gap for gap in table.gaps if not gap.arm and not tables]
                # Of so many columns the reductions of the families say enough.
                parts = {"columns": columns, "comparisons": [] if is_few_shot else comparisons, "rows": rows}
                title = recipe_title(recipe) + (", few-shot" if is_few_shot else "")
                tables.append({"title": title, "gaps": gaps, **parts})
    return tables


def arm_grids(table: BenchmarkTable) -> list[dict[str, Any]]:
    """A table a protocol: every arm on every set, with the numbers of images."""
    grids = []
    for protocol in sorted_protocols(table.columns):
        arms = [arm for arm in arms_of(table) if column_of(arm, protocol) in table.columns]
        rows = []
        for row in table.rows:
            columns = [column_of(arm, protocol) for arm in arms]
            if set(columns) & set(row.errors):
                labelled = sorted({row.num_train[column] for column in columns if column in row.num_train})
                tested = sorted({row.num_test[column] for column in columns if column in row.num_test})
                rows.append({"row": row, "columns": columns, "num_train": labelled, "num_test": tested})
        grids.append({"protocol": protocol, "arms": arms, "rows": rows})
    return grids


def cost_rows(table: BenchmarkTable) -> list[dict[str, Any]]:
    """Pre-training cost by arm, and how many times the baseline's it is."""
    theirs = table.costs.get(table.baseline)

    def times(ours: ArmCost, field: str) -> str:
        return f"{getattr(ours, field) / getattr(theirs, field):.2f}" if theirs and getattr(theirs, field) else "-"

    arms = [arm for arm in arms_of(table) if arm in table.costs]
    return [
        {
            "arm": arm,
            "role": _role(arm, table),
            "cost": table.costs[arm],
            "passes": times(table.costs[arm], "image_passes"),
            "cpu": times(table.costs[arm], "cpu_s"),
        }
        for arm in arms
    ]


def _role(arm: str, table: BenchmarkTable) -> str:
    return {table.candidate: "ours", table.baseline: "theirs"}.get(arm, "")


def interval_text(row: TableRow, column: str) -> str:
    """For example ``36.2-42.4``, or the spread of few-shot draws; empty where there is neither."""
    found = row.intervals.get(column)
    digits = 2 if row.unit == "m" else 1
    return format_draws(row, column) if found is None else f"{found[0]:.{digits}f}\u2013{found[1]:.{digits}f}"


def error_cell(row: TableRow, column: str) -> dict[str, str]:
    """The error of a column on one set for the page: ``text``, ``interval`` and ``run``, the address of its run."""
    text = format_error(row.errors.get(column), row.unit)
    run = row.runs.get(split_column(column)[0], "") if text != "-" else ""
    return {"text": text, "interval": interval_text(row, column), "run": run}


def sign_class(value: float | None) -> str:
    """CSS class of a reduction: gains and losses alike get a stronger shade from 10 % on."""
    if value is None or round(value, 1) == 0:
        return "even"
    return ("gain" if value > 0 else "loss") + ("" if abs(value) < 10 else " strong")
