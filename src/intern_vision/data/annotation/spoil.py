"""Image statistics, and copies of labelled images that are spoiled on purpose: what an unusable image looks like.

H W height and width, S image statistics.
"""

import math

import numpy as np
from numpy.typing import NDArray

STATISTICS = (
    "short_side_log2_px",
    "mean_luminance",
    "luminance_deviation",
    "sharpness_log",
    "saturated_share",
    "colour_deviation",
    "structure_share",
)
_MEASURED_SIDE_PX = 64
_STRUCTURE = 0.8


def image_statistics(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What can be told of an image without a model, ``(S,)`` float32 in the order of ``STATISTICS``.

    The logarithm of the short side in pixels; then, of the image at 64 pixels: mean and standard deviation of the
    luminance in [0, 1], logarithm of the variance of its Laplacian (low where blurred), share of black or white
    pixels, standard deviation of the colour differences, and the share of the area that holds 80 % of the squared
    gradient (low where something small lies on an even ground).

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    import cv2

    side = (_MEASURED_SIDE_PX, _MEASURED_SIDE_PX)
    small = cv2.resize(image, side, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    across, down = (cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx) for dx in (1, 0))
    energy = np.sort((across**2 + down**2).ravel())[::-1]
    held = int(np.searchsorted(np.cumsum(energy), _STRUCTURE * float(energy.sum())))
    values = (
        math.log2(min(image.shape[:2])),
        grey.mean(),
        grey.std(),
        math.log(float(cv2.Laplacian(grey, cv2.CV_32F).var()) + 1e-6),
        ((grey < 0.02) | (grey > 0.98)).mean(),
        (small - grey[..., None]).std(),
        held / energy.size,
    )
    return np.array(values, np.float32)


def without_object(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """An image of the same size that shows no object: the ground of this one, or a corner of it enlarged.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; what it shows is taken to be in its middle.
        rng: which corner, and which of the two.
    """
    import cv2

    height, width = image.shape[:2]
    y, x = (int(rng.integers(2)) for _ in range(2))
    tall, wide = max(2, height // 4), max(2, width // 4)
    rows = slice(0, tall) if y == 0 else slice(height - tall, height)
    columns = slice(0, wide) if x == 0 else slice(width - wide, width)
    if rng.random() < 0.5:
        return cv2.resize(image[rows, columns], (width, height), interpolation=cv2.INTER_CUBIC)
    corners = np.array(
        [[_middle(image[:tall, :wide]), _middle(image[:tall, -wide:])],
         [_middle(image[-tall:, :wide]), _middle(image[-tall:, -wide:])]],
        np.float32,
    )  # fmt: skip
    ground = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    grain = image[rows, columns] - _middle(image[rows, columns])
    repeats = (math.ceil(height / tall), math.ceil(width / wide), 1)
    return np.clip(ground + np.tile(grain, repeats)[:height, :width] + 0.5, 0, 255).astype(np.uint8)


def unusable(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image as nobody could use it: far too small in its frame, blurred, of a few pixels, or dark.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        rng: which fault, and how bad.
    """
    import cv2

    height, width = image.shape[:2]
    short_px = min(height, width)
    fault = int(rng.integers(4))
    if fault == 0:
        tall, wide = (max(1, int(side / rng.uniform(5, 9))) for side in (height, width))
        ground = without_object(image, rng)
        y, x = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        ground[y : y + tall, x : x + wide] = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA)
        return ground
    if fault == 1:
        return cv2.GaussianBlur(image, (0, 0), short_px / rng.uniform(8, 16))
    if fault == 2:
        few = (max(1, int(width / rng.uniform(8, 14))), max(1, int(height / rng.uniform(8, 14))))
        coarse = cv2.resize(image, few, interpolation=cv2.INTER_AREA)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    dark = image * np.float32(rng.uniform(0.03, 0.1)) + rng.normal(0, 4, image.shape).astype(np.float32)
    return np.clip(dark + 0.5, 0, 255).astype(np.uint8)


def _middle(patch: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.median(patch.reshape(-1, 3), axis=0).astype(np.float32)
