"""Fits one upstream model to one downstream dataset. D feature width, K classes, N training images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from intern_vision.bench.probe import VARIANCE_EPS, fit_probe
from intern_vision.data.augment import Augment, Resize
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import TaskHead
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel, read_spec
from intern_vision.stages.adapt import FINE_TUNED, protocol_name
from intern_vision.stages.base import StageContext
from intern_vision.task import Task, is_vector_family
from intern_vision.train.features import FeatureCache, cache_features, compute_device
from intern_vision.train.launch import train_in_process
from intern_vision.train.objective import CachedFeaturesObjective, MultiTaskObjective
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.trainer import TrainJob
from intern_vision.train.upstream import fields_of

if TYPE_CHECKING:
    from intern_vision.stages import adapt

SMALL_SHARE = 0.25
ROWS_AT_A_TIME = 256


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
        # On no device: it is asked for its heads' shapes only.
        with torch.device("meta"):
            self._upstream = VisionModel(read_spec(upstream_dir).for_family(task.family))
        self._donor = self._find_donor()

    def fit(self, keys: Sequence[str], share: float) -> Iterator[tuple[str, VisionModel, dict[str, Any]]]:
        """For each recipe the protocol's name, the adapted model and what was chosen, from the images ``keys``.

        The fine-tuned model goes on from the frozen one's head (LP-FT, arXiv 2202.10054), so the frozen recipe is
        fitted in any case; a model must be used before the next one is asked for.
        """
        model = self._fresh_model()
        if self.task.family == "classify":
            chosen = self._fit_linear(model, keys)
        else:
            chosen = self._fit_dense_head(model, keys, share)
        for recipe in self.config.recipes:
            if recipe == FINE_TUNED:
                self._fine_tune(model, keys, share)
            yield protocol_name(share, recipe), model.eval(), {"method": recipe, "num_train": len(keys), **chosen}

    def _fresh_model(self) -> VisionModel:
        torch.manual_seed(self.config.seed)
        head = HeadSpec(task=self.task, config=self._head_config(), frozen_features=self._standardises())
        spec = self._upstream.spec.to_dict() | {"heads": {self.task.family: head.to_dict()}, "text": None}
        model = VisionModel(ModelSpec.from_dict(spec))
        model.load_part(self.upstream_dir, "backbone")
        for part in self._carried_parts(model.heads[self.task.family]):
            source, target = f"heads.{self._donor}.{part}", f"heads.{self.task.family}.{part}"
            model.load_part(self.upstream_dir, source, into=target)
        return model.to(compute_device()).eval()

    def _carried_parts(self, head: TaskHead) -> list[str]:
        """Submodules that the donor has too, in the same shapes: heads of other kinds have other pyramids."""
        if not self._donor:
            return []

        def shapes(owner: TaskHead, part: str) -> dict[str, torch.Size]:
            return {name: tensor.shape for name, tensor in owner.get_submodule(part).state_dict().items()}

        donor = self._upstream.heads[self._donor]
        common = [part for part in head.shared_prefixes() if part in donor.shared_prefixes()]
        return [part for part in common if shapes(head, part) == shapes(donor, part)]

    def _standardises(self) -> bool:
        """Whether the head reads standardised features; a carried trunk that cannot be rescaled reads what it read."""
        if not self._donor:
            return True
        donor = self._upstream.heads[self._donor]
        return "neck" in donor.shared_prefixes() or self._upstream.spec.heads[self._donor].frozen_features

    def _find_donor(self) -> str:
        """The upstream head whose label-independent parts the new head starts from; empty where there is none."""
        if not self.config.carry_trunk or is_vector_family(self.task.family):
            return ""
        heads = {name: head for name, head in self._upstream.heads.items() if head.shared_prefixes()}
        same_family = [name for name, head in heads.items() if head.task.family == self.task.family]
        return next(iter([*same_family, *heads]), "")

    def _head_config(self) -> HeadConfig:
        if self._donor:  # the sizes of what is carried
            return self._upstream.heads[self._donor].config.with_overrides({"background_classes": []})
        pooling = "pyramid" if self.task.family == "classify" else "vector"
        return self.config.head.with_overrides({"pooling": pooling})

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

    def _standardise_carried(self, head: TaskHead, keys: Sequence[str]) -> None:
        """Lets a carried pyramid read standardised features and still say what it said.

        ``W x + b = (W std) z + (b + W mean)`` for ``x = std z + mean``: the same function, in the scales that the
        optimizer's one learning rate suits.
        """
        cache = self.features()
        rows = cache.rows(keys)
        for level, (standardize, lateral) in enumerate(zip(head.standardizers, head.neck.laterals, strict=True)):
            standardize.train()
            with torch.no_grad():
                for start in range(0, len(rows), ROWS_AT_A_TIME):
                    maps = cache.arrays[f"map_{level}"][rows[start : start + ROWS_AT_A_TIME]]
                    standardize(torch.from_numpy(np.asarray(maps, np.float32)).to(lateral.weight.device))
                standardize.is_settled = True
                weight_FC = lateral.weight.flatten(1)
                lateral.bias += weight_FC @ standardize.mean_C
                lateral.weight *= (standardize.var_C + standardize.eps).sqrt()[:, None, None]

    def _fit_dense_head(self, model: VisionModel, keys: Sequence[str], share: float) -> dict[str, Any]:
        dense = self.config.dense
        head = model.heads[self.task.family]
        carried = self._carried_parts(head)
        if "neck" in carried and "standardizers" not in carried:
            self._standardise_carried(head, keys)
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
