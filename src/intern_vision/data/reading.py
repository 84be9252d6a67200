"""What every reader of files gives: tasks at once, samples one by one, splits by folder or by rule."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from intern_vision.bench.protocol import validation_split
from intern_vision.config import Config
from intern_vision.data.codec import decode_image
from intern_vision.data.manifest import Quarantined
from intern_vision.data.sample import Sample, Split
from intern_vision.errors import DataError
from intern_vision.task import Task

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class SplitRule(Config):
    """How splits that the data does not name are drawn from its training part, class by class.

    Attributes:
        val_share: share held out for validation, where no ``val`` is given.
        test_share: share held out for the final score, where no ``test`` is given.
        seed: which of the possible draws.
    """

    val_share: float = Field(0.1, gt=0, lt=0.5)
    test_share: float = Field(0.2, gt=0, lt=0.5)
    seed: int = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class Item:
    """An image that a reader found, not yet opened: path, split or ``None``, and the class it is stratified by."""

    key: str
    path: Path
    split: Split | None
    stratum: Any = None
    annotation: Any = None


@dataclass(slots=True, frozen=True)
class Reading:
    """A dataset that can be read: its tasks, its size and, by iterating, its samples (as often as wanted).

    Attributes:
        tasks: family to task.
        num_samples: images found, good or bad.
    """

    tasks: dict[str, Task]
    num_samples: int
    _items: Sequence[Item]
    _annotate: Callable[[Sample, Item], None]

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        """Opens one image after the other; one that cannot be used comes as ``Quarantined``."""
        for item in self._items:
            try:
                sample = Sample(key=item.key, split=item.split or "train", image=decode_image(item.path.read_bytes()))
                self._annotate(sample, item)
            except (ValueError, OSError) as error:
                yield Quarantined(key=item.key, uri=item.path.as_uri(), reason=" ".join(str(error).split()))
            else:
                yield sample


def make_reading(
    tasks: dict[str, Task], items: Sequence[Item], annotate: Callable[[Sample, Item], None], rule: SplitRule | None
) -> Reading:
    """A reading of found items; where ``val`` or ``test`` is not given, it is drawn from the training part."""
    rule = rule or SplitRule()
    splits = {item.key: item.split or "train" for item in items}
    wanted: tuple[tuple[Split, float], ...] = (("test", rule.test_share), ("val", rule.val_share))
    for split, share in wanted:
        train = [item for item in items if splits[item.key] == "train"]
        if train and split not in splits.values():
            num_train = sum(item.split in (None, "train") for item in items)
            # Both shares are of the whole training part, so the second draw asks for more of what the first left.
            share_of_rest = min(1.0, share * num_train / len(train))
            _, held_out = validation_split(
                [item.key for item in train], [item.stratum for item in train], share_of_rest, rule.seed
            )
            splits |= dict.fromkeys(held_out, split)
    return Reading(tasks, len(items), [replace(item, split=splits[item.key]) for item in items], annotate)


def sample_key(path: Path, root: Path) -> str:
    """A key that a person recognises and that stays unique: the path's letters and a digest of it."""
    relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", relative.rsplit(".", 1)[0])[-60:]
    return f"{clean}-{hashlib.sha256(relative.encode()).hexdigest()[:10]}"


def split_folders(root: Path) -> list[tuple[Split, Path]]:
    """Sub-folders that are named as splits; empty unless ``train`` is among them."""
    found = [(SPLIT_FOLDERS[part.name.lower()], part) for part in sorted(root.iterdir()) if _is_split(part)]
    return found if any(split == "train" for split, _ in found) else []


def images_under(folder: Path) -> Iterator[Path]:
    """Image files at any depth, sorted; hidden files are left out."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def paired_items(root: Path, folder: str, suffixes: Sequence[str]) -> list[Item]:
    """Images under ``root/images`` with the file of the same name under ``root/<folder>`` as annotation.

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
    return items


def _is_split(part: Path) -> bool:
    return part.is_dir() and part.name.lower() in SPLIT_FOLDERS
