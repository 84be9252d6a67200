"""Scores a model's head on a dataset. B batch, C channels, H W height and width."""

import torch

from intern_vision.data.augment import Resize
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.data.settings import AugmentConfig
from intern_vision.heads.base import Prediction, TaskHead
from intern_vision.models.vision import VisionModel
from intern_vision.train.features import infer


@torch.inference_mode()
def score_head(
    model: VisionModel,
    head: TaskHead,
    source: ShardSource,
    *,
    batch_size: int = 64,
    num_kept: int = 0,
    bf16: bool = True,
) -> tuple[dict[str, float], list[Prediction]]:
    """The head's metric over all samples of a source.

    Args:
        model: in eval mode.
        head: one of its heads.
        source: samples with the fields of the head's family.
        batch_size: images a forward pass.
        num_kept: predictions to return, for the first samples.
        bf16: whether forward passes run under bfloat16 autocast.

    Returns:
        The metric's values by name, and the first predictions.
    """
    size_px = model.spec.image_size_px
    metric = head.metric()
    first: list[Prediction] = []
    transform = Resize(AugmentConfig(image_size_px=size_px), num_concepts=len(source.info.concept_names))
    for batch in evaluation_batches(source, batch_size, transform):
        features = infer(model, batch["image_BCHW"], bf16=bf16)
        predictions = head.predict(head(features), (size_px, size_px))
        metric.update(predictions, batch)
        first += predictions[: max(0, num_kept - len(first))]
    return {name: float(value) for name, value in metric.compute().items()}, first
