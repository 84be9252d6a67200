"""COCO instances: boxes of named categories."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intern_vision.bench.protocol import rarest_classes
from intern_vision.data.reading import (
    LAYOUTS,
    SPLIT_FOLDERS,
    Item,
    Reading,
    SplitRule,
    make_reading,
    mark_twins,
    sample_key,
    unlisted_images,
)
from intern_vision.data.sample import Sample, Split
from intern_vision.errors import DataError
from intern_vision.task import Task

# Annotation tools round outwards; a box may reach this far beyond the image before it counts as wrong.
_BOX_SLACK_PX = 2.0
COCO_LISTS = ("images", "annotations", "categories")


def read_coco(path: Path, image_dir: Path | None = None, rule: SplitRule | None = None) -> Reading:
    """COCO instances: one JSON file, or a folder whose ``annotations/`` holds one a split (named train, val, test).

    Boxes become corners; crowd regions are left out; a box up to 2 px outside the image is clipped.
    Labels follow the ascending category ids.

    Args:
        path: the JSON file or the folder.
        image_dir: where the file names start; found beside the JSON when not given.
        rule: for splits that the files do not name.

    Raises:
        DataError: an annotation names an unknown image or category, or its box lies outside its image; it gives the
            annotation's id.
    """
    path = path.absolute()
    files = [path] if path.is_file() else coco_files(path)
    if not files:
        raise DataError(f"{path}: no COCO JSON file in it or in annotations/; accepted layouts:\n{LAYOUTS}")
    categories: dict[int, str] = {}
    items: list[Item] = []
    for file in files:
        document = parse_coco(file.read_bytes(), file)
        try:
            categories |= {category["id"]: category["name"] for category in document["categories"]}
            items += _coco_items(document, file, image_dir, path.parent if path.is_file() else path)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{file}: an image, annotation or category is not as COCO has it: {what}") from None
    indices = {category: index for index, category in enumerate(sorted(categories))}
    strata = rarest_classes([item.annotation[2] for item in items])

    def annotate(sample: Sample, item: Item) -> None:
        size_px, boxes, labels = item.annotation
        if sample.image.shape[:2] != size_px:
            raise ValueError(f"image is {sample.image.shape[:2]} high and wide, its annotation says {size_px}")
        sample.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        sample.box_labels = np.array([indices[category] for category in labels], np.int64)

    items = [replace(item, stratum=stratum) for item, stratum in zip(items, strata, strict=True)]
    names = tuple(categories[category] for category in sorted(categories))
    return make_reading(
        {"detect": Task(family="detect", class_names=names)},
        mark_twins(items),
        annotate,
        rule,
        unlabelled=unlisted_images(item.path for item in items),
    )


def coco_files(folder: Path) -> list[Path]:
    """JSON files in a folder's ``annotations/``, or in the folder itself."""
    annotations = folder / "annotations"
    return sorted((annotations if annotations.is_dir() else folder).glob("*.json"))


def parse_coco(data: bytes, place: object, lists: Sequence[str] = COCO_LISTS) -> dict[str, Any]:
    """The JSON object of a COCO file.

    Args:
        data: the file's bytes.
        place: what the message calls it.
        lists: names of the lists that it must have.

    Raises:
        DataError: it is no such object.
    """
    try:
        document = json.loads(data)
        if all(isinstance(document[name], list) for name in lists):
            return document
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    what = "instances" if lists == COCO_LISTS else "annotations"
    raise DataError(f"{place}: expected COCO {what}, a JSON object with the lists {', '.join(lists)}")


def _coco_items(document: dict[str, Any], file: Path, image_dir: Path | None, root: Path) -> list[Item]:
    split = named_split(file.stem)
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in document["images"]}
    labels: dict[int, list[int]] = {image["id"]: [] for image in document["images"]}
    sizes_px = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    categories = {category["id"] for category in document["categories"]}
    for annotation in document["annotations"]:
        place = f"{file}: annotation {annotation.get('id')}"
        image_id, category = annotation["image_id"], annotation["category_id"]
        if image_id not in boxes:
            raise DataError(f"{place}: image_id {image_id} is not among the images")
        if category not in categories:
            raise DataError(f"{place}: category_id {category} is not among the categories")
        if not annotation.get("iscrowd"):
            boxes[image_id].append(corners(annotation["bbox"], sizes_px[image_id], place))
            labels[image_id].append(category)
    images_root = image_dir or _coco_image_dir(document, file, root)
    return [
        Item(
            key=sample_key(images_root / image["file_name"], root),
            path=images_root / image["file_name"],
            split=split,
            annotation=(sizes_px[image["id"]], boxes[image["id"]], labels[image["id"]]),
        )
        for image in document["images"]
    ]


def named_split(stem: str) -> Split | None:
    """The split that a file's name states, as ``val`` in ``instances_val2017``; None where it states none."""
    words = stem.lower().replace("-", "_").split("_")
    return next((SPLIT_FOLDERS[name] for word in words if (name := word.rstrip("0123456789")) in SPLIT_FOLDERS), None)


def corners(bbox: list[float], size_px: tuple[int, int], place: str) -> list[float]:
    """A box ``x y width height`` as ``x0 y0 x1 y1``, clipped to its image.

    Args:
        bbox: in pixels.
        size_px: height and width of the image.
        place: what the message calls the box.

    Raises:
        DataError: it is empty, not finite, or reaches more than 2 px beyond the image.
    """
    height, width = size_px
    x, y, box_width, box_height = bbox
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + box_width, width), min(y + box_height, height)
    outside_px = max(-x, -y, x + box_width - width, y + box_height - height)
    if not all(map(math.isfinite, bbox)) or x1 <= x0 or y1 <= y0 or outside_px > _BOX_SLACK_PX:
        raise DataError(f"{place}: box {bbox} (x, y, width, height) does not fit its {width} x {height} image")
    return [x0, y0, x1, y1]


def _coco_image_dir(document: dict[str, Any], file: Path, root: Path) -> Path:
    first = document["images"][0]["file_name"] if document["images"] else ""
    folder = file.stem.rsplit("_", 1)[-1]
    bases = [base for parent in (root, root.parent) for base in (parent / "images", parent)]
    candidates = [place for base in bases for place in (base / folder, base)]
    found = next((place for place in candidates if (place / first).is_file()), None)
    if found is None:
        raise DataError(
            f"{file}: image {first!r} is in none of {', '.join(map(str, candidates))}; name the image folder"
        )
    return found
