"""What the readers of official layouts share: a person's copy of a set, its files, and a reading of it."""

import contextlib
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.suite import SuiteRow
from intern_vision.data.codec import decode_image, image_suffix
from intern_vision.data.manifest import Quarantined
from intern_vision.data.reading import Item, Reading, SplitRule, make_reading, sample_key
from intern_vision.data.sample import Sample, Split
from intern_vision.errors import DataError, InternError
from intern_vision.task import Task


class Picture(NamedTuple):
    """An opened image.

    Attributes:
        image: ``(height, width, 3)`` uint8 RGB.
        encoded: the file it came from, where a shard may keep that unchanged.
        frame: its index in its video, 0-based.
    """

    image: NDArray[np.uint8]
    encoded: bytes | None = None
    frame: int | None = None


def load_file(item: Item) -> Picture:
    """The image at an item's path: the pixels as stored, which official annotations refer to."""
    data = item.path.read_bytes()
    return Picture(decode_image(data, upright=False), data if image_suffix(data) else None)


@dataclass(slots=True, frozen=True)
class OfficialReading(Reading):
    """A reading whose images may lie in packed files and videos.

    Attributes:
        load: opens an item's image; ValueError or OSError quarantines the item.
    """

    load: Callable[[Item], Picture] = load_file

    def open(self, item: Item) -> Sample | Quarantined:
        """Opens one of ``items``; its stratum goes with it, for later draws."""
        try:
            picture = self.load(item)
            stratum = "" if item.stratum is None else str(item.stratum)
            sample = Sample(key=item.key, split=item.split or "train", stratum=stratum, **picture._asdict())
            self._annotate(sample, item)
        except (ValueError, OSError) as error:
            return Quarantined(key=item.key, uri=item.path.as_uri(), reason=" ".join(str(error).split()))
        return sample


@dataclass(slots=True, frozen=True)
class OfficialCopy:
    """A person's copy of a set.

    Attributes:
        row: the set.
        folder: ``<data root>/<name>``, absolute.
        base: where the official layout begins: ``folder`` or the archive's own top folder in it.
    """

    row: SuiteRow
    folder: Path
    base: Path

    @classmethod
    def at(cls, row: SuiteRow, root: Path) -> "OfficialCopy":
        """The copy under a data root; DataError says where to get the set when its folder is absent."""
        folder = root.absolute() / row.name
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; get {row.title} from {row.source_url} and unpack it there")
        return cls(row, folder, folder)

    def below(self, *tops: str) -> "OfficialCopy":
        """The copy from the first of the folders ``tops`` on that exists, so that keys do not depend on how it lies."""
        return replace(self, base=next((self.base / top for top in tops if (self.base / top).is_dir()), self.base))

    def need(self, *candidates: str) -> Path:
        """The first of these paths (relative to the base) that exists.

        Raises:
            DataError: none does; names the first and where to get the set.
        """
        found = self.find(*candidates)
        if found is None:
            raise DataError(
                f"{self.base / candidates[0]}: missing; it is part of {self.row.title}, get it from "
                f"{self.row.source_url} and unpack it under {self.folder}"
            )
        return found

    def find(self, *candidates: str) -> Path | None:
        """The first of these paths that exists, or ``None``."""
        return next((path for name in candidates if (path := self.base / name).exists()), None)

    @contextlib.contextmanager
    def parsing(self, path: Path) -> Iterator[None]:
        """Turns what a parser raises into a DataError that names the file."""
        try:
            yield
        except InternError:
            raise
        # A parser of foreign bytes may raise anything.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: not in the official layout of {self.row.title}: {reason}") from error

    def rows(self, path: Path, num_columns: int = 1, separator: str | None = None) -> Iterator[list[str]]:
        """Columns of the lines of a list that are not empty; DataError names the line with fewer than expected."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8 text: {error}") from error
        for number, line in enumerate(lines, 1):
            columns = line.strip().split(separator)
            if not line.strip():
                continue
            if len(columns) < num_columns:
                raise DataError(f"{path}: line {number}: expected {num_columns} columns, got {line.strip()[:60]!r}")
            yield columns

    def table(self, path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[dict[str, str]]:
        """Rows of a table with a header; blanks around names are left out.

        Raises:
            DataError: a column is missing, or a row is too short.
        """
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            if missing := [name for name in columns if name not in header]:
                raise DataError(f"{path}: expected the columns {', '.join(columns)}; {missing[0]} is missing")
            for values in reader:
                if values and len(values) < len(header):
                    raise DataError(f"{path}: line {reader.line_num}: expected {len(header)} columns")
                if values:
                    yield dict(zip(header, values, strict=False))

    def inside(self, relative: str, source: Path) -> Path:
        """A path that a list gives, below the base; DataError where it would lead out of it."""
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise DataError(f"{source}: the path {relative!r} leads out of {self.base}")
        return self.base / pure

    def item(self, path: Path, split: Split, annotation: Any, stratum: Any = None, key: str = "") -> Item:
        """An item whose key is its path below the base, or ``key`` for an image in a packed file."""
        stratum = annotation if stratum is None else stratum
        named = self.base / key if key else path
        return Item(key=sample_key(named, self.base), path=path, split=split, stratum=stratum, annotation=annotation)


def classify_reading(
    copy: OfficialCopy,
    items: Iterable[Item],
    class_names: Sequence[str],
    load: Callable[[Item], Picture] = load_file,
) -> OfficialReading:
    """A reading of images with one class each.

    Args:
        copy: where they lie.
        items: with the class index, or a tuple that begins with it, as annotation.
        class_names: in index order.
        load: opens an image.

    Raises:
        DataError: there are none, or an index is beyond the names.
    """
    found = list(items)
    for item in found:
        label = _label(item)
        if not 0 <= label < len(class_names):
            raise DataError(
                f"{item.path}: class index {label}, but {copy.row.title} has {len(class_names)} classes here"
            )

    def annotate(sample: Sample, item: Item) -> None:
        sample.label = _label(item)

    return official_reading(copy, Task(family="classify", class_names=tuple(class_names)), found, annotate, load)


def official_reading(
    copy: OfficialCopy,
    task: Task,
    items: Sequence[Item],
    annotate: Callable[[Sample, Item], None],
    load: Callable[[Item], Picture] = load_file,
) -> OfficialReading:
    """A reading with the splits that its items name; DataError where there are none."""
    if not any(item.split == "train" for item in items):
        raise DataError(
            f"{copy.base}: no training image of {copy.row.title} in it; it is as {copy.row.official_format}"
        )
    return OfficialReading({task.family: task}, len(items), items, annotate, load=load)


def draw_splits(items: Sequence[Item], rule: SplitRule | None, val_share: float, test_share: float) -> list[Item]:
    """Items with splits drawn class by class, for a set that comes without lists; only the rule's seed is used."""
    rule = SplitRule(val_share=val_share, test_share=test_share, seed=rule.seed if rule else 0)
    return list(make_reading({}, items, lambda sample, item: None, rule).items)


def plain_name(text: str) -> str:
    """A label name in words: underscores become blanks."""
    return " ".join(text.replace("_", " ").split())


def _label(item: Item) -> int:
    return item.annotation[0] if isinstance(item.annotation, tuple) else item.annotation
