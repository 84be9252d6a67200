import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.data.annotation.selection import box_uncertainty, budgets, choose, diverse, uncertainty


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 60)), min_size=1, max_size=12),
    st.integers(0, 200),
)
def test_budgets_are_spent_within_what_there_is(concepts, total):
    counts, available = (list(column) for column in zip(*concepts, strict=True))
    given_K = budgets(counts, available, total)
    assert given_K.sum() == min(total, sum(available))
    assert ((given_K >= 0) & (given_K <= available)).all()


def test_budgets_are_inverse_to_the_counts():
    assert budgets([9, 99, 999], [1000] * 3, 111).tolist() == [100, 10, 1]
    assert budgets([0, 0, 0], [10, 10, 1], 9).tolist() == [4, 4, 1]


def test_uncertainty_of_certain_and_even_guesses():
    guesses = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.3, 0.2]], np.float32)
    np.testing.assert_allclose(uncertainty(guesses, "margin"), [0, 1, 0.8], atol=1e-6)
    np.testing.assert_allclose(uncertainty(guesses, "entropy")[:2], [0, 1], atol=1e-6)
    assert box_uncertainty(np.array([0.5, 0.5], np.float32)) == pytest.approx(1)
    assert box_uncertainty(np.array([0.999], np.float32)) < 0.02 and box_uncertainty(np.zeros(0, np.float32)) == 0.5


def test_one_of_each_group_of_like_images_is_taken():
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 10, (5, 8))
    group = np.repeat(np.arange(5), 20)
    vectors = centres[group] + rng.normal(0, 0.1, (100, 8))
    taken = diverse(vectors, np.ones(100, np.float32), 5, 20, 0)
    assert sorted(group[taken]) == [0, 1, 2, 3, 4]
    values = np.linspace(0, 1, 100, dtype=np.float32)
    assert diverse(vectors, values, 5, 1, 0).tolist() == [95, 96, 97, 98, 99]


def test_equal_images_do_not_lessen_the_number():
    values = np.array([0.1, 0.5, 0.3, 0.2], np.float32)
    taken = diverse(np.zeros((4, 3)), values, 2, 2, 0)
    assert len(set(taken.tolist())) == 2 and 1 in taken


def test_rare_concepts_are_asked_about_first():
    rng = np.random.default_rng(1)
    vectors, proposed = rng.normal(0, 1, (60, 4)), np.repeat([0, 1, 2], 20)
    taken = choose(vectors, rng.random(60).astype(np.float32), proposed, [0, 9, 99], 12, 3, 0)
    assert len(set(taken.tolist())) == 12
    assert np.bincount(proposed[taken], minlength=3).tolist() == [11, 1, 0]
