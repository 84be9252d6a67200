import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_data import NUM_CLASSES, classify_data, multilabel_data, score, segment_data
from sklearn import metrics as oracle

from intern_vision.bench.metrics import (
    FAMILY_METRICS,
    METRICS,
    ClassificationMetric,
    MultilabelMetric,
    SegmentationMetric,
    average_precision,
    make_metric,
)
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads.base import Prediction
from intern_vision.task import Task

TASKS = {
    "classify": Task(family="classify", class_names=("a",)),
    "multilabel": Task(family="multilabel", class_names=("a",)),
    "detect": Task(family="detect", class_names=("a",)),
    "segment": Task(family="segment", class_names=("a",)),
    "depth": Task(family="depth", max_depth_m=10.0),
}


@pytest.mark.parametrize("seed", range(5))
def test_classification_equals_scikit_learn(seed):
    predictions, batch = classify_data(np.random.default_rng(seed))
    truth, label = batch["label_B"].numpy(), [p.label for p in predictions]
    scores = score(ClassificationMetric(NUM_CLASSES), predictions, batch)
    assert scores["top1"] == pytest.approx(oracle.accuracy_score(truth, label))
    # Mean recall over the classes that occur; a class that is only ever predicted is no row of the mean.
    recall = oracle.recall_score(truth, label, labels=np.unique(truth), average="macro")
    assert scores["mean_per_class"] == pytest.approx(recall)
    assert scores["error"] == 1 - scores["top1"] and "quadratic_kappa" not in scores
    per_class = score(ClassificationMetric(NUM_CLASSES, "mean_per_class"), predictions, batch)
    assert per_class == {**scores, "error": 1 - scores["mean_per_class"]}
    with_kappa = score(ClassificationMetric(NUM_CLASSES, "quadratic_kappa"), predictions, batch)
    kappa = oracle.cohen_kappa_score(truth, label, weights="quadratic", labels=range(NUM_CLASSES))
    assert with_kappa == pytest.approx({**scores, "quadratic_kappa": kappa})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_quadratic_kappa_equals_scikit_learn(rows):
    truth, label = np.array(rows).T
    metric = ClassificationMetric(4, "quadratic_kappa")
    kappa = score(metric, [Prediction(label=int(k)) for k in label], {"label_B": truth})["quadratic_kappa"]
    if len(set(truth) | set(label)) == 1:
        assert kappa == 0
    else:
        assert kappa == pytest.approx(oracle.cohen_kappa_score(truth, label, weights="quadratic", labels=range(4)))


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


def test_every_family_has_a_metric_of_its_own_and_every_name_makes_one():
    for family, task in TASKS.items():
        assert METRICS[FAMILY_METRICS[family]][0] == family
        assert type(make_metric(task)) is type(make_metric(task, FAMILY_METRICS[family]))
    for name, (family, _) in METRICS.items():
        assert make_metric(TASKS[family], name, per_image=True).state()


def test_a_metric_that_does_not_fit_is_said():
    with pytest.raises(ConfigError, match="^metric: expected one of top1, .*nyu_rmse, got 'accuracy'$"):
        make_metric(TASKS["classify"], "accuracy")
    with pytest.raises(ConfigError, match="miou scores segment, but the task is depth; choose abs_rel, kitti_rmse, "):
        make_metric(TASKS["depth"], "miou")
