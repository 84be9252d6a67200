import numpy as np
import pytest

from intern_vision.data.annotation.rectify import KINDS, Described, Rectifier, probability_of_any
from intern_vision.data.annotation.spoil import STATISTICS, image_statistics, unusable, without_object
from intern_vision.errors import DataError

WIDTH = 12


def described(vectors, sharpness=0.0):
    rng = np.random.default_rng(len(vectors))
    statistics = rng.normal(0, 1, (len(vectors), len(STATISTICS))).astype(np.float32)
    statistics[:, STATISTICS.index("sharpness_log")] += sharpness
    return Described(vectors_ND=vectors.astype(np.float32), statistics_NS=statistics)


def around(rng, centres, num):
    """``num`` vectors around each of some centres, and the centre of each."""
    labels = np.repeat(np.arange(len(centres)), num)
    return centres[labels] + rng.normal(0, 0.5, (len(labels), WIDTH)), labels


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 3, (6, WIDTH))
    # The first axis tells whether there is an object, sharpness whether it can be used.
    centres[:, 0] = 4
    vectors, labels = around(rng, centres[:4], 20)
    empty = vectors.copy()
    empty[:, 0] = rng.normal(0, 0.5, len(empty))
    rectifier = Rectifier(described(vectors), labels, described(empty), described(vectors, -8.0), 0.05)
    return rng, centres, rectifier


def test_each_kind_is_found_by_its_own_detector(world):
    rng, centres, rectifier = world
    inside = described(around(rng, centres[:4], 50)[0])
    nothing = around(rng, centres[:4], 10)[0]
    nothing[:, 0] = 0
    pools = {
        "noise": described(nothing),
        "covariate_shift": described(around(rng, centres[:4], 10)[0], -8.0),
        "semantic_shift": described(around(rng, centres[4:], 20)[0]),
    }
    scores = rectifier.score(inside)
    assert (rectifier.kinds_of(scores) >= 0).mean() < 0.15
    assert probability_of_any(scores).mean() < 0.3
    for index, kind in enumerate(KINDS):
        found = rectifier.score(pools[kind])
        assert (rectifier.kinds_of(found) == index).mean() > 0.9, kind
        assert probability_of_any(found).min() > 0.5
        assert rectifier.recalls[kind] > 0.8 and rectifier.losses[kind] <= 0.05
        assert 0.5 <= rectifier.thresholds[kind] < 1


def test_the_probability_of_any_kind_is_that_of_independent_ones():
    rng = np.random.default_rng(3)
    scores = {kind: rng.random(7).astype(np.float32) for kind in KINDS}
    for row, value in enumerate(probability_of_any(scores)):
        none = 1.0
        for kind in KINDS:
            none *= 1 - scores[kind][row]
        assert value == pytest.approx(1 - none, rel=1e-5)


def test_semantic_distance_is_that_of_mahalanobis(world):
    """Against scikit-learn's own distances from its own covariances."""
    from sklearn.covariance import LedoitWolf

    from intern_vision.data.annotation.rectify import _OtherConcepts

    rng, centres, _ = world
    vectors, labels = around(rng, centres[:4], 15)
    x = around(rng, centres, 3)[0]
    found = _OtherConcepts(vectors, labels).distances(x)
    mean, deviation = vectors.mean(0), vectors.std(0)
    z, zx = (vectors - mean) / deviation, (x - mean) / deviation
    own = np.stack([z[labels == k].mean(0) for k in range(4)])
    within = LedoitWolf(assume_centered=True).fit(z - own[labels])
    nearest = np.stack([within.mahalanobis(zx - centre) for centre in own], axis=1).min(1)
    everything = LedoitWolf(assume_centered=True).fit(z).mahalanobis(zx)
    np.testing.assert_allclose(found, np.stack([nearest, nearest - everything], axis=1), rtol=1e-3, atol=1e-2)


def test_too_few_labels_are_refused():
    rng = np.random.default_rng(1)
    one = described(rng.normal(0, 1, (6, WIDTH)))
    with pytest.raises(DataError, match="2 or more of at least 2 classes, got 6 of 1; label a few images"):
        Rectifier(one, np.zeros(6, np.int64), one, one, 0.05)


def test_an_empty_pool_has_no_scores(world):
    _, _, rectifier = world
    scores = rectifier.score(described(np.zeros((0, WIDTH))))
    assert {kind: values.shape for kind, values in scores.items()} == dict.fromkeys(KINDS, (0,))


@pytest.mark.parametrize("size", [(64, 48), (17, 33), (8, 8)])
def test_spoiled_copies_keep_their_size(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    for _ in range(12):
        for copy in (without_object(image, rng), unusable(image, rng)):
            assert copy.shape == image.shape and copy.dtype == np.uint8 and not np.array_equal(copy, image)


def test_statistics_tell_blur_darkness_and_size():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (64, 96, 3), np.uint8)
    even = np.full((64, 96, 3), 90, np.uint8)
    values, flat = image_statistics(image), image_statistics(even)
    assert values.shape == (len(STATISTICS),) and values.dtype == np.float32 and np.isfinite(flat).all()
    assert values[0] == 6 and flat[1] == pytest.approx(90 / 255, abs=1e-3)
    assert flat[3] < values[3] and flat[2] == pytest.approx(0, abs=1e-5) and values[6] > 0.3
    assert image_statistics(even // 30)[4] == 1
