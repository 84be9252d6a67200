"""Evaluators: how good a genotype is, by training it for a short time or by slices of trained shared weights.

B batch, C channels, H W height and width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from intern_vision.bench.scoring import score_head
from intern_vision.data.augment import Augment, Resize
from intern_vision.data.loader import ShardSource, make_loader
from intern_vision.data.settings import AugmentConfig
from intern_vision.heads import HeadConfig
from intern_vision.models.genotype import Genotype
from intern_vision.models.layers import normalise
from intern_vision.models.vision import ModelSpec, VisionModel
from intern_vision.search.reward import Reward
from intern_vision.search.space import Space
from intern_vision.search.supernet import SupernetObjective, load_supernet, supernet_model
from intern_vision.store import Store
from intern_vision.task import Family
from intern_vision.train.features import compute_device
from intern_vision.train.objective import MultiTaskObjective
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.trainer import TrainJob
from intern_vision.train.upstream import fields_of, head_specs

if TYPE_CHECKING:
    from intern_vision.stages.search import Config

CALIBRATION_BATCH_SIZE = 128


class Evaluator(Protocol):
    """Gives a genotype's quality."""

    def quality(self, genotype: Genotype) -> float:
        """1 - the error of the task's metric on validation images, 0 to 1."""
        ...


class ProxyTask:
    """The task that stands for all: its samples and its head.

    Args:
        store: where the dataset lies.
        uri: the dataset's address.
        cache_dir: folder of local shard copies.
        family: the task.
        augment: how training images are changed.
    """

    def __init__(self, store: Store, uri: str, cache_dir: Path, family: Family, augment: AugmentConfig) -> None:
        """Reads the index; DataError where the dataset lacks the task or a split."""
        self.family, self.augment = family, augment
        self.train, self.validation = (
            ShardSource(store, uri, cache_dir=cache_dir, split=split, fields=fields_of((family,)))
            for split in ("train", "val")
        )
        self.heads = head_specs(self.train.info, (family,), HeadConfig())

    def job(self, objective: MultiTaskObjective, trainer: TrainerConfig, identity: dict[str, Any]) -> TrainJob:
        """A training on the task's training images."""
        transform = Augment(self.augment, num_concepts=len(self.train.info.concept_names))
        return TrainJob(objective=objective, source=self.train, transform=transform, config=trainer, identity=identity)

    def score(self, model: VisionModel, *, bf16: bool) -> float:
        """1 - error on the validation images."""
        metrics, _ = score_head(model.eval(), model.heads[self.family], self.validation, bf16=bf16)
        return 1.0 - metrics["error"]


class ProxyEvaluator:
    """Trains each genotype from scratch for a short time.

    Args:
        task: the samples.
        trainer: the training.
        seed: of the fresh weights.
        train: runs a job; ``train_in_process`` in a stage.
    """

    def __init__(self, task: ProxyTask, trainer: TrainerConfig, seed: int, train: Callable[[TrainJob], None]) -> None:
        """Keeps the settings."""
        self._task, self._trainer, self._seed, self._train = task, trainer, seed, train

    def quality(self, genotype: Genotype) -> float:
        """See ``Evaluator``."""
        torch.manual_seed(self._seed)
        size_px = self._task.augment.image_size_px
        model = VisionModel(ModelSpec(genotype=genotype, image_size_px=size_px, heads=self._task.heads))
        self._train(self._task.job(MultiTaskObjective(model), self._trainer, {}))
        return self._task.score(model, bf16=self._trainer.precision == "bf16")


class SupernetEvaluator:
    """Scores slices of trained shared weights, with BatchNorm statistics of each genotype's own.

    Args:
        task: the samples.
        space: the supernet's space.
        path: what ``SupernetObjective.save`` wrote.
        num_batches: batches of 128 training images that the statistics are averaged over.
        bf16: whether forward passes run under bfloat16 autocast.
    """

    def __init__(self, task: ProxyTask, space: Space, path: Path, *, num_batches: int, bf16: bool) -> None:
        """Loads the weights and keeps the batches."""
        self._task, self._bf16 = task, bf16
        self.model = supernet_model(space, task.heads)
        load_supernet(self.model, path)
        self._device = compute_device()
        self.model.to(self._device)
        resize = Resize(task.augment, num_concepts=len(task.train.info.concept_names))
        loader = make_loader(
            task.train,
            batch_size=min(CALIBRATION_BATCH_SIZE, len(task.train)),
            seed=0,
            start_step=0,
            num_steps=num_batches,
            rank=0,
            num_ranks=1,
            transform=lambda sample, rng: resize(sample, None),
        )
        self._images = [
            normalise(batch["image_BCHW"].to(self._device)).contiguous(memory_format=torch.channels_last)
            for batch in loader
        ]

    def quality(self, genotype: Genotype) -> float:
        """See ``Evaluator``."""
        backbone = self.model.backbone
        backbone.use(genotype)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            backbone.recalibrate(self._images)
        return self._task.score(self.model, bf16=self._bf16)


def supernet_job(config: "Config", task: ProxyTask, space: Space, reward: Reward) -> TrainJob:
    """The training of the shared weights."""
    torch.manual_seed(config.seed)
    model = supernet_model(space, task.heads)
    objective = SupernetObjective(model, space, reward, num_paths=config.num_paths, seed=config.seed)
    return task.job(objective, config.trainer, config.to_dict())
