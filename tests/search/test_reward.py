import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.search.reward import Reward, hypervolume, pareto_front

REWARD = Reward(target_macs=1_000_000, exponent=-0.07, max_ratio=1.2)
POINTS = st.lists(st.tuples(st.floats(0.01, 1.5), st.floats(0, 1)), min_size=1, max_size=12)


def test_reward_is_mnasnet_s():
    assert REWARD(0.5, 1_000_000) == 0.5
    # Twice the cost is worth 5 % more quality (arXiv 1807.11626, section 3).
    assert REWARD(0.5, 2_000_000) == pytest.approx(0.5 * 2**-0.07) == pytest.approx(0.4763, abs=1e-4)


@given(quality=st.floats(0.01, 1), macs=st.integers(1_000, 2_000_000), more=st.integers(1, 1_000_000))
def test_cheaper_wins_at_equal_quality_and_better_at_equal_cost(quality, macs, more):
    assert REWARD(quality, macs) > REWARD(quality, macs + more)
    assert REWARD(quality, macs) > REWARD(quality * 0.99, macs)


def test_too_dear_is_worse_than_anything_evaluated_and_the_worse_the_dearer():
    assert REWARD.fits(1_200_000) and not REWARD.fits(1_200_001)
    penalties = [REWARD.penalty(macs) for macs in (1_200_001, 1_500_000, 2_000_000, 9_000_000)]
    assert penalties == sorted(penalties, reverse=True) and penalties[0] < 0 and penalties[-1] == -1
    assert REWARD(0.0, 1_200_000) > penalties[0]


@given(points=POINTS)
def test_hypervolume_equals_a_count_of_cells(points):
    edges = np.unique([0.0, 1.2] + [ratio for ratio, _ in points if ratio <= 1.2])
    levels = np.unique([0.0] + [quality for _, quality in points])
    area = 0.0
    for (left, right), (low, high) in itertools.product(itertools.pairwise(edges), itertools.pairwise(levels)):
        if any(ratio <= left and quality >= high for ratio, quality in points):
            area += (right - left) * (high - low)
    assert hypervolume(points, 1.2) == pytest.approx(area / 1.2)


@given(points=POINTS)
def test_front_holds_whom_nobody_dominates(points):
    front = pareto_front(points)
    for index, (ratio, quality) in enumerate(points):
        dominated = any((r <= ratio and q >= quality) and (r, q) != (ratio, quality) for r, q in points)
        assert dominated == ((ratio, quality) not in [points[i] for i in front])
        assert index in front or dominated or points.count((ratio, quality)) > 1
    assert front == sorted(front, key=lambda i: points[i])
