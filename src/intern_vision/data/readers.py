"""Readers of a person's own data in the usual layouts; each gives the tasks at once and the samples one by one."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.codec import decode_map
from intern_vision.data.reading import (
    SPLIT_FOLDERS,
    Item,
    Reading,
    SplitRule,
    images_under,
    make_reading,
    paired_items,
    sample_key,
    split_folders,
)
from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.errors import DataError
from intern_vision.task import Task

LAYOUTS = """\
image folder    ROOT/<class>/*.jpg, or ROOT/{train,val,test}/<class>/*.jpg
labels table    ROOT.csv or ROOT/labels.csv with columns file,label (one class) or file,labels (several, split by |)
COCO boxes      ROOT.json or ROOT/annotations/*.json (instances) beside ROOT/images/
masks           ROOT/images/ and ROOT/masks/*.png of the same names; optional ROOT/classes.txt
depth           ROOT/images/ and ROOT/depth/*.png (16 bit, with ROOT/scale.txt = metres a unit) or depth/*.npy (metres)
images, masks and depth may also lie in {train,val,test}/ under these folders"""
# Annotation tools round outwards; a box may reach this far beyond the image before it counts as wrong.
_BOX_SLACK_PX = 2.0


def read_image_folder(root: Path, rule: SplitRule | None = None) -> Reading:
    """One class a folder: ``root/<class>/...`` or ``root/{train,val,test}/<class>/...``.

    Class indices follow the sorted folder names over all splits.

    Raises:
        DataError: no class folder with images.
    """
    root = root.absolute()
    parts = split_folders(root) or [(None, root)]
    found = [
        (split, folder.name, path)
        for split, part in parts
        for folder in sorted(part.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in images_under(folder)
    ]
    names = sorted({name for _, name, _ in found})
    if not names:
        raise DataError(f"{root}: no class folder with images; accepted layouts:\n{LAYOUTS}")
    indices = {name: index for index, name in enumerate(names)}
    items = [
        Item(key=sample_key(path, root), path=path, split=split, stratum=name, annotation=indices[name])
        for split, name, path in found
    ]

    def annotate(sample: Sample, item: Item) -> None:
        sample.label = item.annotation

    return make_reading({"classify": Task(family="classify", class_names=tuple(names))}, items, annotate, rule)


def read_labels_csv(path: Path, rule: SplitRule | None = None) -> Reading:
    """A table with a header: ``file`` and ``label`` (one class) or ``labels`` (several, split by ``|``).

    Optional columns: ``split`` (train, val or test) and ``caption``. Files are relative to the table.

    Raises:
        DataError: a column is missing, or a row has no label or an unknown split; it names the line.
    """
    path = path.absolute()
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        columns = table.fieldnames or []
        rows = [(table.line_num, row) for row in table]
    kind = next((name for name in ("label", "labels") if name in columns), None)
    if "file" not in columns or kind is None or not rows:
        raise DataError(f"{path}: expected rows under a header with file and label (or labels), got {columns}")
    several = kind == "labels"
    items = []
    for line, row in rows:
        labels = [name.strip() for name in (row[kind] or "").split("|" if several else "\n") if name.strip()]
        split_name = (row.get("split") or "").strip()
        if not row["file"] or (not several and not labels) or (split_name and split_name not in SPLIT_FOLDERS):
            raise DataError(
                f"{path}: line {line}: expected a file, a {kind} and train, val or test as split, got {row}"
            )
        image_path = path.parent / row["file"]
        items.append(
            Item(
                key=sample_key(image_path, path.parent),
                path=image_path,
                split=SPLIT_FOLDERS.get(split_name),
                stratum=labels[0] if labels else "",
                annotation=(labels, row.get("caption") or None),
            )
        )
    names = tuple(sorted({name for item in items for name in item.annotation[0]}))
    indices = {name: index for index, name in enumerate(names)}

    def annotate(sample: Sample, item: Item) -> None:
        labels, sample.caption = item.annotation
        if several:
            sample.concepts = tuple(sorted({indices[name] for name in labels}))
        else:
            sample.label = indices[labels[0]]

    family = "multilabel" if several else "classify"
    return make_reading({family: Task(family=family, class_names=names)}, items, annotate, rule)


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
    files = [path] if path.is_file() else _coco_files(path)
    if not files:
        raise DataError(f"{path}: no COCO JSON file in it or in annotations/; accepted layouts:\n{LAYOUTS}")
    categories: dict[int, str] = {}
    items: list[Item] = []
    for file in files:
        document = _load_coco(file)
        categories |= {category["id"]: category["name"] for category in document["categories"]}
        items += _coco_items(document, file, image_dir, path.parent if path.is_file() else path)
    indices = {category: index for index, category in enumerate(sorted(categories))}
    frequency = Counter(category for item in items for category in item.annotation[2])

    def rarest(item: Item) -> int | None:
        return min(item.annotation[2], key=lambda category: (frequency[category], category), default=None)

    def annotate(sample: Sample, item: Item) -> None:
        size_px, boxes, labels = item.annotation
        if sample.image.shape[:2] != size_px:
            raise ValueError(f"image is {sample.image.shape[:2]} high and wide, its annotation says {size_px}")
        sample.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        sample.box_labels = np.array([indices[category] for category in labels], np.int64)

    items = [replace(item, stratum=rarest(item)) for item in items]
    names = tuple(categories[category] for category in sorted(categories))
    return make_reading({"detect": Task(family="detect", class_names=names)}, items, annotate, rule)


def read_masks(root: Path, rule: SplitRule | None = None) -> Reading:
    """``root/images/`` and ``root/masks/`` with PNG class indices under the same names; 255 is ignored.

    Class names are the lines of ``root/classes.txt``, else ``class_0`` up to the largest value in the masks
    (which are then all read once before the first sample).

    Raises:
        DataError: a mask is missing, or a value is beyond the labels; it names file, value and number of labels.
    """
    root = root.absolute()
    items = paired_items(root, "masks", (".png",))
    classes = root / "classes.txt"
    if classes.is_file():
        names = tuple(line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip())
    else:
        names = tuple(f"class_{index}" for index in range(1 + max(_largest(item.annotation) for item in items)))

    def annotate(sample: Sample, item: Item) -> None:
        mask = _load_mask(item.annotation)
        if mask.shape != sample.image.shape[:2]:
            raise ValueError(f"mask is {mask.shape} high and wide, its image {sample.image.shape[:2]}")
        largest = int(np.where(mask == IGNORE_LABEL, 0, mask).max())
        if largest >= len(names):
            raise DataError(
                f"{item.annotation}: mask value {largest}, but there are {len(names)} labels (0..{len(names) - 1})"
            )
        sample.mask = mask.astype(np.uint8)

    return make_reading({"segment": Task(family="segment", class_names=names)}, items, annotate, rule)


def read_depth(root: Path, rule: SplitRule | None = None, max_depth_m: float | None = None) -> Reading:
    """``root/images/`` and ``root/depth/`` under the same names; 0 is unknown.

    Depth files are 16-bit PNG with ``root/scale.txt`` (metres a unit; 0.001 without it) or ``.npy`` in metres.

    Args:
        root: the folder.
        rule: for splits that the folders do not name.
        max_depth_m: largest valid depth; the largest found when not given (every file is then read once first).

    Raises:
        DataError: a depth file is missing or ``scale.txt`` holds no positive number.
    """
    root = root.absolute()
    items = paired_items(root, "depth", (".png", ".npy"))
    scale_path = root / "scale.txt"
    try:
        scale = float(scale_path.read_text(encoding="utf-8")) if scale_path.is_file() else 0.001
    except ValueError:
        scale = 0.0
    if scale <= 0:
        raise DataError(f"{scale_path}: expected metres per unit, a number above 0")

    def load(path: Path) -> NDArray[np.float32]:
        if path.suffix == ".npy":
            return np.nan_to_num(np.load(path, allow_pickle=False).astype(np.float32), posinf=0.0, neginf=0.0)
        return decode_map(path.read_bytes()) * np.float32(scale)

    def annotate(sample: Sample, item: Item) -> None:
        depth = load(item.annotation)
        if depth.shape != sample.image.shape[:2]:
            raise ValueError(f"depth is {depth.shape} high and wide, its image {sample.image.shape[:2]}")
        sample.depth = np.where((depth > 0) & (depth <= limit_m), depth, np.float32(0))

    limit_m = max_depth_m or max(_largest_depth(load, item.annotation) for item in items)
    if limit_m <= 0:
        raise DataError(f"{root / 'depth'}: no depth above 0 in any file")
    return make_reading({"depth": Task(family="depth", max_depth_m=float(limit_m))}, items, annotate, rule)


READERS: dict[str, Callable[..., Reading]] = {
    "image_folder": read_image_folder,
    "labels_csv": read_labels_csv,
    "coco": read_coco,
    "masks": read_masks,
    "depth": read_depth,
}


def detect_format(path: Path) -> str:
    """Which of ``READERS`` fits a path; DataError lists the accepted layouts where none does."""
    if path.is_file():
        kind = {".csv": "labels_csv", ".json": "coco"}.get(path.suffix.lower())
        if kind:
            return kind
    elif path.is_dir():
        if (path / "images").is_dir():
            for folder, kind in (("masks", "masks"), ("depth", "depth")):
                if (path / folder).is_dir():
                    return kind
        if (path / "labels.csv").is_file():
            return "labels_csv"
        if _coco_files(path):
            return "coco"
        parts = [part for _, part in split_folders(path)] or [path]
        classes = [folder for part in parts for folder in part.iterdir() if folder.is_dir()]
        if any(next(images_under(folder), None) for folder in classes):
            return "image_folder"
    else:
        raise DataError(f"{path}: no such file or folder")
    raise DataError(f"{path}: not a layout that can be read; accepted layouts:\n{LAYOUTS}")


def read_dataset(path: Path, rule: SplitRule | None = None) -> Reading:
    """Reads a path in whichever accepted layout it has."""
    kind = detect_format(path)
    if kind == "labels_csv" and path.is_dir():
        path = path / "labels.csv"
    return READERS[kind](path, rule=rule)


def _coco_files(folder: Path) -> list[Path]:
    annotations = folder / "annotations"
    return sorted((annotations if annotations.is_dir() else folder).glob("*.json"))


def _load_coco(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if all(isinstance(document[name], list) for name in ("images", "annotations", "categories")):
            return document
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{file}: expected COCO instances, a JSON object with the lists images, annotations, categories")


def _coco_items(document: dict[str, Any], file: Path, image_dir: Path | None, root: Path) -> list[Item]:
    words = file.stem.lower().replace("-", "_").split("_")
    # "instances_val2017" names its split with a year.
    split = next((SPLIT_FOLDERS[name] for word in words if (name := word.rstrip("0123456789")) in SPLIT_FOLDERS), None)
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
            boxes[image_id].append(_corners(annotation["bbox"], sizes_px[image_id], place))
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


def _corners(bbox: list[float], size_px: tuple[int, int], place: str) -> list[float]:
    height, width = size_px
    x, y, box_width, box_height = bbox
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + box_width, width), min(y + box_height, height)
    outside_px = max(-x, -y, x + box_width - width, y + box_height - height)
    if x1 <= x0 or y1 <= y0 or outside_px > _BOX_SLACK_PX:
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


def _load_mask(path: Path) -> NDArray[Any]:
    data = path.read_bytes()
    # Colour type 3 is a palette (as in PASCAL VOC): OpenCV would give its colours, the indices are the labels.
    if data[25:26] == b"\x03":
        from PIL import Image

        with Image.open(path) as image:
            return np.array(image)
    return decode_map(data)


def _largest(path: Path) -> int:
    try:
        mask = _load_mask(path)
    except (ValueError, OSError):
        return 0  # the sample is quarantined when it is read
    return int(np.where(mask == IGNORE_LABEL, 0, mask).max())


def _largest_depth(load: Callable[[Path], NDArray[np.float32]], path: Path) -> float:
    try:
        return float(load(path).max())
    except (ValueError, OSError):
        return 0.0  # the sample is quarantined when it is read
