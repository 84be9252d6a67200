"""Down-A (Adaptation): an upstream model becomes a model of one task from a share of its labels."""

import json
import os
from typing import Literal

from intern_vision import config as base
from intern_vision.bench.protocol import list_digest, stratified_share
from intern_vision.data.settings import AugmentConfig
from intern_vision.heads import HeadConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.task import Task
from intern_vision.train.settings import DenseConfig, FineTuneConfig, ProbeConfig

DETAILS_FILE = "adapt.json"


class Config(base.Config):
    """How one upstream model is adapted to one dataset.

    Attributes:
        name: what the result is called, for example ``intern-flower``.
        method: ``probe`` (frozen backbone) or ``lp_ft`` (probe, then fine-tune everything).
        shares: shares of the training labels, each giving one model.
        split_seed: seed of the published draw rule.
        probe: classification on frozen features.
        dense: detection, segmentation and depth on frozen features.
        fine_tune: the second step of ``lp_ft``.
        head: sizes and loss weights of a fresh dense head.
        augment: how training images are changed in ``lp_ft``.
        precision: of forward passes through the backbone.
        seed: of training.
    """

    name: str
    method: Literal["probe", "lp_ft"] = "probe"
    shares: tuple[float, ...] = (0.1, 1.0)
    split_seed: int = 2021
    probe: ProbeConfig = ProbeConfig()
    dense: DenseConfig = DenseConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    head: HeadConfig = HeadConfig()
    augment: AugmentConfig
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0

    def faults(self) -> list[str]:
        """Shares lie in (0, 1]."""
        wrong = [share for share in self.shares if not 0 < share <= 1]
        return [f"shares must lie in (0, 1], got {wrong[0]}"] if wrong else []


def protocol_name(share: float) -> str:
    """A share as the name of its protocol: 0.1 is ``10``."""
    return f"{100 * share:g}"


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Adapts the input ``model`` to the input ``data``; one folder ``p<percent>`` a share."""
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
        keys = stratified_share(source.keys, labels, share, config.split_seed)
        model, chosen = adaptation.fit(keys, share)
        model.save(context.output_dir / f"p{protocol_name(share)}")
        details[protocol_name(share)] = {
            "num_train": len(keys),
            "keys_digest": list_digest(keys),
            "method": config.method,
            **chosen,
        }
    (context.output_dir / DETAILS_FILE).write_text(json.dumps(details, indent=1))
    return context.commit("model", config.name)


def only_task(context: StageContext, data_uri: str) -> Task:
    """The task of a downstream dataset; where there are several, the first."""
    from intern_vision.data.loader import load_info

    return next(iter(load_info(context.store, data_uri).tasks.values()))


def step_threads() -> int:
    """Threads of a step that shares the machine with another step."""
    return max(1, (os.cpu_count() or 1) // 2)
