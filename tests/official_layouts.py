"""Miniatures of the benchmark's datasets in their official layouts: small pictures whose class can be learnt.

``write_<name>(root, num_train, num_test, seed)`` writes ``root/<name>/`` as its archives unpack and gives that folder.
Sets with an official validation split get ``num_test`` images there too. There are three classes in turn, two where it
says so, and all of them where the files do not name them: each class then has two images for training and one for test.
"""

import csv
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from official_dense_layouts import (
    write_citypersons,
    write_kitti_eigen,
    write_nyu_v2,
    write_voc0712,
    write_voc2012_seg,
    write_wider_face,
)
from official_pictures import NUM_CLASSES, PARTS, Rng, cell, counted, picture, save, write_lines
from scipy.io import savemat

from intern_vision.data.official.names import DIGITS, EMOTIONS, FLOWERS, RETINOPATHY_GRADES, TRAFFIC_SIGNS

NUM_FRAMES = 9


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote ``str``, and numpy's names of that time: as CIFAR's files are."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        self.write(b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data)))
        self.write(data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def write_pickle(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(value)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def _cifar_batch(rng: Rng, count: int, labels_field: str) -> dict[str, Any]:
    labels = [index % NUM_CLASSES for index in range(count)]
    pixels = [picture(rng, label, 32, 32).transpose(2, 0, 1).reshape(-1) for label in labels]
    return {labels_field: labels, "data": np.stack(pixels), "filenames": [f"{n}.png" for n in range(count)]}


def write_cifar10(root: Path, num_train: int = 15, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "cifar10"
    base = folder / "cifar-10-batches-py"
    for batch, share in enumerate(np.array_split(np.arange(num_train), 5), 1):
        write_pickle(base / f"data_batch_{batch}", _cifar_batch(rng, len(share), "labels"))
    write_pickle(base / "test_batch", _cifar_batch(rng, num_test, "labels"))
    write_pickle(base / "batches.meta", {"label_names": ["airplane", "automobile", "bird"], "num_vis": 3072})
    return folder


def write_cifar100(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "cifar100"
    for part, count in (("train", num_train), ("test", num_test)):
        batch = _cifar_batch(rng, count, "fine_labels") | {"coarse_labels": [0] * count}
        write_pickle(folder / "cifar-100-python" / part, batch)
    names = {"fine_label_names": ["apple", "aquarium_fish", "baby"], "coarse_label_names": ["things"]}
    write_pickle(folder / "cifar-100-python" / "meta", names)
    return folder


def write_food101(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "food101"
    base, names = folder / "food-101", ("apple_pie", "baby_back_ribs", "waffles")
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        lists[part].append(f"{names[label]}/{len(part)}{index:04d}")
        save(base / "images" / f"{lists[part][-1]}.jpg", picture(rng, label))
    for part in PARTS:
        write_lines(base / f"meta/{part}.txt", lists[part])
    write_lines(base / "meta/classes.txt", list(names))
    return folder


def write_oxford_pets(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "oxford_pets"
    names = ("Abyssinian", "american_bulldog", "Bengal")
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        stem = f"{names[label]}_{len(part)}{index}"
        lists[part].append(f"{stem} {label + 1} 1 1")
        save(folder / f"images/{stem}.jpg", picture(rng, label))
    write_lines(folder / "annotations/trainval.txt", lists["train"])
    write_lines(folder / "annotations/test.txt", lists["test"])
    return folder


def write_flowers102(root: Path, num_train: int = 204, num_test: int = 102, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "flowers102"
    labels = [label for _, _, label in counted(num_train, num_test, len(FLOWERS))]
    for number, label in enumerate(labels, 1):
        save(folder / f"jpg/image_{number:05d}.jpg", picture(rng, label))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8) + 1})
    ids = np.arange(1, len(labels) + 1, dtype=np.uint16)
    half = num_train // 2
    ids = {"trnid": ids[None, :half], "valid": ids[None, half:num_train], "tstid": ids[None, num_train:]}
    savemat(folder / "setid.mat", ids)
    return folder


def write_sun397(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "sun397"
    names = ("/a/abbey", "/a/apartment_building/outdoor", "/z/zen_garden")
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        lists[part].append(f"{names[label]}/sun_{part}{index}.jpg")
        save(folder / f"SUN397{lists[part][-1]}", picture(rng, label))
    write_lines(folder / "Partitions/Training_01.txt", lists["train"])
    write_lines(folder / "Partitions/Testing_01.txt", lists["test"])
    write_lines(folder / "SUN397/ClassName.txt", list(names))
    return folder


def write_stanford_cars(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "stanford_cars"
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    rows: dict[str, list[tuple[Any, ...]]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        rows[part].append((1, 2, 30, 20, label + 1, f"{index + 1:05d}.jpg"))
        save(folder / f"cars_{part}/{index + 1:05d}.jpg", picture(rng, label))
    (folder / "devkit").mkdir()
    paths = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for part in PARTS:
        savemat(folder / paths[part], {"annotations": np.array([rows[part]], fields)})
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
    savemat(folder / "devkit/cars_meta.mat", {"class_names": cell(names, row=True)})
    return folder


def write_dtd(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "dtd"
    names = ("banded", "blotchy", "zigzagged")
    lists: dict[str, list[str]] = {"train1": [], "val1": [], "test1": []}
    for part, index, label in counted(num_train, num_test):
        name = "test1" if part == "test" else "train1" if index < num_train // 2 else "val1"
        lists[name].append(f"{names[label]}/{names[label]}_{part}{index:04d}.jpg")
        save(folder / "dtd/images" / lists[name][-1], picture(rng, label))
    for name, lines in lists.items():
        write_lines(folder / f"dtd/labels/{name}.txt", lines)
    return folder


def _class_folders(base: Path, names: tuple[str, ...], count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for index in range(count):
        label = index % len(names)
        save(base / names[label] / f"{names[label]}_{index:04d}.jpg", picture(rng, label))


def write_caltech101(root: Path, num_train: int = 60, num_test: int = 6, seed: int = 0) -> Path:
    """Two classes; 30 images of each are training images whatever ``num_train`` says, and the rest is scored."""
    base = root / "caltech101/caltech-101/101_ObjectCategories"
    _class_folders(base, ("BACKGROUND_Google", "Faces_easy"), 60 + num_test, seed)
    return root / "caltech101"


def write_fgvc_aircraft(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "fgvc_aircraft"
    base, names = folder / "fgvc-aircraft-2013b/data", ("707-320", "Cessna 172", "F/A-18")
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        number = f"{len(part)}{index:06d}"
        lists[part].append(f"{number} {names[label]}")
        save(base / f"images/{number}.jpg", picture(rng, label))
    write_lines(base / "images_variant_trainval.txt", lists["train"])
    write_lines(base / "images_variant_test.txt", lists["test"])
    write_lines(base / "variants.txt", list(names))
    return folder


def write_svhn(root: Path, num_train: int = 20, num_test: int = 10, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "svhn"
    folder.mkdir(parents=True)
    for part, count in zip(PARTS, (num_train, num_test), strict=True):
        labels = [index % len(DIGITS) for index in range(count)]
        pixels = np.stack([picture(rng, label, 32, 32) for label in labels], axis=-1)
        digits = np.array([[label or 10] for label in labels], np.uint8)
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": digits}, do_compression=True)
    return folder


def write_eurosat(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    """All images in class folders; splits are drawn by the reader."""
    _class_folders(root / "eurosat/2750", ("AnnualCrop", "Forest", "SeaLake"), num_train + 2 * num_test, seed)
    return root / "eurosat"


def write_resisc45(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    """All images in class folders; splits are drawn by the reader."""
    names = ("airplane", "baseball_diamond", "wetland")
    _class_folders(root / "resisc45/NWPU-RESISC45", names, num_train + 2 * num_test, seed)
    return root / "resisc45"


def write_retinopathy(root: Path, num_train: int = 10, num_test: int = 5, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "retinopathy"
    tables: dict[str, list[str]] = {"train": ["image,level"], "test": ["image,level,Usage"]}
    for part, count in (("train", num_train), ("test", 2 * num_test)):
        for index in range(count):
            label, eye = index % len(RETINOPATHY_GRADES), np.zeros((90, 120, 3), np.uint8)
            cv2.circle(eye, (60, 45), 40, (200, 120, 60), -1)
            cv2.circle(eye, (60, 45), 5 * label, (0, 40, 0), -1)
            stem = f"{index // 2 + 1}_{('left', 'right')[index % 2]}"
            save(folder / part / f"{stem}.jpeg", eye + rng.integers(0, 8, eye.shape, dtype=np.uint8))
            usage = ("Public", "Private")[index // num_test] if part == "test" else ""
            tables[part].append(",".join([stem, str(label), *([usage] if usage else [])]))
    write_lines(folder / "trainLabels.csv", tables["train"])
    write_lines(folder / "retinopathy_solution.csv", tables["test"])
    return folder


def write_fer2013(root: Path, num_train: int = 14, num_test: int = 7, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "fer2013"
    folder.mkdir(parents=True)
    lines = ["emotion,pixels,Usage"]
    for usage, count in (("Training", num_train), ("PublicTest", num_test), ("PrivateTest", num_test)):
        for index in range(count):
            label = index % len(EMOTIONS)
            grey = picture(rng, label, 48, 48)[..., : 1 + label // 4].mean(2).astype(int)
            lines.append(f"{label},{' '.join(map(str, grey.ravel()))},{usage}")
    write_lines(folder / "fer2013.csv", lines)
    return folder


def write_video(path: Path, rng: Rng, label: int, code: str) -> None:
    """Frame ``n`` is brighter than the one before it by 10 in all channels, so that a frame can be told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 25, (48, 36))
    assert video.isOpened()
    base = picture(rng, label) // 2
    for frame in range(NUM_FRAMES):
        video.write(np.ascontiguousarray((base + 10 * frame)[..., ::-1].astype(np.uint8)))
    video.release()


def write_ucf101(root: Path, num_train: int = 6, num_test: int = 3, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "ucf101"
    names = ("ApplyEyeMakeup", "BabyCrawling", "YoYo")
    lists: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train, num_test):
        path = f"{names[label]}/v_{names[label]}_g{len(part):02d}_c{index:02d}.avi"
        lists[part].append(path + (f" {label + 1}" if part == "train" else ""))
        write_video(folder / "UCF-101" / path, rng, label, "MJPG")
    write_lines(folder / "ucfTrainTestlist/trainlist01.txt", lists["train"])
    write_lines(folder / "ucfTrainTestlist/testlist01.txt", lists["test"])
    write_lines(folder / "ucfTrainTestlist/classInd.txt", [f"{n} {name}" for n, name in enumerate(names, 1)])
    return folder


def write_gtsrb(root: Path, num_train: int = 86, num_test: int = 43, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "gtsrb"
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    tables: dict[Path, list[str]] = {}
    for part, index, label in counted(num_train, num_test, len(TRAFFIC_SIGNS)):
        place = folder / "GTSRB" / (f"Training/{label:05d}" if part == "train" else "Final_Test/Images")
        table = folder / "GT-final_test.csv" if part == "test" else place / f"GT-{label:05d}.csv"
        name = f"00000_{index:05d}.ppm" if part == "train" else f"{index:05d}.ppm"
        tables.setdefault(table, [header]).append(f"{name};30;29;5;5;25;24;{label}")
        save(place / name, picture(rng, label, 29, 30))
    for table, lines in tables.items():
        write_lines(table, lines)
    return folder


def write_pcam(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    """Two classes."""
    rng, folder = np.random.default_rng(seed), root / "pcam"
    folder.mkdir(parents=True)
    for part, count in (("train", num_train), ("valid", num_test), ("test", num_test)):
        labels = np.arange(count) % 2
        stem = str(folder / f"camelyonpatch_level_2_split_{part}")
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.stack([picture(rng, int(label), 96, 96) for label in labels])
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = labels.reshape(-1, 1, 1, 1).astype(np.uint8)
    return folder


def write_imagenet(root: Path, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Path:
    rng, folder = np.random.default_rng(seed), root / "imagenet"
    synsets = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane"}
    base, solution = folder / "ILSVRC/Data/CLS-LOC", ["ImageId,PredictionString"]
    for part, index, label in counted(num_train, num_test):
        synset = list(synsets)[label]
        if part == "train":
            save(base / f"train/{synset}/{synset}_{index}.JPEG", picture(rng, label))
        else:
            image_id = f"ILSVRC2012_val_{index + 1:08d}"
            save(base / f"val/{image_id}.JPEG", picture(rng, label))
            solution.append(f"{image_id},{synset} 10 20 30 40 ")
    write_lines(folder / "LOC_val_solution.csv", solution)
    write_lines(folder / "LOC_synset_mapping.txt", [f"{synset} {names}" for synset, names in synsets.items()])
    return folder


def write_kinetics700(root: Path, num_train: int = 6, num_test: int = 3, seed: int = 0) -> Path:
    """The last training video of the table is missing."""
    rng, folder = np.random.default_rng(seed), root / "kinetics700"
    names = ("abseiling", "air drumming", "zumba")
    tables: dict[str, list[list[Any]]] = {part: [] for part in PARTS}
    for part, index, label in counted(num_train + 1, num_test):
        video_id = f"-{part}{index:05d}_"
        tables[part].append([names[label], video_id, 1, 11, part])
        if (part, index) != ("train", num_train):
            path = folder / f"{'train' if part == 'train' else 'val'}/{names[label]}/{video_id}_000001_000011.mp4"
            write_video(path, rng, label, "mp4v")
    for part, name in (("train", "train"), ("test", "validate")):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["label", "youtube_id", "time_start", "time_end", "split"], *tables[part]])
    return folder


WRITERS: dict[str, Callable[..., Path]] = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "food101": write_food101,
    "oxford_pets": write_oxford_pets,
    "flowers102": write_flowers102,
    "sun397": write_sun397,
    "stanford_cars": write_stanford_cars,
    "dtd": write_dtd,
    "caltech101": write_caltech101,
    "fgvc_aircraft": write_fgvc_aircraft,
    "svhn": write_svhn,
    "eurosat": write_eurosat,
    "resisc45": write_resisc45,
    "retinopathy": write_retinopathy,
    "fer2013": write_fer2013,
    "ucf101": write_ucf101,
    "gtsrb": write_gtsrb,
    "pcam": write_pcam,
    "imagenet": write_imagenet,
    "kinetics700": write_kinetics700,
    "voc0712": write_voc0712,
    "wider_face": write_wider_face,
    "citypersons": write_citypersons,
    "voc2012_seg": write_voc2012_seg,
    "kitti_eigen": write_kitti_eigen,
    "nyu_v2": write_nyu_v2,
}


def write_all(root: Path) -> Path:
    """All 26 under one data root."""
    for writer in WRITERS.values():
        writer(root)
    return root
