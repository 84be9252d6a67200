import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_data import CASES, rows_of

from intern_vision.bench.comparisons import wilson_interval
from intern_vision.bench.depth_metrics import DepthMetric
from intern_vision.bench.metric_base import Metric, bootstrap_interval
from intern_vision.bench.metrics import ClassificationMetric, SegmentationMetric
from intern_vision.errors import DataError
from intern_vision.heads.base import Prediction

BOXES = ("coco", "voc", "wider", "miss_rate")


def scores_of_split(make, predictions, batch, order, cuts, batch_cuts):
    """The score where the images, in this order, are divided into ranks, and each rank's share into batches."""
    joined = make()
    edges = sorted({0, *cuts, len(order)})
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        rank = make()
        inner = sorted({start, stop, *(cut for cut in batch_cuts if start < cut < stop)})
        for first, last in zip(inner[:-1], inner[1:], strict=True):
            rows = order[first:last]
            rank.update([predictions[row] for row in rows], rows_of(batch, rows))
        state = rank.state()
        assert all(isinstance(value, np.ndarray) for value in state.values())
        joined.merge(state)
    return joined.compute()


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_the_score_is_the_same_for_any_order_ranks_and_batches(case, data):
    make, maker, _ = CASES[case]
    options = {"ties": True} if case in BOXES else {}
    predictions, batch = maker(np.random.default_rng(0), 9, **options)
    metric = make()
    metric.update(predictions, batch)
    order = data.draw(st.permutations(range(9)))
    cuts, batch_cuts = (data.draw(st.lists(st.integers(0, 9), max_size=4)) for _ in range(2))
    scores = scores_of_split(make, predictions, batch, order, cuts, batch_cuts)
    assert scores == pytest.approx(metric.compute(), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_state_restores_the_metric(case):
    make, maker, _ = CASES[case]
    metric, other = make(), make()
    metric.update(*maker(np.random.default_rng(1)))
    other.update(*maker(np.random.default_rng(2)))
    other.load_state(metric.state())
    assert isinstance(other, Metric) and other.compute() == metric.compute()


@pytest.mark.parametrize("case", CASES)
def test_no_annotation_is_said_in_one_line(case):
    make, _, field = CASES[case]
    with pytest.raises(DataError, match=rf"^batch\.{field}: expected .* got none; check the split$"):
        make().compute()


@pytest.mark.parametrize("case", [case for case in CASES if case != "segment"])
def test_resampling_draws_whole_images(case):
    make, maker, _ = CASES[case]
    predictions, batch = maker(np.random.default_rng(0), 12)
    metric = make()
    metric.update(predictions, batch)
    before = metric.compute()

    class Last(np.random.Generator):
        """Draws the last image again and again; for cells, all of the first."""

        def integers(self, low, high=None, size=None, **kwargs):
            # The first image of the depth data has no depth, hence no row.
            return np.full(size, 10 if case in ("depth", "kitti", "nyu") else 11)

        def multinomial(self, n, pvals, size=None):
            return np.where(np.arange(len(pvals)) == np.argmax(pvals), n, 0)

    repeated = metric.resample(Last(np.random.PCG64(0)))
    assert metric.compute() == before
    if case == "classify":
        assert repeated.compute()["top1"] in (0, 1)
        return
    expected = make()
    for _ in range(12):
        expected.update(predictions[11:], rows_of(batch, slice(11, 12)))
    assert repeated.compute() == pytest.approx(expected.compute(), rel=1e-12)


def test_masks_are_resampled_only_where_images_were_kept_apart():
    make, maker, _ = CASES["segment"]
    metric = make()
    metric.update(*maker(np.random.default_rng(0)))
    with pytest.raises(ValueError, match="per_image=True"):
        metric.resample(np.random.default_rng(0))
    apart = SegmentationMetric(5, per_image=True)
    apart.update(*maker(np.random.default_rng(0)))
    assert apart.compute() == metric.compute()
    assert metric.state()["counts_N3K"].nbytes == 3 * 5 * 8 and apart.state()["counts_N3K"].nbytes == 6 * 3 * 5 * 8


def coverage(make, draw, truth, num_trials=120):
    """How often the interval of a made data set holds the true score."""
    hits = 0
    for trial in range(num_trials):
        metric = make()
        metric.update(*draw(np.random.default_rng(trial)))
        low, high = bootstrap_interval(metric, num_resamples=200, seed=trial)
        hits += low <= truth <= high
    return hits / num_trials


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    def labels(rng):
        return [Prediction(label=int(k)) for k in rng.random(150) < 0.3], {"label_B": np.zeros(150, np.int64)}

    def depths(rng):
        truth = np.full((40, 2, 2), 4.0, np.float32)
        # Each image is wrong by a factor of its own, 10 % on average.
        guess = truth * (1 + 0.1 * rng.exponential(size=(40, 1, 1)))
        return [Prediction(depth=row) for row in guess], {"depth_BHW": truth}

    def masks(rng):
        truth = np.zeros((40, 5, 5), np.uint8)
        guess = (rng.random(truth.shape) < rng.beta(2, 6, (40, 1, 1))).astype(np.uint8)
        return [Prediction(mask=row) for row in guess], {"mask_BHW": truth}

    assert 0.88 < coverage(lambda: ClassificationMetric(2), labels, 0.3) <= 1
    assert 0.86 < coverage(lambda: DepthMetric(10.0), depths, 0.1) <= 1
    # Class 1 is never true, so its intersection is 0: mIoU is half of the share of right pixels, 0.75.
    assert 0.86 < coverage(lambda: SegmentationMetric(2, per_image=True), masks, 1 - 0.375) <= 1


def test_an_interval_of_labels_is_close_to_wilsons():
    metric = ClassificationMetric(2)
    truth = np.zeros(400, np.int64)
    metric.update([Prediction(label=int(k < 100)) for k in range(400)], {"label_B": truth})
    low, high = bootstrap_interval(metric, num_resamples=2000)
    assert (low, high) == pytest.approx(wilson_interval(0.25, 400), abs=0.008)
    assert (low, high) == bootstrap_interval(metric, num_resamples=2000)
    assert (low, high) != bootstrap_interval(metric, num_resamples=2000, seed=1)


@pytest.mark.parametrize("case", BOXES)
def test_intervals_of_boxes_hold_the_score(case):
    make, maker, _ = CASES[case]
    metric = make()
    metric.update(*maker(np.random.default_rng(3), 40))
    low, high = bootstrap_interval(metric, num_resamples=30)
    assert 0 <= low < metric.compute()["error"] < high <= 1


def test_an_interval_of_nothing_is_an_error():
    with pytest.raises(DataError, match="^interval of error: no draw of the images has this score"):
        bootstrap_interval(ClassificationMetric(2), num_resamples=3)
