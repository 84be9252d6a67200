"""Up-G (Generalist): one model for every task family, by training or by merging.

``joint`` trains one backbone on all families at once; ``central`` joins the experts' backbones by
zero-initialised transfer modules (the released central model, gv-benchmark ``central_model.py``);
``squeeze`` distils the experts into one backbone (X-Learner's second stage). ``average``,
``task_arithmetic`` and ``ties`` merge the experts' weights without training, and ``random`` is
untrained: what every other generalist must beat.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig, MixtureConfig
from intern_vision.heads import HeadConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.task import Family, View, is_vector_family
from intern_vision.train.launch import run_ranks
from intern_vision.train.settings import TrainerConfig, count_image_passes

if TYPE_CHECKING:
    from torch import Tensor

    from intern_vision.data.shard import DatasetInfo
    from intern_vision.models.vision import VisionModel
    from intern_vision.train.assembly import Parts
    from intern_vision.train.objective import MultiTaskObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.workspace import Workspace

MERGE_FILE = "merge.json"
Merge = Literal["average", "task_arithmetic", "ties"]


class Config(base.Config):
    """How the generalist is made.

    Attributes:
        mode: ``joint``, ``central`` or ``squeeze`` trains; ``average``, ``task_arithmetic`` or
            ``ties`` merges; ``random`` does neither.
        name: what the result is called; ``generalist-<mode>`` where empty.
        families: the task families it learns.
        heads: new heads for several datasets: a head a dataset, one over the union of their classes, or both.
        mixture: how several datasets are mixed.
        init: where the one backbone of ``joint`` and ``squeeze`` starts: the amateur, the mean of
            the experts' weights, or random weights.
        experts: the families whose experts are joined, distilled or merged; empty for all.
        main: the central model's main expert where no view says otherwise.
        views: main expert and BatchNorm set of a family in ``central``. A family left out is served by its own
            expert, or else by the first joined one that reads the same kind of features, or else by ``main``; an
            expert that serves families of both kinds gets the sets ``classify`` and ``dense``.
        attached_transfer: let an expert's losses reach the experts it reads (``central``); the released model's
            sources are detached.
        heads_from_experts: take a family's heads from its expert.
        freeze_heads: train the backbone alone (the paper allows it), or with the heads not named here.
        task_weights: factor on a head's losses by head name; 1 where left out.
        distill_weight: weight of the feature loss in ``squeeze``.
        teacher_drop_probability: how often a teacher that is not the worst matched one is left out of an image's
            feature loss in ``squeeze``, in [0, 1); UNIC uses 0.5.
        backbone_learning_rate_scale: factor on the rate of the experts' backbones in ``central``.
        transfer_learning_rate_scale: factor on the transfer modules' rate over that of the backbones.
        merge_scales: factors on the experts' changes that ``task_arithmetic`` and ``ties`` try on validation images.
        ties_density: share of an expert's changes that ``ties`` keeps.
        num_statistics_batches: training batches that a merged model's BatchNorm statistics are measured on.
        num_validation_images: validation images that ``merge_scales`` are compared on; 0 = all.
        trainer: the loop's settings; merging takes seed, batch size and precision from it.
        head: sizes and loss weights of heads that are new.
        augment: how training images are changed.
    """

    mode: Literal["joint", "central", "squeeze", "average", "task_arithmetic", "ties", "random"] = "joint"
    name: str = ""
    families: tuple[Family, ...] = ("multilabel", "detect", "segment", "depth")
    heads: Literal["per_source", "unified", "both"] = "both"
    mixture: MixtureConfig = MixtureConfig()
    init: Literal["amateur", "average", "random"] = "amateur"
    experts: tuple[Family, ...] = ()
    main: Family = "multilabel"
    views: dict[Family, View] = {}
    attached_transfer: bool = False
    heads_from_experts: bool = True
    freeze_heads: bool | tuple[str, ...] = False
    task_weights: dict[str, float] = {}
    distill_weight: float = Field(default=1.0, gt=0)
    teacher_drop_probability: float = Field(default=0.0, ge=0, lt=1)
    backbone_learning_rate_scale: float = Field(default=0.1, gt=0)
    transfer_learning_rate_scale: float = Field(default=10.0, gt=0)
    merge_scales: tuple[float, ...] = Field(default=(0.1, 0.25, 0.4, 0.6, 0.8), min_length=1)
    ties_density: float = Field(default=0.2, gt=0, le=1)
    num_statistics_batches: int = Field(default=8, ge=1)
    num_validation_images: int = Field(default=256, ge=0)
    trainer: TrainerConfig
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig

    def faults(self) -> list[str]:
        """Experts and views are of families that are learned."""
        named = {"experts": self.experts, "views": self.views}
        known = ", ".join(self.families)
        return [
            f"{field}: expected families among {known}, got {family!r}"
            for field, families in named.items()
            for family in families
            if family not in self.families
        ]

    @property
    def merges(self) -> bool:
        """Whether the experts' weights are merged, without training."""
        return self.mode in get_args(Merge)

    @property
    def needs_amateur(self) -> bool:
        """Whether the result starts from the input ``amateur``."""
        trained_from = self.mode in ("joint", "squeeze") and self.init == "amateur"
        return trained_from or self.mode in ("task_arithmetic", "ties")

    @property
    def joined_families(self) -> tuple[Family, ...]:
        """The families whose experts must be there."""
        needs_experts = self.mode in ("central", "squeeze") or self.merges or self.init == "average"
        return (self.experts or self.families) if needs_experts else self.experts

    @property
    def needs_experts(self) -> bool:
        """Whether the result is made from any expert, be it for its heads alone."""
        return self.mode != "random" and (self.heads_from_experts or bool(self.joined_families))

    @property
    def passes_per_sample(self) -> tuple[int, int]:
        """Passes of a training image: forward and back, and forward alone through a source or a teacher.

        A fused teacher's are not known from the config and come on top; the record's fact has them.
        """
        if self.mode == "central":
            views = set(self.resolved_views({name: name for name in self.joined_families}).values())
            mains = {view.main for view in views}
            return len(views), sum(mains != {name} for name in self.joined_families)
        return 1, len(self.joined_families) if self.mode == "squeeze" else 0

    @property
    def image_passes(self) -> int:
        """Image passes of the stage, see ``count_image_passes``."""
        if self.mode == "random":
            return 0
        if self.merges:
            num_merged = 1 if self.mode == "average" else len(self.merge_scales)
            return count_image_passes(self.num_statistics_batches * self.trainer.batch_size * num_merged, 0, 1)
        return count_image_passes(self.trainer.num_samples, *self.passes_per_sample)

    def resolved_views(self, joined: Mapping[Family, str]) -> dict[Family, View]:
        """The view of every family of a central model; see ``views``.

        Args:
            joined: name of the joined expert that serves a family.
        """
        mains = {}
        for family in self.families:
            alike = [expert for other, expert in joined.items() if is_vector_family(other) == is_vector_family(family)]
            served = joined.get(family) or next(iter([*alike, self.main]))
            mains[family] = self.views[family].main if family in self.views else served
        views = {}
        for family, main in mains.items():
            kinds = {is_vector_family(other) for other in self.families if mains[other] == main}
            by_kind = ("classify" if is_vector_family(family) else "dense") if len(kinds) == 2 else ""
            given = self.views[family].bn_set if family in self.views else ""
            views[family] = View(main=main, bn_set=given or by_kind)
        return views


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Makes the generalist from the inputs ``data``, ``amateur`` and ``experts``.

    The input ``fused`` may hold a central generalist as one more teacher of ``squeeze``; ``genotype`` says what
    to build where neither an amateur nor an expert does. ``amateur`` may hold the further amateurs that some
    experts started from, for their task vectors.
    """
    if config.mode == "random":
        _make_random(config, context)
    elif config.merges:
        _merge(config, context)
    else:
        run_ranks("generalist", config, context)
    return context.commit("weights", config.name or f"generalist-{config.mode}")


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    from intern_vision.train.assembly import gather_parts, starting_model
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import fields_of, upstream_augment, upstream_infos, upstream_source

    parts = gather_parts(config, workspace)
    model = starting_model(config, parts)
    fields = fields_of(config.families)
    infos = upstream_infos(workspace, fields)
    rate_scales: dict[str, float] = {}
    if config.mode == "central":
        rate = config.backbone_learning_rate_scale
        rate_scales = {
            "model.backbone.experts": rate,
            "model.backbone.transfers": rate * config.transfer_learning_rate_scale,
        }
    return TrainJob(
        objective=_objective(config, model, _teachers(config, parts, workspace), infos),
        source=upstream_source(workspace, fields, config.mixture),
        transform=upstream_augment(infos, config.augment),
        config=config.trainer,
        learning_rate_scales=rate_scales,
        identity=config.to_dict(),
    )


def _teachers(config: Config, parts: "Parts", workspace: "Workspace") -> "dict[str, VisionModel]":
    from intern_vision.models.vision import VisionModel

    if config.mode != "squeeze":
        return {}
    teachers = {name: VisionModel.load(folder) for name, folder in parts.teachers.items()}
    fused = workspace.inputs.optional("fused")
    return teachers | ({"fused": VisionModel.load(workspace.fetch(fused))} if fused else {})


def _objective(
    config: Config, model: "VisionModel", teachers: "dict[str, VisionModel]", infos: "Sequence[DatasetInfo]"
) -> "MultiTaskObjective":
    from intern_vision.train.central_objective import CentralObjective
    from intern_vision.train.distill import DistillObjective
    from intern_vision.train.objective import MultiTaskObjective

    common = {"freeze_heads": config.freeze_heads, "infos": infos}
    if config.mode == "central":
        return CentralObjective(model, config.task_weights, attached=config.attached_transfer, **common)
    if config.mode == "joint":
        return MultiTaskObjective(model, config.task_weights, **common)
    drop = config.teacher_drop_probability
    return DistillObjective(
        model, teachers, config.distill_weight, config.task_weights, teacher_drop_probability=drop, **common
    )


def _make_random(config: Config, context: StageContext) -> None:
    """Untrained weights without heads, which nothing could have learned."""
    import torch

    from intern_vision.models.vision import VisionModel
    from intern_vision.train.assembly import base_spec

    workspace = _workspace(context)
    folders = [workspace.fetch(ref) for name in ("amateur", "experts") for ref in workspace.inputs.many(name)]
    torch.manual_seed(config.trainer.seed)
    VisionModel(base_spec(config, folders, workspace)).save(context.output_dir)
    context.facts["image_passes"] = 0


def _merge(config: Config, context: StageContext) -> None:
    """Merges the experts' weights; of several scales the one with the lowest validation error is kept."""
    import torch

    from intern_vision.bench.selection import family_errors, relative_score
    from intern_vision.stages.adapt import step_threads
    from intern_vision.train.assembly import gather_parts, starting_model

    torch.set_num_threads(step_threads())
    workspace = _workspace(context)
    parts = gather_parts(config, workspace)
    model = starting_model(config, parts)
    scales = (1.0,) if config.mode == "average" else config.merge_scales
    folders = [context.scratch_dir / f"merged-{scale:g}" for scale in scales]
    num_images = 0
    for scale, folder in zip(scales, folders, strict=True):
        num_images += _save_merged(config, model, _merged(config, parts, scale), workspace, folder)
    if len(scales) > 1:
        errors = [
            family_errors(
                folder,
                context.store,
                context.inputs.many("data"),
                cache_dir=context.cache_dir,
                num_images=config.num_validation_images,
                bf16=config.trainer.precision == "bf16",
            )
            for folder in folders
        ]
        scores = [relative_score(own, errors[0]) for own in errors]
        best = scores.index(min(scores))
        rows = [
            {"scale": scale, "errors": own, "score": score}
            for scale, own, score in zip(scales, errors, scores, strict=True)
        ]
        (context.output_dir / MERGE_FILE).write_text(json.dumps(rows, indent=1))
        context.facts["merge_scale"] = scales[best]
        context.progress.say(f"scale {scales[best]:g} of {', '.join(f'{scale:g}' for scale in scales)}")
        folders = [folders[best]]
    shutil.copytree(folders[0], context.output_dir, dirs_exist_ok=True)
    context.facts["image_passes"] = count_image_passes(num_images, 0, 1)


def _merged(config: Config, parts: "Parts", scale: float) -> "dict[str, Tensor]":
    from intern_vision.models.merge import average, task_arithmetic, ties
    from intern_vision.train.assembly import backbone_tensors

    if config.mode == "average":
        return average(parts.backbones())
    start = backbone_tensors(next(iter(parts.amateurs.values())))
    if config.mode == "task_arithmetic":
        return task_arithmetic(start, parts.task_vectors(), scale)
    return ties(start, parts.task_vectors(), scale, config.ties_density)


def _save_merged(
    config: Config, model: "VisionModel", tensors: "dict[str, Tensor]", workspace: "Workspace", folder: Path
) -> int:
    """Saves the model with a merged backbone; returns the images that its statistics were measured on."""
    from intern_vision.data.loader import make_loader
    from intern_vision.models.merge import reestimate_statistics
    from intern_vision.train.assembly import load_backbone
    from intern_vision.train.features import compute_device
    from intern_vision.train.upstream import fields_of, upstream_augment, upstream_infos, upstream_source

    fields = fields_of(config.families)
    load_backbone(model, tensors, source=f"generalist.mode {config.mode}")
    batches = make_loader(
        upstream_source(workspace, fields, config.mixture),
        batch_size=config.trainer.batch_size,
        seed=config.trainer.seed,
        start_step=0,
        num_steps=config.num_statistics_batches,
        rank=0,
        num_ranks=1,
        transform=upstream_augment(upstream_infos(workspace, fields), config.augment),
    )
    model = model.to(compute_device()).eval()
    num_images = reestimate_statistics(model, batches, bf16=config.trainer.precision == "bf16")
    model.save(folder)
    return num_images


def _workspace(context: StageContext) -> "Workspace":
    from intern_vision.train.workspace import Workspace

    return Workspace(
        store=context.store, inputs=context.inputs, scratch_dir=context.scratch_dir, cache_dir=context.cache_dir
    )
