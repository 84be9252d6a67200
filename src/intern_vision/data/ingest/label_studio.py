"""Label Studio's JSON export: choices, boxes, polygons and brush strokes.

H and W are an image's height and width in pixels.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from intern_vision.data.ingest.files import File, Nowhere, Unusable
from intern_vision.data.ingest.offer import Offer, OfferedBox, Offers
from intern_vision.data.ingest.origin import Origin
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.errors import DataError
from intern_vision.task import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_FIELDS = ("image", "img", "url", "image_url")
_MASK_TYPES = ("polygonlabels", "brushlabels")
_MAX_PIXELS = 2**28


def read_label_studio(origin: Origin) -> Offers:
    """A JSON export, a list of tasks; of several annotations of a task the ground truth or else the latest is taken.

    Images are addresses, or files beside the export: what was uploaded is looked for by its name. Choices become
    labels, rectangles boxes; polygons and brush strokes become one mask, later ones over earlier ones, 255 where
    nothing was drawn. Tasks without an annotation are images without labels.

    Raises:
        DataError: the file is no such list.
    """
    tree = origin.tree
    name = origin.file or next(each for each in tree.names if each.endswith(".json") and "/" not in each)
    try:
        tasks = json.loads(tree.text(name))
        results = [_results(task) for task in tasks]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{tree.shown}/{name}: expected a JSON export of Label Studio, a list of tasks: {error}"
        ) from None
    drawn = {_label(each) for task in results for each in task if each.get("type") in _MASK_TYPES}
    classes = tuple(sorted(label for label in drawn if label))
    known = {"segment": Task(family="segment", class_names=classes)} if classes else {}
    if len(classes) >= IGNORE_LABEL:
        raise DataError(f"{tree.shown}/{name}: more than {IGNORE_LABEL - 1} classes do not fit into masks of 8 bits")

    def rows() -> Iterator[Offer]:
        for task, found in zip(tasks, results, strict=True):
            yield _offer(origin, task, found, classes)

    several = any(len(_choices(found) or ()) > 1 for found in results)
    return Offers(layout="label_studio", rows=rows(), tasks=known, num_rows=len(tasks), several_labels=several)


def _results(task: dict[str, Any]) -> list[dict[str, Any]]:
    """What was annotated in the annotation of a task that counts."""
    kept = [each for each in task.get("annotations", ()) if not each.get("was_cancelled")]
    if not kept:
        return []
    latest = max(kept, key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at") or "")))
    return [each for each in latest["result"] if isinstance(each.get("value"), dict)]


def _offer(origin: Origin, task: dict[str, Any], results: list[dict[str, Any]], classes: tuple[str, ...]) -> Offer:
    at = f"task {task.get('id')}"
    text = _image_text(task.get("data"))
    offer = Offer(name=text or at, image=Nowhere(text or at), at=at)
    try:
        if not text:
            raise Unusable("row", f"names no image in {', '.join(IMAGE_FIELDS)}")
        offer.image = _image_file(origin, text)
        offer.labels = _choices(results)
        _add_boxes(offer, results)
        _add_mask(offer, results, classes)
    except Unusable as error:
        offer.fault = str(error)
    except (KeyError, TypeError, ValueError) as error:
        offer.fault = f"annotation: not as Label Studio exports it: {type(error).__name__} {error}"
    return offer


def _image_text(data: Any) -> str:
    values = data if isinstance(data, dict) else {}
    named = next((values[name] for name in IMAGE_FIELDS if isinstance(values.get(name), str)), "")
    texts = [value for value in values.values() if isinstance(value, str)]
    return named or (texts[0] if len(texts) == 1 else "")


def _image_file(origin: Origin, text: str) -> File:
    """Where an image lies: ``/data/local-files/?d=PATH`` and uploads are paths of the machine Label Studio ran on."""
    if not text.startswith("/data/"):
        return origin.file_at(text)
    parts = urlsplit(text)
    if parts.path.startswith("/data/local-files"):
        return origin.tree.named_file(parse_qs(parts.query).get("d", [""])[0])
    upload = parts.path.rsplit("/", 1)[-1]
    names = [upload, f"images/{upload}", parts.path.removeprefix("/data/")]
    return origin.tree.named_file(next((name for name in names if origin.tree.has(name)), names[0]))


def _choices(results: list[dict[str, Any]]) -> tuple[str, ...] | None:
    chosen = [choice for each in results if each.get("type") == "choices" for choice in each["value"]["choices"]]
    return tuple(dict.fromkeys(map(str, chosen))) if chosen else None


def _label(result: dict[str, Any]) -> str:
    return next(iter(result["value"].get(result["type"], ())), "")


def _add_boxes(offer: Offer, results: list[dict[str, Any]]) -> None:
    found = [(number, each) for number, each in enumerate(results, 1) if each.get("type") == "rectanglelabels"]
    boxes = []
    for number, each in found:
        value, place = each["value"], f"region {each.get('id', number)}"
        if value.get("rotation"):
            raise Unusable("box", f"{place}: is turned by {value['rotation']} degrees; draw it upright")
        height, width = _size(offer, each)
        x, y, box_width, box_height = (float(value[name]) / 100 for name in ("x", "y", "width", "height"))
        xywh = (x * width, y * height, box_width * width, box_height * height)
        boxes.append(OfferedBox(label=_label(each), xywh=xywh, at=place))
    if found:
        offer.boxes = tuple(boxes)


def _size(offer: Offer, result: dict[str, Any]) -> tuple[int, int]:
    size = (int(result["original_height"]), int(result["original_width"]))
    if offer.stated_size_px not in (None, size):
        raise Unusable("size", f"regions state {offer.stated_size_px} and {size}")
    offer.stated_size_px = size
    return size


def _add_mask(offer: Offer, results: list[dict[str, Any]], classes: tuple[str, ...]) -> None:
    found = [each for each in results if each.get("type") in _MASK_TYPES]
    if not found:
        return
    size = [_size(offer, each) for each in found][0]
    if not 0 < size[0] * size[1] <= _MAX_PIXELS:
        raise Unusable("size", f"regions state {size[0]} x {size[1]} pixels")
    offer.draw_mask = _DrawnMask(found, {name: index for index, name in enumerate(classes)}, size)
    offer.mask_stamp = json.dumps([found, classes], sort_keys=True)


@dataclass(slots=True, frozen=True)
class _DrawnMask:
    """Class indices from polygons in per cent of the sides and brush strokes; 255 where nothing was drawn."""

    results: list[dict[str, Any]]
    indices: dict[str, int]
    size_px: tuple[int, int]

    def __call__(self) -> "NDArray[np.uint8]":
        import cv2

        height, width = self.size_px
        mask_HW = np.full((height, width), IGNORE_LABEL, np.uint8)
        for each in self.results:
            index = self.indices[_label(each)]
            if each["type"] == "polygonlabels":
                points_N2 = np.asarray(each["value"]["points"], np.float64).reshape(-1, 2) / 100 * [width, height]
                # Points are in a frame where pixel centres lie at halves; OpenCV's lie at whole numbers.
                cv2.fillPoly(mask_HW, [np.rint(points_N2 - 0.5).astype(np.int32)], index)
            else:
                strokes = decode_brush(bytes(each["value"]["rle"]), 4 * height * width)
                mask_HW[strokes.reshape(height, width, 4)[..., 3] > 0] = index
        return mask_HW


def decode_brush(data: bytes, num_values: int) -> "NDArray[np.uint8]":
    """The run-length code of Label Studio's brush: a stream of bits, runs and literals in words of a stated size.

    Head: 32 bits number of values, 5 bits word size less 1, and 4 times 4 bits length sizes less 1. Then, until all
    values are there: a bit that is 1 for a run, 2 bits that choose a length size, the length less 1 in so many bits,
    and one word for a run or a word a value.

    Args:
        data: the code.
        num_values: expected, RGBA values of all pixels.

    Returns:
        ``(num_values,)`` uint8.

    Raises:
        ValueError: the code is of another number of values, or ends early.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    place = 0

    def read(num_bits: int) -> int:
        nonlocal place
        if place + num_bits > len(bits):
            raise ValueError("the brush's code ends early")
        value = 0
        for bit in bits[place : place + num_bits].tolist():
            value = 2 * value + bit
        place += num_bits
        return value

    if (found := read(32)) != num_values:
        raise ValueError(f"the brush's code has {found} values, expected {num_values}")
    word_size = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = np.zeros(num_values, np.uint8)
    done = 0
    while done < num_values:
        is_run = read(1)
        end = min(done + 1 + read(sizes[read(2)]), num_values)
        if is_run:
            values[done:end] = read(word_size) & 255
        else:
            values[done:end] = [read(word_size) & 255 for _ in range(done, end)]
        done = end
    return values
