import pytest

from intern_vision.bench.timeline import format_duration, format_time, record_label, timeline
from intern_vision.ref import Ref
from intern_vision.stages.base import Record

START_S = 1_700_000_000.0


def record(stage, name, started_s, wall_s):
    ref = Ref(kind="weights", name=name, uri=f"file:///{stage}/{name}", digest="0" * 64, num_bytes=10, parents=())
    return Record(
        ref=ref,
        stage=stage,
        key="k",
        code="c",
        config={},
        inputs={},
        files={},
        facts={"image_passes": 5},
        started_unix_s=START_S + started_s,
        wall_s=wall_s,
        cpu_s=1.0,
    )


def test_timeline_groups_many_runs_of_a_stage_and_cuts_idle_time():
    week_s = 7 * 86400
    records = [record("amateur", "a", 0.0, 60.0)]
    records += [record("adapt", f"m{n}", week_s + 60.0 + 8 * n, 8.0) for n in range(5)]
    rows = timeline(records)
    assert [(row.label, len(row.bars)) for row in rows] == [("amateur: a", 1), ("adapt (5 runs)", 5)]
    assert rows[0].bars[0] == (0.0, pytest.approx(100 * 60 / 105))
    left, width = rows[1].bars[-1]
    assert left + width == pytest.approx(100)
    assert (rows[1].wall_s, rows[1].image_passes, rows[1].num_bytes) == (40.0, 25.0, 50)
    assert timeline([]) == []


def test_a_label_does_not_say_the_stage_twice():
    assert record_label(record("expert", "expert-detect", 0, 1)) == "expert-detect"
    assert record_label(record("adapt", "clip-flower", 0, 1)) == "adapt: clip-flower"


def test_durations_and_times_read_naturally():
    texts = [format_duration(value) for value in (0.42, 43, 725, 12000)]
    assert texts == ["0.4 s", "43 s", "12 min 5 s", "3 h 20 min"]
    assert format_time(START_S) == "2023-11-14 22:13:20 UTC"
