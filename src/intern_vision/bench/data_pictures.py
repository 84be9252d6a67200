"""Rows of a manifest as small pictures for a page: boxes, mask and depth drawn, the words left to the page.

H and W are an image's height and width in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.draw import sample_panels
from intern_vision.bench.report import image_uri
from intern_vision.data.codec import decode_labels, encode_png
from intern_vision.data.manifest import SourceInfo
from intern_vision.data.manifest_dataset import depth_m
from intern_vision.data.manifest_store import open_images, read_bytes
from intern_vision.data.sample import Sample
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Family, Task

PANEL_PX = 160
_JPEG_QUALITY = 75
_NUM_THREADS = 4
_MAX_NAMES = 4
_MAX_CAPTION_CHARS = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A row as the page shows it.

    Attributes:
        key: the row's.
        panels: data URIs: the image with its boxes, then the mask over it and the depth where there are.
        lines: what is known of it, and what could not be read.
        tone: ``gain`` for a row that was kept, ``loss`` for one taken out, empty where neither is meant.
    """

    key: str
    panels: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    tone: str = ""


def make_cards(rows: Sequence[Mapping[str, Any]], sources: Sequence[SourceInfo] = ()) -> list[Card]:
    """Draws rows; images are read a few at a time.

    Args:
        rows: with the columns of a manifest or some of them, at least ``key`` and ``uri``. ``note`` is one more line
            of text, ``tone`` the card's, and ``image`` pixels ``(H, W, 3)`` uint8 RGB, or what is wrong with them,
            where they do not lie at ``uri``.
        sources: of the manifest, whose class lists fix the colours of boxes.

    Returns:
        A card a row, in order; where an image, mask or depth map cannot be read a line says so.
    """
    tasks = {source.name: source.tasks for source in sources}
    cards = []
    opened = open_images((row for row in rows if "image" not in row), _NUM_THREADS)
    for row in rows:
        image = row["image"] if "image" in row else next(opened)[1]
        lines = [*([row["note"]] if row.get("note") else []), *row_lines(row)]
        panels: tuple[str, ...] = ()
        if isinstance(image, str):
            lines.append(f"cannot be shown: {image}")
        else:
            sample, task = _sample(row, image, tasks.get(row.get("source", ""), {}), lines)
            panels = tuple(
                image_uri(encode_png(panel), PANEL_PX, _JPEG_QUALITY) for panel in sample_panels(sample, task)
            )
        cards.append(Card(key=row["key"], panels=panels, lines=tuple(lines), tone=row.get("tone", "")))
    return cards


def row_lines(row: Mapping[str, Any]) -> list[str]:
    """Labels, boxes by class, caption and size of a row in words."""
    lines = []
    if row.get("labels"):
        lines.append(_some(row["labels"]))
    if row.get("boxes") is not None:
        names = [box["label"] for box in row["boxes"]]
        counted = [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
        lines.append(f"boxes: {_some(counted) or 'none'}")
    if row.get("caption"):
        caption = row["caption"]
        lines.append(f"“{caption[:_MAX_CAPTION_CHARS]}{'…' if len(caption) > _MAX_CAPTION_CHARS else ''}”")
    if row.get("width_px"):
        lines.append(f"{row['width_px']} × {row['height_px']} px")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _sample(
    row: Mapping[str, Any], image: NDArray[np.uint8], tasks: Mapping[Family, Task], lines: list[str]
) -> tuple[Sample, dict[Family, Task]]:
    """The row as a sample, with the task that names its boxes; what cannot be read becomes a line."""
    sample = Sample(key=row["key"], split="train", image=image)
    boxes = row.get("boxes") or []
    known = tasks["detect"].class_names if "detect" in tasks else ()
    names = tuple(dict.fromkeys((*known, *(box["label"] for box in boxes))))
    if boxes:
        sample.boxes = np.array([[box[corner] for corner in ("x0", "y0", "x1", "y1")] for box in boxes], np.float32)
        sample.box_labels = np.array([names.index(box["label"]) for box in boxes], np.int64)
    for name, read in (("mask", _mask), ("depth", _depth)):
        if row.get(name):
            try:
                values = read(row)
                if values.shape != image.shape[:2]:
                    raise DataError(f"{values.shape[1]} × {values.shape[0]} px, unlike the image")
            except (ValueError, OSError, DataError, ConfigError) as error:
                lines.append(f"{name}: {error}")
            else:
                setattr(sample, name, values)
    return sample, {"detect": Task(family="detect", class_names=names)} if names else {}


def _mask(row: Mapping[str, Any]) -> NDArray[np.uint8]:
    """``(H, W)``."""
    return decode_labels(read_bytes(row["mask"])).astype(np.uint8)


def _depth(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """``(H, W)`` in metres."""
    return depth_m(row["depth"], row["depth_scale"])
