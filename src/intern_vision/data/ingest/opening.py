"""Opening what a layout offers: every image is read and decoded once, then its annotations are held against it.

What is taken and what not: CMYK, palette, grey, transparent and 16-bit RGB images become 8-bit RGB, EXIF orientations
are applied, and a file is what its bytes say, whatever its name. Refused are pictures of which it is not clear what
they show: several frames or pages, one channel of more than 8 bits; and formats that are not read.

H and W are an image's height and width in pixels, upright.
"""

import hashlib
import io
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intern_vision.data.coco import corners
from intern_vision.data.codec import decode_image, decode_labels, decode_map, encode_png, exif_orientation
from intern_vision.data.ingest.earlier import Earlier, Facts
from intern_vision.data.ingest.files import File, Unusable
from intern_vision.data.ingest.offer import Offer, OfferedBox
from intern_vision.data.manifest import ManifestBox, ManifestRow
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.errors import ConfigError, DataError
from intern_vision.store import split_uri

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "BMP": "bmp", "PPM": "ppm", "TIFF": "tif", "WEBP": "webp"}
"""Formats that are read, as Pillow calls them, with their usual suffixes. An MPO file begins with an ordinary JPEG."""

_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_LARGE_PIXELS = 2**24
_MAX_SIDE_SWAPPED = (5, 6, 7, 8)


@dataclass(slots=True, frozen=True, kw_only=True)
class Opened:
    """A row and what the ingest keeps beside it.

    Attributes:
        row: of the manifest.
        facts: of its files; None where the source itself shows that the image cannot be used.
        is_new: the files were opened now.
        taken_over: the facts are those of an earlier manifest.
    """

    row: ManifestRow
    facts: Facts | None = None
    is_new: bool = False
    taken_over: bool = False

    @property
    def stamped(self) -> dict[str, str]:
        """Place and stamp, by which a later ingest knows the image again; without a stamp it is opened anew."""
        if self.facts is None or self.row.status != "ok":
            return {"place": self.row.uri, "stamp": ""}
        return {"place": self.facts.place, "stamp": self.facts.stamp}


@dataclass(slots=True, frozen=True, kw_only=True)
class Opener:
    """Turns offers into rows; used by several threads at once.

    Attributes:
        source: name of the source.
        licence: of images that state none.
        split: of images that state none.
        num_mask_classes: class indices that a mask may hold.
        max_bytes: size of one encoded image, mask or depth map.
        max_pixels: H times W of one image.
        keep: gives bytes without an address one: bytes and suffix to the address.
        opened: what this ingest opened before it was interrupted.
        earlier: what an earlier ingest opened.
    """

    source: str
    licence: str = ""
    split: str = ""
    num_mask_classes: int = IGNORE_LABEL
    max_bytes: int
    max_pixels: int
    keep: Callable[[bytes, str], str]
    opened: Earlier | None = None
    earlier: Earlier | None = None
    # One very large picture at a time: those of all threads together would not fit into memory.
    _large: Any = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        from PIL import Image

        # Pillow warns of what is a row with a reason here.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def open(self, offer: Offer) -> Opened:
        """The row of an offer: ``ok``, or ``quarantined`` with its reason.

        Raises:
            AccessError, RetryableError: the store refuses or is away, which is no fault of the row.
        """
        values: dict[str, Any] = {"key": offer.key, "source": self.source, "licence": offer.licence or self.licence}
        values |= {"split": offer.split or self.split, "caption": offer.caption, "labels": offer.labels}
        facts, is_new, taken_over = None, False, False
        try:
            if offer.fault:
                raise Unusable(*offer.fault.split(": ", 1))
            place, stamp = _utf8(offer.image.shown), self._stamp(offer)
            facts, taken_over = self._known(offer, place, stamp)
            if facts is None:
                facts, is_new = self._facts(offer, place, stamp), True
            if facts.fault:
                raise Unusable(*facts.fault.split(": ", 1))
            row = ManifestRow(
                uri=facts.uri,
                digest=facts.digest,
                width_px=facts.width_px,
                height_px=facts.height_px,
                num_bytes=facts.num_bytes,
                boxes=_fitting_boxes(offer, facts),
                mask=facts.mask,
                depth=facts.depth,
                depth_scale=offer.depth_scale if facts.depth else 0.0,
                **values,
            )
        except Unusable as error:
            taken_over = False
            at = f"{offer.at}: " if offer.at else ""
            kind, _, words = str(error).partition(": ")
            # Depth without its scale, boxes that were never checked: a quarantined row keeps none of them.
            row = ManifestRow(
                uri=_utf8(offer.image.shown), status="quarantined", reason=f"{kind}: {_utf8(at + words)}", **values
            )
        return Opened(row=row, facts=facts, is_new=is_new, taken_over=taken_over)

    def _stamp(self, offer: Offer) -> str:
        files = [file for file in (offer.image, offer.mask, offer.depth) if file is not None]
        stamps = [file.stamp() for file in files] + ([offer.mask_stamp] if offer.mask_stamp else [])
        if offer.mask is not None:
            # A mask that fitted the classes need not fit fewer.
            stamps.append(f"{self.num_mask_classes} classes")
        return " ".join(stamps) if all(stamps) else ""

    def _known(self, offer: Offer, place: str, stamp: str) -> tuple[Facts | None, bool]:
        """Facts that need no opening, and whether they are those of an earlier manifest."""
        for rows, is_manifest in ((self.opened, False), (self.earlier, True)):
            facts = rows.find(offer.key, place, stamp) if rows and stamp else None
            if facts and (facts.fault or facts.orientation or _boxes_fit_upright(offer, facts)):
                return facts, is_manifest
        return None, False

    def _facts(self, offer: Offer, place: str, stamp: str) -> Facts:
        """Opens the files of an offer; what is wrong with them is a fact too."""
        try:
            picture = self._picture(offer.image)
            mask, num_classes = self._mask(offer, picture)
            depth, max_depth_m = self._depth(offer, picture)
        except (Unusable, ConfigError) as error:
            fault = str(error if isinstance(error, Unusable) else Unusable("path", error))
            return Facts(place=place, stamp=stamp, fault=_utf8(fault))
        found = {"mask": mask, "num_mask_classes": num_classes, "depth": depth, "max_depth_m": max_depth_m}
        return replace(picture, place=place, stamp=stamp, **found)

    def _picture(self, file: File) -> Facts:
        """The facts of the image itself."""
        data = file.read(self.max_bytes)
        format, num_pixels = self._format(data)
        with self._large if num_pixels > _LARGE_PIXELS else nullcontext():
            try:
                height, width = decode_image(data, upright=False).shape[:2]
            except ValueError as error:
                raise Unusable("decode", error) from None
        orientation = exif_orientation(data)
        if orientation in _MAX_SIDE_SWAPPED:
            height, width = width, height
        return Facts(
            place="",
            stamp="",
            uri=self._address(file, data, FORMATS[format]),
            digest=hashlib.sha256(data).hexdigest(),
            height_px=height,
            width_px=width,
            num_bytes=len(data),
            orientation=orientation,
        )

    def _format(self, data: bytes) -> tuple[str, int]:
        """Format and H times W by the header; refuses what is not to be decoded."""
        from PIL import Image

        if not data:
            raise Unusable("empty", "file of 0 bytes")
        format, mode, num_frames, size = _jpeg_header(data) or ("", "", 0, (0, 0))
        if not format:
            try:
                with Image.open(io.BytesIO(data)) as image:
                    format, mode, size = image.format or "", image.mode, image.size
                    num_frames = getattr(image, "n_frames", 1)
            except Image.DecompressionBombError:
                raise Unusable("bomb", f"more than {self.max_pixels} pixels in {len(data)} bytes") from None
            # A parser of foreign bytes may raise anything.
            except Exception:
                raise Unusable("decode", "not an image that can be decoded") from None
        if format not in FORMATS:
            raise Unusable("format", f"{format} is not read; save it as JPEG or PNG")
        if size[0] * size[1] > self.max_pixels:
            raise Unusable("bomb", f"{size[0]} x {size[1]} pixels are more than {self.max_pixels}; save it smaller")
        if num_frames > 1 and format != "MPO":
            raise Unusable("animated", f"{num_frames} frames or pages; save the one that is meant")
        if mode in _DEEP_GREY:
            raise Unusable("format", f"one channel of more than 8 bits ({mode}): what is white? save it with 8 bits")
        return format, size[0] * size[1]

    def _mask(self, offer: Offer, picture: Facts) -> tuple[str | None, int]:
        if offer.mask is None and offer.draw_mask is None:
            return None, 0
        try:
            if offer.draw_mask is not None:
                mask_HW, data = offer.draw_mask(), b""
            else:
                data = offer.mask.read(self.max_bytes)
                mask_HW = decode_labels(data)
        except Unusable as error:
            raise Unusable("mask", error) from None
        except (ValueError, OSError) as error:
            raise Unusable("mask", f"{offer.mask.shown}: {error}" if offer.mask else error) from None
        _check_size("mask", mask_HW.shape, picture)
        largest = int(np.where(mask_HW == IGNORE_LABEL, 0, mask_HW).max())
        if largest >= self.num_mask_classes:
            raise Unusable("mask", f"value {largest}, but there are {self.num_mask_classes} classes")
        if offer.draw_mask is not None:
            return self.keep(encode_png(mask_HW.astype(np.uint8)), "png"), 1 + largest
        return self._address(offer.mask, data, "png"), 1 + largest

    def _depth(self, offer: Offer, picture: Facts) -> tuple[str | None, float]:
        if offer.depth is None:
            return None, 0.0
        is_array = offer.depth.shown.lower().endswith(".npy")
        try:
            data = offer.depth.read(4 * self.max_pixels + 2**10 if is_array else self.max_bytes)
            depth_HW = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False) if is_array else decode_map(data)
            if depth_HW.ndim != 2 or depth_HW.dtype.kind not in "fu":
                raise ValueError(f"expected (height, width) of numbers, got {depth_HW.shape} {depth_HW.dtype}")
        except (ValueError, EOFError) as error:
            raise Unusable("depth", f"{offer.depth.shown}: {error}") from None
        _check_size("depth", depth_HW.shape, picture)
        largest = float(np.nan_to_num(depth_HW, nan=0.0, posinf=0.0, neginf=0.0).max())
        return self._address(offer.depth, data, "npy" if is_array else "png"), largest * offer.depth_scale

    def _address(self, file: File, data: bytes, suffix: str) -> str:
        if not file.uri:
            return self.keep(data, suffix)
        split_uri(file.uri)
        return file.uri


def _jpeg_header(data: bytes) -> tuple[str, str, int, tuple[int, int]] | None:
    """Format, mode, frames and (width, height) of a JPEG; None for others and for odd ones, which Pillow reads."""
    if data[:2] != b"\xff\xd8":
        return None
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return "JPEG", "RGB", 1, (width, height)


def _check_size(kind: str, shape: tuple[int, ...], picture: Facts) -> None:
    size = (picture.height_px, picture.width_px)
    if shape != size:
        raise Unusable(kind, f"is {shape} high and wide, its upright image {size}")


def _boxes_fit_upright(offer: Offer, facts: Facts) -> bool:
    return not offer.boxes or offer.stated_size_px in (None, (facts.height_px, facts.width_px))


def _fitting_boxes(offer: Offer, picture: Facts) -> tuple[ManifestBox, ...] | None:
    """Boxes of the upright image; those that are stated for the pixels as stored are turned with the image."""
    if offer.boxes is None:
        return None
    upright = (picture.height_px, picture.width_px)
    stored = upright[::-1] if picture.orientation in _MAX_SIDE_SWAPPED else upright
    if offer.stated_size_px not in (None, upright, stored):
        raise Unusable("size", f"the image is {upright} high and wide, its annotation says {offer.stated_size_px}")
    if offer.stated_size_px == stored != upright:
        return _checked_boxes(offer.boxes, stored, picture.orientation)
    return _checked_boxes(offer.boxes, upright)


def _checked_boxes(
    boxes: tuple[OfferedBox, ...], size_px: tuple[int, int], orientation: int = 1
) -> tuple[ManifestBox, ...]:
    found = []
    for box in boxes:
        try:
            x0, y0, x1, y1 = turned_box(corners(list(box.xywh), size_px, box.at), size_px, orientation)
        except DataError as error:
            raise Unusable("box", error) from None
        # To float32, which the column holds, so that a row that is taken over equals one that is made anew.
        x0, y0, x1, y1 = map(float, np.array([x0, y0, x1, y1], np.float32))
        found.append(
            ManifestBox(label=box.label, x0=x0, y0=y0, x1=x1, y1=y1, difficult=box.difficult, ignored=box.ignored)
        )
    return tuple(found)


def turned_box(box: list[float], size_px: tuple[int, int], orientation: int) -> list[float]:
    """A box of the pixels as stored, in the upright image.

    Args:
        box: ``x0 y0 x1 y1``.
        size_px: height and width as stored.
        orientation: EXIF orientation, 1 to 8 (EXIF 2.32, tag 0x0112).
    """
    x0, y0, x1, y1 = box
    height, width = size_px
    if orientation in (5, 6, 7, 8):
        x0, y0, x1, y1, height, width = y0, x0, y1, x1, width, height
    if orientation in (3, 4, 7, 8):
        y0, y1 = height - y1, height - y0
    if orientation in (2, 3, 6, 7):
        x0, x1 = width - x1, width - x0
    return [x0, y0, x1, y1]


def _utf8(text: str) -> str:
    """Text that Parquet can hold: bytes of a name that are not UTF-8 are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
