"""Detection sets: PASCAL VOC 2007 and 2012, WIDER FACE and CityPersons, with what their benchmarks state about boxes.

A box covers ``[x0, x1)`` in continuous pixels: a last pixel that a format counts as inside moves ``x1`` one further.
Boxes are clipped to their image; one of which nothing is left is no box. N boxes of an image.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.protocol import rarest_classes
from intern_vision.data.official.layout import OfficialCopy, OfficialReading, official_reading
from intern_vision.data.official.matlab import flat, load_mat, text, unwrap
from intern_vision.data.official.names import VOC
from intern_vision.data.reading import Item, SplitRule
from intern_vision.data.sample import Sample, Split
from intern_vision.task import Task

WIDER_SETTINGS = ("easy", "medium", "hard")
_WIDER_COLUMNS = 10
_WIDER_INVALID = 7
_CITYPERSONS_PEDESTRIAN = 1
_CITYPERSONS_COLUMNS = 10


def read_voc_detection(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """PASCAL VOC: trainval of 2007 and 2012, and the test images of 2007; the key begins with the year's folder.

    A draw is balanced over the two years and, within each, over the rarest class of an image, because GV-B draws its
    10 % within each year.
    """
    copy = copy.below("VOCdevkit")
    indices = {name.replace(" ", ""): index for index, name in enumerate(VOC)}
    lists: list[tuple[Split, str, str]] = [
        ("train", "VOC2007", "trainval"),
        ("train", "VOC2012", "trainval"),
        ("test", "VOC2007", "test"),
    ]
    items = []
    for split, year, part in lists:
        source = copy.need(f"{year}/ImageSets/Main/{part}.txt")
        for image_id, *_ in copy.rows(source):
            annotation = _voc_objects(copy, copy.inside(f"{year}/Annotations/{image_id}.xml", source), indices)
            path = copy.inside(f"{year}/JPEGImages/{image_id}.jpg", source)
            items.append(copy.item(path, split, annotation, year))
    rarest = rarest_classes([item.annotation[1] for item in items])
    items = [replace(item, stratum=f"{item.stratum} {label}") for item, label in zip(items, rarest, strict=True)]
    return _boxes_reading(copy, VOC, items)


def read_wider_face(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """WIDER FACE; the validation images are scored.

    Which faces count as easy, medium and hard is in the three files of the official evaluation, beside the lists or in
    ``ground_truth/``; without them the sample has no such attributes.
    """
    splits: dict[Split, str] = {"train": "train", "test": "val"}
    items = []
    for split, part in splits.items():
        source = copy.need(f"wider_face_split/wider_face_{part}_bbx_gt.txt", f"wider_face_{part}_bbx_gt.txt")
        counted = _wider_settings(copy) if part == "val" else {}
        for name, faces_N10 in _wider_faces(copy, source):
            path = copy.inside(f"WIDER_{part}/images/{name}", source)
            x, y, width, height = faces_N10[:, :4].T
            attributes = {"ignored": faces_N10[:, _WIDER_INVALID].astype(np.float32)}
            for setting, faces in counted.items():
                attributes[setting] = np.isin(np.arange(len(faces_N10)) + 1, faces.get(name, ())).astype(np.float32)
            boxes_N4 = np.stack([x, y, x + width, y + height], axis=1)
            items.append(copy.item(path, split, (boxes_N4, [0] * len(boxes_N4), attributes), ""))
    return _boxes_reading(copy, ("face",), items)


def read_citypersons(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """CityPersons on Cityscapes images, from ``anno_{train,val}.mat`` or a COCO-style json; validation is scored.

    Pedestrians are the one class. Riders, sitting and other persons, groups and ignore regions are ``ignored`` boxes.
    """
    splits: dict[Split, str] = {"train": "train", "test": "val"}
    folders = ("annotations", "shanshanzhang-citypersons/annotations", ".")
    items = []
    for split, part in splits.items():
        names = [f"anno_{part}.mat", f"{part}_gt.json", f"{part}.json", f"citypersons_{part}.json"]
        source = copy.need(*(f"{folder}/{name}" for folder in folders for name in names))
        entries = _citypersons_mat if source.suffix == ".mat" else _citypersons_json
        with copy.parsing(source):
            for name, boxes_N4, attributes in entries(source, part):
                path = copy.inside(f"leftImg8bit/{part}/{name.split('_')[0]}/{name}", source)
                items.append(copy.item(path, split, (boxes_N4, [0] * len(boxes_N4), attributes), ""))
    return _boxes_reading(copy, ("pedestrian",), items)


def _boxes_reading(copy: OfficialCopy, class_names: tuple[str, ...], items: list[Item]) -> OfficialReading:
    """A reading of items annotated with boxes ``(N, 4)``, N labels and attributes of N values."""

    def annotate(sample: Sample, item: Item) -> None:
        boxes, labels, attributes = item.annotation
        height, width = sample.image.shape[:2]
        clipped_N4 = np.asarray(boxes, np.float32).reshape(-1, 4).clip(0, [width, height, width, height])
        kept_N = (clipped_N4[:, 2:] > clipped_N4[:, :2]).all(1)
        sample.boxes = clipped_N4[kept_N].astype(np.float32)
        sample.box_labels = np.array(labels, np.int64)[kept_N]
        sample.box_attributes = {name: np.array(values, np.float32)[kept_N] for name, values in attributes.items()}

    return official_reading(copy, Task(family="detect", class_names=class_names), items, annotate)


def _voc_objects(
    copy: OfficialCopy, path: Path, indices: dict[str, int]
) -> tuple[list[list[float]], list[int], dict[str, list[float]]]:
    # defusedxml refuses entity declarations, with which a small file can ask for unbounded memory.
    from defusedxml.ElementTree import parse

    boxes, labels, difficult = [], [], []
    with copy.parsing(path):
        for name, box, is_difficult in voc_objects(parse(path).getroot()):
            boxes.append(box)
            labels.append(indices[name])
            difficult.append(is_difficult)
    return boxes, labels, {"difficult": difficult}


def voc_objects(root: Any) -> Iterator[tuple[str, list[float], float]]:
    """The objects of a PASCAL VOC annotation: class, ``x0 y0 x1 y1`` in pixels, and 1 where it is difficult.

    VOC counts pixels from 1, and its last one is inside the box.

    Args:
        root: the XML's root element.

    Raises:
        ValueError, TypeError, AttributeError: an object has no name or no box of four numbers.
    """
    for thing in root.iter("object"):
        x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax"))
        yield thing.findtext("name").strip(), [x0 - 1, y0 - 1, x1, y1], float(thing.findtext("difficult") or 0)


def _wider_faces(copy: OfficialCopy, source: Path) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Names and ``(N, 10)`` rows: x, y, width, height, blur, expression, illumination, invalid, occlusion, pose."""
    lines = (" ".join(row) for row in copy.rows(source))
    for name in lines:
        with copy.parsing(source):
            count = int(next(lines))
            # An image without a face has a row of zeros all the same.
            rows = [[int(value) for value in next(lines).split()] for _ in range(max(count, 1))]
            faces_N10 = np.array(rows, np.int64)[:count].reshape(-1, _WIDER_COLUMNS)
        yield name, faces_N10


def _wider_settings(copy: OfficialCopy) -> dict[str, dict[str, list[int]]]:
    """Setting to image name to the numbers of its faces that count, from 1."""
    settings: dict[str, dict[str, list[int]]] = {}
    for setting in WIDER_SETTINGS:
        name = f"wider_{setting}_val.mat"
        path = copy.find(
            *(f"{folder}{name}" for folder in ("wider_face_split/", "ground_truth/", "eval_tools/ground_truth/", ""))
        )
        if path is None:
            return {}
        with copy.parsing(path):
            values = load_mat(path, "event_list", "file_list", "gt_list")
            columns = (flat(values[column]) for column in ("event_list", "file_list", "gt_list"))
            settings[setting] = {
                f"{text(event)}/{text(file)}.jpg": np.asarray(faces).ravel().astype(int).tolist()
                for event, files, counted in zip(*columns, strict=True)
                for file, faces in zip(flat(files), flat(counted), strict=True)
            }
    return settings


Entry = tuple[str, NDArray[np.float64], dict[str, NDArray[np.float64]]]


def _citypersons_mat(source: Path, part: str) -> Iterator[Entry]:
    """Rows of ``bbs``: class, x, y, width, height, instance, and x, y, width, height of the visible part."""
    variable = f"anno_{part}_aligned"
    for cell in flat(load_mat(source, variable)[variable]):
        image = unwrap(cell)
        rows_N10 = np.asarray(image.bbs, np.float64).reshape(-1, _CITYPERSONS_COLUMNS)
        visible_N = rows_N10[:, 8] * rows_N10[:, 9] / np.maximum(rows_N10[:, 3] * rows_N10[:, 4], 1)
        yield (
            text(image.im_name),
            *_person_boxes(rows_N10[:, 1:5], rows_N10[:, 0] != _CITYPERSONS_PEDESTRIAN, visible_N),
        )


def _citypersons_json(source: Path, part: str) -> Iterator[Entry]:
    """COCO instances with ``vis_ratio`` or ``vis_bbox``, and ``ignore`` or ``iscrowd`` where a box is ignored."""
    document = json.loads(source.read_text(encoding="utf-8"))
    pedestrians = {c["id"] for c in document["categories"] if c["name"] in ("pedestrian", "person")}
    found: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        found[annotation["image_id"]].append(annotation)
    for image in document["images"]:
        own = found[image["id"]]
        ignored_N = [bool(a.get("ignore") or a.get("iscrowd")) or a["category_id"] not in pedestrians for a in own]
        visible_N = np.array([_visible_share(annotation) for annotation in own])
        boxes_N4 = np.array([a["bbox"] for a in own], np.float64).reshape(-1, 4)
        name = Path(image.get("file_name") or image["im_name"]).name
        yield name, *_person_boxes(boxes_N4, np.array(ignored_N, bool), visible_N)


def _visible_share(annotation: dict[str, Any]) -> float:
    if "vis_ratio" in annotation:
        return float(annotation["vis_ratio"])
    _, _, width, height = annotation["bbox"]
    _, _, visible_width, visible_height = annotation.get("vis_bbox", annotation["bbox"])
    return visible_width * visible_height / max(width * height, 1)


def _person_boxes(
    xywh_N4: NDArray[np.float64], ignored_N: NDArray[np.bool_], visible_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Corners, and the attributes that the miss rate is computed by; the height is that before clipping."""
    corners_N4 = np.concatenate([xywh_N4[:, :2], xywh_N4[:, :2] + xywh_N4[:, 2:]], axis=1)
    attributes = {"ignored": ignored_N.astype(np.float64), "height_px": xywh_N4[:, 3], "visible_share": visible_N}
    return corners_N4, attributes | {"visible_share": visible_N.clip(0, 1)}
