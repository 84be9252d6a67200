"""The made world: one upstream set with every kind of supervision and twelve downstream sets, drawn on demand.

It stands in for the pre-training data of INTERN (arXiv 2111.08687) and for the downstream sets of its benchmark,
GV-B, in the same four task families: the downstream sets differ from upstream in domain and label space, so that
transfer is measured and not recall. A sample depends on (seed, set, split, index, image size) alone, never on
what it is drawn with.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from intern_vision.data.sample import Sample, Split
from intern_vision.data.world_caption import MAX_CAPTION_WORDS, VOCABULARY
from intern_vision.data.world_names import (
    CONCEPT_PARENTS,
    CONCEPTS,
    FAMILIES,
    MAX_DEPTH_M,
    NOVEL_SHAPES,
    NOVEL_TEXTURES,
    SHAPES,
    SKETCH_SHAPES,
    SPECIES_NAMES,
)
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Family, Task

__all__ = [
    "CONCEPTS",
    "CONCEPT_PARENTS",
    "DOWNSTREAM",
    "MAX_CAPTION_WORDS",
    "MAX_DEPTH_M",
    "UPSTREAM",
    "VOCABULARY",
    "WorldSet",
    "render",
]

_SPLIT_IDS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}
_MIN_IMAGE_SIZE_PX = 16


@dataclass(frozen=True)
class WorldSet:
    """One set of the made world.

    Attributes:
        name: picks the renderer; names the samples' keys.
        tasks: what its annotations train, by family.
        fields: the fields of ``Sample`` that are present besides ``key``, ``split`` and ``image``.
        num_train: samples in the train split; ``dataclasses.replace`` changes it (made sets only).
        num_val: samples in the validation split.
        num_test: samples in the test split.
        description: one line.
        licence: SPDX identifier.
    """

    name: str
    tasks: dict[Family, Task]
    fields: tuple[str, ...]
    num_train: int
    num_val: int
    num_test: int
    description: str
    licence: str = "Apache-2.0"

    def num_samples(self, split: Split) -> int:
        """Samples in a split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]


def _downstream(name: str, family: Family, class_names: Sequence[str], description: str) -> WorldSet:
    fields = {
        "classify": ("label",),
        "detect": ("boxes", "box_labels"),
        "segment": ("mask",),
        "depth": ("depth",),
    }[family]
    max_depth_m = MAX_DEPTH_M if family == "depth" else 0.0
    task = Task(family=family, class_names=tuple(class_names), max_depth_m=max_depth_m)
    return WorldSet(name, {family: task}, fields, 2000, 0, 1000, description)


UPSTREAM = WorldSet(
    name="upstream",
    tasks={
        "multilabel": Task(family="multilabel", class_names=CONCEPTS),
        "detect": Task(family="detect", class_names=SHAPES),
        "segment": Task(family="segment", class_names=(*FAMILIES, "ground", "background")),
        "depth": Task(family="depth", max_depth_m=MAX_DEPTH_M),
    },
    fields=("caption", "concepts", "boxes", "box_labels", "mask", "depth"),
    num_train=30_000,
    num_val=1_000,
    num_test=0,
    description="1-3 textured objects on a ground plane; captions, 48 concepts, boxes, masks and metric depth",
)

_SPECIES = replace(
    _downstream("species", "classify", SPECIES_NAMES, "102 easy flower species; two images of each at 10 %"),
    num_train=20 * len(SPECIES_NAMES),
    num_test=10 * len(SPECIES_NAMES),
)

_DIGITS = WorldSet(
    name="digits",
    tasks={"classify": Task(family="classify", class_names=tuple("0123456789"))},
    fields=("label",),
    num_train=1197,
    num_val=0,
    num_test=600,
    description="real handwritten digits (UCI optdigits as shipped with scikit-learn), in file order",
    licence="CC-BY-4.0",
)

DOWNSTREAM: dict[str, WorldSet] = {
    world_set.name: world_set
    for world_set in (
        _downstream("flower", "classify", [f"{n} petals" for n in range(3, 9)], "petal count of one flower"),
        _downstream("texture", "classify", NOVEL_TEXTURES, "unseen textures that fill the frame"),
        _downstream("count", "classify", tuple("123456"), "how many small unseen objects lie on a table"),
        _downstream(
            "relation",
            "classify",
            ("left, in front", "left, behind", "right, in front", "right, behind"),
            "where a pin stands relative to another object",
        ),
        _downstream("sketch", "classify", SKETCH_SHAPES, "line drawings, at times inverted"),
        _DIGITS,
        _SPECIES,
        _downstream("det_novel", "detect", NOVEL_SHAPES, "unseen composite shapes at dusk or in a studio"),
        _downstream("det_thermal", "detect", FAMILIES, "warm objects in inverted, blurred grey images"),
        _downstream("seg_night", "segment", (*FAMILIES, "ground", "sky"), "the upstream places at night"),
        _downstream("seg_mosaic", "segment", NOVEL_TEXTURES, "four regions of unseen textures"),
        _downstream("depth_room", "depth", (), "a room with unseen objects"),
    )
}


def render(
    world_set: WorldSet, seed: int, split: Split, indices: Sequence[int], image_size_px: int = 64
) -> list[Sample]:
    """Draws samples of a set.

    Sample ``i`` of a split is the same whatever else is drawn with it, and no two splits share a scene.
    The classes of a made classification set differ in size by at most one over any whole split. The digits are
    data, so ``seed`` does not change them.

    Args:
        world_set: ``UPSTREAM``, one of ``DOWNSTREAM``, or a copy with other sizes.
        seed: 0 to 2**32 - 1.
        split: which split.
        indices: positions inside the split, each from 0 to its size - 1.
        image_size_px: image height and width, at least 16.

    Returns:
        One sample per index, in the order asked for. Key: ``<name>-<split>-<index, six digits>``.

    Raises:
        ConfigError: the set's name, the seed, the split or the image size is none of the above.
        DataError: an index lies outside the split.
    """
    from intern_vision.data.world_flat import digit
    from intern_vision.data.world_sets import PAINTERS

    if world_set.name != _DIGITS.name and world_set.name not in PAINTERS:
        raise ConfigError(f"world_set.name: expected one of {', '.join([*PAINTERS, 'digits'])}, got {world_set.name!r}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: expected 0 to {2**32 - 1}, got {seed}")
    if split not in _SPLIT_IDS:
        raise ConfigError(f"split: expected train, val or test, got {split!r}")
    if image_size_px < _MIN_IMAGE_SIZE_PX:
        raise ConfigError(f"image_size_px: expected at least {_MIN_IMAGE_SIZE_PX}, got {image_size_px}")
    num_samples = world_set.num_samples(split)
    outside = [index for index in indices if not 0 <= index < num_samples]
    if outside:
        raise DataError(
            f"set {world_set.name}, split {split}: index {outside[0]} is outside 0..{num_samples - 1}; "
            f"ask for a smaller index or raise num_{split}"
        )

    task = world_set.tasks.get("classify")
    labels = _Labels(world_set.name, seed, split, task.num_classes if task else 0)
    samples = []
    for index in indices:
        key = f"{world_set.name}-{split}-{index:06d}"
        if world_set.name == _DIGITS.name:
            fields = digit(index if split == "train" else _DIGITS.num_train + index, image_size_px)
        else:
            rng = np.random.Generator(np.random.PCG64(_seeds(world_set.name, seed, split, index)))
            fields = PAINTERS[world_set.name](rng, labels.at(index), image_size_px)
        samples.append(Sample(key=key, split=split, **fields))
    return samples


def _seeds(name: str, seed: int, split: Split, number: int, stream: int = 0) -> np.random.SeedSequence:
    entropy = [seed, zlib.crc32(name.encode()), _SPLIT_IDS[split], number]
    return np.random.SeedSequence(entropy, spawn_key=(stream,))


class _Labels:
    """Class labels by index: every run of ``num_classes`` indices holds each class once, in random order."""

    def __init__(self, name: str, seed: int, split: Split, num_classes: int) -> None:
        self._place = (name, seed, split)
        self._num_classes = num_classes
        self._blocks: dict[int, list[int]] = {}

    def at(self, index: int) -> int:
        """The label of a sample; -1 where the set has no classes of images."""
        if not self._num_classes:
            return -1
        block, offset = divmod(index, self._num_classes)
        if block not in self._blocks:
            rng = np.random.default_rng(_seeds(*self._place, block, stream=1))
            self._blocks[block] = rng.permutation(self._num_classes).tolist()
        return self._blocks[block][offset]
