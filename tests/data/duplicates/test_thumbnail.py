import numpy as np
import pytest
from scipy.fft import dctn

from intern_vision.data.duplicates.thumbnail import (
    MIN_AMPLITUDE,
    THUMBNAIL_PX,
    WHOLE,
    View,
    _frequencies,
    opposite,
    thumbnail,
    view_hashes,
)


def image(seed, height=70, width=110):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def bits(value):
    return np.unpackbits(np.array([value]).view(np.uint8))


def test_a_hash_is_the_signs_of_low_frequencies():
    small = thumbnail(image(0))["grey"]
    assert small.shape == (THUMBNAIL_PX, THUMBNAIL_PX) and small.dtype == np.uint8
    values, seen = view_hashes(small[None], [WHOLE])
    # The type-II transform samples each cosine at the centre of a pixel, ours integrates it over the pixel.
    amplitudes = dctn(small.astype(float), type=2) / (4 * small.size)
    rows, columns = _frequencies().T
    half = np.pi * np.arange(THUMBNAIL_PX) / (2 * THUMBNAIL_PX)
    share = np.sinc(half / np.pi)
    expected = amplitudes[rows, columns] * share[rows] * share[columns]
    assert bits(values[0, 0]).tolist() == (expected > MIN_AMPLITUDE).astype(int).tolist()
    assert seen[0, 0] == (np.abs(expected) > MIN_AMPLITUDE).sum()
    assert (0, 0) not in map(tuple, _frequencies().tolist()) and len(set(map(tuple, _frequencies().tolist()))) == 64


@pytest.mark.parametrize("span", [(0.0, 1.0), (0.0, 0.4), (0.025, 0.95)])
def test_a_mirrored_view_is_the_view_of_the_mirrored_image(span):
    small = thumbnail(image(1))["grey"]
    mirrored, _ = view_hashes(small[None], [View((0.0, 0.9), opposite(span), mirrored=True)])
    direct, _ = view_hashes(np.ascontiguousarray(small[:, ::-1])[None], [View((0.0, 0.9), span)])
    assert mirrored[0, 0] == direct[0, 0]


def test_a_window_is_the_window_as_an_image_of_its_own():
    small = thumbnail(image(2))["grey"]
    # Half of the pixels, each shown as two: the same picture on the same grid.
    half = small[:, : THUMBNAIL_PX // 2].repeat(2, axis=1)
    view, _ = view_hashes(small[None], [View((0.0, 1.0), (0.0, 0.5))])
    whole, _ = view_hashes(half[None], [WHOLE])
    assert view[0, 0] == whole[0, 0]


def test_plain_images_show_nothing():
    grey = np.full((2, THUMBNAIL_PX, THUMBNAIL_PX), 90, np.uint8)
    grey[1, 4, 4] += 1
    values, seen = view_hashes(grey, [WHOLE])
    assert values.tolist() == [[0], [0]] and seen.tolist() == [[0], [0]]
    assert thumbnail(np.zeros((5, 3, 3), np.uint8))["grey"].shape == (THUMBNAIL_PX, THUMBNAIL_PX)
