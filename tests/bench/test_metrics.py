import contextlib
import io

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn import metrics as oracle

from intern_vision.bench.metrics import (
    ClassificationMetric,
    DepthMetric,
    DetectionMetric,
    Metric,
    MultilabelMetric,
    SegmentationMetric,
    average_precision,
)
from intern_vision.errors import DataError
from intern_vision.heads.base import Prediction

NUM_CLASSES = 5


def classify_data(rng, num_images=60):
    truth = rng.integers(0, NUM_CLASSES - 1, num_images)
    label = np.where(rng.random(num_images) < 0.6, truth, rng.integers(0, NUM_CLASSES, num_images))
    return [Prediction(label=int(k)) for k in label], {"label_B": torch.from_numpy(truth)}


def multilabel_data(rng, num_images=60):
    truth = (rng.random((num_images, NUM_CLASSES)) < 0.3).astype(np.float32)
    truth[:, 4] = 0
    scores = np.round(0.4 * truth + rng.random(truth.shape), 1).astype(np.float32)
    return [Prediction(scores=row) for row in scores], {"concepts_BK": torch.from_numpy(truth)}


def detect_data(rng, num_images=25):
    boxes = np.zeros((num_images, 8, 4), np.float32)
    labels = np.full((num_images, 8), -1)
    predictions = []
    for i in range(num_images):
        num = rng.integers(0, 9)
        corner = rng.uniform(0, 60, (num, 2))
        boxes[i, :num] = np.concatenate([corner, corner + rng.uniform(4, 120, (num, 2))], 1)
        labels[i, :num] = rng.integers(0, NUM_CLASSES - 1, num)
        near = np.repeat(boxes[i, :num], 2, 0) + rng.normal(0, 4, (2 * num, 4))
        far_corner = rng.uniform(0, 60, (4, 2))
        found = np.concatenate([near, np.concatenate([far_corner, far_corner + 20], 1)]).astype(np.float32)
        found_labels = np.concatenate([labels[i, :num].repeat(2), rng.integers(0, NUM_CLASSES, 4)])
        scores = np.round(rng.random(len(found)), 2).astype(np.float32)
        predictions.append(Prediction(boxes=found, scores=scores, labels=found_labels))
    return predictions, {"boxes_BN4": torch.from_numpy(boxes), "box_labels_BN": torch.from_numpy(labels)}


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
    "classify": (lambda: ClassificationMetric(NUM_CLASSES), classify_data, "label_B"),
    "multilabel": (lambda: MultilabelMetric(NUM_CLASSES), multilabel_data, "concepts_BK"),
    "detect": (lambda: DetectionMetric(NUM_CLASSES), detect_data, "boxes_BN4"),
    "segment": (lambda: SegmentationMetric(NUM_CLASSES), segment_data, "mask_BHW"),
    "depth": (lambda: DepthMetric(10.0), depth_data, "depth_BHW"),
}


def score(metric, predictions, batch):
    metric.update(predictions, batch)
    return metric.compute()


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_ranks_joined_by_state_give_the_score_of_one_pass(family, cut):
    make, data, _ = CASES[family]
    predictions, batch = data(np.random.default_rng(0))
    whole = make()
    left, right, joined = make(), make(), make()
    expected = score(whole, predictions, batch)
    left.update(predictions[:cut], {name: value[:cut] for name, value in batch.items()})
    right.update(predictions[cut:], {name: value[cut:] for name, value in batch.items()})
    states = [rank.state() for rank in (left, right)]
    assert all(isinstance(value, np.ndarray) for state in states for value in state.values())
    joined.load_state(states[0])
    joined.merge(states[1])
    assert isinstance(joined, Metric)
    assert joined.compute() == pytest.approx(expected, rel=1e-12)
    joined.load_state(whole.state())
    assert joined.compute() == expected


@pytest.mark.parametrize("family", CASES)
def test_no_annotation_is_said_in_one_line(family):
    make, _, field = CASES[family]
    with pytest.raises(DataError, match=rf"^batch\.{field}: expected .* got none; check the split$"):
        make().compute()


@pytest.mark.parametrize("seed", range(5))
def test_classification_equals_scikit_learn(seed):
    predictions, batch = classify_data(np.random.default_rng(seed))
    truth, label = batch["label_B"].numpy(), [p.label for p in predictions]
    scores = score(ClassificationMetric(NUM_CLASSES), predictions, batch)
    assert scores["top1"] == pytest.approx(oracle.accuracy_score(truth, label))
    # Mean recall over the classes that occur; a class that is only ever predicted is no row of the mean.
    recall = oracle.recall_score(truth, label, labels=np.unique(truth), average="macro")
    assert scores["mean_per_class"] == pytest.approx(recall)
    assert scores["error"] == 1 - scores["top1"]


def test_unknown_labels_are_skipped():
    predictions = [Prediction(label=1), Prediction(label=2), Prediction(label=0)]
    assert score(ClassificationMetric(3), predictions, {"label_B": np.array([1, -1, 2])})["top1"] == 0.5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=30))
def test_average_precision_equals_scikit_learn(rows):
    truth, scores = np.array([row[0] for row in rows]), np.array([row[1] / 7 for row in rows])
    truth[0] = True
    assert average_precision(truth, scores) == pytest.approx(oracle.average_precision_score(truth, scores))


def test_multilabel_map_equals_scikit_learn():
    predictions, batch = multilabel_data(np.random.default_rng(0))
    truth, scores = batch["concepts_BK"].numpy(), np.stack([p.scores for p in predictions])
    expected = oracle.average_precision_score(truth[:, :4], scores[:, :4], average="macro")
    assert score(MultilabelMetric(NUM_CLASSES), predictions, batch) == pytest.approx(
        {"error": 1 - expected, "map": expected}
    )


def pycocotools_stats(predictions, batch):
    truth, found = [], []
    for image, (boxes, labels) in enumerate(
        zip(batch["boxes_BN4"].double().numpy(), batch["box_labels_BN"].numpy(), strict=True)
    ):
        for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
            if label >= 0:
                row = {"image_id": image, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
                truth.append({**row, "id": len(truth) + 1, "area": (x1 - x0) * (y1 - y0)})
    for image, p in enumerate(predictions):
        for (x0, y0, x1, y1), s, label in zip(p.boxes.astype(float), p.scores, p.labels, strict=True):
            row = {"image_id": image, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}
            found.append({**row, "score": float(s)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(predictions))],
            "categories": [{"id": label} for label in range(NUM_CLASSES)],
            "annotations": truth,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(4))
def test_detection_equals_pycocotools_and_prints_nothing(seed, capfd):
    predictions, batch = detect_data(np.random.default_rng(seed))
    scores = score(DetectionMetric(NUM_CLASSES), predictions, batch)
    assert capfd.readouterr() == ("", "")
    stats = pycocotools_stats(predictions, batch)
    assert 0.05 < stats[0] < 0.9
    assert scores["map"] == pytest.approx(stats[0], abs=1e-6)
    assert scores["ap50"] == pytest.approx(stats[1], abs=1e-6)
    assert scores["error"] == 1 - scores["ap50"]


def test_finding_nothing_scores_zero():
    _, batch = detect_data(np.random.default_rng(0))
    empty = Prediction(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), labels=np.zeros(0, np.int64))
    assert score(DetectionMetric(NUM_CLASSES), [empty] * 25, batch) == {"error": 1.0, "ap50": 0.0, "map": 0.0}


@pytest.mark.parametrize("seed", range(4))
def test_segmentation_equals_scikit_learn_and_torchmetrics(seed):
    predictions, batch = segment_data(np.random.default_rng(seed))
    truth, mask = batch["mask_BHW"].numpy(), np.stack([p.mask for p in predictions])
    known = truth != 255
    scores = score(SegmentationMetric(NUM_CLASSES), predictions, batch)
    # A pixel that is ignored in the truth may be guessed anything; class 4 occurs nowhere and leaves the mean.
    mask[~known] = 0
    expected = oracle.jaccard_score(truth[known], mask[known], average="macro")
    assert scores["miou"] == pytest.approx(expected)
    assert scores["pixel_accuracy"] == pytest.approx(oracle.accuracy_score(truth[known], mask[known]))
    jaccard = torchmetrics.JaccardIndex(task="multiclass", num_classes=4, ignore_index=255)
    assert scores["miou"] == pytest.approx(float(jaccard(torch.from_numpy(mask).int(), batch["mask_BHW"].int())))


def test_a_label_beyond_the_classes_is_named():
    with pytest.raises(DataError, match="expected class indices below 5, got 7"):
        SegmentationMetric(5).update([Prediction(mask=np.zeros((2, 2), np.uint8))], {"mask_BHW": np.full((1, 2, 2), 7)})


def test_depth_equals_a_loop():
    predictions, batch = depth_data(np.random.default_rng(0))
    rows = []
    for p, truth in zip(predictions, batch["depth_BHW"].double().numpy(), strict=True):
        pairs = [
            (min(max(float(g), 1e-3), 10.0), t)
            for g, t in zip(p.depth.ravel(), truth.ravel(), strict=True)
            if 0 < t <= 10
        ]
        if pairs:
            abs_rel = sum(abs(g - t) / t for g, t in pairs) / len(pairs)
            rmse = (sum((g - t) ** 2 for g, t in pairs) / len(pairs)) ** 0.5
            rows.append((abs_rel, rmse, sum(max(g / t, t / g) < 1.25 for g, t in pairs) / len(pairs)))
    assert len(rows) == 5
    abs_rel, rmse, delta1 = np.mean(rows, 0)
    expected = {"error": abs_rel, "abs_rel": abs_rel, "rmse_m": rmse, "delta1": delta1}
    assert score(DepthMetric(10.0), predictions, batch) == pytest.approx(expected)
