"""Segmentation and depth: PASCAL VOC 2012 (augmented), KITTI in the Eigen split, NYU Depth v2. H height, W width."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.codec import decode_labels, decode_map
from intern_vision.data.official.layout import (
    OfficialCopy,
    OfficialReading,
    Picture,
    load_file,
    official_reading,
)
from intern_vision.data.official.matlab import load_mat, open_hdf5, unwrap
from intern_vision.data.official.names import VOC
from intern_vision.data.reading import Item, SplitRule
from intern_vision.data.sample import Sample, Split
from intern_vision.task import Task

KITTI_CAP_M = 80.0
KITTI_UNITS_A_METRE = 256
NYU_CAP_M = 10.0
NYU_UNITS_A_METRE = 1000
_NO_GROUND_TRUTH = "None"


def read_voc_segmentation(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """VOC 2012 with the added masks of SBD; validation is scored; 255 is void.

    The added masks are PNG in ``SegmentationClassAug/`` with ``aug.txt`` or ``trainaug.txt`` among the lists, or SBD as
    released (``benchmark_RELEASE/dataset/cls/*.mat``), of which VOC's own validation images are left out. A draw is
    balanced over the two lists, because GV-B draws its 10 % within each.
    """
    sbd = copy.find("benchmark_RELEASE/dataset", "SBD/benchmark_RELEASE/dataset", "SBD/dataset")
    copy = copy.below("VOCdevkit/VOC2012", "VOC2012")
    masks = copy.find("SegmentationClassAug")
    if masks is None and sbd is None:
        masks = copy.need("SegmentationClassAug")
    lists = copy.need("ImageSets/Segmentation")
    train, test = (
        [row[0] for row in copy.rows(copy.need(f"ImageSets/Segmentation/{part}.txt"))] for part in ("train", "val")
    )
    if masks is not None:
        listed = [copy.need(*(f"ImageSets/Segmentation/{name}.txt" for name in ("aug", "trainaug", "train_aug")))]
        added = masks, ".png"
    else:
        listed = [path for name in ("train", "val") for path in [sbd / f"{name}.txt"] if path.is_file()]
        added = sbd / "cls", ".mat"
    own = {*train, *test}
    more = sorted({row[0].strip("/") for path in listed for row in copy.rows(path)} - own)
    parts: list[tuple[Split, str, list[str], tuple[Path, str]]] = [
        ("train", "train", train, (copy.need("SegmentationClass", "SegmentationClassAug"), ".png")),
        ("train", "aug", more, added),
        ("test", "val", test, (copy.need("SegmentationClass", "SegmentationClassAug"), ".png")),
    ]
    items = []
    for split, stratum, names, (folder, suffix) in parts:
        for name in names:
            path = copy.inside(f"JPEGImages/{name}.jpg", lists)
            items.append(copy.item(path, split, folder / f"{name}{suffix}", stratum))

    def annotate(sample: Sample, item: Item) -> None:
        sample.mask = _sbd_mask(item.annotation) if item.annotation.suffix == ".mat" else _png_mask(item.annotation)

    return official_reading(copy, Task(family="segment", class_names=("background", *VOC)), items, annotate)


def read_kitti_eigen(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """KITTI's Eigen split by the file lists of BTS, depth as in ``data_depth_annotated`` (16 bit, 256 units a metre).

    An entry without ground truth (``None``) is left out. A draw is balanced over drives, whose frames are near copies.
    """
    depth_folders = [
        f"{folder}{part}"
        for folder in ("data_depth_annotated/", "gts/", "")
        for part in ("train/", "val/", "")
        if copy.find(f"{folder}{part}.") is not None
    ]
    items = []
    for split, image, depth, source in _bts_list(copy, "eigen_train_files_with_gt.txt", "eigen_test_files_with_gt.txt"):
        image_path = _first_file(copy, source, image, ("raw/", "", "sync/", "kitti_raw/"))
        depth_path = _first_file(copy, source, depth, depth_folders)
        items.append(copy.item(image_path, split, depth_path, image.split("/")[1], key=image))

    def annotate(sample: Sample, item: Item) -> None:
        sample.depth = _capped(_depth_png(item.annotation, KITTI_UNITS_A_METRE), KITTI_CAP_M)

    return official_reading(copy, Task(family="depth", max_depth_m=KITTI_CAP_M), items, annotate)


def read_nyu_v2(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """NYU Depth v2: training frames by the file list of BTS (16 bit, 1,000 units a metre), balanced over scenes.

    The test images are those of ``splits.mat`` in ``nyu_depth_v2_labeled.mat`` where both lie there, else those of BTS'
    test list.
    """
    labelled, splits = copy.find("nyu_depth_v2_labeled.mat"), copy.find("splits.mat")
    from_mat = labelled is not None and splits is not None
    items = []
    test_list = "" if from_mat else "nyudepthv2_test_files_with_gt.txt"
    for split, image, depth, source in _bts_list(copy, "nyudepthv2_train_files_with_gt.txt", test_list):
        folders = ("sync/", "") if split == "train" else ("official_splits/test/", "test/", "")
        depth_path = _first_file(copy, source, depth, folders)
        image_path = _first_file(copy, source, image, folders)
        items.append(copy.item(image_path, split, depth_path, image.split("/")[0], key=f"{split}/{image}"))
    if from_mat:
        with copy.parsing(splits):
            numbers = load_mat(splits, "testNdxs")["testNdxs"].ravel().astype(int).tolist()
        items += [copy.item(labelled, "test", number - 1, "", key=f"labeled/{number:04d}") for number in numbers]
    opened = lru_cache(maxsize=1)(open_hdf5)

    def load(item: Item) -> Picture:
        if item.path.suffix != ".mat":
            return load_file(item)
        # HDF5 holds MATLAB's dimensions in reverse: channel, column, row.
        return Picture(np.ascontiguousarray(opened(item.path)["images"][item.annotation].transpose(2, 1, 0)))

    def annotate(sample: Sample, item: Item) -> None:
        if item.path.suffix == ".mat":
            sample.depth = _capped(np.ascontiguousarray(opened(item.path)["depths"][item.annotation].T), NYU_CAP_M)
        else:
            sample.depth = _capped(_depth_png(item.annotation, NYU_UNITS_A_METRE), NYU_CAP_M)

    return official_reading(copy, Task(family="depth", max_depth_m=NYU_CAP_M), items, annotate, load)


def _bts_list(copy: OfficialCopy, train: str, test: str) -> Iterator[tuple[Split, str, str, Path]]:
    """Split, image, depth and list of each line ``<image> <depth> <focal length>`` that has ground truth."""
    lists: list[tuple[Split, str]] = [("train", train), ("test", test)]
    for split, name in lists:
        if not name:
            continue
        source = copy.need(name, f"train_test_inputs/{name}")
        for image, depth, *_ in copy.rows(source, 2):
            if depth != _NO_GROUND_TRUTH:
                yield split, image.lstrip("/"), depth.lstrip("/"), source


def _first_file(copy: OfficialCopy, source: Path, relative: str, folders: tuple[str, ...] | list[str]) -> Path:
    """The file below the first folder that has it; below the first folder where none has, which quarantines it."""
    paths = [copy.inside(f"{folder}{relative}", source) for folder in folders]
    return next((path for path in paths if path.is_file()), paths[0])


def _png_mask(path: Path) -> NDArray[np.uint8]:
    return decode_labels(path.read_bytes())


def _sbd_mask(path: Path) -> NDArray[np.uint8]:
    return np.ascontiguousarray(unwrap(load_mat(path, "GTcls")["GTcls"]).Segmentation, np.uint8)


def _depth_png(path: Path, units_a_metre: int) -> NDArray[np.float32]:
    values = decode_map(path.read_bytes())
    if values.dtype != np.uint16:
        raise ValueError(f"{path.name}: expected depth of 16 bits, got {8 * values.dtype.itemsize}")
    return values / np.float32(units_a_metre)


def _capped(depth_HW: NDArray[np.float32], cap_m: float) -> NDArray[np.float32]:
    """Depths beyond the cap become unknown: they are neither learnt nor scored."""
    return np.where(depth_HW <= cap_m, depth_HW, np.float32(0)).astype(np.float32)
