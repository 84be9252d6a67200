"""PASCAL VOC: an XML of boxes an image, masks with a palette, lists of splits."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from intern_vision.data.ingest.files import Tree, Unusable
from intern_vision.data.ingest.offer import Offer, OfferedBox, Offers
from intern_vision.data.ingest.origin import Origin
from intern_vision.data.official.detection import voc_objects
from intern_vision.data.official.names import VOC
from intern_vision.data.reading import IMAGE_SUFFIXES
from intern_vision.data.sample import Split
from intern_vision.errors import DataError
from intern_vision.task import Task

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")


def read_voc(origin: Origin) -> Offers:
    """``JPEGImages/`` with ``Annotations/*.xml`` and, where they are, masks and the lists of ``ImageSets/``.

    Names of mask indices are the lines of ``classes.txt``; without it those of VOC, background first, where all boxes
    are of VOC's classes, else they follow from the masks. An image that a segmentation list names must have a mask.

    Raises:
        DataError: no image and no annotation.
    """
    tree = origin.tree
    images = {
        PurePosixPath(name).stem: name
        for name in tree.names
        if name.startswith("JPEGImages/") and name.lower().endswith(IMAGE_SUFFIXES)
    }
    stems = sorted({*images, *(PurePosixPath(name).stem for name in tree.names if _is_annotation(name))})
    if not stems:
        raise DataError(f"{tree.shown}: no image in JPEGImages/ and no XML in Annotations/")
    tasks: dict[str, Task] = {}
    if tree.has("classes.txt"):
        lines = [line.strip() for line in tree.text("classes.txt").splitlines()]
        tasks["segment"] = Task(family="segment", class_names=tuple(line for line in lines if line))
    return Offers(layout="voc", rows=_rows(tree, images, stems, tasks), tasks=tasks, num_rows=len(stems))


def _rows(tree: Tree, images: dict[str, str], stems: list[str], tasks: dict[str, Task]) -> Iterator[Offer]:
    splits, with_mask = _splits(tree)
    classes: set[str] = set()
    has_mask = False
    for stem in stems:
        name = images.get(stem, f"JPEGImages/{stem}.jpg")
        offer = Offer(name=name, image=tree.file(name), split=splits.get(stem, ""))
        xml = f"Annotations/{stem}.xml"
        try:
            if tree.has(xml):
                _add_boxes(offer, tree, xml)
            offer.mask = _mask(tree, stem, stem in with_mask)
        except Unusable as error:
            offer.fault = str(error)
        classes |= {box.label for box in offer.boxes or ()}
        has_mask |= offer.mask is not None
        yield offer
    if has_mask and "segment" not in tasks and classes <= {each.replace(" ", "") for each in VOC}:
        tasks["segment"] = Task(family="segment", class_names=("background", *VOC))


def _add_boxes(offer: Offer, tree: Tree, xml: str) -> None:
    # defusedxml refuses entity declarations, with which a small file can ask for unbounded memory.
    from defusedxml.ElementTree import parse

    boxes = []
    try:
        with tree.stream(xml) as file:
            root = parse(file).getroot()
        for number, (label, (x0, y0, x1, y1), difficult) in enumerate(voc_objects(root), 1):
            at = f"{xml}: object {number} ({label})"
            xywh = (x0, y0, x1 - x0, y1 - y0)
            boxes.append(OfferedBox(label=label, xywh=xywh, at=at, difficult=bool(difficult)))
    # A parser of foreign bytes may raise anything.
    except Exception as error:
        raise Unusable("annotation", f"{xml}: {error}") from None
    offer.boxes, offer.stated_size_px = tuple(boxes), _stated_size(root)


def _stated_size(root: Any) -> tuple[int, int] | None:
    height, width = (root.findtext(f"size/{name}") or "" for name in ("height", "width"))
    return (int(height), int(width)) if height.isdigit() and width.isdigit() and int(height) and int(width) else None


def _mask(tree: Tree, stem: str, is_listed: bool) -> Any:
    names = [f"{folder}/{stem}.png" for folder in _MASK_FOLDERS]
    found = next((name for name in names if tree.has(name)), None)
    if found is None and is_listed:
        raise Unusable("mask", f"missing: no {names[0]}, which ImageSets/Segmentation lists")
    return tree.file(found) if found else None


def _splits(tree: Tree) -> tuple[dict[str, str], set[str]]:
    """Split of each image that a list names, and the images that a segmentation list names."""
    splits: dict[str, str] = {}
    with_mask: set[str] = set()
    for folder in ("Segmentation", "Main"):
        for split in _SPLITS:
            name = f"ImageSets/{folder}/{split}.txt"
            stems = [line.split()[0] for line in tree.text(name).splitlines() if line.strip()] if tree.has(name) else []
            splits |= dict.fromkeys(stems, split)
            if folder == "Segmentation":
                with_mask.update(stems)
    return splits, with_mask


def _is_annotation(name: str) -> bool:
    return name.startswith("Annotations/") and name.endswith(".xml")
