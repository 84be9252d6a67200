"""What a layout offers: images with their annotations, as the source states them, not yet opened."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intern_vision.data.ingest.files import File
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(slots=True, frozen=True, kw_only=True)
class OfferedBox:
    """A box as its source states it.

    Attributes:
        label: name of its class.
        xywh: left, top, width and height in pixels; not checked.
        at: what messages call it.
        difficult: as in ``ManifestBox``.
        ignored: likewise.
    """

    label: str
    xywh: tuple[float, float, float, float]
    at: str
    difficult: bool = False
    ignored: bool = False


@dataclass(slots=True, kw_only=True)
class Offer:
    """One image of a source.

    Attributes:
        name: unique in the source, as a rule the image's path; the row's key is made of it.
        image: where the image lies.
        at: the place in a list that names it, for messages, for example ``line 7``.
        split: ``train``, ``val``, ``test`` or empty.
        licence: of this image; empty for that of the source.
        caption: free text.
        labels: names of the classes shown.
        boxes: as stated.
        stated_size_px: height and width that the annotation states.
        mask: PNG of class indices.
        draw_mask: makes the ``(H, W)`` uint8 class indices where no such file exists; raises ``Unusable``.
        mask_stamp: text that changes with what ``draw_mask`` draws, apart from ``mask``.
        depth: 16-bit PNG or ``.npy``.
        depth_scale: metres a unit of ``depth``.
        fault: ``<kind>: <words>`` where the source itself shows that the image cannot be used.
        key: of the row; set by the ingest.
    """

    name: str
    image: File
    at: str = ""
    split: str = ""
    licence: str = ""
    caption: str | None = None
    labels: tuple[str, ...] | None = None
    boxes: tuple[OfferedBox, ...] | None = None
    stated_size_px: tuple[int, int] | None = None
    mask: File | None = None
    draw_mask: "Callable[[], NDArray[np.uint8]] | None" = None
    mask_stamp: str = ""
    depth: File | None = None
    depth_scale: float = 0.0
    fault: str = ""
    key: str = ""


@dataclass(slots=True, frozen=True, kw_only=True)
class Offers:
    """All images of a source.

    Attributes:
        layout: its name.
        rows: the images in a fixed order; read once.
        tasks: family to task, where the source lists its classes; others follow from the labels.
        num_rows: images, as far as known before reading; 0 where it is not.
        several_labels: an image may have any number of labels.
    """

    layout: str
    rows: Iterable[Offer]
    tasks: Mapping[str, Task] = field(default_factory=dict)
    num_rows: int = 0
    several_labels: bool = False

    @property
    def num_mask_classes(self) -> int:
        """Class indices that a mask may hold."""
        return self.tasks["segment"].num_classes if "segment" in self.tasks else IGNORE_LABEL
