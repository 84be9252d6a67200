"""The report: one self-contained HTML page about a run, readable without scripts and without a network.

Every picture is a data URI and every chart is HTML or inline SVG drawn here, so the page also works inside the
sandboxed frame in which MLflow shows artifacts.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.bench.arm_charts import curve_panels, radar_panel
from intern_vision.bench.charts import (
    Curve,
    arm_mark,
    curve_svg,
    efficiency_panels,
    key_svg,
    line_class,
    set_panels,
)
from intern_vision.bench.table import FAMILIES, BenchmarkTable
from intern_vision.bench.table_text import (
    PAPER_NOTE,
    arms_of,
    best_arm_lines,
    family_label,
    format_number,
    format_signed,
    main_comparisons,
)
from intern_vision.bench.table_view import (
    arm_grids,
    cost_rows,
    error_cell,
    mean_tables,
    pair_tables,
    reduction_rows,
    sign_class,
    tiles,
)
from intern_vision.bench.timeline import format_duration, format_time, record_label, timeline
from intern_vision.stages.base import Record

if TYPE_CHECKING:
    from intern_vision.bench.task_report import TaskReport

TEMPLATE_NAME = "report.html.j2"
MAX_REPORT_BYTES = 8 * 10**6
# (largest width in px, JPEG quality), tried in turn until the page is small enough.
_PICTURE_SIZES = ((1240, 80), (960, 75), (640, 60))
# What the error is, by metric where the dataset names one, else by family.
ERROR_NAMES = {
    "top1": "1 - top-1 accuracy",
    "mean_per_class": "1 - mean accuracy of the classes",
    "quadratic_kappa": "1 - top-1 accuracy",
    "voc_ap50": "1 - AP at IoU 0.5, 11 points",
    "coco_ap": "1 - COCO AP",
    "wider_ap": "1 - mean of the easy, medium and hard AP",
    "log_average_miss_rate": "mean log-average miss rate of Reasonable and Heavy",
    "miou": "1 - mIoU",
    "kitti_rmse": "RMSE in metres, cap 80",
    "nyu_rmse": "RMSE in metres, cap 10",
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
        protocol: how the models were adapted, for example ``10``.
        pictures: grid by model name.
    """

    dataset: str
    family: str
    protocol: str
    pictures: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralistCandidate:
    """One generalist among which the released one was chosen on validation images.

    Attributes:
        name: for example ``joint``.
        errors: validation error by family, a fraction.
        score: mean over the families of the error over the first candidate's; lower is better.
        num_parameters: of the model as deployed.
        num_macs: multiply-adds an image.
        image_passes: of all training it comes from.
        cpu_s: processor seconds of that training; not a number where nothing is known.
        chosen: it was taken.
    """

    name: str
    errors: Mapping[str, float]
    score: float
    num_parameters: int
    num_macs: int
    image_passes: float
    cpu_s: float
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FactSheet:
    """What a stage found, as names and values, with a picture where it drew one.

    Attributes:
        title: what was run.
        facts: values by name, shown as they are.
        png: any format that OpenCV decodes; empty where there is none.
    """

    title: str
    facts: Mapping[str, float | int | str]
    png: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """Everything the page shows; empty parts are left out of it.

    Attributes:
        title: heading.
        table: the benchmark table.
        summary: what ran, when and on what, as name and text.
        records: records of every stage that took part.
        tasks: what is known of single tasks, shown first.
        candidates: the generalists among which one was chosen.
        searches: results of architecture searches.
        dense_amateurs: results of Up-A-L, the amateur's continuation on dense image-text signals.
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
    tasks: "Sequence[TaskReport]" = ()
    candidates: Sequence[GeneralistCandidate] = ()
    searches: Sequence[FactSheet] = ()
    dense_amateurs: Sequence[FactSheet] = ()
    data: Sequence[Picture] = ()
    curves: Sequence[Curve] = ()
    examples: Sequence[Examples] = ()
    lineages: Sequence[tuple[str, str]] = ()
    registered: Sequence[Mapping[str, str]] = ()
    limits: Sequence[str] = ()


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


def page_environment() -> Any:
    """The templates of this folder with the number formats that they use."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "signed": format_signed,
        "duration": format_duration,
        "fact": format_fact,
    }
    return environment


def format_fact(value: float | int | str) -> str:
    """A value with at most four significant digits, integers in full."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _render(content: ReportContent, width_px: int, quality: int) -> str:
    from intern_vision.bench.task_report import task_view

    table = content.table
    # One model beside no other: what compares arms would say the same thing five times.
    is_alone = bool(content.tasks) and len(arms_of(table)) == 1
    return (
        page_environment()
        .get_template(TEMPLATE_NAME)
        .render(
            content=content,
            table=table,
            tiles=tiles(table),
            is_alone=is_alone,
            tasks=[task_view(task) for task in content.tasks],
            means=[] if is_alone else mean_tables(table),
            reductions=reduction_rows(table),
            pairs=pair_tables(table),
            grids=arm_grids(table),
            costs=cost_rows(table),
            methods=sorted({method for row in table.rows for method in row.methods.values()}),
            errors={(name := row.metric or row.family): ERROR_NAMES.get(name, name) for row in table.rows},
            notes=[PAPER_NOTE, *best_arm_lines(table)],
            main_wins={name: table.overall[name] for name in main_comparisons(table)},
            efficiency=[] if is_alone else [panel for panel in efficiency_panels(table) if panel.svg],
            set_charts=[] if is_alone else [panel for panel in set_panels(table) if panel.svg],
            legend=[(arm, key_svg(*arm_mark(arm, table))) for arm in arms_of(table)],
            family_label=family_label,
            sign_class=sign_class,
            error_cell=error_cell,
            has_runs=any(row.runs for row in table.rows),
            curves=[] if is_alone else curve_panels(table),
            radar=radar_panel(table),
            candidate_families=_candidate_families(content.candidates),
            timeline=timeline(content.records),
            records=sorted(content.records, key=lambda record: (record.started_unix_s, record.ref.uri)),
            record_label=record_label,
            format_time=format_time,
            charts=[(curve, chart) for curve in content.curves if (chart := curve_svg(curve))],
            line_class=line_class,
            image_uri=lambda png: image_uri(png, width_px, quality),
        )
    )


def _candidate_families(candidates: Sequence[GeneralistCandidate]) -> list[str]:
    known = {family for candidate in candidates for family in candidate.errors}
    return [*(family for family in FAMILIES if family in known), *sorted(known - set(FAMILIES))]


def image_uri(png: bytes, width_px: int, quality: int) -> str:
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
