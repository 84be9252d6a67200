"""Sets whose images lie in a few packed files: CIFAR (pickles), SVHN (.mat), PatchCamelyon (.h5), FER2013 (.csv).

A key is the split's folder in the archive and the number of the image there, such as ``train/00001``, counted from 0
over the files of a split in their official order.
"""

import csv
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.official.layout import (
    OfficialCopy,
    OfficialReading,
    Picture,
    classify_reading,
    plain_name,
)
from intern_vision.data.official.matlab import load_mat, open_hdf5
from intern_vision.data.official.names import DIGITS, EMOTIONS, LYMPH_NODES
from intern_vision.data.official.pickles import load_plain
from intern_vision.data.reading import Item, SplitRule
from intern_vision.data.sample import Split

_CIFAR_SIDE_PX = 32
_FER_SIDE_PX = 48


def read_cifar(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """CIFAR-10 (five training batches and a test batch) or CIFAR-100 (``train`` and ``test``, fine labels)."""
    if copy.row.name == "cifar10":
        copy = copy.below("cifar-10-batches-py")
        files: dict[Split, list[str]] = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
        meta, names_field, labels_field = "batches.meta", "label_names", "labels"
    else:
        copy = copy.below("cifar-100-python")
        files = {"train": ["train"], "test": ["test"]}
        meta, names_field, labels_field = "meta", "fine_label_names", "fine_labels"
    names = [plain_name(_text(name)) for name in _load_batch(copy, copy.need(meta), names_field)[names_field]]
    items: list[Item] = []
    for split, batches in files.items():
        paths = [copy.need(name) for name in batches]
        labels = [(path, row, label) for path in paths for row, label in _labels(copy, path, labels_field)]
        items += [
            copy.item(path, split, (label, row), label, key=f"{split}/{number:05d}")
            for number, (path, row, label) in enumerate(labels)
        ]

    def open_batch(path: Path) -> NDArray[np.uint8]:
        pixels = np.asarray(_load_batch(copy, path, "data")["data"])
        return pixels.reshape(-1, 3, _CIFAR_SIDE_PX, _CIFAR_SIDE_PX).transpose(0, 2, 3, 1)

    return classify_reading(copy, items, names, _from_file(open_batch))


def read_svhn(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """SVHN's cropped digits; label 10 of the file is the digit 0."""
    items: list[Item] = []
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        path = copy.need(f"{split}_32x32.mat")
        with copy.parsing(path):
            labels = load_mat(path, "y")["y"].astype(int).ravel() % 10
        items += [
            copy.item(path, split, (int(label), row), int(label), key=f"{split}/{row:05d}")
            for row, label in enumerate(labels)
        ]

    def open_file(path: Path) -> NDArray[np.uint8]:
        return load_mat(path, "X")["X"].transpose(3, 0, 1, 2)

    return classify_reading(copy, items, DIGITS, _from_file(open_file))


def read_pcam(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """PatchCamelyon's three pairs of HDF5 files; an image is read as one slice."""
    items: list[Item] = []
    splits: dict[Split, str] = {"train": "train", "val": "valid", "test": "test"}
    for split, part in splits.items():
        path, labels_path = (copy.need(f"camelyonpatch_level_2_split_{part}_{axis}.h5") for axis in "xy")
        with copy.parsing(labels_path), open_hdf5(labels_path) as file:
            labels = file["y"][:].ravel().astype(int)
        items += [
            copy.item(path, split, (int(label), row), int(label), key=f"{part}/{row:06d}")
            for row, label in enumerate(labels)
        ]

    def open_file(path: Path) -> Any:
        return open_hdf5(path)["x"]

    return classify_reading(copy, items, LYMPH_NODES, _from_file(open_file))


def read_fer2013(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """FER2013's one table; the public test is for validation, the private test is scored."""
    path = copy.need("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv")
    splits: dict[str, Split] = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
    items: list[Item] = []
    counts = dict.fromkeys(splits, 0)
    with path.open("rb") as file, copy.parsing(path):
        header = [name.strip() for name in file.readline().decode("utf-8-sig").split(",")]
        emotion, usage, pixels = (header.index(name) for name in ("emotion", "Usage", "pixels"))
        offset = file.tell()
        for line in file:
            columns = next(csv.reader([line.decode()]), [])
            if columns:
                part, label = columns[usage].strip(), int(columns[emotion])
                key = f"{part}/{counts[part]:05d}"
                counts[part] += 1
                items.append(copy.item(path, splits[part], (label, offset), label, key=key))
            offset += len(line)

    def load(item: Item) -> Picture:
        with item.path.open("rb") as file:
            file.seek(item.annotation[1])
            columns = next(csv.reader([file.readline().decode()]))
        grey = np.array(columns[pixels].split(), np.uint8).reshape(_FER_SIDE_PX, _FER_SIDE_PX)
        return Picture(np.repeat(grey[..., None], 3, axis=2))

    return classify_reading(copy, items, EMOTIONS, load)


def _from_file(open_file: Callable[[Path], Any]) -> Callable[[Item], Picture]:
    """Loads rows ``item.annotation[1]`` of packed files, of which one is open at a time."""
    opened = lru_cache(maxsize=1)(open_file)

    def load(item: Item) -> Picture:
        return Picture(np.ascontiguousarray(opened(item.path)[item.annotation[1]], np.uint8))

    return load


def _load_batch(copy: OfficialCopy, path: Path, field: str) -> dict[str, Any]:
    with copy.parsing(path):
        batch = {_text(name): value for name, value in load_plain(path.read_bytes()).items()}
        if field not in batch:
            raise ValueError(f"it has no {field}")
        return batch


def _labels(copy: OfficialCopy, path: Path, field: str) -> list[tuple[int, int]]:
    batch = _load_batch(copy, path, field)
    with copy.parsing(path):
        if len(batch[field]) != len(batch["data"]):
            raise ValueError(f"{len(batch[field])} labels for {len(batch['data'])} images")
        return list(enumerate(map(int, batch[field])))


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
