"""Thumbnails of images and 64-bit hashes of windows of them, which a small change of the image hardly changes.

A hash says which of the 64 lowest frequencies of the discrete cosine transform of a window, without the mean, are
clearly positive: the perceptual hash of C. Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions,
2010) with a fixed threshold in place of the median, so that smooth images keep their hash when they are saved anew and
the hash of a mirrored image follows from the same coefficients. A transform of any window is linear in the thumbnail,
so all windows together cost two small matrix products.

N images, T side of a thumbnail, W windows of one axis, K frequencies of one axis, V views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

THUMBNAIL_PX = 32
HASH_BITS = 64
COLOUR_CELLS = 8
THUMBNAIL = np.dtype(
    [("grey", np.uint8, (THUMBNAIL_PX, THUMBNAIL_PX)), ("colour", np.uint8, (COLOUR_CELLS, COLOUR_CELLS, 2))]
)
"""Grey values, and the two colour differences Cr and Cb of ITU-R BT.601 (128 = grey) of larger cells."""
MIN_AMPLITUDE = 0.1
"""Grey values: a frequency must have this amplitude for its bit to be set; less is what a JPEG file adds by itself."""
_BATCH_SIZE = 128

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class View:
    """A window of an image, mirrored or not.

    Attributes:
        y: from where to where of the height, in [0, 1].
        x: from where to where of the width, in [0, 1].
        mirrored: whether the window is then mirrored left to right.
    """

    y: Span
    x: Span
    mirrored: bool = False


def opposite(span: Span) -> Span:
    """Where a part of the width lies in the mirrored image."""
    return 1 - span[1], 1 - span[0]


WHOLE = View((0.0, 1.0), (0.0, 1.0))


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.void]:
    """A ``THUMBNAIL`` (shape ``()``) of an RGB image ``(height, width, 3)`` uint8, whatever its aspect."""
    import cv2

    found = np.zeros((), THUMBNAIL)
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    is_large = min(image.shape[:2]) >= THUMBNAIL_PX
    # Averaging over areas: a smaller copy of the same image gives the same thumbnail.
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if is_large else cv2.INTER_LINEAR)
    found["grey"] = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    cells = cv2.resize(small, (COLOUR_CELLS, COLOUR_CELLS), interpolation=cv2.INTER_AREA)
    found["colour"] = cv2.cvtColor(cells, cv2.COLOR_RGB2YCrCb)[..., 1:]
    return found


def view_hashes(
    thumbnails_NTT: NDArray[np.uint8], views: Sequence[View]
) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Hashes of the same views of every thumbnail.

    Args:
        thumbnails_NTT: their grey values, uint8.
        views: what to hash.

    Returns:
        Hashes ``(N, V)``, and ``(N, V)`` how many of the 64 frequencies reach ``MIN_AMPLITUDE``: a measure of what
        there is to see. The hash of a plain image says little.
    """
    spans_y, spans_x = (tuple(sorted({span(view) for view in views})) for span in (lambda v: v.y, lambda v: v.x))
    down_WKT, across_WKT = _window_transforms(spans_y), _window_transforms(spans_x)
    down_MT, across_MT = (each.reshape(-1, THUMBNAIL_PX) for each in (down_WKT, across_WKT))
    rows, columns = _frequencies().T
    is_odd_B1 = (columns % 2 == 1)[:, None]
    places = [(spans_y.index(view.y), spans_x.index(view.x), view.mirrored) for view in views]
    hashes_NV = np.empty((len(thumbnails_NTT), len(views)), np.uint64)
    num_seen_NV = np.empty((len(thumbnails_NTT), len(views)), np.uint8)
    for start in range(0, len(thumbnails_NTT), _BATCH_SIZE):
        part = slice(start, start + _BATCH_SIZE)
        # Images last: every step below then works on whole rows of them.
        image_TTN = np.ascontiguousarray(thumbnails_NTT[part].transpose(1, 2, 0), np.float32)
        half_MTN = (down_MT @ image_TTN.reshape(THUMBNAIL_PX, -1)).reshape(len(down_MT), THUMBNAIL_PX, -1)
        value = (across_MT @ half_MTN).reshape(*down_WKT.shape[:2], *across_WKT.shape[:2], -1)
        is_positive, is_negative = value > MIN_AMPLITUDE, value < -MIN_AMPLITUDE
        for number, (y, x, mirrored) in enumerate(places):
            positive_BN, negative_BN = is_positive[y, rows, x, columns], is_negative[y, rows, x, columns]
            # Mirroring changes the sign of every odd horizontal frequency and of nothing else.
            set_BN = np.where(is_odd_B1, negative_BN, positive_BN) if mirrored else positive_BN
            packed_N8 = np.ascontiguousarray(np.packbits(set_BN, axis=0).T)
            hashes_NV[part, number] = packed_N8.view(np.uint64)[:, 0]
            num_seen_NV[part, number] = (positive_BN | negative_BN).sum(axis=0, dtype=np.uint8)
    return hashes_NV, num_seen_NV


@cache
def _frequencies() -> NDArray[np.int64]:
    """The ``(HASH_BITS, 2)`` lowest pairs of a vertical and a horizontal frequency but (0, 0), in mixed order."""
    pairs = [(y, x) for y in range(HASH_BITS) for x in range(HASH_BITS) if y or x]
    lowest = sorted(pairs, key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))[:HASH_BITS]
    # High frequencies err most: mixed, so that a search by parts of a hash finds its errors spread over the parts.
    order = np.random.default_rng(0).permutation(HASH_BITS)
    return np.array(lowest, np.int64)[order]


@cache
def _window_transforms(spans: tuple[Span, ...]) -> NDArray[np.float32]:
    """``(W, K, T)``: the cosines of each window, integrated over the pixels of one axis of a thumbnail."""
    frequency_K1 = np.arange(_frequencies().max() + 1)[:, None]
    edges = np.linspace(0.0, 1.0, THUMBNAIL_PX + 1)
    transforms = []
    for start, end in spans:
        at = (np.clip(edges, start, end) - start) / (end - start)
        with np.errstate(divide="ignore", invalid="ignore"):
            integral = np.where(frequency_K1 == 0, at, np.sin(np.pi * frequency_K1 * at) / (np.pi * frequency_K1))
        transforms.append(np.diff(integral, axis=1))
    return np.stack(transforms).astype(np.float32)
