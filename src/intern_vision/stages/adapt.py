"""Down-A (Adaptation): an upstream model becomes a model of one task from a share of its labels."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.bench.protocol import (
    SPLIT_SEED,
    Labels,
    few_shot,
    list_digest,
    share_name,
    shot_name,
    stratified_share,
)
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads import HeadConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.task import Family, Task
from intern_vision.train.settings import (
    DenseConfig,
    EnsembleConfig,
    FineTuneConfig,
    LoraConfig,
    MultiStageConfig,
    ProbeConfig,
)

if TYPE_CHECKING:
    from intern_vision.data.loader import ShardSource
    from intern_vision.models.vision import VisionModel

DETAILS_FILE = "adapt.json"
ProbeMethod = Literal["lbfgs", "sgd", "ridge"]
Recipe = Literal["frozen", "lora", "multi_stage", "fine_tuned", "ensemble"]
FROZEN: Recipe = "frozen"
FINE_TUNED: Recipe = "fine_tuned"
SUFFIXES: dict[Recipe, str] = {
    "frozen": "",
    "lora": "+lora",
    "multi_stage": "+mf",
    "fine_tuned": "+ft",
    "ensemble": "+wise",
}
"""What a recipe adds to the name of its protocol, in the order in which recipes are done."""
NEIGHBOURS = "knn"
AUTO = "auto"


class Config(base.Config):
    """How one upstream model is adapted to one dataset.

    Attributes:
        name: what the result is called, for example ``intern-flower``.
        method: how a classification head is fitted on frozen features: ``lbfgs`` (logistic regression), ``sgd`` (the
            published grid), ``ridge`` (closed form), or ``auto``, which chooses by the number of labels.
        recipes: some of ``frozen`` (a head on the backbone as it is), ``lora`` (low-rank adapters),
            ``multi_stage`` (first on re-represented images; needs the input ``codebook``), ``fine_tuned``
            (everything is trained) and ``ensemble`` (weights between frozen and fine-tuned), in this order; or
            ``auto`` alone, which chooses one by family and number of labels.
        shares: shares of the training labels, each giving one model a recipe; 0 classifies by the class names alone
            (zero-shot), with the text tower of an amateur.
        shots: images a class of the few-shot draws; each gives ``shot_seeds`` models a recipe.
        shot_seeds: draws of each number of shots.
        knn: also classify by the nearest training images, once a draw.
        split_seed: seed of the published draw rule; few-shot draw s uses this plus s.
        probe: classification on frozen features.
        dense: detection, segmentation and depth on frozen features.
        fine_tune: the second step of ``fine_tuned``, and the steps of ``multi_stage`` and ``ensemble``.
        lora: the second step of ``lora``.
        multi_stage: which stages ``multi_stage`` has.
        ensemble: how ``ensemble`` chooses.
        carry_trunk: start a dense head from the parts of the upstream model's own heads that do not depend on their
            labels (pyramid, shared convolutions), where it has any.
        head: sizes and loss weights of a dense head that starts afresh.
        augment: how training images are changed where the backbone is trained.
        precision: of forward passes through the backbone.
        seed: of training.
    """

    name: str
    method: Literal["lbfgs", "sgd", "ridge", "auto"] = "lbfgs"
    recipes: tuple[Literal["frozen", "lora", "multi_stage", "fine_tuned", "ensemble", "auto"], ...] = ("frozen",)
    shares: tuple[float, ...] = (0.1, 1.0)
    shots: tuple[int, ...] = ()
    shot_seeds: int = Field(default=3, ge=1)
    knn: bool = False
    split_seed: int = SPLIT_SEED
    probe: ProbeConfig = ProbeConfig()
    dense: DenseConfig = DenseConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    lora: LoraConfig = LoraConfig()
    multi_stage: MultiStageConfig = MultiStageConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    carry_trunk: bool = True
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0

    def faults(self) -> list[str]:
        """Shares lie in [0, 1], shots start at 1, and recipes come in their order, each once."""
        wrong = [share for share in self.shares if not 0 <= share <= 1]
        faults = [f"shares must lie in [0, 1], got {wrong[0]}"] if wrong else []
        if any(shots < 1 for shots in self.shots):
            faults.append(f"shots must be at least 1, got {min(self.shots)}")
        if not self.shares and not self.shots:
            faults.append("shares: expected at least one share, or shots, got neither")
        wanted = tuple(recipe for recipe in SUFFIXES if recipe in self.recipes)
        if self.recipes != (AUTO,) and (not wanted or self.recipes != wanted):
            faults.append(
                f"recipes must be some of {', '.join(SUFFIXES)}, each once and in this order, or auto alone, "
                f"got {', '.join(self.recipes) or 'none'}"
            )
        return faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Training images of one protocol.

    Attributes:
        protocol: its name without a recipe's suffix.
        keys: the images, sorted.
        share: of all training images, in (0, 1].
    """

    protocol: str
    keys: list[str]
    share: float


def protocol_name(share: float, recipe: Recipe = "frozen") -> str:
    """A share as the name of its protocol: 0.1 is ``10``, or ``10+ft`` where everything was fine-tuned."""
    return share_name(share) + SUFFIXES[recipe]


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Adapts the input ``model`` to the input ``data``; one folder ``p<protocol>`` a draw and recipe.

    Only training images are opened: whatever is chosen is chosen on a part of them that is held out.

    Raises:
        ConfigError: the method, a recipe or a protocol does not fit the task or the model.
        DataError: a class has no training image.
    """
    import torch

    from intern_vision.data.loader import ShardSource
    from intern_vision.train.adaptation import Adaptation
    from intern_vision.train.upstream import fields_of

    torch.set_num_threads(step_threads())
    upstream_dir = context.fetch(inputs.one("model"))
    data_uri = inputs.one("data").uri
    task = only_task(context, data_uri)
    check_family(config, task.family, inputs)
    source = ShardSource(
        context.store, data_uri, cache_dir=context.cache_dir, split="train", fields=fields_of((task.family,))
    )
    details = {}
    if 0 in config.shares:
        protocol = protocol_name(0)
        zero_shot(upstream_dir, task).save(context.output_dir / f"p{protocol}")
        details[protocol] = {"method": "zero_shot", "num_train": 0}
    draws = draws_of(config, source, task)
    adaptation = Adaptation(config, context, task, upstream_dir, source, draws)
    for draw in draws:
        digest = list_digest(draw.keys)
        for protocol, model, chosen in adaptation.fit(draw):
            model.save(context.output_dir / f"p{protocol}")
            details[protocol] = {"keys_digest": digest, **chosen}
    (context.output_dir / DETAILS_FILE).write_text(json.dumps(details, indent=1))
    return context.commit("model", config.name)


def check_family(config: Config, family: Family, inputs: Inputs) -> None:
    """ConfigError where something is asked for that this family or these inputs do not allow."""
    if family != "classify":
        wrong = "knn: true" if config.knn else f"method: {config.method}" if config.method in ("sgd", "ridge") else ""
        if wrong:
            default = "knn: false" if config.knn else "method: lbfgs or auto"
            raise ConfigError(f"adapt.{wrong} is for classification, got a dataset of family {family}; use {default}")
    needs_codebook = "multi_stage" in config.recipes and "represented" in config.multi_stage.stages
    if needs_codebook and inputs.optional("codebook") is None:
        raise ConfigError(
            "inputs.codebook: recipe multi_stage needs the output of a represent stage; give it, or leave "
            "represented out of adapt.multi_stage.stages"
        )


def strata_of(source: "ShardSource", family: Family) -> Labels:
    """What draws are balanced over: an image's class, else the stratum that its dataset states; None for neither."""
    if family == "classify":
        return source.labels
    return source.strata if any(source.strata) else None


def draws_of(config: Config, source: "ShardSource", task: Task) -> list[Draw]:
    """The training images of every protocol but zero-shot; images without a label take no part.

    Raises:
        DataError: a class of the task has no training image.
    """
    strata = strata_of(source, task.family)
    keys = source.keys
    if task.family == "classify":
        known = [row for row, label in enumerate(source.labels) if label >= 0]
        keys, strata = [keys[row] for row in known], [source.labels[row] for row in known]
        empty = [name for index, name in enumerate(task.class_names) if index not in set(strata)]
        if empty and (any(config.shares) or config.shots):
            raise DataError(
                f"{source.info.name}: class {empty[0]!r} has no training image"
                f"{f' ({len(empty)} classes have none)' if len(empty) > 1 else ''}; add one or remove the class"
            )
    draws = [
        Draw(protocol=share_name(share), keys=stratified_share(keys, strata, share, config.split_seed), share=share)
        for share in config.shares
        if share
    ]
    for shots in config.shots:
        for seed in range(config.shot_seeds):
            drawn = few_shot(keys, strata, shots, config.split_seed + seed)
            share = len(drawn) / len(keys)
            draws.append(Draw(protocol=shot_name(shots, seed), keys=drawn, share=share))
    return draws


def zero_shot(upstream_dir: Path, task: Task) -> "VisionModel":
    """A classifier made from the class names.

    Raises:
        ConfigError: the upstream model has no text tower, or the task is not classification.
    """
    from intern_vision.bench.zero_shot import TEMPLATES, zero_shot_model
    from intern_vision.models.vision import read_spec
    from intern_vision.stages.prepare import TOKENIZER_FILE

    if task.family != "classify" or read_spec(upstream_dir).text is None:
        raise ConfigError(
            f"adapt.shares: 0 needs an amateur's weights and a classification dataset, got family {task.family} and "
            f"{'weights' if read_spec(upstream_dir).text else 'weights without a text tower'}; leave 0 out"
        )
    return zero_shot_model(upstream_dir, upstream_dir / TOKENIZER_FILE, task, TEMPLATES)


def only_task(context: StageContext, data_uri: str) -> Task:
    """The task of a downstream dataset; where there are several, the first."""
    from intern_vision.data.loader import load_info

    return next(iter(load_info(context.store, data_uri).tasks.values()))


def step_threads() -> int:
    """Threads of a step that shares the machine with another step."""
    return max(1, (os.cpu_count() or 1) // 2)
