"""Scores heads on a dataset, at the original size of each image. B batch, C channels, H W height and width."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from intern_vision.bench.metric_base import Metric, bootstrap_interval
from intern_vision.bench.metrics import METRICS, make_metric
from intern_vision.bench.review import Reviewer
from intern_vision.data.augment import Resize
from intern_vision.data.batch import Batch, Example, collate
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.data.sample import Sample
from intern_vision.data.settings import AugmentConfig
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import DataError
from intern_vision.heads.base import Prediction, TaskHead
from intern_vision.heads.resize import predict_at
from intern_vision.models.vision import VisionModel
from intern_vision.task import Task, is_vector_family
from intern_vision.train.features import infer

# Masks and depths of one batch in their original size may take this much; four batches are alive at a time.
MAX_TARGET_BYTES = 64 * 2**20


class OriginalTargets(Resize):
    """Resizes the image only, and keeps what is known about it in the original pixels until it is asked for."""

    def __init__(self, image_size_px: int, *, num_concepts: int = 0) -> None:
        """``image_size_px`` is the model's; ``num_concepts`` is the length of the concepts' vector."""
        super().__init__(AugmentConfig(image_size_px=image_size_px), num_concepts=num_concepts)
        self._kept: dict[str, Example] = {}

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Example:
        """The example of the image with label and concepts; ``rng`` is not used."""
        names = ("boxes", "box_labels", "mask", "depth")
        targets = {name: value for name in names if (value := getattr(sample, name)) is not None}
        if "boxes" in targets:
            targets["box_attributes"] = sample.box_attributes
        self._kept[sample.key] = {"key": sample.key, **targets}
        bare = dataclasses.replace(sample, boxes=None, box_labels=None, box_attributes={}, mask=None, depth=None)
        return super().__call__(bare, rng)

    def take(self, key: str) -> Batch:
        """The targets of one image as a batch of one; they are let go of."""
        return collate([self._kept.pop(key)])


@torch.inference_mode()
def score_head(
    model: VisionModel,
    head: TaskHead,
    source: ShardSource,
    *,
    batch_size: int = 64,
    num_kept: int = 0,
    bf16: bool = True,
    num_resamples: int = 0,
    reviewer: Reviewer | None = None,
) -> tuple[dict[str, float], list[Prediction]]:
    """The head's score over all samples of a source, in the original pixels of each image.

    The metric is the one that the dataset names for the head's family, else the family's own.

    Args:
        model: in eval mode.
        head: one of its heads.
        source: samples with the fields of the head's family.
        batch_size: images a forward pass; fewer where the masks or depths of so many would take too much memory.
        num_kept: predictions to return, for the first samples.
        bf16: whether forward passes run under bfloat16 autocast.
        num_resamples: draws for the interval; 0 = none. See ``bootstrap_interval``.
        reviewer: gets every prediction too.

    Returns:
        The metric's values by name, with ``error_low`` and ``error_high`` (95 %) where an interval is asked for; and
        the first predictions, in the pixels of their images.
    """
    metric = metric_of(source.info, head.task, per_image=num_resamples > 0)
    first: list[Prediction] = []
    for batch, targets in original_batches(source, model.spec.image_size_px, batch_size):
        features = infer(model, batch["image_BCHW"], bf16=bf16)
        predictions = update_metric(metric, head, head(features), batch, targets)
        first += predictions[: max(0, num_kept - len(first))]
        if reviewer is not None:
            reviewer.update(predictions, batch, targets)
    scores = {name: float(value) for name, value in metric.compute().items()}
    if num_resamples:
        scores["error_low"], scores["error_high"] = bootstrap_interval(metric, num_resamples=num_resamples)
    return scores, first


def metric_of(info: DatasetInfo, task: Task, *, per_image: bool = False) -> Metric:
    """The metric that a dataset names, where it is one of the task's family, else the family's own.

    Raises:
        ConfigError: the dataset names a metric that is not known, or that does not fit the task.
    """
    family, _ = METRICS.get(info.metric, (task.family, None))
    return make_metric(task, info.metric if family == task.family else "", per_image=per_image)


def original_batches(source: ShardSource, image_size_px: int, batch_size: int) -> Iterator[tuple[Batch, list[Batch]]]:
    """Every sample once, in order: images stretched to the model's size, and their targets as they are.

    Args:
        source: the samples.
        image_size_px: side of the model's square.
        batch_size: images a batch; made smaller where the first sample's masks and depths are large.

    Yields:
        A batch with image, label and concepts, and for each of its images a batch of one with boxes, mask and depth.
    """
    transform = OriginalTargets(image_size_px, num_concepts=len(source.info.concept_names))
    sample = source[0]
    num_bytes = sum(target.nbytes for target in (sample.mask, sample.depth) if target is not None)
    num_images = max(1, min(batch_size, MAX_TARGET_BYTES // max(1, num_bytes)))
    for batch in evaluation_batches(source, num_images, transform):
        yield batch, [transform.take(key) for key in batch["keys"]]


def update_metric(
    metric: Metric, head: TaskHead, outputs: dict[str, Tensor], batch: Batch, targets: Sequence[Batch]
) -> list[Prediction]:
    """Gives a metric the head's predictions for one batch of ``original_batches``, and returns them.

    Args:
        metric: what takes them.
        head: what made the outputs.
        outputs: of the batch's images.
        batch: the images.
        targets: what is known about each, in its own pixels.

    Raises:
        DataError: an image has no boxes annotated, not even an empty list of them.
    """
    size_px = tuple(batch["image_BCHW"].shape[-2:])
    if is_vector_family(head.task.family):
        predictions = head.predict(outputs, size_px)
        metric.update(predictions, batch)
        return predictions
    predictions = predict_at(head, outputs, size_px, [tuple(size) for size in batch["original_size_px_B2"].tolist()])
    for key, prediction, target in zip(batch["keys"], predictions, targets, strict=True):
        if head.task.family == "detect" and "boxes_BN4" not in target:
            raise DataError(f"sample {key}: expected boxes, got no such field; an image of nothing has an empty list")
        metric.update([prediction], target)
    return predictions
