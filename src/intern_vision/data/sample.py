"""One image with whatever supervision exists for it; what readers yield and shards hold."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
IGNORE_LABEL = 255


@dataclass(slots=True, kw_only=True)
class Sample:
    """One image and its supervision; a field that is ``None`` (or empty) was never annotated.

    Attributes:
        key: unique within its dataset; letters, digits, ``_`` and ``-`` only (it names tar members).
        split: which split the sample belongs to.
        image: ``(height, width, 3)`` uint8, RGB.
        caption: free text.
        label: class index, 0-based.
        concepts: indices of every concept present, ascending.
        boxes: ``(num_boxes, 4)`` float32, ``x0 y0 x1 y1`` in pixels.
        box_labels: ``(num_boxes,)`` int64 class indices.
        mask: ``(height, width)`` uint8 class indices, 255 = ignore.
        depth: ``(height, width)`` float32 metres, 0 = unknown.
        source: number of the dataset it came from, where several are mixed; not stored.
    """

    key: str
    split: Split
    image: NDArray[np.uint8]
    caption: str | None = None
    label: int | None = None
    concepts: tuple[int, ...] | None = None
    boxes: NDArray[np.float32] | None = None
    box_labels: NDArray[np.int64] | None = None
    mask: NDArray[np.uint8] | None = None
    depth: NDArray[np.float32] | None = None
    source: int | None = None
