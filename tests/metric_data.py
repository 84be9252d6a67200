"""Random predictions and targets of every family, with gaps, ties and odd cases, and the metrics that take them."""

import numpy as np
import torch

from intern_vision.bench.depth_metrics import DepthMetric, eigen_window, garg_window
from intern_vision.bench.detection_metrics import DetectionMetric, MissRateMetric, VocMetric, WiderMetric
from intern_vision.bench.metrics import ClassificationMetric, MultilabelMetric, SegmentationMetric
from intern_vision.heads.base import Prediction

NUM_CLASSES = 5


def score(metric, predictions, batch):
    metric.update(predictions, batch)
    return metric.compute()


def rows_of(batch, rows):
    """The part of a batch that belongs to these images."""
    return {
        name: {key: column[rows] for key, column in value.items()} if isinstance(value, dict) else value[rows]
        for name, value in batch.items()
    }


def classify_data(rng, num_images=60):
    truth = rng.integers(0, NUM_CLASSES - 1, num_images)
    label = np.where(rng.random(num_images) < 0.6, truth, rng.integers(0, NUM_CLASSES, num_images))
    return [Prediction(label=int(k)) for k in label], {"label_B": torch.from_numpy(truth)}


def multilabel_data(rng, num_images=60):
    truth = (rng.random((num_images, NUM_CLASSES)) < 0.3).astype(np.float32)
    truth[:, 4] = 0
    scores = np.round(0.4 * truth + rng.random(truth.shape), 1).astype(np.float32)
    return [Prediction(scores=row) for row in scores], {"concepts_BK": torch.from_numpy(truth)}


def detect_data(rng, num_images=25, *, num_classes=NUM_CLASSES, ties=False):
    """Whole-pixel boxes; each true one is found about twice; boxes of every attribute, and images without a box."""
    boxes = np.zeros((num_images, 8, 4), np.float32)
    labels = np.full((num_images, 8), -1)
    predictions = []
    for i in range(num_images):
        num = rng.integers(0, 9)
        corner = rng.integers(0, 60, (num, 2))
        boxes[i, :num] = np.concatenate([corner, corner + rng.integers(8, 120, (num, 2))], 1)
        labels[i, :num] = rng.integers(0, max(1, num_classes - 1), num)
        near = np.repeat(boxes[i, :num], 2, 0) + rng.normal(0, 4, (2 * num, 4)).round()
        far_corner = rng.integers(0, 60, (4, 2))
        found = np.concatenate([near, np.concatenate([far_corner, far_corner + 20], 1)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        found_labels = np.concatenate([labels[i, :num].repeat(2), rng.integers(0, num_classes, 4)])
        scores = rng.random(len(found)) * np.where(np.arange(len(found)) < 2 * num, 1, 0.6)
        scores = (scores.round(1) if ties else scores).astype(np.float32)
        predictions.append(Prediction(boxes=found.astype(np.float32), scores=scores, labels=found_labels))
    flags = rng.random((6, num_images, 8)) < np.array([0.2, 0.1, 0.5, 0.7, 0.9, 0])[:, None, None]
    attributes = dict(zip(("difficult", "ignored", "easy", "medium", "hard"), flags.astype(np.float32), strict=False))
    attributes["height_px"] = boxes[..., 3] - boxes[..., 1]
    attributes["visible_share"] = rng.choice([0.1, 0.2, 0.4, 0.65, 0.9, 1.0], labels.shape).astype(np.float32)
    for column in attributes.values():
        column[labels < 0] = np.nan
    batch = {"boxes_BN4": torch.from_numpy(boxes), "box_labels_BN": torch.from_numpy(labels)}
    return predictions, {**batch, "box_attributes": {k: torch.from_numpy(v) for k, v in attributes.items()}}


def one_class_data(rng, num_images=25, *, ties=False):
    return detect_data(rng, num_images, num_classes=1, ties=ties)


def segment_data(rng, num_images=6):
    truth = rng.integers(0, NUM_CLASSES - 1, (num_images, 12, 10)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    mask = np.where(rng.random(truth.shape) < 0.6, truth % 255, rng.integers(0, 4, truth.shape)).astype(np.uint8)
    return [Prediction(mask=row) for row in mask], {"mask_BHW": torch.from_numpy(truth)}


def depth_data(rng, num_images=6):
    truth = rng.uniform(0.5, 12, (num_images, 12, 10)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.2] = 0
    truth[0] = 0
    guess = (np.maximum(truth, 1) * rng.uniform(0.5, 1.6, truth.shape)).astype(np.float32)
    return [Prediction(depth=row) for row in guess], {"depth_BHW": torch.from_numpy(truth)}


CASES = {
    "classify": (lambda: ClassificationMetric(NUM_CLASSES, "quadratic_kappa"), classify_data, "label_B"),
    "multilabel": (lambda: MultilabelMetric(NUM_CLASSES), multilabel_data, "concepts_BK"),
    "coco": (lambda: DetectionMetric(NUM_CLASSES), detect_data, "boxes_BN4"),
    "voc": (lambda: VocMetric(NUM_CLASSES), detect_data, "boxes_BN4"),
    "wider": (lambda: WiderMetric(1), one_class_data, "boxes_BN4"),
    "miss_rate": (lambda: MissRateMetric(1), one_class_data, "box_attributes"),
    "segment": (lambda: SegmentationMetric(NUM_CLASSES), segment_data, "mask_BHW"),
    "segment_per_image": (lambda: SegmentationMetric(NUM_CLASSES, per_image=True), segment_data, "mask_BHW"),
    "depth": (lambda: DepthMetric(10.0), depth_data, "depth_BHW"),
    "kitti": (lambda: DepthMetric(80.0, window=garg_window, open_cap=True), depth_data, "depth_BHW"),
    "nyu": (lambda: DepthMetric(10.0, window=eigen_window, open_cap=True), depth_data, "depth_BHW"),
}
"""By name: makes the metric, makes its data, and the field that holds the truth."""
