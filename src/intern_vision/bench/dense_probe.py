"""Probes that decide whether Up-A-L made an amateur's features better for dense tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from intern_vision.bench.protocol import few_shot
from intern_vision.bench.scoring import score_head
from intern_vision.data.augment import Resize
from intern_vision.data.loader import ShardSource, evaluation_batches, load_info
from intern_vision.errors import DataError
from intern_vision.models.vision import HeadSpec, VisionModel, read_spec
from intern_vision.ref import Ref
from intern_vision.stages.base import StageContext
from intern_vision.task import Family
from intern_vision.train.features import cache_features, compute_device
from intern_vision.train.launch import train_in_process
from intern_vision.train.objective import CachedFeaturesObjective
from intern_vision.train.trainer import TrainJob
from intern_vision.train.upstream import fields_of

if TYPE_CHECKING:
    from intern_vision.stages import amateur_local

DENSE: tuple[Family, ...] = ("segment", "depth")
GLOBAL: tuple[Family, ...] = ("multilabel", "classify")


def probe_data(context: StageContext, refs: Sequence[Ref]) -> str:
    """Address of the first dataset that can decide: a dense task and validation images.

    Raises:
        DataError: there is none.
    """
    for ref in refs:
        info = load_info(context.store, ref.uri)
        if info.num_val and any(family in info.tasks for family in DENSE):
            return ref.uri
    names = ", ".join(ref.name for ref in refs) or "no dataset"
    raise DataError(
        f"inputs.data: {names}: no validation images with masks or depth to accept the result on; "
        'add such a dataset, set acceptance to "always" or mode to "none"'
    )


def compare_probes(
    config: "amateur_local.Config", context: StageContext, data_uri: str, *, before: Path, after: Path
) -> dict[str, Any]:
    """Whether the weights in ``after`` are to be taken instead of those in ``before``.

    They are where the dense probes' errors fall on average and no classification probe loses more than
    ``max_classification_drop``.

    Returns:
        ``accepted``, ``dense_error_ratio`` (mean over dense families of error after over error before),
        ``classification_drop`` (the largest rise of an error, as a share of 1; 0 without such a task), and
        every probe's error as ``before/<family>`` and ``after/<family>``.
    """
    old, new = (
        probe_errors(config, context, data_uri, folder, name) for name, folder in (("before", before), ("after", after))
    )
    ratios = [new[family] / max(old[family], 1e-9) for family in DENSE if family in old]
    ratio = sum(ratios) / len(ratios)
    drop = max((new[family] - old[family] for family in GLOBAL if family in old), default=0.0)
    return {
        "accepted": ratio < 1 and drop <= config.max_classification_drop,
        "dense_error_ratio": ratio,
        "classification_drop": drop,
        **{f"before/{family}": error for family, error in old.items()},
        **{f"after/{family}": error for family, error in new.items()},
    }


def probe_errors(
    config: "amateur_local.Config", context: StageContext, data_uri: str, model_dir: Path, note: str
) -> dict[str, float]:
    """Error by family of fresh heads on a model's frozen features, on the dataset's validation images.

    Args:
        config: sizes and training of the heads.
        context: of the stage.
        data_uri: a dataset's address.
        model_dir: folder of an amateur's weights.
        note: what to call the probe in the progress line.
    """
    info = load_info(context.store, data_uri)
    families = [family for family in (*DENSE, *GLOBAL) if family in info.tasks]

    def source(split: str, keys: Sequence[str] | None = None) -> ShardSource:
        return ShardSource(
            context.store,
            data_uri,
            cache_dir=context.cache_dir,
            split=split,
            fields=fields_of(families),
            keys=keys,
        )

    train_source = source("train")
    keys = few_shot(train_source.keys, None, config.num_probe_images, config.probe.seed)
    train_source = source("train", keys)
    torch.manual_seed(config.probe.seed)
    heads = {f: HeadSpec(task=info.tasks[f], config=config.head, frozen_features=True) for f in families}
    changes = {"heads": heads, "text": None, "image_size_px": config.augment.image_size_px}
    model = VisionModel(read_spec(model_dir).model_copy(update=changes))
    model.load_part(model_dir, "backbone")
    model.to(compute_device()).eval()
    bf16 = config.probe.precision == "bf16"
    transform = Resize(config.augment, num_concepts=len(info.concept_names))
    cache = cache_features(
        model,
        evaluation_batches(train_source, 64, transform),
        num_images=len(train_source),
        folder=context.scratch_dir / f"probe-{note}",
        bf16=bf16,
        pooled=False,
    )
    job = TrainJob(
        objective=CachedFeaturesObjective(model),
        source=cache.source(keys),
        transform=lambda example, rng: example,
        config=config.probe,
    )
    train_in_process(job, context, f"probe {note}")
    model.eval()
    val_source = source("val")
    return {family: score_head(model, model.heads[family], val_source, bf16=bf16)[0]["error"] for family in families}
