"""Down-A (Adaptation): an upstream model becomes a model of one task from a share of its labels.

D feature width, K classes, N training images.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from intern_vision import config as base
from intern_vision.bench.probe import ProbeConfig, fit_probe
from intern_vision.bench.protocol import list_digest, stratified_share
from intern_vision.data.augment import Augment, AugmentConfig, Resize
from intern_vision.data.loader import ShardSource, evaluation_batches, load_info
from intern_vision.heads import HeadConfig
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel, read_spec
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.task import Task
from intern_vision.train.features import FeatureCache, cache_features
from intern_vision.train.launch import train_in_process
from intern_vision.train.objective import CachedFeaturesObjective, MultiTaskObjective
from intern_vision.train.trainer import TrainerConfig, TrainJob
from intern_vision.train.upstream import fields_of

DETAILS_FILE = "adapt.json"


class DenseConfig(base.Config):
    """Training of a fresh detection, segmentation or depth head on frozen features.

    Attributes:
        num_steps_small: optimizer steps below a quarter of the labels.
        num_steps_large: optimizer steps from there on.
        batch_size: images a step.
        learning_rate: peak.
        weight_decay: AdamW's.
    """

    num_steps_small: int = Field(default=300, ge=1)
    num_steps_large: int = Field(default=500, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)


class FineTuneConfig(base.Config):
    """Fine-tuning of backbone and head after the probe (LP-FT, arXiv 2202.10054).

    Attributes:
        num_steps_small: optimizer steps below a quarter of the labels.
        num_steps_large: optimizer steps from there on.
        batch_size: images a step.
        learning_rate: of the head and the last block.
        layer_decay: factor on the rate for each block further from the head.
        weight_decay: AdamW's.
    """

    num_steps_small: int = Field(default=150, ge=1)
    num_steps_large: int = Field(default=350, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    layer_decay: float = Field(default=0.7, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)


class Config(base.Config):
    """How one upstream model is adapted to one dataset.

    Attributes:
        name: what the result is called, for example ``intern-flower``.
        method: ``probe`` (frozen backbone) or ``lp_ft`` (probe, then fine-tune everything).
        shares: shares of the training labels, each giving one model.
        split_seed: seed of the published draw rule.
        probe: classification on frozen features.
        dense: detection, segmentation and depth on frozen features.
        fine_tune: the second step of ``lp_ft``.
        head: sizes and loss weights of a fresh dense head.
        augment: how training images are changed in ``lp_ft``.
        precision: of forward passes through the backbone.
        seed: of training.
    """

    name: str
    method: Literal["probe", "lp_ft"] = "probe"
    shares: tuple[float, ...] = (0.1, 1.0)
    split_seed: int = 2021
    probe: ProbeConfig = ProbeConfig()
    dense: DenseConfig = DenseConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0

    def faults(self) -> list[str]:
        """Shares lie in (0, 1]."""
        wrong = [share for share in self.shares if not 0 < share <= 1]
        return [f"shares must lie in (0, 1], got {wrong[0]}"] if wrong else []


def protocol_name(share: float) -> str:
    """A share as the name of its protocol: 0.1 is ``10``."""
    return f"{100 * share:g}"


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Adapts the input ``model`` to the input ``data``; one folder ``p<percent>`` a share."""
    torch.set_num_threads(step_threads())
    upstream_dir = context.fetch(inputs.one("model"))
    data_uri = inputs.one("data").uri
    task = only_task(context, data_uri)
    source = ShardSource(
        context.store, data_uri, cache_dir=context.cache_dir, split="train", fields=fields_of((task.family,))
    )
    labels = source.labels if task.family == "classify" else None
    adaptation = _Adaptation(config, context, task, upstream_dir, source)
    details = {}
    for share in config.shares:
        keys = stratified_share(source.keys, labels, share, config.split_seed)
        model, chosen = adaptation.fit(keys, share)
        model.save(context.output_dir / f"p{protocol_name(share)}")
        details[protocol_name(share)] = {
            "num_train": len(keys),
            "keys_digest": list_digest(keys),
            "method": config.method,
            **chosen,
        }
    (context.output_dir / DETAILS_FILE).write_text(json.dumps(details, indent=1))
    return context.commit("model", config.name)


def only_task(context: StageContext, data_uri: str) -> Task:
    """The task of a downstream dataset; where there are several, the first."""
    return next(iter(load_info(context.store, data_uri).tasks.values()))


def step_threads() -> int:
    """Threads of a step that shares the machine with another step."""
    return max(1, (os.cpu_count() or 1) // 2)


class _Adaptation:
    """One upstream model on one dataset; features are computed once for all shares."""

    def __init__(
        self, config: Config, context: StageContext, task: Task, upstream_dir: Path, source: ShardSource
    ) -> None:
        self.config = config
        self.context = context
        self.task = task
        self.upstream_dir = upstream_dir
        self.source = source
        self.size_px = config.augment.image_size_px
        self._features: FeatureCache | None = None

    def fit(self, keys: Sequence[str], share: float) -> tuple[VisionModel, dict[str, Any]]:
        """The adapted model and what was chosen on the way, from the training images ``keys``."""
        model = self._fresh_model()
        if self.task.family == "classify":
            chosen = self._fit_linear(model, keys)
        else:
            chosen = self._fit_dense_head(model, keys, share)
        if self.config.method == "lp_ft":
            self._fine_tune(model, keys, share)
        return model.eval(), chosen

    def _fresh_model(self) -> VisionModel:
        torch.manual_seed(self.config.seed)
        upstream = read_spec(self.upstream_dir)
        pooling = "pyramid" if self.task.family == "classify" else "vector"
        head_config = self.config.head.with_overrides({"pooling": pooling})
        head = HeadSpec(task=self.task, config=head_config, frozen_features=True)
        spec = ModelSpec.from_dict(upstream.to_dict() | {"heads": {self.task.family: head.to_dict()}, "text": None})
        model = VisionModel(spec)
        model.load_part(self.upstream_dir, "backbone")
        return model.eval()

    def features(self) -> FeatureCache:
        """Frozen features of every training image."""
        if self._features is None:
            self._features = cache_features(
                self._fresh_model(),
                evaluation_batches(self.source, 64, Resize(self.config.augment)),
                num_images=len(self.source),
                folder=self.context.scratch_dir / "features",
                bf16=self.config.precision == "bf16",
                pooled=self.task.family == "classify",
            )
        return self._features

    def _fit_linear(self, model: VisionModel, keys: Sequence[str]) -> dict[str, Any]:
        cache = self.features()
        rows = cache.rows(keys)
        features_ND = torch.from_numpy(np.asarray(cache.arrays["pooled"][rows], np.float32))
        labels_N = torch.tensor([self.source.labels[row] for row in rows])
        probe = fit_probe(features_ND, labels_N, self.task.num_classes, self.config.probe)
        head = model.heads[self.task.family]
        with torch.no_grad():
            head.standardize.mean_C.copy_(probe.mean_D)
            head.standardize.var_C.copy_(probe.std_D.square())
            head.standardize.num_batches.fill_(1)
            head.linear.weight.copy_(probe.weight_KD)
            head.linear.bias.copy_(probe.bias_K)
        return {"l2": probe.l2, "validation_accuracy": probe.validation_accuracy}

    def _fit_dense_head(self, model: VisionModel, keys: Sequence[str], share: float) -> dict[str, Any]:
        dense = self.config.dense
        num_steps = dense.num_steps_small if share < 0.25 else dense.num_steps_large
        job = TrainJob(
            objective=CachedFeaturesObjective(model),
            source=self.features().source(keys),
            transform=lambda example, rng: example,
            config=TrainerConfig(
                num_steps=num_steps,
                batch_size=dense.batch_size,
                learning_rate=dense.learning_rate,
                weight_decay=dense.weight_decay,
                precision=self.config.precision,
                log_every=50,
                checkpoint_every=0,
                seed=self.config.seed,
            ),
        )
        train_in_process(job, self.context, f"{self.task.family} {protocol_name(share)} %")
        return {"num_steps": num_steps}

    def _fine_tune(self, model: VisionModel, keys: Sequence[str], share: float) -> None:
        tune = self.config.fine_tune
        backbone = model.backbone
        num_layers = backbone.num_layers
        scales = {
            f"model.backbone.{name}": tune.layer_decay ** (num_layers - backbone.layer_index(name))
            for name, _ in backbone.named_parameters()
        }
        source = ShardSource(
            self.context.store,
            self.source.uri,
            cache_dir=self.context.cache_dir,
            split="train",
            fields=fields_of((self.task.family,)),
            keys=keys,
        )
        job = TrainJob(
            objective=MultiTaskObjective(model),
            source=source,
            transform=Augment(self.config.augment),
            config=TrainerConfig(
                num_steps=tune.num_steps_small if share < 0.25 else tune.num_steps_large,
                batch_size=min(tune.batch_size, len(source)),
                learning_rate=tune.learning_rate,
                weight_decay=tune.weight_decay,
                precision=self.config.precision,
                log_every=50,
                checkpoint_every=0,
                seed=self.config.seed,
            ),
            learning_rate_scales=scales,
        )
        train_in_process(job, self.context, f"fine-tune {protocol_name(share)} %")
