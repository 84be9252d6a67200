"""Fits one upstream model to one downstream dataset. D feature width, K classes, N training images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from intern_vision.bench.probe import VARIANCE_EPS, fit_probe
from intern_vision.data.augment import Augment, Resize
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel, read_spec
from intern_vision.stages.base import StageContext
from intern_vision.task import Task
from intern_vision.train.features import FeatureCache, cache_features, compute_device
from intern_vision.train.launch import train_in_process
from intern_vision.train.objective import CachedFeaturesObjective, MultiTaskObjective
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.trainer import TrainJob
from intern_vision.train.upstream import fields_of

if TYPE_CHECKING:
    from intern_vision.stages import adapt

SMALL_SHARE = 0.25


class Adaptation:
    """One upstream model on one dataset; features are computed once for all shares."""

    def __init__(
        self, config: "adapt.Config", context: StageContext, task: Task, upstream_dir: Path, source: ShardSource
    ) -> None:
        self.config = config
        self.context = context
        self.task = task
        self.upstream_dir = upstream_dir
        self.source = source
        self._num_concepts = len(source.info.concept_names)
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
        return model.to(compute_device()).eval()

    def features(self) -> FeatureCache:
        """Frozen features of every training image."""
        if self._features is None:
            self._features = cache_features(
                self._fresh_model(),
                evaluation_batches(self.source, 64, Resize(self.config.augment, num_concepts=self._num_concepts)),
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
            head.standardize.var_C.copy_(probe.std_D.square() - VARIANCE_EPS)
            head.standardize.num_batches.fill_(1)
            head.linear.weight.copy_(probe.weight_KD)
            head.linear.bias.copy_(probe.bias_K)
        return {"l2": probe.l2, "validation_accuracy": probe.validation_accuracy}

    def _fit_dense_head(self, model: VisionModel, keys: Sequence[str], share: float) -> dict[str, Any]:
        dense = self.config.dense
        num_steps = dense.num_steps_small if share < SMALL_SHARE else dense.num_steps_large
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
        train_in_process(job, self.context, f"{self.task.family} {share:.0%}")
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
            transform=Augment(self.config.augment, num_concepts=self._num_concepts),
            config=TrainerConfig(
                num_steps=tune.num_steps_small if share < SMALL_SHARE else tune.num_steps_large,
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
        train_in_process(job, self.context, f"fine-tune {share:.0%}")
