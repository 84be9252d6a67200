"""The report: one self-contained HTML page about a run, readable without scripts and without a network.

Every picture is a data URI and every chart is HTML or inline SVG drawn here, so the page also works inside the
sandboxed frame in which MLflow shows artifacts.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from intern_vision.bench.table import BenchmarkTable, family_label, format_number, format_signed
from intern_vision.stages.base import Record

TEMPLATE_NAME = "report.html.j2"
MAX_REPORT_BYTES = 8 * 10**6
# (largest width in px, JPEG quality), tried in turn until the page is small enough.
_PICTURE_SIZES = ((1240, 80), (960, 75), (640, 60))
# Stages with more records than this share one line of the timeline.
_MAX_LINES_PER_STAGE = 4
# Idle time longer than this share of the busy time is cut from the timeline.
_MAX_IDLE_SHARE = 0.05
_CURVE_POINTS = 160
_SMOOTHING_POINTS = 12
_CHART_PX = (340, 190)
_PLOT_PX = (40, 10, 330, 165)  # left, top, right, bottom
_NUM_LINE_COLOURS = 6
_ERROR_NAMES = {
    "classify": "1 - top-1 accuracy",
    "multilabel": "1 - mAP over concepts",
    "detect": "1 - AP at IoU 0.5",
    "segment": "1 - mIoU",
    "depth": "mean |prediction - truth| / truth",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture with its title; ``png`` is any format that OpenCV decodes."""

    title: str
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Predictions of the arms for the same images of one dataset.

    Attributes:
        dataset: its name.
        family: its family.
        protocol: percent of the training labels used.
        pictures: grid by model name.
    """

    dataset: str
    family: str
    protocol: str
    pictures: Mapping[str, bytes]


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
class ReportContent:
    """Everything the page shows; empty parts are left out of it.

    Attributes:
        title: heading.
        table: the benchmark table.
        summary: what ran, when and on what, as name and text.
        records: records of every stage that took part.
        data: sample grids, upstream first.
        curves: losses of the trained stages.
        examples: predictions by dataset.
        lineages: title and SVG text of lineage graphs, put into the page as it is.
        registered: ``name``, ``version`` and ``alias`` of registered models.
        limits: what the numbers do not show, one sentence each.
    """

    title: str
    table: BenchmarkTable
    summary: Mapping[str, str]
    records: Sequence[Record] = ()
    data: Sequence[Picture] = ()
    curves: Sequence[Curve] = ()
    examples: Sequence[Examples] = ()
    lineages: Sequence[tuple[str, str]] = ()
    registered: Sequence[Mapping[str, str]] = ()
    limits: Sequence[str] = ()


@dataclass(slots=True, kw_only=True)
class TimelineRow:
    """One line of the timeline: a record, or all records of a stage that has many.

    Attributes:
        label: what ran.
        bars: left edge and width in percent of the timeline, one a record.
        wall_s: elapsed seconds, summed.
        cpu_s: processor seconds, summed.
        image_passes: image passes, summed.
        num_bytes: size of the outputs.
    """

    label: str
    bars: list[tuple[float, float]] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    image_passes: float = 0.0
    num_bytes: int = 0


def build_report(content: ReportContent) -> str:
    """Renders the page.

    Pictures are made smaller until it has at most ``MAX_REPORT_BYTES``; the smallest size is used where even that
    does not suffice.

    Returns:
        HTML text.
    """
    page = ""
    for width_px, quality in _PICTURE_SIZES:
        page = _render(content, width_px, quality)
        if len(page.encode()) <= MAX_REPORT_BYTES:
            break
    return page


def timeline(records: Iterable[Record]) -> list[TimelineRow]:
    """Lines in order of their first start; idle time (a run resumed later) is cut, so busy time fills the width."""
    ordered = sorted(records, key=lambda record: (record.started_unix_s, record.ref.uri))
    by_stage: dict[str, list[Record]] = {}
    for record in ordered:
        by_stage.setdefault(record.stage, []).append(record)
    place = _without_idle([(record.started_unix_s, record.started_unix_s + record.wall_s) for record in ordered])
    rows: dict[str, TimelineRow] = {}
    for record in ordered:
        num_alike = len(by_stage[record.stage])
        together = num_alike > _MAX_LINES_PER_STAGE
        key = record.stage if together else record.ref.uri
        label = f"{record.stage} ({num_alike} runs)" if together else record_label(record)
        row = rows.setdefault(key, TimelineRow(label=label))
        left = place(record.started_unix_s)
        row.bars.append((left, max(place(record.started_unix_s + record.wall_s) - left, 0.3)))
        row.wall_s += record.wall_s
        row.cpu_s += record.cpu_s
        row.image_passes += float(record.facts.get("image_passes", 0))
        row.num_bytes += record.ref.num_bytes
    return list(rows.values())


def record_label(record: Record) -> str:
    """The stage and, where it says more, the output's name."""
    name = record.ref.name
    return name if name.startswith(record.stage) else f"{record.stage}: {name}"


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


def format_duration(seconds: float) -> str:
    """For example ``43 s``, ``12 min 5 s`` or ``3 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_time(unix_s: float) -> str:
    """Date and time of day in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _render(content: ReportContent, width_px: int, quality: int) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "signed": format_signed, "duration": format_duration}
    return environment.get_template(TEMPLATE_NAME).render(
        content=content,
        table=content.table,
        tiles=_tiles(content.table),
        bars=_bars(content.table),
        costs=_cost_lines(content.table),
        methods=sorted({method for row in content.table.rows for method in row.methods.values()}),
        errors={row.family: _ERROR_NAMES[row.family] for row in content.table.families},
        family_label=family_label,
        sign_class=_sign_class,
        timeline=timeline(content.records),
        records=sorted(content.records, key=lambda record: (record.started_unix_s, record.ref.uri)),
        record_label=record_label,
        format_time=format_time,
        charts=[(curve, chart) for curve in content.curves if (chart := curve_svg(curve))],
        line_class=line_class,
        image_uri=lambda png: _image_uri(png, width_px, quality),
    )


def _tiles(table: BenchmarkTable) -> list[dict[str, Any]]:
    """The first comparison by family, large at the top of the page."""
    if not table.comparisons:
        return []
    name = table.comparisons[0]
    ours, theirs = name.split(" vs ")
    return [
        {
            "family": family,
            "value": family.reductions[name].mean_of_reductions,
            "ours": family.errors[ours],
            "theirs": family.errors[theirs],
            "num_sets": family.reductions[name].num_sets,
            "wins": f"{family.reductions[name].num_wins} of {family.reductions[name].num_sets}",
        }
        for family in table.families
        if name in family.reductions
    ]


def _bars(table: BenchmarkTable) -> list[dict[str, Any]]:
    """Mean errors by family; widths in percent of the family's largest."""
    groups = []
    for family in table.families:
        largest = max(family.errors.values()) or 1.0
        bars = [
            {
                "column": column,
                "error": family.errors[column],
                "width": 100 * family.errors[column] / largest,
                "arm": "ours" if column.startswith(f"{table.candidate}@") else "theirs",
                "few": column != f"{column.rpartition('@')[0]}@{_most_labels(table)}",
            }
            for column in table.columns
            if column in family.errors
        ]
        groups.append({"label": family_label(family), "bars": bars})
    return groups


def _most_labels(table: BenchmarkTable) -> str:
    return max((column.rpartition("@")[2] for column in table.columns), key=float)


def _cost_lines(table: BenchmarkTable) -> list[str]:
    lines = [
        f"{model}: {cost.image_passes:,.0f} image passes, {cost.cpu_s:,.0f} CPU-s, {format_duration(cost.wall_s)}"
        for model, cost in table.costs.items()
    ]
    ours, theirs = table.costs.get(table.candidate), table.costs.get(table.baseline)
    if ours and theirs and theirs.image_passes and theirs.cpu_s:
        passes, cpu = ours.image_passes / theirs.image_passes, ours.cpu_s / theirs.cpu_s
        lines.append(f"{table.candidate} took {passes:.2f} times the passes and {cpu:.2f} times the CPU-s")
    return lines


def _sign_class(value: float | None) -> str:
    """CSS class of a reduction: gains and losses alike get a stronger shade from 10 % on."""
    if value is None or round(value, 1) == 0:
        return "even"
    return ("gain" if value > 0 else "loss") + ("" if abs(value) < 10 else " strong")


def _without_idle(spans: Sequence[tuple[float, float]]) -> Any:
    """A function from a time to percent of the axis, with idle time cut to ``_MAX_IDLE_SHARE`` of the busy time."""
    busy: list[list[float]] = []
    for start, end in sorted(spans):
        if busy and start <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], end)
        else:
            busy.append([start, end])
    longest_idle_s = _MAX_IDLE_SHARE * sum(end - start for start, end in busy)
    offsets = [0.0]
    for (start, end), (next_start, _) in zip(busy, busy[1:], strict=False):
        offsets.append(offsets[-1] + end - start + min(next_start - end, longest_idle_s))
    total_s = (offsets[-1] + busy[-1][1] - busy[-1][0]) if busy else 1.0

    def place(time_s: float) -> float:
        index = max(i for i, (start, _) in enumerate(busy) if start <= time_s)
        return 100 * (offsets[index] + time_s - busy[index][0]) / (total_s or 1.0)

    return place


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


def _image_uri(png: bytes, width_px: int, quality: int) -> str:
    """A JPEG data URI at most ``width_px`` wide: the grids are noisy photographs, which PNG keeps large."""
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    scale = width_px / image.shape[1]
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    settings = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    data = cv2.imencode(".jpg", image, settings)[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
