"""COCO instances, panoptic and captions: all files about one set of images become one row an image.

H and W are an image's height and width in pixels.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from intern_vision.data.coco import COCO_LISTS, named_split, parse_coco
from intern_vision.data.ingest.files import File, Nowhere, Tree, Unusable
from intern_vision.data.ingest.offer import Offer, OfferedBox, Offers
from intern_vision.data.ingest.origin import Origin
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.errors import DataError
from intern_vision.task import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True)
class _Document:
    """One JSON file with what is looked up in it often."""

    tree: Tree
    name: str
    values: dict[str, Any]
    categories: dict[int, dict[str, Any]]
    licences: dict[int, str]
    of_image: dict[Any, list[dict[str, Any]]] = field(default_factory=dict)
    twice: frozenset[Any] = frozenset()

    @property
    def place(self) -> str:
        return f"{self.tree.shown}/{self.name}"


def read_coco(origin: Origin) -> Offers:
    """One JSON file, or all of ``annotations/``; file names with train, val or test give the split.

    Boxes of crowds are ``ignored``. Of several captions the first is taken. A panoptic file gives a mask over all its
    categories, in order of their ids, and the boxes of its things where no instances file has the image's. An image
    that something is wrong with is offered with its fault.

    Raises:
        DataError: a file is not as COCO has it, an annotation is of no image, or a category id has two names.
    """
    tree = origin.tree
    names = [origin.file] if origin.file else _json_names(tree)
    if not names:
        raise DataError(f"{tree.shown}: no COCO JSON file in it or in annotations/")
    offers: dict[str, Offer] = {}
    classes: dict[int, str] = {}
    segments: dict[int, str] = {}
    for name in names:
        document = _load(tree, name)
        is_panoptic = any("segments_info" in annotation for annotation in document.values["annotations"])
        try:
            for offer in _offers(document, is_panoptic):
                known = offers.get(offer.name)
                offers[offer.name] = _merged(known, offer) if known else offer
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{document.place}: an image, annotation or category is not as COCO has it: {what}"
            ) from None
        for id, category in document.categories.items():
            _add_class(classes if category.get("isthing", True) else {}, id, category["name"], document)
            _add_class(segments if is_panoptic else {}, id, category["name"], document)
    tasks = {}
    if classes and any(offer.boxes is not None for offer in offers.values()):
        tasks["detect"] = Task(family="detect", class_names=tuple(classes[id] for id in sorted(classes)))
    if segments:
        tasks["segment"] = Task(family="segment", class_names=tuple(segments[id] for id in sorted(segments)))
    return Offers(layout="coco", rows=offers.values(), tasks=tasks, num_rows=len(offers))


def _json_names(tree: Tree) -> list[str]:
    names = [name for name in tree.names if name.lower().endswith(".json")]
    inside = [name for name in names if PurePosixPath(name).parts[:-1] == ("annotations",)]
    return inside or [name for name in names if "/" not in name]


def _load(tree: Tree, name: str) -> _Document:
    with tree.stream(name) as file:
        values = parse_coco(file.read(), f"{tree.shown}/{name}", COCO_LISTS[:2])
    place = f"{tree.shown}/{name}"
    try:
        categories = {category["id"]: category for category in values.get("categories", ())}
        licences = {each["id"]: str(each.get("name") or each.get("url")) for each in values.get("licenses") or ()}
        document = _Document(tree, name, values, categories, licences)
        if len(categories) < len(values.get("categories", ())):
            raise DataError(f"{place}: a category id occurs twice; give every category an id of its own")
        for annotation in values["annotations"]:
            document.of_image.setdefault(annotation["image_id"], []).append(annotation)
        ids = Counter(image["id"] for image in values["images"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{place}: an image, annotation or category is not as COCO has it: no {error}") from None
    lost = next((id for id in document.of_image if id not in ids), None)
    if lost is not None:
        annotation = document.of_image[lost][0]
        raise DataError(f"{place}: annotation {annotation.get('id')}: image_id {lost} is not among the images")
    document.twice = frozenset(id for id, count in ids.items() if count > 1)
    return document


def _add_class(classes: dict[int, str], id: int, name: str, document: _Document) -> None:
    if classes.setdefault(id, name) != name:
        raise DataError(f"{document.place}: category {id} is {name!r}, in another file it is {classes[id]!r}")
    if len(classes) >= IGNORE_LABEL and any("segments_info" in each for each in document.values["annotations"]):
        raise DataError(f"{document.place}: more than {IGNORE_LABEL - 1} categories do not fit into masks of 8 bits")


def _offers(document: _Document, is_panoptic: bool) -> Iterator[Offer]:
    folder = _image_folder(document)
    split = named_split(PurePosixPath(document.name).stem) or ""
    # An annotation id that occurs twice shows that files were put together wrongly.
    ids = Counter(each["id"] for each in document.values["annotations"] if "id" in each)
    names = Counter(image["file_name"] for image in document.values["images"])
    for image in document.values["images"]:
        annotations = document.of_image.get(image["id"], [])
        at = f"{document.name}: image {image['id']}"
        name = str(PurePosixPath(folder) / str(image["file_name"]))
        try:
            file = document.tree.named_file(name)
        except Unusable as error:
            file, fault = Nowhere(name), str(error)
        else:
            fault = f"duplicate: image id {image['id']} occurs twice" if image["id"] in document.twice else ""
            if not fault and names[image["file_name"]] > 1:
                fault = f"duplicate: {image['file_name']} is listed twice"
        size = (int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None
        offer = Offer(name=name, image=file, at=at, split=split, stated_size_px=size, fault=fault)
        offer.licence = document.licences.get(image.get("license"), "")
        twice = next((each["id"] for each in annotations if ids.get(each.get("id"), 0) > 1), None)
        if not fault and twice is not None:
            offer.fault = f"duplicate: annotation id {twice} occurs twice"
        try:
            if is_panoptic:
                _add_panoptic(offer, document, annotations)
            else:
                _add_instances(offer, document, annotations)
        except Unusable as error:
            offer.fault = offer.fault or str(error)
        yield offer


def _add_instances(offer: Offer, document: _Document, annotations: list[dict[str, Any]]) -> None:
    captions = [each["caption"] for each in annotations if "caption" in each]
    if captions:
        offer.caption = str(captions[0]).strip()
    if document.categories:
        offer.boxes = tuple(_box(each, document) for each in annotations if "caption" not in each)


def _box(values: dict[str, Any], document: _Document) -> OfferedBox:
    at = f"annotation {values.get('id')}"
    category = document.categories.get(values["category_id"])
    if category is None:
        raise Unusable("category", f"{at}: category_id {values['category_id']} is not among the categories")
    bbox = values.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(each, int | float) for each in bbox):
        raise Unusable("box", f"{at}: expected x, y, width and height, got {bbox}")
    xywh = (float(bbox[0]), float(bbox[1]), float(bbox[2]), float(bbox[3]))
    return OfferedBox(label=category["name"], xywh=xywh, at=at, ignored=bool(values.get("iscrowd")))


def _add_panoptic(offer: Offer, document: _Document, annotations: list[dict[str, Any]]) -> None:
    if len(annotations) != 1:
        raise Unusable("mask", f"expected one panoptic annotation, got {len(annotations)}")
    segments = annotations[0]["segments_info"]
    boxes = [_box(segment, document) for segment in segments if "bbox" in segment]
    things = {each["name"] for each in document.categories.values() if each.get("isthing", True)}
    offer.boxes = tuple(box for box in boxes if box.label in things)
    order = {id: index for index, id in enumerate(sorted(document.categories))}
    unknown = next((each["category_id"] for each in segments if each["category_id"] not in order), None)
    if unknown is not None:
        raise Unusable("category", f"category_id {unknown} is not among the categories")
    indices = {int(segment["id"]): order[segment["category_id"]] for segment in segments}
    json_path = PurePosixPath(document.name)
    file_name = str(annotations[0]["file_name"])
    candidates = [str(folder / file_name) for folder in (json_path.with_suffix(""), json_path.parent)]
    named = next((name for name in candidates if document.tree.has(name)), candidates[0])
    offer.mask = document.tree.named_file(named)
    offer.mask_stamp = str(sorted(indices.items()))
    offer.draw_mask = _PanopticMask(offer.mask, indices)


@dataclass(slots=True, frozen=True)
class _PanopticMask:
    """Class indices from a PNG whose colours are segment ids: R + 256 G + 65536 B (COCO's panoptic format)."""

    file: File
    indices: dict[int, int]

    def __call__(self) -> "NDArray[np.uint8]":
        import cv2

        data = self.file.read(2**28)
        colours = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if colours is None:
            raise Unusable("decode", f"{self.file.shown}: not a PNG of segment ids")
        blue_HW, green_HW, red_HW = (colours[..., channel].astype(np.int64) for channel in range(3))
        ids, places_HW = np.unique(red_HW + 256 * green_HW + 65536 * blue_HW, return_inverse=True)
        lost = next((int(id) for id in ids if id and int(id) not in self.indices), None)
        if lost is not None:
            raise Unusable("segment", f"{self.file.shown}: segment {lost} is not in segments_info")
        table = np.array([self.indices.get(int(id), IGNORE_LABEL) for id in ids], np.uint8)
        return table[places_HW].reshape(colours.shape[:2])


def _merged(known: Offer, more: Offer) -> Offer:
    """What two files say about one image; boxes of an instances file come before those of a panoptic one."""
    if known.split and more.split and known.split != more.split:
        known.fault = known.fault or f"split: {known.split} in {known.at}, {more.split} in {more.at}"
    known.fault = known.fault or more.fault
    known.split, known.licence = known.split or more.split, known.licence or more.licence
    known.caption = known.caption if known.caption is not None else more.caption
    has_better_boxes = known.boxes is None or (known.draw_mask is not None and more.draw_mask is None)
    if more.boxes is not None and has_better_boxes:
        known.boxes, known.stated_size_px = more.boxes, more.stated_size_px
    if more.draw_mask is not None:
        known.mask, known.draw_mask, known.mask_stamp = more.mask, more.draw_mask, more.mask_stamp
    return known


def _image_folder(document: _Document) -> str:
    """Where the file names start: COCO's folders are called as the last word of the annotation file's name."""
    images = document.values["images"]
    first = str(images[0]["file_name"]) if images else ""
    word = PurePosixPath(document.name).stem.rsplit("_", 1)[-1]
    candidates = [f"images/{word}", "images", word, "."]
    return next((folder for folder in candidates if document.tree.has(str(PurePosixPath(folder) / first))), "images")
