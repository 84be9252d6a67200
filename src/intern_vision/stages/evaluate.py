"""Evaluate (GV-B): every adapted model of one dataset on its test images; scores, pictures and worst mistakes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.bench.scores import (
    PROPORTION_FAMILIES,
    PROPORTION_METRICS,
    SCORES_FILE,
    ProtocolScore,
    Scores,
    unit_of,
)
from intern_vision.ref import Ref
from intern_vision.stages.adapt import DETAILS_FILE, step_threads
from intern_vision.stages.base import Inputs, StageContext

if TYPE_CHECKING:
    from intern_vision.bench.review import Reviewer
    from intern_vision.data.loader import ShardSource


WORST_WIDTH_PX = 1100
"""Width of the picture of the worst mistakes, which has a line of the page to itself."""


class Config(base.Config):
    """How adapted models are scored.

    Attributes:
        model_name: which arm the scores belong to, for example ``intern`` or ``clip``.
        split: the split scored; choices are made on others.
        batch_size: images a forward pass.
        num_examples: images drawn with their predictions.
        num_mistakes: images drawn that the model gets most wrong; 0 leaves out the review of single images.
        num_resamples: draws for the 95 % interval of a score that is no share of images; 0 = none.
        precision: of the forward passes.
    """

    model_name: str
    split: Literal["train", "val", "test"] = "test"
    batch_size: int = Field(default=64, ge=1)
    num_examples: int = Field(default=8, ge=0)
    num_mistakes: int = Field(default=0, ge=0)
    num_resamples: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16"] = "bf16"


def review_file(protocol: str) -> str:
    """Name of the file with a protocol's ``intern_vision.bench.review.Review``."""
    return f"review-{protocol}.json"


def worst_file(protocol: str) -> str:
    """Name of the picture of a protocol's worst mistakes."""
    return f"worst-{protocol}.png"


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Scores every ``p<protocol>`` model of the input ``model`` on the input ``data``."""
    import torch

    from intern_vision.bench.metrics import METRICS
    from intern_vision.data.loader import ShardSource, load_info
    from intern_vision.models.vision import read_spec
    from intern_vision.train.upstream import fields_of

    torch.set_num_threads(step_threads())
    model_ref, data_ref = inputs.one("model"), inputs.one("data")
    folder = context.fetch(model_ref)
    details = json.loads((folder / DETAILS_FILE).read_text())
    (family,) = read_spec(folder / f"p{next(iter(details))}").heads
    source = ShardSource(
        context.store, data_ref.uri, cache_dir=context.cache_dir, split=config.split, fields=fields_of((family,))
    )
    named = load_info(context.store, data_ref.uri).metric
    metric = named if named in METRICS and METRICS[named][0] == family else ""
    unit = unit_of(metric)
    has_wilson = family in PROPORTION_FAMILIES and metric in PROPORTION_METRICS
    resamples = 0 if has_wilson else config.num_resamples
    protocols = {}
    for protocol, detail in details.items():
        metrics = _score(config, folder / f"p{protocol}", source, protocol, resamples, context)
        interval = (metrics.pop("error_low"), metrics.pop("error_high")) if resamples else None
        protocols[protocol] = ProtocolScore(
            error=metrics["error"],
            metrics=metrics,
            num_train=detail["num_train"],
            num_test=len(source),
            method=detail["method"],
            interval=interval,
        )
        context.facts[f"error/{protocol}"] = metrics["error"]
        shown = f"{metrics['error']:.3f} m" if unit == "m" else f"{100 * metrics['error']:.1f} %"
        context.progress.say(f"error @{protocol}: {shown}")
    scores = Scores(dataset=data_ref.name, model=config.model_name, family=family, protocols=protocols, metric=metric)
    (context.output_dir / SCORES_FILE).write_text(scores.to_json())
    context.tracker.log_metrics(
        {f"test/{protocol}/{k}": v for protocol, s in protocols.items() for k, v in s.metrics.items()}, step=0
    )
    return context.commit("scores", f"{config.model_name}-{data_ref.name}")


def _score(
    config: Config, model_dir: Path, source: "ShardSource", protocol: str, num_resamples: int, context: StageContext
) -> dict[str, float]:
    from intern_vision.bench.draw import draw_predictions
    from intern_vision.bench.review import Reviewer
    from intern_vision.bench.scoring import score_head
    from intern_vision.models.vision import VisionModel
    from intern_vision.train.features import compute_device

    model = VisionModel.load(model_dir).to(compute_device())
    (head,) = model.heads.values()
    reviewer = Reviewer(head.task, config.num_mistakes) if config.num_mistakes else None
    metrics, predictions = score_head(
        model,
        head,
        source,
        batch_size=config.batch_size,
        num_kept=config.num_examples,
        bf16=config.precision == "bf16",
        num_resamples=num_resamples,
        reviewer=reviewer,
    )
    if predictions:
        samples = [source[index] for index in range(len(predictions))]
        picture = draw_predictions(samples, predictions, head.task)
        (context.output_dir / f"examples-{protocol}.png").write_bytes(picture)
    if reviewer is not None:
        _write_review(reviewer, source, head, protocol, context.output_dir)
    return metrics


def _write_review(reviewer: "Reviewer", source: "ShardSource", head: Any, protocol: str, folder: Path) -> None:
    from intern_vision.bench.draw import draw_predictions

    (folder / review_file(protocol)).write_text(reviewer.review().to_json())
    if worst := reviewer.worst():
        samples = [source[index] for index, _ in worst]
        picture = draw_predictions(samples, [prediction for _, prediction in worst], head.task, WORST_WIDTH_PX)
        (folder / worst_file(protocol)).write_bytes(picture)
