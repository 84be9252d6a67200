import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.bench.table import (
    ArmCost,
    BenchmarkTable,
    ProtocolScore,
    Scores,
    build_table,
    relative_reduction,
    render_text,
)
from intern_vision.errors import ConfigError, DataError


def scores(dataset, model, family="classify", **errors):
    protocols = {
        name.removeprefix("p"): ProtocolScore(error=error, metrics={}, num_train=10, num_test=20, method="probe")
        for name, error in errors.items()
    }
    return Scores(dataset=dataset, model=model, family=family, protocols=protocols)


def table_of(*items, **more):
    return build_table(items, baseline="clip", candidate="intern", **more)


FULL = (
    scores("a", "clip", p10=0.5, p100=0.4),
    scores("a", "intern", p10=0.25, p100=0.2),
    scores("b", "clip", p10=0.1, p100=0.05),
    scores("b", "intern", p10=0.12, p100=0.05),
    scores("c", "clip", p10=0.2, p100=0.1),
    scores("c", "intern", p10=0.1, p100=0.1),
    scores("room", "clip", "depth", p10=0.3, p100=0.2),
    scores("room", "intern", "depth", p10=0.36, p100=0.1),
)


def test_both_readings_of_the_reduction_by_hand():
    table = table_of(*FULL)
    classify = table.families[0]
    both = classify.reductions["intern@10 vs clip@10"]
    assert both.mean_of_reductions == pytest.approx((50 - 20 + 50) / 3)
    assert both.reduction_of_mean == pytest.approx(100 * (1 - 0.47 / 0.8))
    assert (both.num_sets, both.num_wins, both.num_ties) == (3, 2, 0)
    assert classify.errors["clip@10"] == pytest.approx(100 * 0.8 / 3)


def test_losses_and_ties_count_as_such():
    table = table_of(*FULL)
    depth = table.families[1].reductions
    assert depth["intern@10 vs clip@10"].mean_of_reductions == pytest.approx(-20)
    assert depth["intern@10 vs clip@100"].mean_of_reductions == pytest.approx(-80)
    total = table.overall["intern@100 vs clip@100"]
    assert (total.num_sets, total.num_wins, total.num_ties) == (4, 2, 2)
    assert total.reduction_of_mean is None


def test_columns_comparisons_and_rows_are_in_a_fixed_order():
    table = table_of(*reversed(FULL))
    assert table.columns == ("clip@10", "intern@10", "clip@100", "intern@100")
    assert table.comparisons == ("intern@10 vs clip@10", "intern@10 vs clip@100", "intern@100 vs clip@100")
    assert [row.dataset for row in table.rows] == ["a", "b", "c", "room"]
    assert table == table_of(*FULL)


@pytest.mark.parametrize(("num_sets", "thin"), [(1, True), (2, True), (3, False)])
def test_families_of_one_or_two_sets_are_thin(num_sets, thin):
    table = table_of(*(scores(f"set{n}", "clip", p10=0.5) for n in range(num_sets)))
    assert table.families[0].thin is thin
    assert ("thin" in render_text(table)) is thin


def test_one_protocol_one_arm_and_missing_sets_work():
    only = table_of(scores("a", "intern", p10=0.5))
    assert (only.columns, only.comparisons, only.overall) == (("intern@10",), (), {})
    partial = table_of(scores("a", "clip", p10=0.5), scores("a", "intern", p10=0.4), scores("b", "clip", p10=0.1))
    family = partial.families[0]
    assert family.incomplete and family.reductions["intern@10 vs clip@10"].num_sets == 1
    assert family.errors["clip@10"] == pytest.approx(30)
    assert "incomplete" in render_text(partial)


def test_protocols_may_come_in_several_entries_but_not_twice():
    split = table_of(scores("a", "clip", p10=0.5), scores("a", "clip", p100=0.4))
    assert split.columns == ("clip@10", "clip@100")
    with pytest.raises(DataError, match="clip@10 on a is given twice"):
        table_of(scores("a", "clip", p10=0.5), scores("a", "clip", p10=0.4))
    with pytest.raises(DataError, match="a is classify in one entry and detect"):
        table_of(scores("a", "clip", p10=0.5), scores("a", "intern", "detect", p10=0.4))


def test_a_perfect_baseline_leaves_the_reduction_undefined():
    table = table_of(scores("a", "clip", p10=0.0), scores("a", "intern", p10=0.1))
    assert table.rows[0].reductions == {"intern@10 vs clip@10": None}
    assert table.families[0].reductions["intern@10 vs clip@10"].mean_of_reductions is None
    assert BenchmarkTable.from_json(table.to_json()) == table


def test_scores_of_neither_arm_are_an_error():
    with pytest.raises(DataError, match="none is of model 'clip' or 'intern'"):
        table_of(scores("a", "vit", p10=0.5))


@pytest.mark.parametrize("protocol", ["ten", "0", "101"])
def test_protocols_must_be_percentages(protocol):
    text = scores("a", "clip", p10=0.5).to_json().replace('"10":', f'"{protocol}":')
    with pytest.raises(ConfigError, match="percentages"):
        Scores.from_json(text)


def test_text_has_every_set_the_costs_and_no_escape_sequences():
    table = table_of(*FULL, costs={"clip": ArmCost(image_passes=480_000, cpu_s=900.0)})
    text = render_text(table)
    assert "\x1b" not in text and text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 132
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("a "))
    assert row == ["a", "50.0", "25.0", "40.0", "20.0", "+50.0", "+37.5", "+50.0"]
    assert "lower error on 2 of 4 sets, ties on 2" in text
    assert "clip: 480,000 image passes and 900 CPU-s" in text


def test_json_round_trip_keeps_everything():
    table = table_of(*FULL, costs={"intern": ArmCost(image_passes=1, cpu_s=2.5)})
    assert BenchmarkTable.from_json(table.to_json()) == table
    assert json.loads(table.to_json())["rows"][0]["methods"]["clip@10"] == "probe"


@given(error=st.floats(0, 10), baseline=st.floats(0.01, 10))
def test_reduction_is_at_most_100_and_its_sign_tells_the_better(error, baseline):
    value = relative_reduction(error, baseline)
    assert value <= 100
    assert (value > 0) == (error / baseline < 1)
