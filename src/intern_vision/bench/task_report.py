"""The part of the report about one task: score, confusions, worst mistakes, what more labels would buy, the data."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from intern_vision.bench.comparisons import parse_protocol, wilson_interval
from intern_vision.bench.learning_curve import CurvePoint, Extrapolation, extrapolate
from intern_vision.bench.protocol import protocol_rank
from intern_vision.bench.review import ClassReview, Review
from intern_vision.bench.scores import PROPORTION_FAMILIES, PROPORTION_METRICS, ProtocolScore, Scores, unit_of
from intern_vision.data.check import Findings
from intern_vision.stages.adapt import DETAILS_FILE
from intern_vision.stages.base import Record
from intern_vision.stages.evaluate import review_file, worst_file
from intern_vision.stages.prepare import FINDINGS_FILE
from intern_vision.store import Store, join_uri

MAX_CLASS_ROWS = 60
CLASS_UNITS = {"classify": "images", "multilabel": "images", "detect": "boxes", "segment": "pixels"}
# Fields of adapt.json that are no choice, or are told as the method.
_TOLD_ELSEWHERE = ("method", "probe", "reason", "probe_reason", "num_train", "keys_digest")
# Of these an image is right or wrong; a mask or a depth map is never right in every pixel.
COUNTED_FAMILIES = ("classify", "multilabel", "detect")
MISTAKE_NOTES = {
    "classify": "Test images whose wrong answer has the highest score.",
    "multilabel": "Test images with the score that is farthest from the truth.",
    "detect": "Test images with the most objects missed or found where there are none, at a score of 0.3.",
    "segment": "Test images with the lowest mean IoU.",
    "depth": "Test images with the largest mean relative error.",
}
_NUM_GRID_LINES = 5
_ROUND_FACTORS = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10)  # each gives four round steps
_CURVE_PX = (460, 250)
_PLOT_PX = (50, 28, 446, 214)  # left, top, right, bottom


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """Everything that the page says about one model of one task.

    Attributes:
        scores: of the model, by protocol.
        review: of its test images under ``protocol``.
        protocol: the one with the most labels, whose model is registered.
        worst_png: picture of the worst mistakes; empty where there are none.
        method: how the model was adapted, and why where that was chosen.
        choices: settings that were chosen on held-out training images, by name.
        findings: of the check of the data; ``None`` for data that was not checked.
    """

    scores: Scores
    review: Review
    protocol: str
    worst_png: bytes = b""
    method: str = ""
    choices: Mapping[str, float | int | str] = field(default_factory=dict)
    findings: Findings | None = None

    @property
    def score(self) -> ProtocolScore:
        """The score of ``protocol``."""
        return self.scores.protocols[self.protocol]

    @property
    def unit(self) -> str:
        """Unit of the error, ``%`` or ``m``."""
        return unit_of(self.scores.metric)

    @property
    def scale(self) -> float:
        """What turns an error into its unit."""
        return 1.0 if self.unit == "m" else 100.0

    def interval(self, protocol: str) -> tuple[float, float] | None:
        """95 % interval of a protocol's error as a fraction or in metres; ``None`` where there is none."""
        score = self.scores.protocols[protocol]
        if score.interval is not None or not self._is_share_of_images():
            return score.interval
        return wilson_interval(min(score.error, 1.0), score.num_test)

    def _is_share_of_images(self) -> bool:
        return self.scores.family in PROPORTION_FAMILIES and self.scores.metric in PROPORTION_METRICS

    def headline(self) -> tuple[str, str]:
        """The error and its interval as text."""
        interval = self.interval(self.protocol)
        bounds = "" if interval is None else " to ".join(f"{self.scale * bound:.1f}" for bound in interval)
        return f"{self.scale * self.score.error:.1f} {self.unit}", bounds

    def curve(self) -> list[CurvePoint]:
        """The errors of the protocols that adapt as the registered one does, fewest labels first."""
        suffixes = parse_protocol(self.protocol).suffixes
        names = [name for name in self.scores.protocols if parse_protocol(name).suffixes == suffixes]
        points = []
        for name in names:
            score = self.scores.protocols[name]
            if score.num_train and parse_protocol(name).draw is None:
                interval = None if self._is_share_of_images() else score.interval
                points.append(
                    CurvePoint(num_train=score.num_train, error=score.error, num_test=score.num_test, interval=interval)
                )
        return sorted(points, key=lambda point: point.num_train)

    def class_rows(self) -> list[ClassReview]:
        """The classes, least recall first where there are too many to show; absent ones last."""
        rows = list(self.review.classes)
        if len(rows) > MAX_CLASS_ROWS:
            rows.sort(key=lambda row: (row.recall is None, row.recall))
        return rows[:MAX_CLASS_ROWS]


def read_task_reports(
    store: Store, scores: Iterable[tuple[str, Scores]], records: Mapping[str, Record]
) -> list[TaskReport]:
    """A report of each scored model whose test images were reviewed one by one.

    Args:
        store: where everything lies.
        scores: with the address of each.
        records: of the scores, and of the models and data that they come from, by address.
    """
    reports = []
    for uri, item in scores:
        record = records[uri]
        reviewed = [name for name in item.protocols if review_file(name) in record.files]
        if not reviewed:
            continue
        protocol = max(reviewed, key=protocol_rank)  # as the model that is registered is chosen
        details = json.loads(store.read(join_uri(record.inputs["model"][0], DETAILS_FILE))).get(protocol, {})
        data_uri = record.inputs["data"][0]
        is_checked = FINDINGS_FILE in records[data_uri].files
        has_worst = worst_file(protocol) in record.files
        reports.append(
            TaskReport(
                scores=item,
                review=Review.from_json(store.read(join_uri(uri, review_file(protocol))).decode(), at=uri),
                protocol=protocol,
                worst_png=store.read(join_uri(uri, worst_file(protocol))) if has_worst else b"",
                method=method_text(details),
                choices={name: value for name, value in details.items() if name not in _TOLD_ELSEWHERE and value},
                findings=Findings.from_json(store.read(join_uri(data_uri, FINDINGS_FILE)).decode(), at=data_uri)
                if is_checked
                else None,
            )
        )
    return reports


def method_text(details: Mapping[str, str]) -> str:
    """The recipe, the probe under it, and the reasons where they were chosen, from an entry of ``adapt.json``."""
    parts = [str(details[name]).replace("_", "-") for name in ("method", "probe") if details.get(name)]
    reasons = [str(details[name]) for name in ("reason", "probe_reason") if details.get(name)]
    return ", ".join(parts) + (f" ({'; '.join(reasons)})" if reasons else "")


def task_view(report: TaskReport) -> Mapping[str, object]:
    """What the template shows, computed."""
    text, bounds = report.headline()
    points = report.curve()
    law = extrapolate(points)
    family = report.scores.family
    return {
        "report": report,
        "error": text,
        "counts_mistakes": family in COUNTED_FAMILIES,
        "bounds": bounds,
        "confusion": confusion_rows(report.review),
        "class_unit": CLASS_UNITS.get(family, ""),
        "mistakes_note": MISTAKE_NOTES[family],
        "curve_svg": curve_svg(points, law, report.scale, report.unit) if law else "",
        "promise": promise(points[-1], law, report.scale, report.unit) if law else "",
        "findings": report.findings.lines() if report.findings else [],
    }


def confusion_rows(review: Review) -> list[tuple[str, list[tuple[int, float, bool]]]]:
    """A row a true class: its name, and for each said class the count, its share of the row and whether it is right."""
    rows = []
    for index, counts in enumerate(review.confusion):
        total = max(1, sum(counts))
        rows.append((review.classes[index].name, [(n, n / total, said == index) for said, n in enumerate(counts)]))
    return rows


def promise(last: CurvePoint, law: Extrapolation, scale: float, unit: str) -> str:
    """One sentence on what more labels would buy."""
    return (
        f"With {law.num_train:,} labelled images, {law.num_train / last.num_train:.3g} times as many, the law gives an "
        f"error of {scale * law.error:.1f} {unit} (95 %: {scale * law.low:.1f} to {scale * law.high:.1f}), "
        f"{100 * law.gain:.0f} % less than with {last.num_train:,} (95 %: {100 * law.gain_low:.0f} to "
        f"{100 * law.gain_high:.0f} % less)."
    )


def curve_svg(points: Sequence[CurvePoint], law: Extrapolation, scale: float, unit: str) -> str:
    """The measured errors over the number of labels, the law through them and what it says of more; SVG text."""
    left, top, right, bottom = _PLOT_PX
    sizes = [point.num_train for point in points] + [law.num_train]
    bars = [_bar(point) for point in points] + [(law.low, law.high)]
    highest = _round_up(max(high for _, high in bars))
    low_x, high_x = math.log(sizes[0]), math.log(sizes[-1])

    def place(size: float, error: float) -> tuple[float, float]:
        share = (math.log(size) - low_x) / (high_x - low_x)
        return left + 14 + share * (right - left - 40), bottom - error / highest * (bottom - top)

    width, height = _CURVE_PX
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Error by number of labelled images">']
    for step in range(_NUM_GRID_LINES):
        error = highest * step / (_NUM_GRID_LINES - 1)
        _, y = place(sizes[0], error)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{scale * error:.3g}</text>')
    ends = [place(size, law.scale * size**-law.exponent) for size in _between(sizes[0], sizes[-1])]
    parts.append('<path class="line c1" d="M' + "L".join(f"{x:.1f} {min(y, bottom):.1f}" for x, y in ends) + '"/>')
    for index, (size, (low, high)) in enumerate(zip(sizes, bars, strict=True)):
        is_law = index == len(points)
        error = law.error if is_law else points[index].error
        (x, y), (_, y_low), (_, y_high) = place(size, error), place(size, low), place(size, high)
        dashes = ' stroke-dasharray="4 3"' if is_law else ""
        parts.append(f'<path class="axis" d="M{x:.1f} {y_low:.1f}V{y_high:.1f}"{dashes}/>')
        fill = "none" if is_law else "var(--ours)"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="var(--ours)" stroke-width="1.8"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{size:,}</text>')
    parts.append(f'<text x="{(left + right) / 2:.0f}" y="{height - 6}" text-anchor="middle">labelled images</text>')
    parts.append(f'<text x="4" y="{top - 14}">error, {unit}</text></svg>')
    return "".join(parts)


def _round_up(error: float) -> float:
    """A round number that is at least so large."""
    power = 10.0 ** math.floor(math.log10(error))
    return next(factor * power for factor in _ROUND_FACTORS if factor * power >= error)


def _bar(point: CurvePoint) -> tuple[float, float]:
    return point.interval or wilson_interval(min(point.error, 1.0), point.num_test)


def _between(first: float, last: float, num: int = 40) -> list[float]:
    return [first * (last / first) ** (index / (num - 1)) for index in range(num)]
