"""Fits one upstream model to one downstream dataset. D feature width, K classes, N training images."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from intern_vision.bench.probe import VARIANCE_EPS, Probe, feature_moments, fit_probe
from intern_vision.bench.protocol import list_digest
from intern_vision.bench.ridge_probe import fit_ridge_probe
from intern_vision.bench.sgd_probe import fit_sgd_probe
from intern_vision.data.augment import Resize
from intern_vision.data.loader import ShardSource, Source, evaluation_batches
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import TaskHead
from intern_vision.models.necks import ChannelStandardizer
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel, read_spec
from intern_vision.stages.adapt import AUTO, NEIGHBOURS, SUFFIXES, Draw, ProbeMethod, Recipe, strata_of
from intern_vision.stages.base import StageContext
from intern_vision.task import Task, is_vector_family
from intern_vision.train.array_cache import ArrayCache, cache_key
from intern_vision.train.choices import choose_probe, choose_recipe
from intern_vision.train.features import FeatureCache, backbone_digest, cache_features, compute_device
from intern_vision.train.fine_tuning import FineTuning, steps_of
from intern_vision.train.launch import train_in_process
from intern_vision.train.objective import CachedFeaturesObjective
from intern_vision.train.represented import represented_source
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.trainer import TrainJob

if TYPE_CHECKING:
    from intern_vision.stages import adapt

PROBES = {"lbfgs": fit_probe, "sgd": fit_sgd_probe, "ridge": fit_ridge_probe}
ROWS_AT_A_TIME = 256
FEATURE_FOLDER = "features"
Adapted = tuple[str, VisionModel, dict[str, Any]]


class Adaptation:
    """One upstream model on one dataset; features are computed once for all shares."""

    def __init__(
        self,
        config: "adapt.Config",
        context: StageContext,
        task: Task,
        upstream_dir: Path,
        source: ShardSource,
        draws: Sequence[Draw],
    ) -> None:
        self.config = config
        self.context = context
        self.task = task
        self.upstream_dir = upstream_dir
        self.source = source
        strata = strata_of(source, task.family)
        self.tuning = FineTuning(config=config, context=context, task=task, source=source, strata=strata)
        self._drawn = {key for draw in draws for key in draw.keys}
        self._features: FeatureCache | None = None
        # On no device: it is asked for its heads' shapes only.
        with torch.device("meta"):
            self._upstream = VisionModel(read_spec(upstream_dir).for_family(task.family))
        self._donor = self._find_donor()

    def fit(self, draw: Draw) -> Iterator[Adapted]:
        """For each recipe the protocol's name, the adapted model and what was chosen, from the images of a draw.

        Every other recipe goes on from the frozen one's head (LP-FT, arXiv 2202.10054) unless its settings say
        otherwise, so the frozen recipe is fitted in any case.
        """
        recipes, reasons = self._recipes(draw)
        frozen = self._fresh_model()
        told = {"num_train": len(draw.keys), **self._fit_head(frozen, draw.keys, draw.share)}
        tuned: VisionModel | None = None
        for recipe in recipes:
            model, more = frozen, {}
            if recipe == "lora":
                model = copy.deepcopy(frozen)
                more = self.tuning.adapt_low_rank(model, draw.keys, draw.share)
            elif recipe == "multi_stage":
                starts_fitted = "probe" in self.config.multi_stage.stages
                model = copy.deepcopy(frozen) if starts_fitted else self._unfitted_model(draw.keys)
                more = self.tuning.fine_tune_in_stages(model, draw.keys, draw.share, self._represented)
            elif recipe in ("fine_tuned", "ensemble"):
                tuned = tuned or self._fine_tuned(frozen, draw.keys, draw.share)
                model = tuned
            if recipe == "ensemble":
                model, more = self.tuning.ensemble(
                    frozen, tuned, draw.keys, lambda keys: self._fit_pair(keys, draw.share)
                )
            yield draw.protocol + SUFFIXES[recipe], model.eval(), {"method": recipe, **told, **more, **reasons}
        if self.config.knn:
            told = {"method": NEIGHBOURS, "num_train": len(draw.keys)}
            yield f"{draw.protocol}+{NEIGHBOURS}", self._nearest(draw.keys), told

    def _recipes(self, draw: Draw) -> tuple[tuple[Recipe, ...], dict[str, str]]:
        """Recipes of a draw, and why, where they were chosen here."""
        if self.config.recipes == (AUTO,):
            recipe, reason = choose_recipe(self.task, len(draw.keys))
            return (recipe,), {"reason": reason}
        return self.config.recipes, {}

    def _fit_head(self, model: VisionModel, keys: Sequence[str], share: float) -> dict[str, Any]:
        if self.task.family == "classify":
            return self._fit_linear(model, keys)
        return self._fit_dense_head(model, keys, share)

    def _fine_tuned(self, frozen: VisionModel, keys: Sequence[str], share: float) -> VisionModel:
        model = copy.deepcopy(frozen) if self.config.fine_tune.from_probe else self._unfitted_model(keys)
        num_steps = steps_of(self.config.fine_tune, share)
        self.tuning.fine_tune(model, self.tuning.images(keys), num_steps=num_steps, note=f"fine-tune {share:.0%}")
        return model

    def _unfitted_model(self, keys: Sequence[str]) -> VisionModel:
        model = self._fresh_model()
        self._standardise_where_carried(model, keys)
        return model

    def _fit_pair(self, keys: Sequence[str], share: float) -> tuple[VisionModel, VisionModel]:
        frozen = self._fresh_model()
        self._fit_head(frozen, keys, share)
        return frozen, self._fine_tuned(frozen, keys, share)

    def _represented(self, images: Source) -> Source:
        codebook = self.context.inputs.one("codebook")
        return represented_source(
            images, self._labelled(), codebook, self.context, bf16=self.config.precision == "bf16"
        )

    def _labelled(self) -> ShardSource:
        """Every training image that is drawn."""
        is_whole = len(self._drawn) == len(self.source)
        return self.source if is_whole else self.tuning.images(sorted(self._drawn))

    def _fresh_model(self, **head_settings: Any) -> VisionModel:
        torch.manual_seed(self.config.seed)
        config = self._head_config().with_overrides(head_settings)
        head = HeadSpec(task=self.task, config=config, frozen_features=self._standardises())
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
        """Frozen features of every training image that is drawn, from this machine's cache where it has them."""
        if self._features is None:
            images = self._labelled()
            pooled = self.task.family == "classify"

            def make(folder: Path) -> None:
                resize = Resize(self.config.augment, num_concepts=len(self.source.info.concept_names))
                cache_features(
                    self._fresh_model(),
                    evaluation_batches(images, 64, resize),
                    num_images=len(images),
                    folder=folder,
                    bf16=self.config.precision == "bf16",
                    pooled=pooled,
                )

            spec = self._upstream.spec.model_copy(update={"heads": {}, "text": None})
            key = cache_key(
                [spec.to_dict(), backbone_digest(self.upstream_dir)],
                [self.source.info.to_dict(), "train", list_digest(images.keys)],
                [self.config.augment.image_size_px, self.config.precision, pooled, str(compute_device())],
            )
            cache = ArrayCache(self.context.cache_dir / FEATURE_FOLDER)
            self._features = cache.get(key, make, FeatureCache.open)
        return self._features

    def _pooled(self, keys: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 features ``(N, D)`` and labels ``(N,)`` of these images."""
        cache = self.features()
        rows = cache.rows(keys)
        features_ND = torch.from_numpy(np.asarray(cache.arrays["pooled"][rows], np.float32))
        return features_ND, torch.from_numpy(np.asarray(cache.targets["label"][rows], np.int64))

    def _fit_linear(self, model: VisionModel, keys: Sequence[str]) -> dict[str, Any]:
        features_ND, labels_N = self._pooled(keys)
        method: ProbeMethod = self.config.method if self.config.method != AUTO else "lbfgs"
        told: dict[str, Any] = {}
        if self.config.method == AUTO:
            method, told["probe_reason"] = choose_probe(len(keys), self.task.num_classes)
        probe = PROBES[method](features_ND, labels_N, self.task.num_classes, self.config.probe)
        self._serve(probe, model.heads[self.task.family])
        return {"probe": method, **told, **probe.chosen}

    def _serve(self, probe: Probe, head: TaskHead) -> None:
        _set_moments(head.standardize, probe.mean_D, probe.std_D)
        with torch.no_grad():
            head.linear.weight.copy_(probe.weight_KD)
            head.linear.bias.copy_(probe.bias_K)

    def _nearest(self, keys: Sequence[str]) -> VisionModel:
        features_ND, labels_N = self._pooled(keys)
        probe = self.config.probe
        settings = {"num_neighbours": probe.num_neighbours, "neighbour_temperature": probe.neighbour_temperature}
        model = self._fresh_model(num_examples=len(keys), **settings)
        head = model.heads[self.task.family]
        _set_moments(head.standardize, *feature_moments(features_ND))
        head.remember(features_ND, labels_N)
        return model.eval()

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

    def _standardise_where_carried(self, model: VisionModel, keys: Sequence[str]) -> None:
        head = model.heads[self.task.family]
        carried = self._carried_parts(head)
        if "neck" in carried and "standardizers" not in carried:
            self._standardise_carried(head, keys)

    def _fit_dense_head(self, model: VisionModel, keys: Sequence[str], share: float) -> dict[str, Any]:
        dense = self.config.dense
        self._standardise_where_carried(model, keys)
        num_steps = steps_of(dense, share)
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
        model.eval()
        return {"num_steps": num_steps}


@torch.no_grad()
def _set_moments(standardizer: ChannelStandardizer, mean_D: torch.Tensor, std_D: torch.Tensor) -> None:
    """Makes a standardiser do ``(x - mean) / std``."""
    standardizer.mean_C.copy_(mean_D)
    standardizer.var_C.copy_(std_D.square() - VARIANCE_EPS)
    standardizer.num_batches.fill_(1)
