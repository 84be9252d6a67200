"""Readers of a person's own data in the usual layouts; each gives the tasks at once and the samples one by one."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.coco import coco_files, read_coco
from intern_vision.data.codec import decode_labels, decode_map
from intern_vision.data.reading import (
    LAYOUTS,
    SPLIT_FOLDERS,
    Item,
    Reading,
    SplitRule,
    images_in,
    images_under,
    make_reading,
    mark_twins,
    paired_items,
    sample_key,
    split_folders,
    unlisted_images,
    unsupported_under,
)
from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.errors import DataError
from intern_vision.task import Family, Task

ANY_FAMILY = "auto"


def read_image_folder(root: Path, rule: SplitRule | None = None) -> Reading:
    """One class a folder: ``root/<class>/...`` or ``root/{train,val,test}/<class>/...``.

    Class indices follow the sorted folder names over all splits.

    Raises:
        DataError: no class folder with images.
    """
    root = root.absolute()
    parts = split_folders(root) or [(None, root)]
    folders = [
        (split, folder)
        for split, part in parts
        for folder in sorted(part.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    found = [(split, folder.name, path) for split, folder in folders for path in images_under(folder)]
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

    return make_reading(
        {"classify": Task(family="classify", class_names=tuple(names))},
        mark_twins(items),
        annotate,
        rule,
        empty_classes=tuple(sorted({folder.name for _, folder in folders} - set(names))),
        unlabelled=tuple(path for _, part in parts for path in images_in(part)),
        unsupported=tuple(path for _, folder in folders for path in unsupported_under(folder)),
    )


def read_labels_csv(path: Path, rule: SplitRule | None = None) -> Reading:
    """A table with a header: ``file`` and ``label`` (one class) or ``labels`` (several, split by ``|``).

    Optional columns: ``split`` (train, val or test) and ``caption``. Files are relative to the table.

    Raises:
        DataError: a column is missing, or a row has no label or an unknown split; it names the line.
    """
    path = path.absolute()
    table = csv.DictReader(io.StringIO(_read_text(path), newline=""))
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
    return make_reading(
        {family: Task(family=family, class_names=names)},
        mark_twins(items),
        annotate,
        rule,
        unlabelled=unlisted_images(item.path for item in items),
    )


def read_masks(root: Path, rule: SplitRule | None = None) -> Reading:
    """``root/images/`` and ``root/masks/`` with PNG class indices under the same names; 255 is ignored.

    Class names are the lines of ``root/classes.txt``, else ``class_0`` up to the largest value in the masks
    (which are then all read once before the first sample).

    Raises:
        DataError: a mask is missing, or a value is beyond the labels; it names file, value and number of labels.
    """
    root = root.absolute()
    items, orphans = paired_items(root, "masks", (".png",))
    classes = root / "classes.txt"
    if classes.is_file():
        names = tuple(line.strip() for line in _read_text(classes).splitlines() if line.strip())
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

    task = Task(family="segment", class_names=names)
    return make_reading({"segment": task}, mark_twins(items), annotate, rule, orphans=orphans)


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
    items, orphans = paired_items(root, "depth", (".png", ".npy"))
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
    task = Task(family="depth", max_depth_m=float(limit_m))
    return make_reading({"depth": task}, mark_twins(items), annotate, rule, orphans=orphans)


READERS: dict[str, Callable[..., Reading]] = {
    "masks": read_masks,
    "depth": read_depth,
    "labels_csv": read_labels_csv,
    "coco": read_coco,
    "image_folder": read_image_folder,
}
"""Reader by layout; where a folder fits several, the first is taken unless a task is asked for."""
FAMILIES: dict[str, tuple[Family, ...]] = {
    "masks": ("segment",),
    "depth": ("depth",),
    "labels_csv": ("classify", "multilabel"),
    "coco": ("detect",),
    "image_folder": ("classify",),
}
"""Task families that a layout can hold."""


def detect_format(path: Path, family: str = ANY_FAMILY) -> str:
    """Which of ``READERS`` fits a path.

    Args:
        path: a file or folder.
        family: the task wanted; ``auto`` takes the first layout that fits.

    Raises:
        DataError: none does; it lists the accepted layouts, or what was found in place of the task wanted.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = _formats_of(path)
    if not found:
        raise DataError(f"{path}: not a layout that can be read; accepted layouts:\n{LAYOUTS}")
    fitting = [kind for kind in found if family in (ANY_FAMILY, *FAMILIES[kind])]
    if not fitting:
        raise DataError(
            f"{path}: expected labels for {family}, got {found[0].replace('_', ' ')} ({'/'.join(FAMILIES[found[0]])}); "
            "leave --task out or give other data"
        )
    return fitting[0]


def read_dataset(path: Path, rule: SplitRule | None = None, family: str = ANY_FAMILY) -> Reading:
    """Reads a path in whichever accepted layout it has.

    Args:
        path: a file or folder.
        rule: for splits that the data does not name.
        family: the task wanted, where the data has labels for several; ``auto`` takes what is there.

    Raises:
        DataError: see ``detect_format`` and the readers.
    """
    kind = detect_format(path, family)
    if kind == "labels_csv" and path.is_dir():
        path = path / "labels.csv"
    reading = READERS[kind](path, rule=rule)
    if family not in (ANY_FAMILY, *reading.tasks):
        raise DataError(f"{path}: expected labels for {family}, got {'/'.join(reading.tasks)}; leave --task out")
    return reading


def _formats_of(path: Path) -> list[str]:
    if path.is_file():
        return [kind for suffix, kind in ((".csv", "labels_csv"), (".json", "coco")) if path.suffix.lower() == suffix]
    found = [folder for folder in ("masks", "depth") if (path / "images").is_dir() and (path / folder).is_dir()]
    if (path / "labels.csv").is_file():
        found.append("labels_csv")
    if coco_files(path):
        found.append("coco")
    # Folders of the other layouts are no classes.
    parts = [part for _, part in split_folders(path)] or [path]
    classes = [folder for part in parts for folder in part.iterdir() if folder.is_dir()]
    if not found and any(next(images_under(folder), None) for folder in classes):
        found.append("image_folder")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#x} at {error.start}"
        ) from None


def _load_mask(path: Path) -> NDArray[Any]:
    return decode_labels(path.read_bytes())


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
