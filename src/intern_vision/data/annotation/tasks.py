"""Label Studio tasks: a proposed label or proposed boxes to verify, and the labelling configuration that shows them.

H and W are an image's height and width in pixels.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.annotation.settings import PictureConfig
from intern_vision.data.manifest import ManifestBox
from intern_vision.errors import ConfigError

Question = Literal["label", "box"]
Role = Literal["question", "audit"]
RIGHT, WRONG, UNSURE = VERDICTS = ("right", "wrong", "unsure")
VERDICT, CORRECTION, BOXES, IMAGE = "verdict", "correction", "boxes", "image"
"""Names of the controls and of the image in the labelling configuration."""
MAX_CORRECTIONS = 200
"""With more classes than that, nobody is asked which one it is instead."""
_PERCENT = 100.0


@dataclass(slots=True, frozen=True, kw_only=True)
class Item:
    """An image that people are asked about.

    Attributes:
        item: what the task calls it: tells nothing about the image.
        key: of the manifest row.
        uri: of the image.
        width_px: of the upright image.
        height_px: likewise.
        role: ``audit`` where the answer is known.
        proposed: the label asked about; for boxes the label of the surest one.
        known: for an audit of a label the right verdict.
        boxes: the boxes asked about.
        scores: the model's confidence in each box, or in the label, in [0, 1].
    """

    item: str
    key: str
    uri: str
    width_px: int
    height_px: int
    role: Role = "question"
    proposed: str = ""
    known: str = ""
    boxes: tuple[ManifestBox, ...] = ()
    scores: tuple[float, ...] = ()


def item_name(key: str, seed: int) -> str:
    """A name for a row that does not tell its key, which may hold its class."""
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()[:16]


def labelling_config(question: Question, class_names: Sequence[str]) -> str:
    """The XML that Label Studio shows tasks with.

    A label is answered by one of ``VERDICTS`` and, where it is wrong, by the right one of up to ``MAX_CORRECTIONS``
    classes or none. Boxes are moved, removed and added; where nobody can tell, the verdict is ``unsure``.

    Args:
        question: what is asked.
        class_names: the classes; boxes may have these labels.
    """
    view = ElementTree.Element("View")
    text = "Does it show: $proposed ?" if question == "label" else "Correct the boxes. None is an answer too."
    ElementTree.SubElement(view, "Header", value=text)
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true")
    if question == "box":
        labels = ElementTree.SubElement(view, "RectangleLabels", name=BOXES, toName=IMAGE)
        for name in class_names:
            ElementTree.SubElement(labels, "Label", value=name)
    required = {"required": "true"} if question == "label" else {}
    verdict = ElementTree.SubElement(view, "Choices", name=VERDICT, toName=IMAGE, choice="single", **required)
    for number, name in enumerate(VERDICTS if question == "label" else (UNSURE,), 1):
        ElementTree.SubElement(verdict, "Choice", value=name, hotkey=str(number) if question == "label" else "u")
    if question == "label" and len(class_names) <= MAX_CORRECTIONS:
        shown = {"visibleWhen": "choice-selected", "whenTagName": VERDICT, "whenChoiceValue": WRONG}
        correction = ElementTree.SubElement(
            view, "Choices", name=CORRECTION, toName=IMAGE, choice="single", layout="select", **shown
        )
        for name in class_names:
            ElementTree.SubElement(correction, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def task(item: Item, question: Question, picture: str) -> dict[str, Any]:
    """A Label Studio task with its pre-annotation; audits look like every other one.

    Args:
        item: what is asked about.
        question: what is asked.
        picture: what the task's image is, see ``Pictures``.
    """
    if question == "label":
        result = [_region(item, VERDICT, "choices", {"choices": [RIGHT]}, 0)]
    else:
        result = [_rectangle(item, box, number) for number, box in enumerate(item.boxes)]
        for region, score in zip(result, item.scores, strict=True):
            region["score"] = round(float(score), 4)
    prediction: dict[str, Any] = {"model_version": "intern", "result": result}
    if item.scores:
        prediction["score"] = round(float(max(item.scores)), 4)
    data = {IMAGE: picture, "item": item.item} | ({"proposed": item.proposed} if question == "label" else {})
    return {"data": data, "predictions": [prediction]}


def _region(item: Item, control: str, kind: str, value: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {"id": f"{item.item[:8]}-{number}", "from_name": control, "to_name": IMAGE, "type": kind, "value": value}


def _rectangle(item: Item, box: ManifestBox, number: int) -> dict[str, Any]:
    value = {
        "x": _PERCENT * box.x0 / item.width_px,
        "y": _PERCENT * box.y0 / item.height_px,
        "width": _PERCENT * (box.x1 - box.x0) / item.width_px,
        "height": _PERCENT * (box.y1 - box.y0) / item.height_px,
        "rotation": 0,
        "rectanglelabels": [box.label],
    }
    region = _region(item, BOXES, "rectanglelabels", value, number)
    return region | {"original_width": item.width_px, "original_height": item.height_px, "image_rotation": 0}


class Pictures:
    """What tasks say an image is.

    Args:
        config: which of the ways.
    """

    def __init__(self, config: PictureConfig) -> None:
        self.config = config

    def address(self, uri: str, image: NDArray[np.uint8]) -> str:
        """The text that a task's image is.

        Args:
            uri: where the image lies.
            image: its pixels, ``(H, W, 3)`` uint8, upright.

        Raises:
            ConfigError: the image does not lie where this way needs it.
        """
        if self.config.kind == "embedded":
            return embedded(image, self.config.max_side_px)
        if self.config.kind == "presigned":
            return self._presigned(uri)
        path = Path(uri.removeprefix("file://"))
        root = Path(self.config.root)
        if not uri.startswith("file://") or not path.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"pictures.root: {uri} does not lie below {root}; move it, or take kind embedded")
        return f"/data/local-files/?d={quote(path.resolve().relative_to(root.resolve()).as_posix())}"

    def _presigned(self, uri: str) -> str:
        from intern_vision.address import split_uri
        from intern_vision.s3 import S3Access

        scheme, bucket, key = split_uri(uri)
        if scheme != "s3":
            raise ConfigError(f"pictures.kind: {uri} is not on S3 and cannot be presigned; take kind embedded")
        place = {"Bucket": bucket, "Key": key}
        client = S3Access.from_environment().client()
        return client.generate_presigned_url("get_object", Params=place, ExpiresIn=self.config.expires_s)


def embedded(image: NDArray[np.uint8], max_side_px: int) -> str:
    """An image as the text of a ``data:`` address: a JPEG, made smaller where a side is longer than ``max_side_px``."""
    import cv2

    from intern_vision.data.codec import encode_jpeg

    height, width = image.shape[:2]
    scale = min(1.0, max_side_px / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image)).decode()


def audit_items(
    rows: Sequence[Mapping[str, Any]], question: Question, class_names: Sequence[str], seed: int
) -> list[Item]:
    """Items with known answers; every other one proposes something wrong, so that agreeing to all of it shows.

    Args:
        rows: labelled manifest rows.
        question: what is asked.
        class_names: the classes that a wrong proposal is drawn from, two or more for labels.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    items = []
    for number, row in enumerate(rows):
        is_wrong = number % 2 == 1
        fields = {name: row[name] for name in ("key", "uri", "width_px", "height_px")}
        fields |= {"item": item_name(row["key"], seed), "role": "audit"}
        if question == "label":
            others = [name for name in class_names if name not in row["labels"]]
            proposed = others[int(rng.integers(len(others)))] if is_wrong else row["labels"][0]
            items.append(Item(**fields, proposed=proposed, known=WRONG if is_wrong else RIGHT))
            continue
        boxes = [ManifestBox(**box) for box in row["boxes"]]
        if is_wrong:
            # One is missing: an annotator has to draw it.
            del boxes[int(rng.integers(len(boxes)))]
        proposed = boxes[0].label if boxes else ""
        items.append(Item(**fields, proposed=proposed, boxes=tuple(boxes), scores=(1.0,) * len(boxes)))
    return items
