"""Up-G (Generalist): one model for every task family, made in one of three ways.

``joint`` trains the amateur's backbone on all families at once, with the experts' heads;
``central`` joins the experts' backbones by zero-initialised transfer modules (the released
central model, gv-benchmark ``central_model.py``); ``squeeze`` distils the experts into one
backbone (X-Learner's second stage).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError
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
    """How the generalist is made.

    Attributes:
        mode: ``joint``, ``central`` or ``squeeze``.
        families: the task families it learns.
        main: the expert whose features leave the central model.
        heads_from_experts: start each head from its expert's.
        freeze_heads: train the backbone alone (the paper allows it).
        task_weights: factor on a family's losses; 1 where left out.
        distill_weight: weight of the feature loss in ``squeeze``.
        transfer_learning_rate_scale: factor on the transfer modules' learning rate in ``central``.
        trainer: the loop's settings.
        head: sizes and loss weights of heads that are new.
        augment: how training images are changed.
    """

    mode: Literal["joint", "central", "squeeze"] = "joint"
    families: tuple[Family, ...] = ("multilabel", "detect", "segment", "depth")
    main: Family = "multilabel"
    heads_from_experts: bool = True
    freeze_heads: bool = False
    task_weights: dict[str, float] = {}
    distill_weight: float = Field(default=1.0, gt=0)
    transfer_learning_rate_scale: float = Field(default=10.0, gt=0)
    trainer: TrainerConfig
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Trains on the input ``data`` from the inputs ``amateur`` and ``experts``."""
    run_ranks("generalist", config, context)
    return context.commit("weights", f"generalist-{config.mode}")


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    from intern_vision.models.vision import ModelSpec, VisionModel, read_spec
    from intern_vision.train.objective import DistillObjective, MultiTaskObjective
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
    experts = _experts(config, workspace)
    heads = head_specs(info, config.families, config.head)
    if config.heads_from_experts:
        heads |= {family: read_spec(folder).heads[family] for family, folder in experts.items() if family in heads}
    spec = ModelSpec(genotype=genotype_of(amateur), image_size_px=config.augment.image_size_px, heads=heads)
    rate_scales: dict[str, float] = {}
    if config.mode == "central":
        spec = ModelSpec.from_dict(spec.to_dict() | {"experts": list(experts), "main": config.main})
        model = VisionModel(spec)
        for family, folder in experts.items():
            model.load_part(folder, "backbone", into=f"backbone.experts.{family}")
        rate_scales = {"model.backbone.transfers": config.transfer_learning_rate_scale}
    else:
        model = VisionModel(spec)
        model.load_part(amateur, "backbone")
    if config.heads_from_experts:
        for family, folder in experts.items():
            if family in heads:
                model.load_part(folder, f"heads.{family}")
    if config.mode == "squeeze":
        teachers = {family: VisionModel.load(folder) for family, folder in experts.items()}
        objective: MultiTaskObjective = DistillObjective(model, teachers, config.distill_weight, config.task_weights)
    else:
        objective = MultiTaskObjective(model, config.task_weights, freeze_heads=config.freeze_heads)
    if config.mode == "central":
        # What only other mains would use gets no gradient, but weight decay would still move it.
        model.backbone.requires_grad_(False)
        for part in (model.backbone.experts[config.main], model.backbone.transfers[config.main]):
            part.requires_grad_(True)
    return TrainJob(
        objective=objective,
        source=upstream_source(workspace, fields_of(config.families)),
        transform=upstream_augment(info, config.augment),
        config=config.trainer,
        learning_rate_scales=rate_scales,
        identity=config.to_dict(),
    )


def _experts(config: Config, workspace: "Workspace") -> dict[str, Path]:
    """Folder of each expert's weights by family, in the order of ``families``."""
    from intern_vision.models.vision import read_spec

    folders = [workspace.fetch(ref) for ref in workspace.inputs.many("experts")]
    by_family = {family: folder for folder in folders for family in read_spec(folder).heads}
    if config.mode != "joint":
        missing = [family for family in config.families if family not in by_family]
        if missing:
            raise ConfigError(f"generalist.mode {config.mode}: no expert for {', '.join(missing)}; train it first")
    return {family: by_family[family] for family in config.families if family in by_family}
