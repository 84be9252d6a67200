import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.bench.protocol import (
    few_shot,
    list_digest,
    protocol_rank,
    rarest_classes,
    split_digests,
    stratified_share,
    validation_split,
)
from intern_vision.errors import ConfigError, DataError

FLOWERS_KEYS = [f"flower-{index:05d}" for index in range(2040)]
FLOWERS_LABELS = [index % 102 for index in range(2040)]


def test_ten_percent_of_flowers_is_two_a_class():
    chosen = stratified_share(FLOWERS_KEYS, FLOWERS_LABELS, 0.1, 2021)
    label_of = dict(zip(FLOWERS_KEYS, FLOWERS_LABELS, strict=True))
    assert len(chosen) == 204
    assert set(Counter(label_of[key] for key in chosen).values()) == {2}


@pytest.mark.parametrize(("size", "count"), [(1, 1), (4, 1), (14, 1), (15, 2), (25, 3), (35, 4), (1000, 100)])
def test_share_rounds_half_up_and_takes_at_least_one(size, count):
    assert len(stratified_share([f"k{index}" for index in range(size)], None, 0.1, 0)) == count


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 4), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_draws_do_not_depend_on_the_order(labels, share, seed, random):
    keys = sorted(labels)
    shuffled = list(keys)
    random.shuffle(shuffled)
    for rule in (stratified_share, validation_split):
        assert rule(keys, [labels[key] for key in keys], share, seed) == rule(
            shuffled, [labels[key] for key in shuffled], share, seed
        )
    assert list_digest(keys) == list_digest(shuffled)


def test_seeds_draw_differently_and_shots_are_nested():
    assert stratified_share(FLOWERS_KEYS, FLOWERS_LABELS, 0.1, 0) != stratified_share(
        FLOWERS_KEYS, FLOWERS_LABELS, 0.1, 1
    )
    one, two = (set(few_shot(FLOWERS_KEYS, FLOWERS_LABELS, shots, 0)) for shots in (1, 2))
    assert (len(one), len(two)) == (102, 204)
    assert one < two
    assert two == set(stratified_share(FLOWERS_KEYS, FLOWERS_LABELS, 0.1, 0))


def test_validation_is_even_over_classes_and_leaves_every_class_something():
    train, held_out = validation_split(FLOWERS_KEYS, FLOWERS_LABELS, 0.1, 0)
    label_of = dict(zip(FLOWERS_KEYS, FLOWERS_LABELS, strict=True))
    assert sorted(train + held_out) == FLOWERS_KEYS
    assert Counter(label_of[key] for key in held_out) == dict.fromkeys(range(102), 2)
    keys = ["a1", "a2", "b1", "b2", "c1"]
    train, held_out = validation_split(keys, [key[0] for key in keys], 0.9, 0)
    assert {key[0] for key in train} == {"a", "b", "c"}
    assert len(held_out) == 2


def test_faults_are_named():
    with pytest.raises(DataError, match="'a' occurs twice"):
        stratified_share(["a", "b", "a"], None, 0.5, 0)
    with pytest.raises(DataError, match="2 keys but 1 labels"):
        few_shot(["a", "b"], [0], 1, 0)
    with pytest.raises(ConfigError, match=r"share: expected a number in \(0, 1\], got 0"):
        stratified_share(["a"], None, 0, 0)
    with pytest.raises(ConfigError, match="shots"):
        few_shot(["a"], None, 0, 0)


@pytest.mark.parametrize(
    ("num_classes", "a_class", "expected", "drawn"), [(102, 20, 204, 2), (102, 30, 306, 3), (10, 5000, 5000, 500)]
)
def test_ten_percent_of_the_published_sets(num_classes, a_class, expected, drawn):
    keys = [f"image-{index:06d}" for index in range(num_classes * a_class)]
    labels = [index % num_classes for index in range(len(keys))]
    found = split_digests(keys, labels, shots=(1, 4))
    assert found["10"]["num"] == expected and found["100"]["num"] == len(keys)
    assert [found[f"4shot.{draw}"]["num"] for draw in range(3)] == [4 * num_classes] * 3
    label_of = dict(zip(keys, labels, strict=True))
    assert set(Counter(label_of[key] for key in stratified_share(keys, labels, 0.1, 2021)).values()) == {drawn}


def test_digests_of_a_small_set_are_these_on_every_machine():
    keys, labels = [f"k{index}" for index in range(20)], [index % 4 for index in range(20)]
    found = split_digests(keys, labels, shots=(2,), num_shot_seeds=2)
    assert {name: (split["num"], split["digest"][:12]) for name, split in found.items()} == {
        "10": (4, "55cdb6bb822d"),
        "100": (20, "6deac6b852b4"),
        "2shot.0": (8, "e939e2d3278c"),
        "2shot.1": (8, "346082228157"),
    }
    assert found["2shot.0"]["digest"] == list_digest(few_shot(keys, labels, 2, 2021))


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 3), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_digests_do_not_depend_on_the_order(labels, random):
    keys = list(labels)
    random.shuffle(keys)
    one, other = (
        split_digests(order, [labels[key] for key in order], shots=(1, 2), num_shot_seeds=2)
        for order in (sorted(labels), keys)
    )
    assert one == other and list(one) == ["10", "100", "1shot.0", "1shot.1", "2shot.0", "2shot.1"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=30))
def test_the_rarest_class_of_an_image_is_one_of_its_own(classes):
    counts = {index: sum(index in present for present in classes) for index in range(6)}
    for present, stratum in zip(classes, rarest_classes(classes), strict=True):
        assert stratum == -1 if not present else counts[stratum] == min(counts[index] for index in present)


def test_protocols_are_ranked_by_labels_and_recipe():
    names = ["0", "1shot.0", "16shot.2", "10+knn", "10", "10+lora", "10+mf", "10+ft", "10+wise", "12.5", "100"]
    assert sorted(reversed(names), key=protocol_rank) == names
    for wrong in ("ten", "10+other", "shot.1", ""):
        with pytest.raises(
            ConfigError, match=f"protocol: expected PERCENT or NUMBERshot.SEED.* got {re.escape(repr(wrong))}"
        ):
            protocol_rank(wrong)
