"""The timeline of a run: one line a stage's record, idle time cut out; and how times are written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from intern_vision.stages.base import Record

# Stages with more records than this share one line of the timeline.
_MAX_LINES_PER_STAGE = 4
# Idle time longer than this share of the busy time is cut from the timeline.
_MAX_IDLE_SHARE = 0.05


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
