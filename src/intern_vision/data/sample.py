"""One image with whatever supervision exists for it; what readers yield and shards hold."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
IGNORE_LABEL = 255
BOX_ATTRIBUTES = ("difficult", "ignored", "height_px", "visible_share", "easy", "medium", "hard")
"""What benchmarks state about a box beside its class: 0 or 1, but for ``height_px`` and ``visible_share`` in [0, 1].

``difficult`` is PASCAL VOC's flag. A box that is ``ignored`` is no object to learn or to find, nor is finding it a
fault (regions and other classes of CityPersons, invalid faces of WIDER FACE). ``height_px`` and ``visible_share`` are
CityPersons' height in original pixels and visible over whole area. ``easy``, ``medium`` and ``hard`` say in which of
WIDER FACE's three settings a face counts.
"""


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
        box_attributes: name from ``BOX_ATTRIBUTES`` to ``(num_boxes,)`` float32; empty where a set states none.
        mask: ``(height, width)`` uint8 class indices, 255 = ignore.
        depth: ``(height, width)`` float32 metres, 0 = unknown.
        frame: index of the video frame that the image is, 0-based.
        stratum: what a draw of some images is balanced over: a class, a drive, a scene; empty where nothing is known.
        encoded: the image as a JPEG or PNG file, which a shard then keeps unchanged; not read back.
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
    box_attributes: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    mask: NDArray[np.uint8] | None = None
    depth: NDArray[np.float32] | None = None
    frame: int | None = None
    stratum: str = ""
    encoded: bytes | None = None
    source: int | None = None
