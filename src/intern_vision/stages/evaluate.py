"""Evaluate (GV-B): every adapted model of one dataset on its test images; scores and pictures."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.bench.table import SCORES_FILE, ProtocolScore, Scores
from intern_vision.ref import Ref
from intern_vision.stages.adapt import DETAILS_FILE, step_threads
from intern_vision.stages.base import Inputs, StageContext


class Config(base.Config):
    """How adapted models are scored.

    Attributes:
        model_name: which arm the scores belong to, for example ``intern`` or ``clip``.
        split: the split scored; choices are made on others.
        batch_size: images a forward pass.
        num_examples: images drawn with their predictions.
        precision: of the forward passes.
    """

    model_name: str
    split: Literal["train", "val", "test"] = "test"
    batch_size: int = Field(default=64, ge=1)
    num_examples: int = Field(default=8, ge=0)
    precision: Literal["fp32", "bf16"] = "bf16"


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Scores every ``p<percent>`` model of the input ``model`` on the input ``data``."""
    import torch

    from intern_vision.models.vision import read_spec

    torch.set_num_threads(step_threads())
    model_ref, data_ref = inputs.one("model"), inputs.one("data")
    folder = context.fetch(model_ref)
    details = json.loads((folder / DETAILS_FILE).read_text())
    protocols = {}
    family = ""
    for protocol, detail in details.items():
        model_dir = folder / f"p{protocol}"
        (family,) = read_spec(model_dir).heads
        metrics, num_test = _score(config, model_dir, data_ref.uri, protocol, context)
        protocols[protocol] = ProtocolScore(
            error=metrics["error"],
            metrics=metrics,
            num_train=detail["num_train"],
            num_test=num_test,
            method=detail["method"],
        )
        context.facts[f"error/{protocol}"] = metrics["error"]
        context.progress.say(f"error @{protocol}: {100 * metrics['error']:.1f} %")
    scores = Scores(dataset=data_ref.name, model=config.model_name, family=family, protocols=protocols)
    (context.output_dir / SCORES_FILE).write_text(scores.to_json())
    context.tracker.log_metrics(
        {f"test/{protocol}/{k}": v for protocol, s in protocols.items() for k, v in s.metrics.items()}, step=0
    )
    return context.commit("scores", f"{config.model_name}-{data_ref.name}")


def _score(
    config: Config, model_dir: Path, data_uri: str, protocol: str, context: StageContext
) -> tuple[dict[str, float], int]:
    from intern_vision.bench.draw import draw_predictions
    from intern_vision.bench.scoring import score_head
    from intern_vision.data.loader import ShardSource
    from intern_vision.heads.resize import resize_prediction
    from intern_vision.models.vision import VisionModel
    from intern_vision.train.features import compute_device
    from intern_vision.train.upstream import fields_of

    model = VisionModel.load(model_dir).to(compute_device())
    ((family, head),) = model.heads.items()
    source = ShardSource(
        context.store, data_uri, cache_dir=context.cache_dir, split=config.split, fields=fields_of((family,))
    )
    metrics, predictions = score_head(
        model,
        head,
        source,
        batch_size=config.batch_size,
        num_kept=config.num_examples,
        bf16=config.precision == "bf16",
    )
    if predictions:
        samples = [source[index] for index in range(len(predictions))]
        size_px = (model.spec.image_size_px, model.spec.image_size_px)
        drawn = [resize_prediction(p, size_px, s.image.shape[:2]) for p, s in zip(predictions, samples, strict=True)]
        picture = draw_predictions(samples, drawn, head.task)
        (context.output_dir / f"examples-{protocol}.png").write_bytes(picture)
    return metrics, len(source)
