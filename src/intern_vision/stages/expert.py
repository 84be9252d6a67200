"""Up-E (Experts): the amateur's backbone with one task family's head on that family's labels."""

from typing import TYPE_CHECKING

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.heads import HeadConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.task import Family
from intern_vision.train.launch import run_ranks
from intern_vision.train.settings import TrainerConfig

if TYPE_CHECKING:
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.workspace import Workspace


class Config(base.Config):
    """How one expert is trained.

    Attributes:
        family: the task family: ``multilabel`` or ``classify`` is INTERN's C, ``detect`` D,
            ``segment`` S; ``depth`` is Z, which INTERN lacks.
        trainer: the loop's settings.
        head: sizes and loss weights.
        augment: how training images are changed.
    """

    family: Family
    trainer: TrainerConfig
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Trains on the input ``data`` from the weights of the input ``amateur``."""
    run_ranks("expert", config, context)
    return context.commit("weights", f"expert-{config.family}")


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    from intern_vision.models.vision import ModelSpec, VisionModel
    from intern_vision.train.objective import MultiTaskObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import (
        fields_of,
        genotype_of,
        head_specs,
        upstream_augment,
        upstream_info,
        upstream_source,
    )

    info = upstream_info(workspace)
    amateur = workspace.fetch(workspace.inputs.one("amateur"))
    model = VisionModel(
        ModelSpec(
            genotype=genotype_of(amateur),
            image_size_px=config.augment.image_size_px,
            heads=head_specs(info, (config.family,), config.head),
        )
    )
    model.load_part(amateur, "backbone")
    return TrainJob(
        objective=MultiTaskObjective(model),
        source=upstream_source(workspace, fields_of((config.family,))),
        transform=upstream_augment(info, config.augment),
        config=config.trainer,
        identity=config.to_dict(),
    )
