"""Choosing between upstream models by their own heads on the upstream validation split."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from intern_vision.bench.scoring import metric_of, original_batches, update_metric
from intern_vision.data.loader import ShardSource, load_info
from intern_vision.data.sample import Split
from intern_vision.errors import DataError
from intern_vision.models.features import Features
from intern_vision.models.vision import VisionModel
from intern_vision.ref import Ref
from intern_vision.store import Store
from intern_vision.task import Family
from intern_vision.train.features import compute_device
from intern_vision.train.upstream import fields_of

# Below any error that a head reaches, so that a family without errors divides nothing by 0.
ERROR_FLOOR = 1e-6


def family_errors(
    folder: Path,
    store: Store,
    data: Sequence[Ref],
    *,
    cache_dir: Path,
    split: Split = "val",
    num_images: int = 0,
    batch_size: int = 64,
    bf16: bool = True,
) -> dict[Family, float]:
    """A saved model's error in each of its families, each head on the features of its own view.

    Args:
        folder: what ``VisionModel.save`` wrote.
        store: where the datasets lie.
        data: datasets; a head is scored on those that annotate exactly its labels, so one over the union of
            several datasets' classes is not scored.
        cache_dir: folder of local shard copies.
        split: the images scored.
        num_images: only the first so many of a dataset; 0 = all.
        batch_size: images a forward pass.
        bf16: whether forward passes run under bfloat16 autocast.

    Returns:
        By family the error of its metric, a fraction; the mean over heads and datasets where there are several.

    Raises:
        DataError: no dataset annotates the labels of any head of a family.
    """
    model = VisionModel.load(folder).to(compute_device())
    errors: dict[Family, list[float]] = {head.task.family: [] for head in model.heads.values()}
    infos = {ref.uri: load_info(store, ref.uri) for ref in data}
    for uri, info in infos.items():
        names = [name for name, head in model.heads.items() if info.tasks.get(head.task.family) == head.task]
        if names:
            families = dict.fromkeys(model.heads[name].task.family for name in names)
            source = _source(store, uri, tuple(families), cache_dir, split, num_images)
            for name, error in _head_errors(model, names, source, batch_size, bf16).items():
                errors[model.heads[name].task.family].append(error)
    missing = next((family for family, found in errors.items() if not found), None)
    if missing:
        known = ", ".join(info.name for info in infos.values())
        raise DataError(f"{folder}: none of {known} annotates the labels of its {missing} heads; give their dataset")
    return {family: sum(found) / len(found) for family, found in errors.items()}


def relative_score(errors: Mapping[Family, float], reference: Mapping[Family, float]) -> float:
    """The mean over families of error over reference error; below 1 is better than the reference."""
    ratios = [(errors[family] + ERROR_FLOOR) / (reference[family] + ERROR_FLOOR) for family in reference]
    return sum(ratios) / len(ratios)


@torch.inference_mode()
def _head_errors(
    model: VisionModel, names: Sequence[str], source: ShardSource, batch_size: int, bf16: bool
) -> dict[str, float]:
    metrics = {name: metric_of(source.info, model.heads[name].task) for name in names}
    device = next(model.parameters()).device
    for batch, targets in original_batches(source, model.spec.image_size_px, batch_size):
        image_BCHW = batch["image_BCHW"].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            found = model.head_features(image_BCHW, names)
        for name, features in found.items():
            head = model.heads[name]
            outputs = head(Features(tuple(map_BCHW.float() for map_BCHW in features.maps), features.vector_BD.float()))
            update_metric(metrics[name], head, outputs, batch, targets)
    return {name: float(metric.compute()["error"]) for name, metric in metrics.items()}


def _source(
    store: Store, uri: str, families: Sequence[Family], cache_dir: Path, split: Split, num_images: int
) -> ShardSource:
    fields = fields_of(families)
    source = ShardSource(store, uri, cache_dir=cache_dir, split=split, fields=fields)
    if not 0 < num_images < len(source):
        return source
    keys = source.keys[:num_images]
    return ShardSource(store, uri, cache_dir=cache_dir, split=split, fields=fields, keys=keys)
