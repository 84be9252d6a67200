"""Duplicates planted on purpose: the changes that a copy of an image goes through, drawn by a seed."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Change = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]
_INKS = ((255, 255, 255), (0, 0, 0), (220, 30, 30), (250, 210, 40))


def save_anew(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """JPEG at a quality of 30 to 90 and back."""
    import cv2

    quality = int(rng.integers(30, 91))
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def resize(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Both sides times 0.5 to 2, evenly in the logarithm."""
    import cv2

    scale = 2.0 ** rng.uniform(-1, 1)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def to_grey(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Without colour."""
    import cv2

    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def crop(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Without a tenth of its height and a tenth of its width (a fifth of its area), cut off anywhere."""
    height, width = image.shape[:2]
    cut_y, cut_x = round(0.1 * height), round(0.1 * width)
    top, left = int(rng.integers(0, cut_y + 1)), int(rng.integers(0, cut_x + 1))
    return np.ascontiguousarray(image[top : top + height - cut_y, left : left + width - cut_x])


def mirror(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Left to right."""
    return np.ascontiguousarray(image[:, ::-1])


def overlay(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A filled box with a word in it, on 5 to 10 % of the area, of any shape and anywhere."""
    import cv2

    changed = image.copy()
    height, width = image.shape[:2]
    area, aspect = rng.uniform(0.05, 0.1), 2.0 ** rng.uniform(-2, 2)
    # No side longer than the image's: a strip across it, then, of the same area.
    share_y = min(1.0, (area / aspect) ** 0.5)
    share_x = min(1.0, area / share_y)
    box_h, box_w = max(1, int(share_y * height)), max(1, int(share_x * width))
    top, left = int(rng.integers(0, height - box_h + 1)), int(rng.integers(0, width - box_w + 1))
    paper, ink = (_INKS[number] for number in rng.choice(len(_INKS), 2, replace=False))
    box = np.full((box_h, box_w, 3), paper, np.uint8)
    size = box_h / 40
    cv2.putText(box, "SAMPLE", (2, int(0.7 * box_h)), cv2.FONT_HERSHEY_SIMPLEX, size, ink, max(1, int(2 * size)))
    changed[top : top + box_h, left : left + box_w] = box
    return changed


CHANGES: dict[str, Change] = {
    "saved anew": save_anew,
    "resized": resize,
    "grey": to_grey,
    "cropped": crop,
    "mirrored": mirror,
    "overlaid": overlay,
}
"""By name; the first three hardly change a thumbnail."""
