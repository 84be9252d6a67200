"""Scores of labels and masks, and which metric a task is scored by; numpy only.

N images, K classes or concepts, H W height and width. Metrics of boxes are in ``detection_metrics``, those of depth in
``depth_metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.depth_metrics import KITTI_CAP_M, NYU_CAP_M, DepthMetric, eigen_window, garg_window
from intern_vision.bench.detection_metrics import DetectionMetric, MissRateMetric, VocMetric, WiderMetric
from intern_vision.bench.metric_base import ListMetric, Metric, State, as_array, loaded, require
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Family, Task

if TYPE_CHECKING:
    from intern_vision.heads.base import Prediction


class ClassificationMetric:
    """``top1``, ``mean_per_class`` (mean recall over the classes present) and ``error``.

    ``error`` is 1 - ``mean_per_class`` where that is the figure, else 1 - top1. Its state is one confusion matrix.
    """

    def __init__(self, num_classes: int, figure: str = "top1") -> None:
        """Starts from an empty confusion matrix.

        Args:
            num_classes: its size.
            figure: ``top1``, ``mean_per_class``, or ``quadratic_kappa`` to report that beside top1.
        """
        self._figure = figure
        self._confusion_KK = np.zeros((num_classes, num_classes), np.int64)

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``label`` and ``label_B``; a negative true label is unknown and skipped."""
        truth_N = as_array(batch["label_B"])
        label_N = np.array([prediction.label for prediction in predictions], np.int64)
        known_N = truth_N >= 0
        self._confusion_KK += _confusion(truth_N[known_N], label_N[known_N], len(self._confusion_KK))

    def compute(self) -> dict[str, float]:
        """All in [0, 1] but ``quadratic_kappa``, in [-1, 1]."""
        confusion_KK = self._confusion_KK
        num_K, right_K = confusion_KK.sum(1), confusion_KK.diagonal()
        require(num_K.sum(), "label_B", "a known label")
        top1 = float(right_K.sum() / num_K.sum())
        per_class = float((right_K[num_K > 0] / num_K[num_K > 0]).mean())
        error = 1 - (per_class if self._figure == "mean_per_class" else top1)
        scores = {"error": error, "top1": top1, "mean_per_class": per_class}
        if self._figure == "quadratic_kappa":
            scores["quadratic_kappa"] = quadratic_kappa(confusion_KK)
        return scores

    def state(self) -> State:
        """``confusion_KK``, rows = truth."""
        return {"confusion_KK": self._confusion_KK.copy()}

    def load_state(self, state: State) -> None:
        """Replaces the counts."""
        self._confusion_KK = np.array(state["confusion_KK"])

    def merge(self, state: State) -> None:
        """Adds the counts."""
        self._confusion_KK = self._confusion_KK + state["confusion_KK"]

    def resample(self, rng: np.random.Generator) -> Self:
        """Images drawn with replacement fall into the cells by a multinomial law, so the counts are enough."""
        counts = self._confusion_KK.ravel()
        num_images = int(counts.sum())
        drawn = rng.multinomial(num_images, counts / num_images) if num_images else counts
        return loaded(self, {"confusion_KK": drawn.reshape(self._confusion_KK.shape)})


class MultilabelMetric(ListMetric):
    """``map``, the mean over concepts present of the average precision, and ``error`` = 1 - map.

    The exact value needs every score: 4 bytes an image and concept are kept, and 1 byte for the truth.
    """

    def __init__(self, num_classes: int) -> None:
        """``num_classes`` is the number of concepts."""
        super().__init__(scores_NK=np.zeros((0, num_classes), np.float32), truth_NK=np.zeros((0, num_classes), bool))

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``scores`` and ``concepts_BK``."""
        truth_NK = as_array(batch["concepts_BK"]) > 0.5
        scores_N = [prediction.scores for prediction in predictions]
        # The reshape is for a batch of no image, which a rank may get at the end.
        self._add(scores_NK=np.array(scores_N).reshape(truth_NK.shape), truth_NK=truth_NK)

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        state = self.state()
        present = np.flatnonzero(state["truth_NK"].any(0))
        require(len(present), "concepts_BK", "a concept that is present")
        mean = float(np.mean([average_precision(state["truth_NK"][:, k], state["scores_NK"][:, k]) for k in present]))
        return {"error": 1 - mean, "map": mean}


class SegmentationMetric(ListMetric):
    """``miou`` over the classes seen or predicted, ``pixel_accuracy`` and ``error`` = 1 - miou.

    Pixels are counted over the whole data set before anything is divided, as PASCAL VOC does. The state is three
    counts a class, 24 bytes; with ``per_image`` that much for every image.
    """

    def __init__(self, num_classes: int, *, per_image: bool = False) -> None:
        """Starts from empty counts.

        Args:
            num_classes: K; the masks hold 0 .. K-1 and 255.
            per_image: keep the counts of each image apart, for ``resample``.
        """
        self._num_classes, self._per_image = num_classes, per_image
        super().__init__(counts_N3K=np.zeros((0, 3, num_classes), np.int64))

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``mask`` and ``mask_BHW``; pixels of 255 take no part."""
        for prediction, mask_HW in zip(predictions, as_array(batch["mask_BHW"]), strict=True):
            known_HW = mask_HW != IGNORE_LABEL
            confusion_KK = _confusion(mask_HW[known_HW], prediction.mask[known_HW], self._num_classes)
            self._add(counts_N3K=np.stack([confusion_KK.diagonal(), confusion_KK.sum(1), confusion_KK.sum(0)])[None])
            if not self._per_image:
                self.load_state({"counts_N3K": self.state()["counts_N3K"].sum(0, keepdims=True)})

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        right_K, true_K, guessed_K = self.state()["counts_N3K"].sum(0)
        require(true_K.sum(), "mask_BHW", "a pixel that is not 255")
        union_K = true_K + guessed_K - right_K
        miou = float((right_K[union_K > 0] / union_K[union_K > 0]).mean())
        return {"error": 1 - miou, "miou": miou, "pixel_accuracy": float(right_K.sum() / true_K.sum())}

    def resample(self, rng: np.random.Generator) -> Self:
        """Needs ``per_image``."""
        if not self._per_image:
            raise ValueError("resample needs a SegmentationMetric made with per_image=True")
        return super().resample(rng)


def make_metric(task: Task, name: str = "", *, per_image: bool = False) -> Metric:
    """The metric that a data set of this task is scored by.

    Args:
        task: its family and number of classes.
        name: one of ``METRICS``; empty = the family's own.
        per_image: keep what ``bootstrap_interval`` needs, which for masks is 24 bytes an image and class more.

    Raises:
        ConfigError: the name is unknown, or does not fit the task.
    """
    family, build = METRICS.get(name or FAMILY_METRICS[task.family], ("", None))
    if build is None:
        raise ConfigError(f"metric: expected one of {', '.join(METRICS)}, got {name!r}")
    if family != task.family:
        fitting = ", ".join(known for known, (other, _) in METRICS.items() if other == task.family)
        raise ConfigError(f"metric: {name} scores {family}, but the task is {task.family}; choose {fitting}")
    return build(task, per_image)


METRICS: dict[str, tuple[Family, Callable[[Task, bool], Metric]]] = {
    "top1": ("classify", lambda task, _: ClassificationMetric(task.num_classes)),
    "mean_per_class": ("classify", lambda task, _: ClassificationMetric(task.num_classes, "mean_per_class")),
    "quadratic_kappa": ("classify", lambda task, _: ClassificationMetric(task.num_classes, "quadratic_kappa")),
    "map": ("multilabel", lambda task, _: MultilabelMetric(task.num_classes)),
    "coco_ap50": ("detect", lambda task, _: DetectionMetric(task.num_classes)),
    "coco_ap": ("detect", lambda task, _: DetectionMetric(task.num_classes, "map")),
    "voc_ap50": ("detect", lambda task, _: VocMetric(task.num_classes)),
    "wider_ap": ("detect", lambda task, _: WiderMetric(task.num_classes)),
    "log_average_miss_rate": ("detect", lambda task, _: MissRateMetric(task.num_classes)),
    "miou": ("segment", lambda task, per_image: SegmentationMetric(task.num_classes, per_image=per_image)),
    "abs_rel": ("depth", lambda task, _: DepthMetric(task.max_depth_m)),
    "kitti_rmse": (
        "depth",
        lambda task, _: DepthMetric(KITTI_CAP_M, figure="rmse_m", window=garg_window, open_cap=True),
    ),
    "nyu_rmse": ("depth", lambda task, _: DepthMetric(NYU_CAP_M, figure="rmse_m", window=eigen_window, open_cap=True)),
}
"""The family a metric scores, and how it is made, by name."""

FAMILY_METRICS: dict[Family, str] = {
    "classify": "top1",
    "multilabel": "map",
    "detect": "coco_ap50",
    "segment": "miou",
    "depth": "abs_rel",
}
"""What a family is scored by where a data set names nothing."""


def average_precision(truth_N: NDArray[np.bool_], scores_N: NDArray[np.floating[Any]]) -> float:
    """Area under the precision-recall steps, ``sum (R_i - R_{i-1}) P_i`` over distinct scores.

    Args:
        truth_N: which images have the concept; at least one.
        scores_N: higher means surer; equal scores form one step.
    """
    order_N = np.argsort(-scores_N, kind="stable")
    hits_N = np.cumsum(truth_N[order_N])
    last = np.flatnonzero(np.append(np.diff(scores_N[order_N]) != 0, True))
    recall = hits_N[last] / hits_N[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits_N[last] / (last + 1)))


def quadratic_kappa(confusion_KK: NDArray[np.integer[Any]]) -> float:
    """Cohen's kappa with quadratic weights (Psychological Bulletin 70, 1968, 213-220), for classes that are grades.

    Returns:
        1 for full agreement, 0 for chance; 0 too where all is one class, as nothing is agreed on then.
    """
    grade_K = np.arange(len(confusion_KK))
    weight_KK = np.square(grade_K[:, None] - grade_K).astype(np.float64)
    chance_KK = np.outer(confusion_KK.sum(1), confusion_KK.sum(0)) / confusion_KK.sum()
    by_chance = float((weight_KK * chance_KK).sum())
    return 1 - float((weight_KK * confusion_KK).sum()) / by_chance if by_chance else 0.0


def _confusion(truth: NDArray[Any], guess: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """``(K, K)`` counts, rows = truth; both inputs are flat and of one length."""
    if truth.size and truth.max() >= num_classes:
        raise DataError(f"labels: expected class indices below {num_classes}, got {truth.max()}; check class_names")
    cells = truth.astype(np.int64) * num_classes + guess
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
