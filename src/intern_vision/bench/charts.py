"""Charts of the report as SVG text: losses by step, and dots on a common scale.

They take their colours from the page's CSS variables, so they follow its light or dark theme, and need no script. A dot
chart tells the arms apart by colour and shape together; every mark carries its name and value as a tooltip.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from intern_vision.bench.comparisons import (
    ZERO_SHOT_RECIPE,
    column_of,
    parse_protocol,
    protocols_by_recipe,
    sorted_protocols,
    split_column,
)
from intern_vision.bench.table import BenchmarkTable, FamilyRow, TableRow
from intern_vision.bench.table_text import arms_of

_CURVE_POINTS = 160
_SMOOTHING_POINTS = 12
_CHART_PX = (340, 190)
_PLOT_PX = (40, 10, 330, 165)  # left, top, right, bottom
_NUM_LINE_COLOURS = 6
# Dot charts: width, height of a row, and the room around the rows; a label longer than its room is cut.
_DOTS_WIDTH_PX, _WIDE_PX, _ROW_PX = 360, 1040, 20
_LABEL_PX, _RIGHT_PX, _TOP_PX, _AXIS_PX = 106, 12, 6, 22
_MAX_LABEL_CHARS = 17
_NUM_TICKS = 5
_RADIUS_PX = 4.2
# Of the arms that are neither candidate nor baseline, whose circles are blue and orange: those hues come last.
_ARM_COLOURS = ("c2", "c3", "c0", "c5", "c1", "c4")
_ARM_SHAPES = ("square", "diamond", "triangle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Losses of one training stage.

    Attributes:
        name: the trained output's name.
        steps: optimizer steps, ascending.
        losses: ``loss`` (the sum) and each ``loss/<name>``, one value a step, NaN where there is none.
        steps_per_s: median speed, 0 where it is not known.
    """

    name: str
    steps: Sequence[int]
    losses: Mapping[str, Sequence[float]]
    steps_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One dot.

    Attributes:
        value: its place on the axis.
        colour: CSS colour variable without its dashes, for example ``ours`` or ``c2``.
        shape: ``circle``, ``square``, ``diamond`` or ``triangle``.
        is_hollow: drawn as an outline.
        title: tooltip.
    """

    value: float
    colour: str
    shape: str = "circle"
    is_hollow: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DotRow:
    """One line of a dot chart.

    Attributes:
        label: text at the left.
        marks: dots, the last on top.
        is_joined: a line connects the smallest with the largest value.
        is_strong: the label is bold.
    """

    label: str
    marks: Sequence[Mark]
    is_joined: bool = False
    is_strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart with its heading, and a note where it needs one."""

    title: str
    svg: str
    note: str = ""


def curve_svg(curve: Curve) -> str:
    """A chart of a stage's losses as SVG text that takes its colours from the page's CSS variables.

    The sum is drawn bold; its parts are drawn where there are several. Values are running means.
    """
    names = [name for name in curve.losses if name != "loss"]
    drawn = [*(names if len(names) > 1 else []), "loss"]
    lines = {name: _smooth(curve.steps, curve.losses[name]) for name in drawn if name in curve.losses}
    lines = {name: points for name, points in lines.items() if points}
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return ""
    low, high = min(0.0, *values), max(values)
    last_step = max(curve.steps)
    left, top, right, bottom = _PLOT_PX
    span = (high - low) or 1.0
    ends = ", ".join(f"{name} ends at {points[-1][1]:.3g}" for name, points in lines.items())
    title = escape(f"Losses of {curve.name}: {ends}", quote=True)
    parts = [f'<svg viewBox="0 0 {_CHART_PX[0]} {_CHART_PX[1]}" role="img" aria-label="{title}">']
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{low + share * span:.3g}</text>')
    parts.append(f'<text x="{left}" y="{bottom + 15}">0</text>')
    parts.append(f'<text x="{right}" y="{bottom + 15}" text-anchor="end">{last_step:,} steps</text>')
    for index, (name, points) in enumerate(lines.items()):
        xs = [left + step / max(last_step, 1) * (right - left) for step, _ in points]
        ys = [bottom - (value - low) / span * (bottom - top) for _, value in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<path class="line {line_class(name, index)}" d="M{path}"/>')
    return "".join((*parts, "</svg>"))


def line_class(name: str, index: int) -> str:
    """CSS class of a loss line: ``total``, or one of the six colours of the parts."""
    return "total" if name == "loss" else f"c{index % _NUM_LINE_COLOURS}"


def dot_chart(
    rows: Sequence[DotRow],
    label: str,
    *,
    high: float = 0.0,
    low: float = 0.0,
    guides: Sequence[Mark] = (),
    width_px: int = _DOTS_WIDTH_PX,
) -> str:
    """Rows of dots over one axis of values.

    Args:
        rows: at least one mark among them, else the result is empty.
        label: what a screen reader says.
        high: at least where the axis ends.
        low: at most where it begins.
        guides: values marked by a vertical line over all rows.
        width_px: of the drawing, whose text has a size of its own.
    """
    values = [mark.value for row in rows for mark in row.marks]
    if not values:
        return ""
    ticks = _ticks(min(low, *values), max(high, *values))
    first, last = ticks[0], ticks[-1]
    width = width_px - _LABEL_PX - _RIGHT_PX
    bottom = _TOP_PX + _ROW_PX * len(rows)

    def x_of(value: float) -> float:
        return _LABEL_PX + (value - first) / (last - first) * width

    parts = [f'<svg viewBox="0 0 {width_px} {bottom + _AXIS_PX}" role="img" aria-label="{escape(label)}">']
    for tick in ticks:
        style = "axis" if tick == 0 else "grid"
        parts.append(f'<path class="{style}" d="M{x_of(tick):.1f} {_TOP_PX}V{bottom}"/>')
        parts.append(f'<text x="{x_of(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    for guide in guides:
        path = f"M{x_of(guide.value):.1f} {_TOP_PX}V{bottom}"
        parts.append(
            f'<path class="guide" style="stroke:var(--{guide.colour})" d="{path}">{_title(guide.title)}</path>'
        )
    for number, row in enumerate(rows):
        y = _TOP_PX + _ROW_PX * (number + 0.5)
        parts += _dot_row(row, y, [x_of(mark.value) for mark in row.marks])
    return "".join((*parts, "</svg>"))


def arm_mark(arm: str, table: BenchmarkTable) -> tuple[str, str]:
    """Colour and shape of an arm: blue for the candidate, orange for the baseline, six colours for the others."""
    if arm in (table.candidate, table.baseline):
        return ("ours" if arm == table.candidate else "theirs"), "circle"
    others = [name for name in arms_of(table) if name not in (table.candidate, table.baseline)]
    index = others.index(arm)
    # The shape changes with the colour, so that neighbours differ twice, and once more when the colours begin anew.
    num_colours = len(_ARM_COLOURS)
    return _ARM_COLOURS[index % num_colours], _ARM_SHAPES[(index + index // num_colours) % len(_ARM_SHAPES)]


def efficiency_panels(table: BenchmarkTable) -> list[Panel]:
    """By family and recipe, the mean error of every arm with the fewest (hollow) and the most labels (filled).

    A broken line stands at the baseline with the most labels: a hollow dot left of it errs less with fewer labels.
    """
    panels = []
    for family in table.families:
        recipes = protocols_by_recipe(family.errors)
        # Zero-shot has no labels to be efficient with; few-shot draws have curves of their own.
        recipes.pop(ZERO_SHOT_RECIPE, None)
        recipes = {recipe: [p for p in names if parse_protocol(p).shots is None] for recipe, names in recipes.items()}
        # One scale for all recipes of a family.
        shown = {protocol for protocols in recipes.values() for protocol in protocols}
        high = max((error for column, error in family.errors.items() if split_column(column)[1] in shown), default=0.0)
        for recipe, protocols in recipes.items():
            if not protocols:
                continue
            rows = []
            for arm in arms_of(table):
                marks = []
                for protocol in protocols:
                    error = family.errors.get(column_of(arm, protocol))
                    if error is not None:
                        title, colour = f"{arm}@{protocol}: {_in_unit(error, family.unit)}", arm_mark(arm, table)[0]
                        is_few = len(protocols) > 1 and protocol != protocols[-1]
                        marks.append(Mark(value=error, colour=_plain(colour), is_hollow=is_few, title=title))
                if marks:
                    strong = arm in (table.candidate, table.baseline)
                    rows.append(DotRow(label=arm, marks=marks, is_joined=True, is_strong=strong))
            most = column_of(table.baseline, protocols[-1])
            guides = []
            if most in family.errors:
                title = f"{most}: {_in_unit(family.errors[most], family.unit)}"
                guides = [Mark(value=family.errors[most], colour="theirs", title=title)]
            svg = dot_chart(rows, f"Mean error of {family.family}, {recipe}, by arm", high=high, guides=guides)
            panels.append(Panel(title=f"{family.family}, {recipe}", svg=svg, note=_thin_note(family)))
    return panels


def set_panels(table: BenchmarkTable) -> list[Panel]:
    """By family, the error of every arm on every set under the first protocol (the fewest labels, frozen)."""
    panels = []
    for family in table.families:
        protocol = sorted_protocols([c for row in table.rows if row.family == family.family for c in row.errors])[0]
        for unit in sorted({row.unit for row in table.rows if row.family == family.family}):
            members = [row for row in table.rows if (row.family, row.unit) == (family.family, unit)]
            rows = [_set_row(table, row, protocol) for row in members]
            svg = dot_chart(
                [row for row in rows if row.marks],
                f"Error of every arm on the sets of {family.family} @{protocol}",
                width_px=_WIDE_PX,
            )
            title = f"{family.family} @{protocol}" + (", metres" if unit == "m" else "")
            panels.append(Panel(title=title, svg=svg, note=_thin_note(family)))
    return panels


def _set_row(table: BenchmarkTable, row: TableRow, protocol: str) -> DotRow:
    """Every arm on one set, the candidate last, on top of the others."""
    marks = []
    for arm in sorted(arms_of(table), key=lambda arm: (arm == table.candidate, arm == table.baseline)):
        error = row.errors.get(column_of(arm, protocol))
        if error is not None:
            colour, shape = arm_mark(arm, table)
            marks.append(Mark(value=error, colour=colour, shape=shape, title=f"{arm}: {_in_unit(error, row.unit)}"))
    return DotRow(label=row.dataset, marks=marks, is_joined=True)


def key_svg(colour: str, shape: str) -> str:
    """A mark alone, for a legend."""
    mark = mark_svg(Mark(value=0, colour=colour, shape=shape), 6, 6)
    return f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true">{mark}</svg>'


def _in_unit(error: float, unit: str) -> str:
    return f"{error:.2f} m" if unit == "m" else f"{error:.1f} %"


def _plain(colour: str) -> str:
    """Where labels name the arms, only the candidate and the baseline need a colour."""
    return colour if colour in ("ours", "theirs") else "muted"


def _thin_note(family: FamilyRow) -> str:
    return f"thin: {family.num_sets} set{'s' if family.num_sets > 1 else ''}" if family.thin else ""


def _dot_row(row: DotRow, y: float, xs: Sequence[float]) -> list[str]:
    style = ' class="strong"' if row.is_strong else ""
    parts = [f'<text{style} x="{_LABEL_PX - 10}" y="{y + 3.5:.1f}" text-anchor="end">{_label(row.label)}</text>']
    if row.is_joined and len(xs) > 1:
        parts.append(f'<path class="joint" d="M{min(xs):.1f} {y:.1f}H{max(xs):.1f}"/>')
    return [*parts, *(mark_svg(mark, x, y) for mark, x in zip(row.marks, xs, strict=True))]


def _label(text: str) -> str:
    return escape(text if len(text) <= _MAX_LABEL_CHARS else text[: _MAX_LABEL_CHARS - 1] + "…")


def mark_svg(mark: Mark, x: float, y: float) -> str:
    """A mark at a place in the drawing's own pixels."""
    r = _RADIUS_PX
    style = f"stroke:var(--{mark.colour});fill:var(--{'card' if mark.is_hollow else mark.colour})"
    title = _title(mark.title)
    if mark.shape == "circle":
        return f'<circle class="dot" style="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{title}</circle>'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.2), (1.15, 0.95), (-1.15, 0.95)),
    }[mark.shape]
    path = "L".join(f"{x + 0.85 * r * dx:.1f} {y + 0.85 * r * dy:.1f}" for dx, dy in corners)
    return f'<path class="dot" style="{style}" d="M{path}Z">{title}</path>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _ticks(low: float, high: float) -> list[float]:
    """Round values that cover a range, some ``_NUM_TICKS`` of them."""
    span = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / _NUM_TICKS))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if span / (factor * unit) <= _NUM_TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _smooth(steps: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    """At most ``_CURVE_POINTS`` points, each the mean of its neighbours; what is not finite is left out."""
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    # Neither the first value, which shows where training began, nor short histories are blurred.
    half = min(_SMOOTHING_POINTS, len(known) // 20)
    smooth = []
    for index, (step, _) in enumerate(known):
        reach = min(half, index, len(known) - 1 - index)
        window = known[index - reach : index + reach + 1]
        smooth.append((step, sum(value for _, value in window) / len(window)))
    stride = max(1, -(-len(smooth) // _CURVE_POINTS))
    return [*smooth[:-1:stride], *smooth[-1:]]
