"""Trains the backbone too: full fine-tuning, low-rank adapters, multi-stage fine-tuning, weight-space ensembles."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from intern_vision.bench.protocol import Labels, validation_split
from intern_vision.bench.scoring import score_head
from intern_vision.data.augment import Augment, Resize
from intern_vision.data.loader import ShardSource, Source, evaluation_batches
from intern_vision.models.low_rank import add_adapters, merge_adapters
from intern_vision.models.merge import reestimate_statistics, task_arithmetic, task_vector
from intern_vision.models.vision import VisionModel
from intern_vision.stages.base import StageContext
from intern_vision.task import Task
from intern_vision.train.launch import train_in_process
from intern_vision.train.objective import MultiTaskObjective
from intern_vision.train.settings import FineTuneConfig, LoraConfig, TrainerConfig
from intern_vision.train.trainer import TrainJob
from intern_vision.train.upstream import fields_of

if TYPE_CHECKING:
    from intern_vision.stages import adapt

SMALL_SHARE = 0.25
EVALUATION_BATCH = 64


class AdapterObjective(MultiTaskObjective):
    """A head and the low-rank adapters of a backbone, which itself stays as it is, BatchNorm statistics included.

    Args:
        model: its backbone gets the adapters; ``merge`` puts them into its weights.
        rank: of each adapter.
    """

    def __init__(self, model: VisionModel, rank: int) -> None:
        """Adds the adapters."""
        super().__init__(model)
        for parameter in add_adapters(model.backbone, rank):
            parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> "AdapterObjective":
        """The backbone stays in eval mode."""
        super().train(mode)
        self.model.backbone.eval()
        return self

    def trainable_share(self) -> float:
        """Trained over all parameters, in (0, 1]."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return sum(size for size, is_trained in sizes if is_trained) / sum(size for size, _ in sizes)

    def merge(self) -> None:
        """Puts the adapters into the backbone's weights."""
        merge_adapters(self.model.backbone)


@dataclass(slots=True, kw_only=True)
class FineTuning:
    """Ways to train backbone and head of one task on some of its images.

    Attributes:
        config: of the stage.
        context: of the stage.
        task: the one task.
        source: all training images.
        strata: what a split of them is balanced over.
    """

    config: "adapt.Config"
    context: StageContext
    task: Task
    source: ShardSource
    strata: Labels

    def fine_tune(
        self,
        model: VisionModel,
        images: Source,
        *,
        num_steps: int,
        rate_factor: float = 1.0,
        note: str = "fine-tune",
    ) -> None:
        """Trains everything, with a lower rate for layers further from the head.

        Args:
            model: changed in place.
            images: random access to the samples to learn from.
            num_steps: optimizer steps.
            rate_factor: on the config's learning rate.
            note: for the progress line.
        """
        tune, backbone = self.config.fine_tune, model.backbone
        scales = {
            f"model.backbone.{name}": tune.layer_decay ** (backbone.num_layers - backbone.layer_index(name))
            for name, _ in backbone.named_parameters()
        }
        job = TrainJob(
            objective=MultiTaskObjective(model),
            source=images,
            transform=self._augment(),
            config=self._trainer(tune, len(images), num_steps, rate_factor),
            learning_rate_scales=scales,
        )
        train_in_process(job, self.context, note)
        model.eval()

    def adapt_low_rank(self, model: VisionModel, keys: Sequence[str], share: float) -> dict[str, Any]:
        """Trains head and adapters, and merges these; ``model`` is changed in place. Returns what there is to tell."""
        lora = self.config.lora
        torch.manual_seed(self.config.seed)
        objective = AdapterObjective(model, lora.rank)
        images = self.images(keys)
        num_steps = steps_of(lora, share)
        job = TrainJob(
            objective=objective,
            source=images,
            transform=self._augment(),
            config=self._trainer(lora, len(images), num_steps),
        )
        train_in_process(job, self.context, f"adapters {share:.0%}")
        trainable_share = objective.trainable_share()
        objective.merge()
        model.eval()
        return {"num_steps": num_steps, "rank": lora.rank, "trainable_share": trainable_share}

    def fine_tune_in_stages(
        self, model: VisionModel, keys: Sequence[str], share: float, represented: Callable[[Source], Source]
    ) -> dict[str, Any]:
        """On images drawn anew from the upstream codebook, then on the images themselves.

        Args:
            model: with the head that the first stage left or a fresh one; changed in place.
            keys: training images.
            share: of all training images.
            represented: the same samples with their images drawn anew.
        """
        stages, multi = self.config.multi_stage.stages, self.config.multi_stage
        num_steps = steps_of(self.config.fine_tune, share)
        has_both = {"represented", "original"} <= set(stages)
        num_represented = max(1, round(multi.represented_share * num_steps)) if has_both else num_steps
        images = self.images(keys)
        if "represented" in stages:
            note = f"re-represented {share:.0%}"
            self.fine_tune(model, represented(images), num_steps=num_represented, note=note)
        if "original" in stages:
            num_left = max(1, num_steps - num_represented) if has_both else num_steps
            factor = multi.original_rate_factor if has_both else 1.0
            self.fine_tune(model, images, num_steps=num_left, rate_factor=factor, note=f"original {share:.0%}")
        return {"num_steps": num_steps, "stages": list(stages)}

    def ensemble(
        self,
        frozen: VisionModel,
        tuned: VisionModel,
        keys: Sequence[str],
        fit_pair: Callable[[Sequence[str]], tuple[VisionModel, VisionModel]],
    ) -> tuple[VisionModel, dict[str, Any]]:
        """A model between two, at the share that was best on held-out training images.

        Args:
            frozen: fitted on all of ``keys``.
            tuned: fine-tuned on all of them.
            keys: training images.
            fit_pair: fits the same two on other keys; called once, with those that are not held out.
        """
        ensemble = self.config.ensemble
        strata = self._strata_of(keys)
        fitted, held_out = validation_split(keys, strata, ensemble.validation_share, self.config.split_seed)
        if not held_out:
            alpha = ensemble.fallback_alpha
            return self._between(frozen, tuned, alpha, keys), {"alpha": alpha, "num_held_out": 0}
        pair = fit_pair(fitted)
        images = self.images(held_out)
        errors = {}
        for alpha in sorted(ensemble.alphas):
            model = self._between(*pair, alpha, fitted)
            (head,) = model.heads.values()
            scores, _ = score_head(model, head, images, bf16=self.config.precision == "bf16")
            errors[alpha] = float(scores["error"])
        # Of equally good ones the nearest to the frozen model, which saw the fewest free parameters.
        alpha = min(errors, key=lambda candidate: (round(errors[candidate], 6), candidate))
        chosen = {
            "alpha": alpha,
            "num_held_out": len(held_out),
            "held_out_errors": {f"{a:g}": errors[a] for a in errors},
        }
        return self._between(frozen, tuned, alpha, keys), chosen

    def images(self, keys: Sequence[str]) -> ShardSource:
        """The training samples of these keys."""
        return ShardSource(
            self.context.store,
            self.source.uri,
            cache_dir=self.context.cache_dir,
            split="train",
            fields=fields_of((self.task.family,)),
            keys=keys,
        )

    def _between(self, frozen: VisionModel, tuned: VisionModel, alpha: float, keys: Sequence[str]) -> VisionModel:
        model = copy.deepcopy(tuned if alpha == 1 else frozen)
        if 0 < alpha < 1:
            start = frozen.state_dict()
            model.load_state_dict(task_arithmetic(start, [task_vector(start, tuned.state_dict())], alpha))
            resize = Resize(self.config.augment, num_concepts=len(self.source.info.concept_names))
            batches = evaluation_batches(self.images(keys), EVALUATION_BATCH, resize)
            # Neither end's BatchNorm statistics fit the weights between them.
            reestimate_statistics(model, batches, bf16=self.config.precision == "bf16")
        return model.eval()

    def _strata_of(self, keys: Sequence[str]) -> Labels:
        if self.strata is None:
            return None
        stratum_of = dict(zip(self.source.keys, self.strata, strict=True))
        return [stratum_of[key] for key in keys]

    def _augment(self) -> Augment:
        return Augment(self.config.augment, num_concepts=len(self.source.info.concept_names))

    def _trainer(
        self, tune: FineTuneConfig | LoraConfig, num_images: int, num_steps: int, rate_factor: float = 1.0
    ) -> TrainerConfig:
        return TrainerConfig(
            num_steps=num_steps,
            batch_size=min(tune.batch_size, num_images),
            learning_rate=rate_factor * tune.learning_rate,
            weight_decay=tune.weight_decay,
            precision=self.config.precision,
            log_every=50,
            checkpoint_every=0,
            seed=self.config.seed,
        )


def steps_of(config: Any, share: float) -> int:
    """Steps of a config with ``num_steps_small`` and ``num_steps_large`` at a share of the labels."""
    return config.num_steps_small if share < SMALL_SHARE else config.num_steps_large
