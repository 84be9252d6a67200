"""Down-A (Adaptation): an upstream model becomes a model of one task from a share of its labels."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from intern_vision import config as base
from intern_vision.bench.protocol import list_digest, stratified_share
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.task import Task
from intern_vision.train.settings import DenseConfig, FineTuneConfig, ProbeConfig

if TYPE_CHECKING:
    from intern_vision.models.vision import VisionModel

DETAILS_FILE = "adapt.json"
Recipe = Literal["frozen", "fine_tuned"]
FINE_TUNED: Recipe = "fine_tuned"


class Config(base.Config):
    """How one upstream model is adapted to one dataset.

    Attributes:
        name: what the result is called, for example ``intern-flower``.
        recipes: ``frozen`` (a head on the backbone as it is), ``fine_tuned`` (then everything is trained), or both
            in this order.
        shares: shares of the training labels, each giving one model a recipe; 0 classifies by the class names alone
            (zero-shot), with the text tower of an amateur.
        split_seed: seed of the published draw rule.
        probe: classification on frozen features.
        dense: detection, segmentation and depth on frozen features.
        fine_tune: the second step of ``fine_tuned``.
        carry_trunk: start a dense head from the parts of the upstream model's own heads that do not depend on their
            labels (pyramid, shared convolutions), where it has any.
        head: sizes and loss weights of a dense head that starts afresh.
        augment: how training images are changed in ``fine_tuned``.
        precision: of forward passes through the backbone.
        seed: of training.
    """

    name: str
    recipes: tuple[Recipe, ...] = ("frozen",)
    shares: tuple[float, ...] = (0.1, 1.0)
    split_seed: int = 2021
    probe: ProbeConfig = ProbeConfig()
    dense: DenseConfig = DenseConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    carry_trunk: bool = True
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0

    def faults(self) -> list[str]:
        """Shares lie in [0, 1]; fine-tuning comes last, because it changes the model."""
        wrong = [share for share in self.shares if not 0 <= share <= 1]
        faults = [f"shares must lie in [0, 1], got {wrong[0]}"] if wrong else []
        if self.recipes not in (("frozen",), (FINE_TUNED,), ("frozen", FINE_TUNED)):
            faults.append(f"recipes must be frozen, fine_tuned, or both in this order, got {', '.join(self.recipes)}")
        return faults


def protocol_name(share: float, recipe: Recipe = "frozen") -> str:
    """A share as the name of its protocol: 0.1 is ``10``, or ``10+ft`` where everything was fine-tuned."""
    return f"{100 * share:g}" + ("+ft" if recipe == FINE_TUNED else "")


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Adapts the input ``model`` to the input ``data``; one folder ``p<protocol>`` a share and recipe."""
    import torch

    from intern_vision.data.loader import ShardSource
    from intern_vision.train.adaptation import Adaptation
    from intern_vision.train.upstream import fields_of

    torch.set_num_threads(step_threads())
    upstream_dir = context.fetch(inputs.one("model"))
    data_uri = inputs.one("data").uri
    task = only_task(context, data_uri)
    source = ShardSource(
        context.store, data_uri, cache_dir=context.cache_dir, split="train", fields=fields_of((task.family,))
    )
    labels = source.labels if task.family == "classify" else None
    adaptation = Adaptation(config, context, task, upstream_dir, source)
    details = {}
    for share in config.shares:
        if share == 0:
            zero_shot(upstream_dir, task).save(context.output_dir / f"p{protocol_name(share)}")
            details[protocol_name(share)] = {"method": "zero_shot", "num_train": 0}
            continue
        keys = stratified_share(source.keys, labels, share, config.split_seed)
        for protocol, model, chosen in adaptation.fit(keys, share):
            model.save(context.output_dir / f"p{protocol}")
            details[protocol] = {"keys_digest": list_digest(keys), **chosen}
    (context.output_dir / DETAILS_FILE).write_text(json.dumps(details, indent=1))
    return context.commit("model", config.name)


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
