import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.bench.comparisons import (
    METHODS,
    compared_pairs,
    is_protocol,
    labels_text,
    matching_arms,
    parse_protocol,
    protocols_by_recipe,
    recipe_of,
    reduce_errors,
    relative_reduction,
    sorted_protocols,
    split_column,
    split_comparison,
    wilson_interval,
)


@given(num=st.integers(1, 5_000), data=st.data())
def test_interval_equals_scipys(num, data):
    num_wrong = data.draw(st.integers(0, num))
    oracle = scipy.stats.binomtest(num_wrong, num).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(num_wrong / num, num) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


@given(error=st.floats(0, 10), baseline=st.floats(0.01, 10))
def test_reduction_is_at_most_100_and_its_sign_tells_the_better(error, baseline):
    value = relative_reduction(error, baseline)
    assert value <= 100
    assert (value > 0) == (error / baseline < 1)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=8))
def test_both_readings_equal_plain_loops(pairs):
    found = reduce_errors([{"a@10": ours, "b@10": theirs} for ours, theirs in pairs], "a@10", "b@10")
    total = 0.0
    for ours, theirs in pairs:
        total += (theirs - ours) / theirs
    assert found.mean_of_reductions == pytest.approx(100 * total / len(pairs), abs=1e-9)
    sums = [sum(pair[side] for pair in pairs) for side in (0, 1)]
    assert found.reduction_of_mean == pytest.approx(100 * (sums[1] - sums[0]) / sums[1], abs=1e-9)
    assert found.num_wins + found.num_ties <= found.num_sets == len(pairs)


def test_nothing_in_common_is_no_reduction():
    found = reduce_errors([{"a@10": 1.0}, {"b@10": 2.0}], "a@10", "b@10")
    assert (found.mean_of_reductions, found.reduction_of_mean, found.num_sets) == (None, None, 0)


def test_protocols_name_recipes():
    assert [name for name in ("10", "0.5", "100+ft", "0", "0+ft", "101", "+ft", "") if is_protocol(name)] == [
        "10", "0.5", "100+ft", "0",
    ]  # fmt: skip
    assert [recipe_of(name) for name in ("10", "100+ft", "0")] == ["frozen", "fine-tuned", "zero-shot"]
    columns = ("x@0", "x@100+ft", "y@100", "y@10+ft", "x@10")
    assert sorted_protocols(columns) == ["10", "100", "10+ft", "100+ft", "0"]
    assert protocols_by_recipe(columns) == {
        "frozen": ["10", "100"],
        "fine-tuned": ["10+ft", "100+ft"],
        "zero-shot": ["0"],
    }


@given(
    labels=st.one_of(st.integers(1, 100).map(str), st.tuples(st.integers(1, 64), st.integers(0, 9))),
    suffixes=st.lists(st.sampled_from(sorted(METHODS)), unique=True),
)
def test_a_protocol_is_the_sum_of_its_parts(labels, suffixes):
    name = labels if isinstance(labels, str) else f"{labels[0]}shot.{labels[1]}"
    parts = parse_protocol("+".join((name, *suffixes)))
    assert parts.suffixes == tuple(suffixes)
    assert parts.mean_name == "+".join((name.partition(".")[0], *suffixes))
    assert (parts.shots, parts.draw) == ((None, None) if isinstance(labels, str) else labels)
    assert parts.percent == (float(labels) if isinstance(labels, str) else None)


@pytest.mark.parametrize("name", ["4shot.", "shot", "0shot", "4shot.x", "10+ft+ft", "10+FT", "1e3", "10 ", "-4shot"])
def test_what_is_no_protocol(name):
    assert not is_protocol(name)


def test_methods_labels_and_draws_are_in_a_readable_order():
    columns = [f"x@{name}" for name in ("0", "4shot", "100+knn", "16shot", "100", "10", "10+ft+wise", "10+lora")]
    assert sorted_protocols(columns) == ["10", "100", "4shot", "16shot", "10+lora", "100+knn", "10+ft+wise", "0"]
    recipes = ["frozen", "low-rank", "k-NN", "fine-tuned + ensemble", "zero-shot"]
    assert list(protocols_by_recipe(columns)) == recipes
    assert [labels_text(name) for name in ("10+ft", "4shot.2")] == ["10 %", "4 a class"]


def test_few_labels_meet_the_baselines_most_among_percentages_alone():
    columns = [f"{arm}@{name}" for arm in "ib" for name in ("10", "100", "1shot", "4shot")]
    assert list(compared_pairs(columns, "i", ["b"], [])) == [
        "i@10 vs b@10", "i@10 vs b@100", "i@100 vs b@100", "i@1shot vs b@1shot", "i@4shot vs b@4shot",
    ]  # fmt: skip


def test_pairs_need_both_columns():
    columns = ["i@10", "i@100", "b@100", "r@10", "i@0", "b@0"]
    pairs = compared_pairs(columns, "i", ["b"], ["r", "none"])
    assert list(pairs) == ["i@10 vs b@100", "i@100 vs b@100", "i@0 vs b@0", "i@10 vs r@10"]
    assert [split_comparison(name) for name in pairs] == list(pairs.values())
    assert split_column("task-arithmetic@10+ft") == ("task-arithmetic", "10+ft")


def test_a_pattern_matches_whole_names_only():
    arms = ("expert", "expert-c", "joint", "joint-scratch")
    assert matching_arms("expert*", arms, ()) == ["expert", "expert-c"]
    assert matching_arms("joint", arms, ()) == ["joint"]
    assert matching_arms("*", arms, ("joint",)) == ["expert", "expert-c", "joint-scratch"]
