"""What the miniatures of official layouts are made of: pictures whose class can be learnt, lists and MATLAB cells."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_CLASSES = 3
PARTS = ("train", "test")
Rng = np.random.Generator


def picture(rng: Rng, label: int, height: int = 36, width: int = 48) -> NDArray[np.uint8]:
    """Noise with a bright square whose colour, corner and number of dark bars depend on the class; RGB."""
    image = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
    y, x = (label // 2 % 2) * height // 2, (label % 2) * width // 2
    image[y : y + height // 2, x : x + width // 2, label % 3] = rng.integers(180, 256)
    image[y : y + height // 2, x + 1 : x + 1 + 2 * (label // 12) : 2] = 0
    return image


def save(path: Path, image: NDArray[Any]) -> None:
    """Writes RGB, or one channel of 8 or 16 bits, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def cell(values: list[Any], row: bool = False) -> NDArray[Any]:
    """A MATLAB cell array: a column, or a row."""
    array = np.empty((len(values), 1), object)
    array[:, 0] = values
    return array.T if row else array


def counted(num_train: int, num_test: int, num_classes: int = NUM_CLASSES) -> Iterator[tuple[str, int, int]]:
    """Part, index in it and class, all classes in turn."""
    for part, count in zip(PARTS, (num_train, num_test), strict=True):
        yield from ((part, index, index % num_classes) for index in range(count))


def corner_box(label: int, height: int = 36, width: int = 48) -> tuple[int, int, int, int]:
    """Where ``picture`` puts its square: x, y, width, height."""
    return (label % 2) * width // 2, (label // 2 % 2) * height // 2, width // 2, height // 2
