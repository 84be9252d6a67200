"""Checks a person's data before anything is trained: what is there, what is wrong with it and what is only odd.

Images are opened one after the other; kept are 16 bytes an image and the counts.
"""

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.config import Config
from intern_vision.data.manifest import Quarantined
from intern_vision.data.reading import Item, Reading
from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.data.shard import MAX_QUARANTINED_SHARE
from intern_vision.errors import DataError

MAX_NAMED = 3
"""Files named in one line; the rest is counted."""
MAX_CLASSES_SHOWN = 40
MIN_PLAUSIBLE_DEPTH_M = 0.01
MAX_PLAUSIBLE_DEPTH_M = 200.0
"""A median depth outside these two is another unit: sensors and their scenes lie between 1 cm and 200 m."""
FEW_TEST_IMAGES = 30
MAX_HASH_DISTANCE = 4
"""Pictures whose 64-bit hashes differ in at most so many bits look alike."""
SPLITS = ("train", "val", "test")
_PLAIN_MODES = ("RGB", "L")
_DIGEST_BYTES = 16


class Findings(Config):
    """What a check found; the JSON text of ``findings.json``.

    Attributes:
        families: task families that the labels serve.
        num_images: usable images by split.
        num_unreadable: images that cannot be used.
        classes: by class name the images of each split that show it; empty for depth.
        drawn: splits that the data does not name and that were drawn by the seeded rule.
        modes: images by pixel format, in Pillow's words: ``RGB``, ``L`` (grey), ``P`` (palette), ``RGBA``, ``I;16`` ...
        sizes_px: smallest and largest height, then smallest and largest width.
        num_turned: images with an EXIF orientation.
        num_duplicates: images whose pixels another image has too.
        errors: what must be mended, one line each.
        warnings: what is worth knowing, one line each.
    """

    families: tuple[str, ...]
    num_images: dict[str, int]
    num_unreadable: int = 0
    classes: dict[str, dict[str, int]] = {}
    drawn: tuple[str, ...] = ()
    modes: dict[str, int] = {}
    sizes_px: tuple[int, int, int, int] = (0, 0, 0, 0)
    num_turned: int = 0
    num_duplicates: int = 0
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def require_none_wrong(self) -> None:
        """Raises DataError with the first error, and the number of the others."""
        if self.errors:
            more = len(self.errors) - 1
            others = f" ({more} more; intern adapt --check lists them)" if more else ""
            raise DataError(self.errors[0] + others)

    def lines(self) -> list[str]:
        """The findings for people."""
        counts = ", ".join(f"{self.num_images.get(split, 0)} {split}" for split in SPLITS)
        drawn = f" ({' and '.join(self.drawn)} drawn by a seeded rule)" if self.drawn else ""
        low_h, high_h, low_w, high_w = self.sizes_px
        lines = [f"data       {'/'.join(self.families)}: {counts} images{drawn}"]
        if sum(self.num_images.values()):
            modes = ", ".join(f"{count} {mode}" for mode, count in self.modes.items())
            lines.append(f"pixels     {_span(low_h, high_h)} high, {_span(low_w, high_w)} wide; {modes}")
        shown = list(self.classes.items())[:MAX_CLASSES_SHOWN]
        width = max((len(name) for name, _ in shown), default=0)
        for name, splits in shown:
            numbers = "  ".join(f"{splits.get(split, 0):>5} {split}" for split in SPLITS)
            lines.append(f"class      {name:<{width}}  {numbers}")
        if len(self.classes) > len(shown):
            lines.append(f"           and {len(self.classes) - len(shown)} more classes")
        lines += [f"note       {text}" for text in self.warnings]
        return lines + [f"wrong      {text}" for text in self.errors]


class DataCheck:
    """A reading that is checked while it is read: iterate over it once, then ask for ``findings``."""

    def __init__(
        self,
        reading: Reading,
        *,
        allow_leaks: bool = False,
        allow_unlabelled: bool = False,
        near_duplicates: bool = False,
    ) -> None:
        """See ``check_reading``."""
        self._reading = reading
        self._near_duplicates = near_duplicates
        self._hashes: dict[str, list[tuple[int, Item]]] = {split: [] for split in SPLITS}
        self._allow_leaks, self._allow_unlabelled = allow_leaks, allow_unlabelled
        self._num_images: Counter[str] = Counter()
        self._classes: dict[str, Counter[str]] = {
            name: Counter() for task in reading.tasks.values() for name in task.class_names
        }
        self._modes: Counter[str] = Counter()
        self._sizes_px: list[int] = []
        self._num_turned = 0
        self._first: dict[bytes, Item] = {}
        self._duplicates: list[str] = []
        self._num_duplicates = 0
        self._leaks: list[str] = []
        self._conflicts: list[str] = []
        self._missing: list[str] = []
        self._unreadable: list[str] = []
        self._wrong: list[str] = []
        self._medians_m: list[float] = []

    def __iter__(self) -> Iterator[Sample | Quarantined]:
        """The reading's samples; one whose annotation is wrong is left out and becomes an error."""
        for item in self._reading.items:
            try:
                sample = self._reading.open(item)
            except DataError as error:
                self._wrong.append(str(error))
                continue
            if isinstance(sample, Sample):
                self._take(item, sample)
            elif item.path.exists():
                self._unreadable.append(f"{item.path} ({sample.reason})")
            else:
                self._missing.append(str(item.path))
            yield sample

    def findings(self) -> Findings:
        """What was found in what has been read."""
        sizes = self._sizes_px or [0, 0, 0, 0]
        errors, warnings = self._judge()
        return Findings(
            families=tuple(self._reading.tasks),
            num_images={split: self._num_images[split] for split in SPLITS},
            num_unreadable=len(self._unreadable),
            classes={name: dict(counts) for name, counts in self._classes.items()},
            drawn=self._reading.drawn,
            modes=dict(self._modes.most_common()),
            sizes_px=(sizes[0], sizes[1], sizes[2], sizes[3]),
            num_turned=self._num_turned,
            num_duplicates=self._num_duplicates,
            errors=tuple(errors),
            warnings=tuple(warnings),
        )

    def _take(self, item: Item, sample: Sample) -> None:
        self._num_images[sample.split] += 1
        for name in _class_names(sample, self._reading):
            self._classes[name][sample.split] += 1
        height, width = sample.image.shape[:2]
        low_h, high_h, low_w, high_w = self._sizes_px or [height, height, width, width]
        self._sizes_px = [min(low_h, height), max(high_h, height), min(low_w, width), max(high_w, width)]
        mode, orientation = _header(item)
        self._modes[mode] += 1
        self._num_turned += orientation != 1
        if sample.depth is not None and (sample.depth > 0).any():
            self._medians_m.append(float(np.median(sample.depth[sample.depth > 0])))
        self._compare(item, sample)

    def _compare(self, item: Item, sample: Sample) -> None:
        """Looks for another image of the same pixels."""
        shape = np.array(sample.image.shape, np.int64).tobytes()
        if self._near_duplicates:
            self._hashes[sample.split].append((difference_hash(sample.image), item))
        digest = hashlib.blake2b(shape + sample.image.tobytes(), digest_size=_DIGEST_BYTES).digest()
        first = self._first.setdefault(digest, item)
        if first is item:
            return
        self._num_duplicates += 1
        if first.split != item.split:
            learned, scored = sorted((first, item), key=lambda each: SPLITS.index(each.split or "train"))
            self._leaks.append(f"{scored.split} image {scored.path} is also the {learned.split} image {learned.path}")
        else:
            self._duplicates.append(f"{item.path} is {first.path}")
        if sample.label is not None and first.stratum != item.stratum:
            self._conflicts.append(f"{first.path} is {first.stratum}, the same picture {item.path} is {item.stratum}")

    def _judge(self) -> tuple[list[str], list[str]]:
        reading = self._reading
        errors, warnings = list(self._wrong), []
        if reading.empty_classes:
            named = ", ".join(repr(name) for name in reading.empty_classes[:MAX_NAMED])
            errors.append(f"class {named}: the folder has no image; add images or remove the folder")
        if self._missing:
            errors.append(f"labels without an image: {_named(self._missing)}; add the images or remove their labels")
        if reading.orphans:
            errors.append(f"labels without an image: {_named(reading.orphans)}; add the images or remove the files")
        if reading.unlabelled:
            text = f"images without a label: {_named(reading.unlabelled)}"
            fix = "label them, move them away, or pass --allow-unlabelled to leave them out"
            (warnings if self._allow_unlabelled else errors).append(
                f"{text}; left out" if self._allow_unlabelled else f"{text}; {fix}"
            )
        if self._leaks:
            text = f"the same picture in two splits: {_named(self._leaks)}"
            fix = "remove one of them, or pass --allow-leaks to score on them all the same"
            (warnings if self._allow_leaks else errors).append(text if self._allow_leaks else f"{text}; {fix}")
        if self._conflicts:
            errors.append(f"one picture with two labels: {_named(self._conflicts)}; keep one of them")
        if self._duplicates:
            warnings.append(f"the same picture twice: {_named(self._duplicates)}")
        if reading.unsupported:
            warnings.append(
                f"pictures in a format that is not read: {_named(reading.unsupported)}; save them as JPEG or PNG"
            )
        if self._unreadable:
            share = len(self._unreadable) / max(1, reading.num_samples)
            text = f"unreadable: {_named(self._unreadable)}"
            if share > MAX_QUARANTINED_SHARE:
                limit = f"more than {MAX_QUARANTINED_SHARE:.0%} of {reading.num_samples} images"
                errors.append(f"{text}; {limit}: mend or remove them")
            else:
                warnings.append(f"{text}; left out")
        alike = self._alike()
        if alike:
            warnings.append(f"pictures that look alike in two splits: {_named(alike)}; look at them")
        errors += [*self._count_faults(), *self._depth_faults()]
        return errors, [*warnings, *self._count_notes(), *self._pixel_notes()]

    def _alike(self) -> list[str]:
        """Pictures of a later split beside the nearest one of an earlier split, where that is near but not equal."""
        found = []
        for number, split in enumerate(SPLITS):
            earlier = [entry for name in SPLITS[:number] for entry in self._hashes[name]]
            hashes_N = np.array([value for value, _ in earlier], np.uint64)
            for value, item in self._hashes[split] if earlier else ():
                distances_N = np.bitwise_count(hashes_N ^ np.uint64(value))
                nearest = int(distances_N.argmin())
                other = earlier[nearest][1]
                if distances_N[nearest] <= MAX_HASH_DISTANCE:
                    found.append(f"{split} image {item.path} and {other.split} image {other.path}")
        return found

    def _count_faults(self) -> list[str]:
        num_train, num_test = self._num_images["train"], self._num_images["test"]
        num_all = sum(self._num_images.values())
        if num_all < 2:
            return [f"{num_all} usable images: expected at least 2, one to learn from and one to test on"]
        if not num_train or not num_test:
            return [f"{num_train} images to learn from and {num_test} to test on: add images, at least two a class"]
        if "classify" not in self._reading.tasks:
            return []
        if len(self._classes) < 2:
            return [f"one class ({next(iter(self._classes))}): expected two or more to tell apart"]
        faults = []
        for name, counts in self._classes.items():
            if not counts["train"] and name not in self._reading.empty_classes:
                faults.append(f"class {name!r}: {_counted(counts)} and none in train; add training images of it")
            elif counts["train"] == 1 and sum(counts.values()) == 1 and "test" in self._reading.drawn:
                faults.append(f"class {name!r}: one image only; add a second, to test on, or remove the class")
        return faults

    def _depth_faults(self) -> list[str]:
        if not self._medians_m:
            return []
        median_m = statistics.median(self._medians_m)
        if MIN_PLAUSIBLE_DEPTH_M <= median_m <= MAX_PLAUSIBLE_DEPTH_M:
            return []
        return [
            f"depth: the median is {median_m:.4g} m, expected {MIN_PLAUSIBLE_DEPTH_M:g} to {MAX_PLAUSIBLE_DEPTH_M:g}; "
            "write the metres of one unit of the PNG files into scale.txt (0.001 for millimetres), .npy files in metres"
        ]

    def _count_notes(self) -> list[str]:
        notes = []
        num_test = self._num_images["test"]
        if 0 < num_test < FEW_TEST_IMAGES:
            notes.append(f"{num_test} test images: the score will be uncertain, read its interval")
        unseen = [name for name, counts in self._classes.items() if not counts["train"]]
        untested = [name for name, counts in self._classes.items() if counts["train"] and not counts["test"]]
        if unseen and "classify" not in self._reading.tasks:
            notes.append(f"never in train: {_named(unseen)}")
        if untested:
            notes.append(f"never in test, so not scored: {_named(untested)}")
        return notes

    def _pixel_notes(self) -> list[str]:
        notes = []
        odd = {mode: count for mode, count in self._modes.items() if mode not in _PLAIN_MODES}
        meanings = {
            "RGBA": "transparency is dropped",
            "LA": "transparency is dropped",
            "PA": "transparency is dropped",
            "P": "palette colours are taken",
            "CMYK": "converted without a colour profile",
            "I;16": "the upper 8 of 16 bits are used",
            "I;16B": "the upper 8 of 16 bits are used",
        }
        notes += [f"{count} {mode} images: {meanings.get(mode, 'converted to RGB')}" for mode, count in odd.items()]
        if len(self._modes) > 1 and "L" in self._modes:
            notes.append(f"{self._modes['L']} grey images among coloured ones")
        if self._num_turned:
            notes.append(f"{self._num_turned} images are turned as their EXIF orientation says")
        return notes


def check_reading(
    reading: Reading, *, allow_leaks: bool = False, allow_unlabelled: bool = False, near_duplicates: bool = False
) -> Findings:
    """Reads every image once and says what is there.

    Args:
        reading: what a reader found.
        allow_leaks: one picture in two splits is a warning only.
        allow_unlabelled: so are images without a label.
        near_duplicates: also look for pictures of two splits that are alike but not equal; 8 bytes an image more, and
            time that grows with the product of the splits' sizes.

    Returns:
        Counts, errors and warnings; nothing is raised for what is wrong with the data.
    """
    check = DataCheck(
        reading, allow_leaks=allow_leaks, allow_unlabelled=allow_unlabelled, near_duplicates=near_duplicates
    )
    for _ in check:
        pass
    return check.findings()


def difference_hash(image: NDArray[np.uint8]) -> int:
    """64 bits that hardly change when a picture is saved anew, scaled or made brighter (dHash, N. Krawetz, 2013).

    Args:
        image: ``(height, width, 3)`` RGB.

    Returns:
        A bit for each cell of 8 x 8: whether the cell to its right is brighter.
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def _class_names(sample: Sample, reading: Reading) -> list[str]:
    """Names of the classes that an image shows, each once."""
    (task,) = reading.tasks.values()
    indices: Iterable[Any] = ()
    if sample.label is not None:
        indices = (sample.label,)
    elif sample.concepts is not None:
        indices = sample.concepts
    elif sample.box_labels is not None:
        indices = np.unique(sample.box_labels)
    elif sample.mask is not None:
        indices = np.unique(sample.mask[sample.mask != IGNORE_LABEL])
    return [task.class_names[index] for index in indices]


def _header(item: Item) -> tuple[str, int]:
    """Pixel format and EXIF orientation as the file's header says; the pixels are not decoded."""
    from PIL import Image

    try:
        with Image.open(item.path) as image:
            return image.mode, image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError):
        return "other", 1


def _named(things: Iterable[Any]) -> str:
    things = list(map(str, things))
    more = f" and {len(things) - MAX_NAMED} more" if len(things) > MAX_NAMED else ""
    return ", ".join(things[:MAX_NAMED]) + more


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} in {split}" for split, count in counts.items() if count) or "no image"


def _span(low: int, high: int) -> str:
    return f"{low} px" if low == high else f"{low} to {high} px"
