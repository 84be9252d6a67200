"""Miniatures of the detection, segmentation and depth sets in their official layouts; see ``official_layouts``."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from official_pictures import PARTS, cell, corner_box, counted, picture, save, write_lines
from PIL import Image
from scipy.io import savemat


def _voc_xml(objects: list[tuple[str, tuple[int, int, int, int], int]]) -> str:
    parts = [
        f"<object><name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        "<part><name>head</name></part></object>"
        for name, (x0, y0, x1, y1), difficult in objects
    ]
    return f"<annotation><size><width>48</width><height>36</height></size>{''.join(parts)}</annotation>\n"


def write_voc0712(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    """Half of the training images are of 2007; every image has a difficult person beside its object."""
    rng, folder = np.random.default_rng(seed), root / "voc0712"
    names = ("aeroplane", "diningtable", "tvmonitor")
    lists: dict[str, list[str]] = {"VOC2007/trainval": [], "VOC2012/trainval": [], "VOC2007/test": []}
    for part, index, label in counted(num_train, num_test):
        year = "VOC2007" if part == "test" or index < num_train // 2 else "VOC2012"
        image_id = f"{len(part)}{index:05d}" if year == "VOC2007" else f"2008_{index:06d}"
        lists[f"{year}/{'test' if part == 'test' else 'trainval'}"].append(image_id)
        x, y, width, height = corner_box(label)
        objects = [(names[label], (x + 1, y + 1, x + width, y + height), 0), ("person", (2, 3, 12, 13), 1)]
        write_lines(folder / f"VOCdevkit/{year}/Annotations/{image_id}.xml", [_voc_xml(objects)])
        save(folder / f"VOCdevkit/{year}/JPEGImages/{image_id}.jpg", picture(rng, label))
    for name, lines in lists.items():
        year, part = name.split("/")
        write_lines(folder / f"VOCdevkit/{year}/ImageSets/Main/{part}.txt", lines)
    return folder


def write_wider_face(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    """Each image has a face at its square, an invalid one and one without area; the last training image has none.

    The first face is in all three settings, the others in none.
    """
    rng, folder = np.random.default_rng(seed), root / "wider_face"
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    files: list[str] = []
    for part, index, label in counted(num_train, num_test):
        stem = f"0_Parade_{part}_{index}"
        name = "train" if part == "train" else "val"
        save(folder / f"WIDER_{name}/images/0--Parade/{stem}.jpg", picture(rng, label))
        lists[part].append(f"0--Parade/{stem}.jpg")
        if part == "train" and index == num_train - 1:
            lists[part] += ["0", "0 0 0 0 0 0 0 0 0 0 "]
            continue
        x, y, width, height = corner_box(label)
        lists[part] += ["3", f"{x} {y} {width} {height} 0 0 0 0 0 0 ", "1 2 5 6 2 0 0 1 0 0 ", "4 4 0 0 2 0 0 0 2 0 "]
        files += [stem] if part == "test" else []
    for part, name in (("train", "train"), ("test", "val")):
        write_lines(folder / f"wider_face_split/wider_face_{name}_bbx_gt.txt", lists[part])
    (folder / "ground_truth").mkdir()
    for setting in ("easy", "medium", "hard"):
        kept = cell([cell([np.array([[1]], np.uint8) for _ in files])])
        values = {"event_list": cell(["0--Parade"]), "file_list": cell([cell(list(files))]), "gt_list": kept}
        savemat(folder / f"ground_truth/wider_{setting}_val.mat", values)
    return folder


def write_citypersons(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0, form: str = "mat") -> Path:
    """Each image has a pedestrian of 60 px, a rider, and an ignore region that leaves the image.

    Of every other pedestrian, beginning with the first, half is visible.

    Args:
        root: the data root.
        num_train: training images.
        num_test: validation images.
        seed: of the pictures.
        form: ``mat`` as released, or ``json`` in COCO's style.
    """
    rng, folder = np.random.default_rng(seed), root / "citypersons"
    cells: dict[str, list[Any]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        name, city = "train" if part == "train" else "val", ("aachen", "ulm")[index % 2]
        image = f"{city}_{index:06d}_000019_leftImg8bit.png"
        save(folder / f"leftImg8bit/{name}/{city}/{image}", picture(rng, label, 120, 160))
        x, y, w, h = corner_box(label, 120, 160)
        rows = [[1, x, y, w, h, 24000, x, y, w if index % 2 else w // 2, h], [2, 0, 0, 10, 20, 25000, 0, 0, 10, 20]]
        rows.append([0, 150, 110, 20, 20, 0, 150, 110, 20, 20])
        cells[part].append({"cityname": city, "im_name": image, "bbs": np.array(rows, np.int32)})
    (folder / "annotations").mkdir()
    for part, name in (("train", "train"), ("test", "val")):
        if form == "mat":
            path = folder / f"annotations/anno_{name}.mat"
            savemat(path, {f"anno_{name}_aligned": cell(cells[part], row=True)})
        else:
            (folder / f"annotations/{name}_gt.json").write_text(json.dumps(_citypersons_json(cells[part])))
    return folder


def _citypersons_json(cells: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("ignore region", "pedestrian", "rider")
    document: dict[str, Any] = {
        "images": [{"id": n, "im_name": c["im_name"], "height": 120, "width": 160} for n, c in enumerate(cells)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [],
    }
    for image_id, image in enumerate(cells):
        for kind, x, y, w, h, _, *visible in image["bbs"].tolist():
            document["annotations"].append(
                {"id": len(document["annotations"]), "image_id": image_id, "category_id": kind, "bbox": [x, y, w, h]}
                | {"ignore": int(kind != 1), "vis_bbox": visible, "height": h}
            )
    return document


def voc_mask(label: int) -> NDArray[np.uint8]:
    """Class ``label + 1`` on the square of ``picture``, void around it."""
    mask, (x, y, width, height) = np.zeros((36, 48), np.uint8), corner_box(label)
    mask[y : y + height, x : x + width] = 255
    mask[y + 2 : y + height - 2, x + 2 : x + width - 2] = label + 1
    return mask


def write_voc2012_seg(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0, form: str = "png") -> Path:
    """A third of the training masks are VOC's own.

    Args:
        root: the data root.
        num_train: training images.
        num_test: validation images.
        seed: of the pictures.
        form: added masks as ``png`` in ``SegmentationClassAug/``, or as ``sbd`` released them.
    """
    rng, folder = np.random.default_rng(seed), root / "voc2012_seg"
    base = folder / "VOCdevkit/VOC2012"
    lists: dict[str, list[str]] = {"train": [], "aug": [], "val": []}
    sbd = folder / "benchmark_RELEASE/dataset"
    (sbd / "cls").mkdir(parents=True)
    for part, index, label in counted(num_train, num_test):
        image_id = f"20{len(part):02d}_{index:06d}"
        name = "val" if part == "test" else "train" if index < num_train // 3 else "aug"
        lists[name].append(image_id)
        save(base / f"JPEGImages/{image_id}.jpg", picture(rng, label))
        mask = voc_mask(label)
        if name != "aug":
            coloured = Image.fromarray(mask).convert("P")
            coloured.putdata(mask.ravel())
            coloured.putpalette([value for index in range(256) for value in (index, 255 - index, 7 * index % 256)])
            (base / "SegmentationClass").mkdir(exist_ok=True)
            coloured.save(base / f"SegmentationClass/{image_id}.png")
        if form == "png":
            save(base / f"SegmentationClassAug/{image_id}.png", mask)
        else:
            savemat(sbd / f"cls/{image_id}.mat", {"GTcls": {"Segmentation": mask, "Boundaries": cell([mask])}})
    for name in ("train", "val", *(["aug"] if form == "png" else [])):
        write_lines(base / f"ImageSets/Segmentation/{name}.txt", lists[name])
    if form == "sbd":
        # SBD's own lists cut across VOC's: some of its images are VOC's validation images.
        write_lines(sbd / "train.txt", [*lists["aug"], *lists["val"][:2]])
        write_lines(sbd / "val.txt", lists["train"])
    return folder


def write_kitti_eigen(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    """Depth is 10.5 m on the square, 90 m (beyond the cap) on the last row, unknown elsewhere; two drives.

    One further test entry has no ground truth.
    """
    rng, folder = np.random.default_rng(seed), root / "kitti_eigen"
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        drive = f"2011_09_26_drive_{1 + index % 2 + 10 * (part == 'test'):04d}_sync"
        image, depth = f"image_02/data/{index:010d}.png", f"proj_depth/groundtruth/image_02/{index:010d}.png"
        save(folder / f"raw/2011_09_26/{drive}/{image}", picture(rng, label))
        values, (x, y, width, height) = np.zeros((36, 48), np.uint16), corner_box(label)
        values[y : y + height, x : x + width] = 10.5 * 256
        values[-1] = 90 * 256
        save(folder / f"data_depth_annotated/{'train' if part == 'train' else 'val'}/{drive}/{depth}", values)
        lists[part].append(f"2011_09_26/{drive}/{image} {drive}/{depth} 721.5377")
    lists["test"].append("2011_09_26/2011_09_26_drive_0009_sync/image_02/data/0000000016.png None 721.5377")
    for part in PARTS:
        write_lines(folder / f"eigen_{part}_files_with_gt.txt", lists[part])
    return folder


def write_nyu_v2(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0, form: str = "mat") -> Path:
    """Depth is 2.5 m on the square and 4 m elsewhere; two scenes.

    Args:
        root: the data root.
        num_train: training images.
        num_test: test images.
        seed: of the pictures.
        form: the test images in the labelled ``mat`` file, or in the folders of a ``list``.
    """
    rng, folder = np.random.default_rng(seed), root / "nyu_v2"
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    images, depths = [], []
    for part, index, label in counted(num_train, num_test):
        scene = f"bathroom_{index % 2:04d}"
        depth_m, (x, y, width, height) = np.full((36, 48), 4.0, np.float32), corner_box(label)
        depth_m[y : y + height, x : x + width] = 2.5
        image, place = picture(rng, label), folder / ("sync" if part == "train" else "official_splits/test")
        if part == "train" or form == "list":
            save(place / f"{scene}/rgb_{index:05d}.jpg", image)
            save(place / f"{scene}/sync_depth_{index:05d}.png", (1000 * depth_m).astype(np.uint16))
            lists[part].append(f"/{scene}/rgb_{index:05d}.jpg /{scene}/sync_depth_{index:05d}.png 518.8579")
        else:
            images.append(image.transpose(2, 1, 0))
            depths.append(depth_m.T)
    write_lines(folder / "nyudepthv2_train_files_with_gt.txt", lists["train"])
    if form == "list":
        write_lines(folder / "nyudepthv2_test_files_with_gt.txt", lists["test"])
        return folder
    # MATLAB 7.3 is HDF5 behind 512 bytes of its own; an image that is not for testing comes first.
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = np.stack([np.zeros_like(images[0]), *images])
        file["depths"] = np.stack([np.ones_like(depths[0]), *depths])
    with (folder / "nyu_depth_v2_labeled.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    savemat(folder / "splits.mat", {"testNdxs": np.arange(2, 2 + num_test)[:, None], "trainNdxs": np.array([[1]])})
    return folder
