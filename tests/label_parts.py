"""Datasets that annotate a part of the upstream classes, in a numbering of their own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from helpers import World, commit_folder

from intern_vision.data.loader import ShardSource, load_info
from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.ref import Ref
from intern_vision.store import open_store
from intern_vision.task import Family

FIELDS = ("concepts", "boxes", "box_labels", "mask", "depth")


def make_part(world: World, folder: Path, name: str, classes: dict[Family, tuple[str, ...]], samples: slice) -> Ref:
    """Commits some upstream training samples with the labels of these classes only.

    Args:
        world: holds the upstream dataset.
        folder: a free local folder.
        name: the dataset's name.
        classes: class names kept, by family; ``depth`` with none keeps the depth.
        samples: which of the samples.
    """
    store = open_store(world.store_root)
    whole = load_info(store, world.upstream.uri)
    source = ShardSource(store, world.upstream.uri, cache_dir=folder / "cache", fields=FIELDS, split="train")
    tasks = {family: whole.tasks[family].model_copy(update={"class_names": names}) for family, names in classes.items()}
    info = DatasetInfo(name=name, tasks=tasks, concept_names=classes.get("multilabel", ()))
    numbers = {
        family: [whole.tasks[family].class_names.index(own) for own in names] for family, names in classes.items()
    }
    rows = range(len(source))[samples]
    write_dataset((_kept(source[row], numbers) for row in rows), info, folder / "data")
    return commit_folder(world.store_root, "prepare", "dataset", name, folder / "data")


def make_classes(world: World, folder: Path, name: str, class_names: tuple[str, ...], samples: slice) -> Ref:
    """Commits the classification set's training images of some classes, in a numbering of their own.

    Args:
        world: holds the classification set.
        folder: a free local folder.
        name: the dataset's name.
        class_names: classes kept, in their new order.
        samples: which of the images, before other classes are left out.
    """
    store = open_store(world.store_root)
    task = load_info(store, world.flower.uri).tasks["classify"]
    source = ShardSource(store, world.flower.uri, cache_dir=folder / "cache", fields=("label",), split="train")
    info = DatasetInfo(name=name, tasks={"classify": task.model_copy(update={"class_names": class_names})})

    def relabelled() -> Iterator[Sample]:
        for row in range(len(source))[samples]:
            sample = source[row]
            if task.class_names[sample.label] in class_names:
                sample.label = class_names.index(task.class_names[sample.label])
                yield sample

    write_dataset(relabelled(), info, folder / "data")
    return commit_folder(world.store_root, "prepare", "dataset", name, folder / "data")


def _kept(sample: Sample, numbers: dict[Family, list[int]]) -> Sample:
    """The sample with only these classes, renumbered in their order."""
    kept = Sample(key=sample.key, split=sample.split, image=sample.image)
    if "multilabel" in numbers:
        kept.concepts = tuple(new for new, old in enumerate(numbers["multilabel"]) if old in sample.concepts)
    if "detect" in numbers:
        chosen = np.isin(sample.box_labels, numbers["detect"])
        kept.boxes = sample.boxes[chosen]
        kept.box_labels = np.array([numbers["detect"].index(old) for old in sample.box_labels[chosen]], np.int64)
    if "segment" in numbers:
        kept.mask = np.full_like(sample.mask, IGNORE_LABEL)
        for new, old in enumerate(numbers["segment"]):
            kept.mask[sample.mask == old] = new
    if "depth" in numbers:
        kept.depth = sample.depth
    return kept
