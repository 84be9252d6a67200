"""Up-E (Experts): the amateur's backbone with heads of one task family or several, on labels of any datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig, MixtureConfig
from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.task import Family
from intern_vision.train.launch import run_ranks
from intern_vision.train.settings import TrainerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intern_vision.data.shard import DatasetInfo
    from intern_vision.models.vision import VisionModel
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.workspace import Workspace


class Config(base.Config):
    """How one expert is trained.

    Attributes:
        family: the task family: ``multilabel`` or ``classify`` is INTERN's C, ``detect`` D,
            ``segment`` S; ``depth`` is Z, which INTERN lacks.
        families: instead of ``family``, several of them in every step.
        heads: with several datasets: a head a dataset, one over the union of their classes, or both.
        mixture: how several datasets are mixed.
        relative_depth: datasets whose depth is known only up to a scale and a shift of its inverse.
        task_weights: factor on a head's losses by head name (``classify``, ``classify@<dataset>``); 1 where left out.
        head_learning_rate_scales: factor on a head's learning rate by head name; 1 where left out.
        freeze_backbone: train the heads alone.
        freeze_heads: train the backbone alone, or with the heads not named here; the others come from ``experts``.
        num_frozen_head_steps: steps at the start that ``freeze_heads`` holds for; 0: throughout. The frozen heads' own
            gradients still count in ``trainer.gradient_clip``.
        trainer: the loop's settings.
        head: sizes and loss weights.
        augment: how training images are changed.
    """

    family: Family | None = None
    families: tuple[Family, ...] = ()
    heads: Literal["per_source", "unified", "both"] = "both"
    mixture: MixtureConfig = MixtureConfig()
    relative_depth: tuple[str, ...] = ()
    task_weights: dict[str, float] = {}
    head_learning_rate_scales: dict[str, float] = {}
    freeze_backbone: bool = False
    freeze_heads: bool | tuple[str, ...] = False
    num_frozen_head_steps: int = Field(default=0, ge=0)
    trainer: TrainerConfig
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig

    def faults(self) -> list[str]:
        """One of the two ways to name families; something must be trained."""
        faults = []
        if (self.family is None) == (not self.families):
            faults.append("family: expected either family or families")
        if len(set(self.families)) < len(self.families):
            faults.append(f"families: expected each family once, got {', '.join(self.families)}")
        if self.freeze_backbone and self.freeze_heads is True:
            faults.append("freeze_heads: nothing is left to train; leave freeze_backbone or freeze_heads out")
        if self.num_frozen_head_steps and not self.freeze_heads:
            faults.append("num_frozen_head_steps: expected freeze_heads beside it; say which heads stay")
        if self.num_frozen_head_steps >= self.trainer.num_steps:
            faults.append(
                f"num_frozen_head_steps: expected less than trainer.num_steps {self.trainer.num_steps}, "
                f"got {self.num_frozen_head_steps}, or 0 for all of them"
            )
        for name in ("task_weights", "head_learning_rate_scales"):
            faults += [
                f"{name}.{head}: expected a number > 0, got {value:g}"
                for head, value in getattr(self, name).items()
                if value <= 0
            ]
        return faults

    @property
    def all_families(self) -> tuple[Family, ...]:
        """The families, however they were named."""
        return self.families or ((self.family,) if self.family else ())

    @property
    def image_passes(self) -> int:
        """Image passes of the training."""
        return self.trainer.num_samples


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Trains on the input ``data`` (any number of datasets) from the weights of the input ``amateur``.

    The weights of the optional input ``experts`` give the heads that they have and this expert has too.
    """
    run_ranks("expert", config, context)
    context.facts |= {"num_sources": len(inputs.many("data")), "families": ", ".join(config.all_families)}
    return context.commit("weights", f"expert-{'-'.join(config.all_families)}")


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    from intern_vision.models.vision import ModelSpec, VisionModel, read_spec
    from intern_vision.train.objective import MultiTaskObjective
    from intern_vision.train.schedule import head_rate_scales, head_start_steps
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import (
        fields_of,
        head_specs,
        upstream_augment,
        upstream_infos,
        upstream_source,
    )

    fields = fields_of(config.all_families)
    infos = upstream_infos(workspace, fields)
    _check_sources(config, infos)
    amateur = workspace.fetch(workspace.inputs.one("amateur"))
    model = VisionModel(
        ModelSpec(
            **read_spec(amateur).architecture,
            image_size_px=config.augment.image_size_px,
            heads=head_specs(infos, config.all_families, config.head, config.heads, config.relative_depth),
        )
    )
    model.load_part(amateur, "backbone")
    experts = [workspace.fetch(ref) for ref in workspace.inputs.many("experts")]
    frozen = _load_heads(config, model, experts)
    objective = MultiTaskObjective(
        model,
        config.task_weights,
        freeze_backbone=config.freeze_backbone,
        freeze_heads=() if config.num_frozen_head_steps else frozen,
        infos=infos,
    )
    return TrainJob(
        objective=objective,
        source=upstream_source(workspace, fields, config.mixture),
        transform=upstream_augment(infos, config.augment),
        config=config.trainer,
        learning_rate_scales=head_rate_scales(config.head_learning_rate_scales, model.heads),
        start_steps=head_start_steps(frozen, config.num_frozen_head_steps) if config.num_frozen_head_steps else {},
        identity=config.to_dict(),
    )


def _check_sources(config: Config, infos: "Sequence[DatasetInfo]") -> None:
    names = [info.name for info in infos]
    unknown = [name for name in config.relative_depth if name not in names]
    if unknown:
        raise ConfigError(f"relative_depth: expected datasets among {', '.join(names)}, got {unknown[0]!r}")


def _load_heads(config: Config, model: "VisionModel", experts: "Sequence[Path]") -> tuple[str, ...]:
    """Takes each head from the first expert that has it; gives the names of those to be frozen.

    Raises:
        CheckpointError: an expert's head has another label space.
        ConfigError: a head that is to be frozen comes from no expert.
    """
    from intern_vision.models.vision import read_spec

    found = set()
    for folder in experts:
        for name, head in read_spec(folder).heads.items():
            if name not in model.heads or name in found:
                continue
            if head.task != model.spec.heads[name].task:
                raise CheckpointError(
                    f"inputs.experts: head {name} of {folder.name} has another label space; "
                    "train it on the same datasets or leave that expert out"
                )
            model.load_part(folder, f"heads.{name}")
            found.add(name)
    frozen = tuple(model.heads) if config.freeze_heads is True else config.freeze_heads or ()
    fresh = [name for name in frozen if name not in found]
    if fresh:
        raise ConfigError(f"freeze_heads: head {fresh[0]} has no weights yet; give the input experts one that has it")
    return frozen
