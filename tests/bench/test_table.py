import json

import pytest

from intern_vision.bench.scores import Gap, ProtocolScore, Scores
from intern_vision.bench.table import PAPER_REDUCTIONS, ArmCost, BenchmarkTable, build_table
from intern_vision.bench.table_text import render_text
from intern_vision.errors import ConfigError, DataError


def scores(dataset, model, family="classify", **errors):
    """``p10_ft`` stands for the protocol ``10+ft``."""
    protocols = {
        name.removeprefix("p").replace("_", "+"): ProtocolScore(
            error=error, metrics={}, num_train=10, num_test=20, method="probe"
        )
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


@pytest.mark.parametrize("protocol", ["ten", "0+ft", "101", "10+lp", "-1", "nan"])
def test_protocols_must_be_percentages(protocol):
    text = scores("a", "clip", p10=0.5).to_json().replace('"10":', f'"{protocol}":')
    with pytest.raises(ConfigError, match="percentages"):
        Scores.from_json(text)


def test_json_round_trip_keeps_everything():
    table = table_of(*FULL, costs={"intern": ArmCost(image_passes=1, cpu_s=2.5)})
    assert BenchmarkTable.from_json(table.to_json()) == table
    assert json.loads(table.to_json())["rows"][0]["methods"]["clip@10"] == "probe"


MANY = (
    scores("a", "scratch", p10=0.6),
    scores("a", "clip", p10=0.5, p100=0.4, p10_ft=0.4, p100_ft=0.2, p0=0.9),
    scores("a", "expert-c", p10=0.3, p100=0.25),
    scores("a", "expert-d", p10=0.45, p100=0.2),
    scores("a", "intern", p10=0.25, p100=0.2, p10_ft=0.3, p100_ft=0.1),
    scores("a", "clip-cpu", p10=0.4, p100=0.3),
    scores("d", "clip", "detect", p10=0.8),
    scores("d", "expert-c", "detect", p10=0.7),
    scores("d", "expert-d", "detect", p10=0.5),
    scores("d", "intern", "detect", p10=0.4),
)


def test_every_arm_is_a_column_the_recipes_one_after_the_other():
    table = table_of(*MANY)
    assert table.arms == ("clip", "intern", "scratch", "expert-c", "expert-d", "clip-cpu")
    assert table.columns == (
        "clip@10", "intern@10", "scratch@10", "expert-c@10", "expert-d@10", "clip-cpu@10",
        "clip@100", "intern@100", "expert-c@100", "expert-d@100", "clip-cpu@100",
        "clip@10+ft", "intern@10+ft", "clip@100+ft", "intern@100+ft", "clip@0",
    )  # fmt: skip
    assert table.comparisons == (
        "intern@10 vs clip@10", "intern@10 vs clip@100", "intern@100 vs clip@100",
        "intern@10+ft vs clip@10+ft", "intern@10+ft vs clip@100+ft", "intern@100+ft vs clip@100+ft",
    )  # fmt: skip


def test_arms_come_in_the_order_asked_for_and_none_is_dropped():
    table = table_of(*MANY, arms=("scratch", "amateur", "clip", "intern"))
    assert table.arms == ("scratch", "clip", "intern", "expert-c", "expert-d", "clip-cpu")


def test_the_baseline_at_equal_cpu_seconds_is_compared_in_full_and_references_at_equal_labels():
    table = table_of(*MANY, references=("scratch", "joint"), cost_baseline="clip-cpu")
    assert table.comparisons[6:] == (
        "intern@10 vs clip-cpu@10", "intern@10 vs clip-cpu@100", "intern@100 vs clip-cpu@100",
        "intern@10 vs scratch@10",
    )  # fmt: skip
    assert table.rows[0].reductions["intern@10 vs clip-cpu@100"] == pytest.approx(100 * (1 - 0.25 / 0.3))


def test_a_pattern_stands_for_the_best_arm_of_each_family():
    table = table_of(*MANY, references=("expert*",))
    name = "intern@10 vs best expert*@10"
    assert table.best_arms == {
        "best expert*@10": {"classify": "expert-c", "detect": "expert-d"},
        "best expert*@100": {"classify": "expert-d"},
    }
    assert "best expert*@10" not in table.columns
    assert [row.reductions[name] for row in table.rows] == pytest.approx([100 * (1 - 0.25 / 0.3), 20])
    assert table.families[1].reductions[name].reduction_of_mean == pytest.approx(20)
    assert (table.overall[name].num_wins, table.overall[name].num_sets) == (2, 2)
    # A pattern of one arm is that arm.
    assert "intern@10 vs scratch@10" in table_of(*MANY, references=("scr*",)).comparisons


def test_a_mean_over_fewer_sets_is_known_as_such():
    family = table_of(*MANY, scores("b", "intern", p10=0.1)).families[0]
    assert family.incomplete and family.num_sets == 2
    assert (family.num_scored["intern@10"], family.num_scored["clip@10"]) == (2, 1)
    assert "scratch@100" not in family.errors


def test_intervals_are_given_where_the_error_is_a_share_of_images():
    classify, detect = table_of(*MANY).rows
    low, high = classify.intervals["intern@10"]
    assert low < 25 < high and classify.intervals.keys() == classify.errors.keys()
    assert detect.intervals == {}


def test_tables_of_earlier_versions_are_still_read():
    table = table_of(*FULL)
    old = json.loads(table.to_json())
    for name in ("arms", "best_arms"):
        del old[name]
    for row in old["rows"]:
        del row["intervals"]
    for row in old["families"]:
        del row["num_scored"]
    read = BenchmarkTable.from_json(json.dumps(old))
    assert read.columns == table.columns and read.families[0].errors == table.families[0].errors
    assert "incomplete" not in render_text(read) and "intern@10 vs clip@10" in render_text(read)


def test_the_papers_figures_are_at_hand():
    assert PAPER_REDUCTIONS == {"classify": 40.2, "detect": 47.3, "segment": 34.8, "depth": 9.4}


def score(error, **more):
    return ProtocolScore(**{"error": error, "metrics": {"error": error}, "num_train": 8, "num_test": 50} | more)


def test_draws_are_joined_to_their_mean_with_every_value_kept():
    draws = {f"4shot.{seed}": score(0.2 + 0.1 * seed, method="probe") for seed in range(3)}
    both = {"100": score(0.1, method="probe")} | draws
    table = table_of(*(Scores(dataset="a", model=arm, family="classify", protocols=both) for arm in ("clip", "intern")))
    (row,) = table.rows
    assert table.columns == ("clip@100", "intern@100", "clip@4shot", "intern@4shot")
    assert row.errors["intern@4shot"] == pytest.approx(30)
    assert row.draws["intern@4shot"] == pytest.approx((20, 30, 40)) and "intern@100" not in row.draws
    # Wilson's interval is that of one training's answers.
    assert "intern@4shot" not in row.intervals and "intern@100" in row.intervals
    assert "30.0 \u00b1 10.0" in render_text(table)
    assert BenchmarkTable.from_json(table.to_json()) == table
    mean = Scores(dataset="a", model="intern", family="classify", protocols={"4shot": score(0.3, method="probe")})
    with pytest.raises(DataError, match="intern@4shot on a is given as a mean and as draws"):
        table_of(Scores(dataset="a", model="intern", family="classify", protocols=draws), mean)


def depth(dataset, model, error, metric):
    protocols = {"10": score(error, method="x", interval=(0.9 * error, 1.1 * error))}
    return Scores(dataset=dataset, model=model, family="depth", metric=metric, protocols=protocols)


def test_errors_in_metres_stay_metres():
    pairs = (("clip", 3.0), ("intern", 2.4))
    items = [depth("kitti", arm, error, "kitti_rmse") for arm, error in pairs]
    items += [depth("nyu", arm, error / 10, "nyu_rmse") for arm, error in pairs]
    table = table_of(*items)
    (family,) = table.families
    assert (family.unit, family.errors["clip@10"]) == ("m", pytest.approx(1.65))
    assert family.reductions["intern@10 vs clip@10"].mean_of_reductions == pytest.approx(20)
    assert table.rows[0].intervals["clip@10"] == pytest.approx((2.7, 3.3))
    text = render_text(table)
    assert "2.40 m" in text and "0.24 m" in text and "1.65 m" in text


def test_there_is_no_mean_of_metres_and_percent():
    items = [depth("kitti", arm, 3.0, "kitti_rmse") for arm in ("clip", "intern")]
    items += [depth("room", arm, 0.1, "") for arm in ("clip", "intern")]
    table = table_of(*items)
    (family,) = table.families
    both = family.reductions["intern@10 vs clip@10"]
    assert (family.unit, family.errors) == ("", {})
    assert (both.mean_of_reductions, both.reduction_of_mean) == (pytest.approx(0), None)
    assert "depth: errors in several units, so there is no mean" in render_text(table)
    with pytest.raises(DataError, match="dataset room is kitti_rmse in one entry and nyu_rmse in another"):
        table_of(depth("room", "clip", 0.1, "kitti_rmse"), depth("room", "intern", 0.1, "nyu_rmse"))


def test_what_has_no_score_is_a_row_and_numbers_lead_to_their_runs():
    absent = Gap(dataset="nyu_v2", family="depth", status="absent", text="get it from https://example.org [x]")
    failed = Gap(dataset="a", family="classify", arm="clip", status="failed", text="no such file", exit_code=2)
    runs = {("a", "intern"): "http://host/#/runs/1", ("a", "clip"): ""}
    table = table_of(*FULL, gaps=(absent, failed), runs=runs)
    assert table.gaps == (absent, failed)
    assert table.rows[0].runs == {"intern": "http://host/#/runs/1"} and table.rows[1].runs == {}
    text = render_text(table)
    assert "  nyu_v2: absent; get it from https://example.org [x]\n" in text
    assert "  a, clip: failed; no such file\n" in text
    assert BenchmarkTable.from_json(table.to_json()) == table


def test_text_is_never_cut_however_many_columns_there_are():
    protocols = {f"{shots}shot.{seed}": score(0.5, method="x") for shots in (1, 2, 4, 8, 16) for seed in range(3)}
    protocols |= {name: score(0.4, method="x") for name in ("10", "100", "10+ft", "100+ft", "100+knn")}
    items = [
        Scores(dataset=dataset, model=arm, family="classify", protocols=protocols)
        for dataset in ("a", "voc2012_segmentation")
        for arm in ("clip_rn50x16", "intern")
    ]
    text = render_text(build_table(items, baseline="clip_rn50x16", candidate="intern"))
    assert "\u2026" not in text and max(map(len, text.splitlines())) <= 120
