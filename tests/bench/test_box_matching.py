import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.bench.box_matching import (
    HIT,
    IGNORED,
    MISS,
    area_precision,
    eleven_point_precision,
    greedy_matches,
    nearest_matches,
    overlaps,
    ranked_counts,
)

shapes = st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 10**6))


def random_boxes(rng, num):
    corners = rng.integers(0, 12, (num, 2))
    return np.concatenate([corners, corners + rng.integers(0, 9, (num, 2))], 1).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_overlaps_count_pixels(shape):
    num_found, num_true, seed = shape
    rng = np.random.default_rng(seed)
    found, truth = random_boxes(rng, num_found), random_boxes(rng, num_true)
    iou, own = overlaps(found, truth)
    assert iou.shape == own.shape == (num_found, num_true)
    for row, column in np.ndindex(iou.shape):
        a, b = np.zeros((2, 24, 24), bool)
        for grid, (x0, y0, x1, y1) in ((a, found[row].astype(int)), (b, truth[column].astype(int))):
            grid[y0:y1, x0:x1] = True
        both = (a & b).sum()
        assert iou[row, column] == pytest.approx(both / (a | b).sum() if both else 0)
        assert own[row, column] == pytest.approx(both / a.sum() if both else 0)
    # Corners that are pixels inside the box: the same as moving the second one by a pixel.
    moved = [np.concatenate([boxes[:, :2], boxes[:, 2:] + 1], 1) for boxes in (found, truth)]
    np.testing.assert_allclose(overlaps(found, truth, extra_px=1.0)[0], overlaps(*moved)[0])


def greedy_oracle(iou, share, ignored, threshold):
    """COCO's loop: true boxes that count first; a later one is taken where it overlaps as much or more."""
    taken, verdicts = set(), []
    order = sorted(range(len(ignored)), key=lambda column: ignored[column])
    for row in range(len(iou)):
        best, which = threshold, None
        for column in order:
            if column in taken and not ignored[column]:
                continue
            if which is not None and not ignored[which] and ignored[column]:
                break
            overlap = share[row, column] if ignored[column] else iou[row, column]
            if overlap >= best:
                best, which = overlap, column
        verdicts.append(MISS if which is None else IGNORED if ignored[which] else HIT)
        if which is not None:
            taken.add(which)
    return verdicts


def nearest_oracle(iou, ignored, threshold):
    taken, verdicts = set(), []
    for row in iou:
        best = max(range(len(row)), key=row.__getitem__, default=None)
        if best is None or row[best] < threshold:
            verdicts.append(MISS)
        elif ignored[best]:
            verdicts.append(IGNORED)
        else:
            verdicts.append(MISS if best in taken else HIT)
            taken.add(best)
    return verdicts


@settings(max_examples=150, deadline=None)
@given(shapes)
def test_matches_equal_loops(shape):
    num_found, num_true, seed = shape
    rng = np.random.default_rng(seed)
    # Few values, so that ties and the threshold itself occur.
    iou, share = rng.choice([0.0, 0.4, 0.5, 0.6, 0.9], (2, num_found, num_true))
    ignored = rng.random(num_true) < 0.4
    assert greedy_matches(iou, share, ignored, 0.5).tolist() == greedy_oracle(iou, share, ignored, 0.5)
    assert nearest_matches(iou, ignored, 0.5).tolist() == nearest_oracle(iou, ignored, 0.5)


def test_equal_scores_are_one_step():
    scores = np.array([0.5, 0.9, 0.5, 0.5, 0.1])
    hits, misses = ranked_counts(scores, np.array([HIT, MISS, HIT, IGNORED, HIT], np.int8))
    assert hits.tolist() == [0, 2, 3] and misses.tolist() == [1, 1, 1]
    for empty in ranked_counts(np.zeros(0), np.zeros(0, np.int8)):
        assert empty.shape == (0,)


def test_a_recall_of_three_tenths_is_reached_by_three_of_ten():
    hits, misses = np.array([1, 2, 3]), np.zeros(3, np.int64)
    # 0, 0.1, 0.2 and 0.3: in binary fractions 3 / 10 < 3 * 0.1.
    assert eleven_point_precision(hits, misses, 10) == 4 / 11
    assert area_precision(hits, misses, 10) == pytest.approx(0.3)
    none = np.zeros(0, np.int64)
    assert eleven_point_precision(none, none, 3) == area_precision(none, none, 3) == 0
