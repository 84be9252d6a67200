"""What every reader of files gives: tasks at once, samples one by one, splits by folder or by rule."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from intern_vision.bench.protocol import validation_split
from intern_vision.data.codec import decode_image, exif_orientation
from intern_vision.data.manifest import Quarantined
from intern_vision.data.sample import Sample, Split
from intern_vision.data.settings import SplitRule
from intern_vision.errors import DataError
from intern_vision.task import Task

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LAYOUTS = """\
image folder    ROOT/<class>/*.jpg, or ROOT/{train,val,test}/<class>/*.jpg
labels table    ROOT.csv or ROOT/labels.csv with columns file,label (one class) or file,labels (several, split by |)
COCO boxes      ROOT.json or ROOT/annotations/*.json (instances) beside ROOT/images/
masks           ROOT/images/ and ROOT/masks/*.png of the same names; optional ROOT/classes.txt
depth           ROOT/images/ and ROOT/depth/*.png (16 bit, with ROOT/scale.txt = metres a unit) or depth/*.npy (metres)
images, masks and depth may also lie in {train,val,test}/ under these folders"""
UNSUPPORTED_SUFFIXES = (".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".cr2", ".dng", ".nef")
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(slots=True, frozen=True, kw_only=True)
class Item:
    """An image that a reader found, not yet opened.

    Attributes:
        key: unique within the dataset.
        path: the image file.
        split: as named by the data, or ``None``.
        stratum: the class by which splits are drawn.
        annotation: what the reader's own function makes the sample's labels of.
        twin: key of an earlier item whose file has the same bytes; a draw puts both into one split.
    """

    key: str
    path: Path
    split: Split | None
    stratum: Any = None
    annotation: Any = None
    twin: str = ""


@dataclass(slots=True, frozen=True)
class Reading:
    """A dataset that can be read: its tasks, its size and, by iterating, its samples (as often as wanted).

    Attributes:
        tasks: family to task.
        num_samples: images found, good or bad.
        drawn: splits that the data does not name and that were drawn.
        empty_classes: classes that are named but have no image.
        unlabelled: image files beside the labelled ones that have no label.
        orphans: label files without an image.
        unsupported: pictures in formats that are not read.
    """

    tasks: dict[str, Task]
    num_samples: int
    _items: Sequence[Item]
    _annotate: Callable[[Sample, Item], None]
    drawn: tuple[Split, ...] = ()
    empty_classes: tuple[str, ...] = ()
    unlabelled: tuple[Path, ...] = ()
    orphans: tuple[Path, ...] = ()
    unsupported: tuple[Path, ...] = ()

    @property
    def items(self) -> Sequence[Item]:
        """What was found, in order; nothing is opened."""
        return self._items

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        """Opens one image after the other; one that cannot be used comes as ``Quarantined``."""
        for item in self._items:
            yield self.open(item)

    def open(self, item: Item) -> Sample | Quarantined:
        """Opens one of ``items``.

        An image is turned as its EXIF orientation says, as annotation tools and viewers show it; where its annotation
        fits only the pixels as stored, those are taken.

        Raises:
            DataError: the annotation is wrong, so that the data must be mended.
        """
        try:
            data = item.path.read_bytes()
            try:
                return self._sample(item, data, upright=True)
            except ValueError:
                if exif_orientation(data) == 1:
                    raise
                return self._sample(item, data, upright=False)
        except (ValueError, OSError) as error:
            return Quarantined(key=item.key, uri=item.path.as_uri(), reason=" ".join(str(error).split()))

    def _sample(self, item: Item, data: bytes, upright: bool) -> Sample:
        sample = Sample(key=item.key, split=item.split or "train", image=decode_image(data, upright=upright))
        self._annotate(sample, item)
        return sample


def make_reading(
    tasks: dict[str, Task],
    items: Sequence[Item],
    annotate: Callable[[Sample, Item], None],
    rule: SplitRule | None,
    **remarks: Any,
) -> Reading:
    """A reading of found items; where ``val`` or ``test`` is not given, it is drawn from the training part.

    Args:
        tasks: family to task.
        items: what was found; an item with a ``twin`` follows it.
        annotate: puts an item's labels into its sample.
        rule: of the draw.
        remarks: further attributes of the reading.

    Raises:
        DataError: an image is listed twice.
    """
    twice = next((key for key, count in Counter(item.key for item in items).items() if count > 1), None)
    if twice is not None:
        path = next(item.path for item in items if item.key == twice)
        raise DataError(f"{path}: listed twice; keep one of the entries")
    splits, drawn = draw_missing_splits(items, rule or SplitRule())
    found = [replace(item, split=splits[item.key]) for item in items]
    return Reading(tasks, len(items), found, annotate, drawn=drawn, **remarks)


class Drawable(Protocol):
    """What a split is drawn by: ``key``, ``split`` (``None``: to be drawn), ``stratum`` and ``twin`` as of ``Item``."""

    key: str
    split: Split | None
    stratum: Any
    twin: str


def draw_missing_splits(items: Sequence[Drawable], rule: SplitRule) -> tuple[dict[str, Split], tuple[Split, ...]]:
    """The split of each item by its key, and which splits were drawn because no item names them.

    Test, then validation images are held out of the training part, stratum by stratum, by
    ``intern_vision.bench.protocol.validation_split``; an item with a ``twin`` follows it.
    """
    splits: dict[str, Split] = {item.key: item.split or "train" for item in items}
    num_train = sum(item.split in (None, "train") and not item.twin for item in items)
    drawn: list[Split] = []
    wanted: tuple[tuple[Split, float], ...] = (("test", rule.test_share), ("val", rule.val_share))
    for split, share in wanted:
        train = [item for item in items if splits[item.key] == "train" and not item.twin]
        if share and train and split not in splits.values():
            drawn.append(split)
            # Both shares are of the whole training part, so the second draw asks for more of what the first left.
            share_of_rest = min(1.0, share * num_train / len(train))
            _, held_out = validation_split(
                [item.key for item in train], [item.stratum for item in train], share_of_rest, rule.seed
            )
            splits |= dict.fromkeys(held_out, split)
            splits |= {item.key: splits[item.twin] for item in items if item.twin}
    return splits, tuple(drawn)


def mark_twins(items: Sequence[Item]) -> list[Item]:
    """Names, for each item that may be drawn into a split, the first one whose file has the same bytes.

    Only files of equal size are read.
    """
    sizes = [item.path.stat().st_size if item.path.is_file() else -1 for item in items]
    shared = {size for size, count in Counter(sizes).items() if count > 1 and size >= 0}
    first: dict[str, str] = {}
    marked = []
    for item, size in zip(items, sizes, strict=True):
        twin = ""
        if size in shared and item.split in (None, "train"):
            twin = first.setdefault(hashlib.sha256(item.path.read_bytes()).hexdigest(), item.key)
        marked.append(replace(item, twin="" if twin == item.key else twin))
    return marked


def unlisted_images(listed: Iterable[Path]) -> tuple[Path, ...]:
    """Image files beside the listed ones, in the same folders, that are not among them."""
    known = set(listed)
    folders = sorted({path.parent for path in known})
    return tuple(path for folder in folders if folder.is_dir() for path in images_in(folder) if path not in known)


def sample_key(path: Path, root: Path) -> str:
    """A key that a person recognises and that stays unique: the path's letters and a digest of it."""
    return name_key(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix())


def name_key(relative: str) -> str:
    """The key of a relative path or of any other text that is unique in its dataset."""
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", relative.rsplit(".", 1)[0])[-60:]
    return f"{clean}-{hashlib.sha256(relative.encode()).hexdigest()[:10]}"


def split_folders(root: Path) -> list[tuple[Split, Path]]:
    """Sub-folders that are named as splits; empty unless ``train`` is among them."""
    found = [(SPLIT_FOLDERS[part.name.lower()], part) for part in sorted(root.iterdir()) if _is_split(part)]
    return found if any(split == "train" for split, _ in found) else []


def images_under(folder: Path) -> Iterator[Path]:
    """Image files at any depth, sorted; hidden files are left out."""
    for path in sorted(folder.rglob("*")):
        if _is_image(path):
            yield path


def unsupported_under(folder: Path) -> Iterator[Path]:
    """Pictures at any depth in formats that are not read, sorted."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in UNSUPPORTED_SUFFIXES)


def images_in(folder: Path) -> Iterator[Path]:
    """Image files directly in a folder, sorted; hidden files are left out."""
    return (path for path in sorted(folder.iterdir()) if _is_image(path))


def paired_items(root: Path, folder: str, suffixes: Sequence[str]) -> tuple[list[Item], tuple[Path, ...]]:
    """Images under ``root/images`` with the file of the same name under ``root/<folder>`` as annotation.

    Returns:
        The items, and the annotation files that have no image.

    Raises:
        DataError: a folder is missing, holds nothing, or an image has no partner.
    """
    images, partners = root / "images", root / folder
    if not images.is_dir() or not partners.is_dir():
        raise DataError(f"{root}: expected the folders images/ and {folder}/")
    items = []
    for split, part in split_folders(images) or [(None, images)]:
        for path in images_under(part):
            stem = partners / path.relative_to(images).with_suffix("")
            found = [stem.with_name(stem.name + suffix) for suffix in suffixes]
            partner = next((candidate for candidate in found if candidate.is_file()), None)
            if partner is None:
                raise DataError(f"{path}: no {' or '.join(str(candidate) for candidate in found)} for this image")
            items.append(Item(key=sample_key(path, images), path=path, split=split, annotation=partner))
    if not items:
        raise DataError(f"{images}: no image in it")
    used = {item.annotation for item in items}
    orphans = [path for path in sorted(partners.rglob("*")) if path.suffix.lower() in suffixes and path not in used]
    return items, tuple(orphans)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_split(part: Path) -> bool:
    return part.is_dir() and part.name.lower() in SPLIT_FOLDERS
