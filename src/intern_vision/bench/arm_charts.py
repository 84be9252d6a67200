"""Charts of whole arms as SVG text: error by number of labelled images, and a radar over the datasets.

Like the charts of ``intern_vision.bench.charts`` they take their colours from the page and need no script.
"""

import math
from collections.abc import Sequence
from html import escape

from intern_vision.bench.charts import Mark, Panel, arm_mark, mark_svg
from intern_vision.bench.comparisons import (
    ZERO_SHOT_RECIPE,
    column_of,
    labels_text,
    protocols_by_recipe,
    sorted_protocols,
)
from intern_vision.bench.table import BenchmarkTable, FamilyRow
from intern_vision.bench.table_text import arms_of, format_error

MIN_CURVE_POINTS = 3
MIN_RADAR_SETS = 3
_CURVE_PX = (460, 250)
_PLOT_PX = (44, 12, 448, 214)  # left, top, right, bottom
_RADAR_PX = (640, 460)
_RADIUS_PX = 165.0
_RINGS = (0.25, 0.5, 0.75, 1.0)
_LABEL_GAP_PX = 14.0
Point = tuple[float, float, str]


def curve_panels(table: BenchmarkTable) -> list[Panel]:
    """By family and recipe, mean error of every arm over the number of labelled images (geometric mean of the sets).

    A family is drawn where some arm was adapted with ``MIN_CURVE_POINTS`` numbers of labels or more; percentages of
    the labels and few-shot draws lie on one line.
    """
    panels = []
    for family in table.families:
        for recipe, protocols in protocols_by_recipe(family.errors).items():
            if recipe == ZERO_SHOT_RECIPE:
                continue
            lines = {arm: _points(table, family, arm, protocols) for arm in arms_of(table)}
            lines = {arm: points for arm, points in lines.items() if points}
            if max(map(len, lines.values()), default=0) >= MIN_CURVE_POINTS:
                title = f"{family.family}, {recipe}"
                panels.append(Panel(title=title, svg=_curve_svg(table, title, lines, family.unit)))
    return panels


def radar_panel(table: BenchmarkTable) -> Panel | None:
    """One polygon an arm over the datasets, under the first protocol; ``None`` with one arm or too few datasets.

    The radius is the lowest error of any arm on that set over the arm's own error: 1 at the rim is the best arm, half
    way is twice its error. So percent and metres share one picture, and an easy set counts like a hard one.
    """
    if not table.columns:
        return None
    protocol = sorted_protocols(table.columns)[0]
    arms = [arm for arm in arms_of(table) if column_of(arm, protocol) in table.columns]
    rows = [row for row in table.rows if all(column_of(arm, protocol) in row.errors for arm in arms)]
    if len(arms) < 2 or len(rows) < MIN_RADAR_SETS:
        return None
    centre = (_RADAR_PX[0] / 2, _RADAR_PX[1] / 2)
    angles = [2 * math.pi * index / len(rows) for index in range(len(rows))]

    def place(angle: float, radius: float) -> tuple[float, float]:
        return centre[0] + radius * math.sin(angle), centre[1] - radius * math.cos(angle)

    label = f"Lowest error over each arm's error by dataset @{protocol}"
    parts = [f'<svg viewBox="0 0 {_RADAR_PX[0]} {_RADAR_PX[1]}" role="img" aria-label="{escape(label)}">']
    for ring in _RINGS:
        parts.append(f'<path class="grid" d="{_closed([place(angle, ring * _RADIUS_PX) for angle in angles])}"/>')
    for row, angle in zip(rows, angles, strict=True):
        (x, y), (text_x, text_y) = place(angle, _RADIUS_PX), place(angle, _RADIUS_PX + _LABEL_GAP_PX)
        side = math.sin(angle)
        anchor = "middle" if abs(side) < 0.2 else "start" if side > 0 else "end"
        parts.append(f'<path class="grid" d="M{centre[0]:.1f} {centre[1]:.1f}L{x:.1f} {y:.1f}"/>')
        parts.append(
            f'<text x="{text_x:.1f}" y="{text_y + 3.5:.1f}" text-anchor="{anchor}">{escape(row.dataset)}</text>'
        )
    # The candidate last, on top of the others.
    for arm in sorted(arms, key=lambda name: (name == table.candidate, name == table.baseline)):
        colour, shape = arm_mark(arm, table)
        column = column_of(arm, protocol)
        marks, corners = [], []
        for row, angle in zip(rows, angles, strict=True):
            lowest = min(row.errors[column_of(other, protocol)] for other in arms)
            share = lowest / row.errors[column] if row.errors[column] > 0 else 1.0
            corners.append(place(angle, share * _RADIUS_PX))
            title = f"{arm} on {row.dataset}: {format_error(row.errors[column], row.unit)}"
            marks.append(mark_svg(Mark(value=share, colour=colour, shape=shape, title=title), *corners[-1]))
        parts.append(f'<path class="area" style="stroke:var(--{colour});fill:var(--{colour})" d="{_closed(corners)}"/>')
        parts += marks
    return Panel(title=f"all datasets @{protocol}", svg="".join((*parts, "</svg>")))


def _points(table: BenchmarkTable, family: FamilyRow, arm: str, protocols: Sequence[str]) -> list[Point]:
    """Labelled images, mean error and tooltip of each protocol that the arm has, fewest labels first."""
    points = []
    for protocol in protocols:
        column = column_of(arm, protocol)
        counts = [row.num_train[column] for row in table.rows if row.family == family.family and column in row.errors]
        if column in family.errors and counts and min(counts) > 0:
            num_labelled = math.exp(sum(map(math.log, counts)) / len(counts))
            error = family.errors[column]
            title = f"{arm}, {labels_text(protocol)} ({num_labelled:,.0f} images): {format_error(error, family.unit)}"
            points.append((num_labelled, error, title))
    return sorted(points)


def _curve_svg(table: BenchmarkTable, label: str, lines: dict[str, list[Point]], unit: str) -> str:
    left, top, right, bottom = _PLOT_PX
    counts = [count for points in lines.values() for count, _, _ in points]
    high = max(error for points in lines.values() for _, error, _ in points) or 1.0
    first, last = math.log10(min(counts)), math.log10(max(counts))

    def x_of(count: float) -> float:
        return left + (math.log10(count) - first) / ((last - first) or 1.0) * (right - left)

    def y_of(error: float) -> float:
        return bottom - error / high * (bottom - top)

    title = escape(f"Error by number of labelled images, {label}", quote=True)
    parts = [f'<svg viewBox="0 0 {_CURVE_PX[0]} {_CURVE_PX[1]}" role="img" aria-label="{title}">']
    for share in (0.0, 0.5, 1.0):
        y = y_of(share * high)
        parts.append(f'<path class="{"grid" if share else "axis"}" d="M{left} {y:.1f}H{right}"/>')
        text = format_error(share * high, unit)
        parts.append(f'<text x="{left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for count in sorted({min(counts), max(counts), *(10.0**power for power in range(math.ceil(first), int(last) + 1))}):
        is_end = count in (min(counts), max(counts))
        # A power of ten beside an end would print over its number.
        if not is_end and min(abs(x_of(count) - x_of(end)) for end in (min(counts), max(counts))) < 48:
            continue
        anchor = "start" if count == min(counts) else "end" if count == max(counts) else "middle"
        parts.append(f'<text x="{x_of(count):.1f}" y="{bottom + 15}" text-anchor="{anchor}">{count:,.0f}</text>')
    parts.append(
        f'<text x="{(left + right) / 2:.1f}" y="{bottom + 31}" text-anchor="middle">labelled images of a set</text>'
    )
    for arm in sorted(lines, key=lambda name: (name == table.candidate, name == table.baseline)):
        colour, shape = arm_mark(arm, table)
        places = [(x_of(count), y_of(error)) for count, error, _ in lines[arm]]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line" style="stroke:var(--{colour})" d="M{path}"/>')
        for (x, y), (_, error, text) in zip(places, lines[arm], strict=True):
            parts.append(mark_svg(Mark(value=error, colour=colour, shape=shape, title=text), x, y))
    return "".join((*parts, "</svg>"))


def _closed(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
