import math

from benchmarks.ingest import measure, measure_rows
from benchmarks.measure import Settings


def test_the_stage_is_held_against_the_bare_loop():
    (figure,) = measure(Settings(num_rounds=1, quick=True))
    assert math.isfinite(figure.value) and figure.value > 0 and figure.reference and figure.limit


def test_rows_and_memory_are_printed(capsys):
    measure_rows(20)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["20 rows afresh", "20 rows with the earlier result"]
    assert all("us of CPU a row, peak memory so far" in line for line in lines[:2])
