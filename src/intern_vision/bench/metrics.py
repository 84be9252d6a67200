"""Metrics that grow with classes, not with images, where the definition allows it; numpy only.

N images, K classes or concepts, M detected boxes, G true boxes, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.errors import DataError

if TYPE_CHECKING:
    from intern_vision.heads.base import Prediction

State = dict[str, NDArray[Any]]
# Depth predictions are clamped to this from below before scoring, as GV-B does.
MIN_DEPTH_M = 1e-3
# A depth within this factor of the truth is right for delta1 (Eigen et al., arXiv 1406.2283).
DELTA = 1.25
# Detections counted an image and class, COCO's largest setting.
MAX_DETECTIONS = 100


@runtime_checkable
class Metric(Protocol):
    """A score over a data set, fed batch by batch and joined across ranks."""

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Takes in one batch: a prediction an image and the batch's targets (tensors on any device, or arrays)."""

    def compute(self) -> dict[str, float]:
        """Scores so far; ``error``, lower is better, is the family's figure of merit.

        Raises:
            DataError: nothing was annotated, so there is no score.
        """

    def state(self) -> State:
        """Everything taken in so far, as plain arrays for an all-gather."""

    def load_state(self, state: State) -> None:
        """Replaces what was taken in by another metric's ``state``."""

    def merge(self, state: State) -> None:
        """Adds another metric's ``state``, for example another rank's."""


class _SumMetric:
    """A metric whose state is a set of sums."""

    def __init__(self, **zeros: NDArray[Any]) -> None:
        self._sums = zeros

    def state(self) -> State:
        """The sums."""
        return {name: array.copy() for name, array in self._sums.items()}

    def load_state(self, state: State) -> None:
        """Replaces the sums."""
        self._sums = {name: np.array(state[name]) for name in self._sums}

    def merge(self, state: State) -> None:
        """Adds the sums."""
        for name in self._sums:
            # A sum of arrays without axes is a numpy scalar; the state is to hold arrays only.
            self._sums[name] = np.asarray(self._sums[name] + state[name])


class _ListMetric:
    """A metric whose state is rows kept until the end."""

    def __init__(self, **empty: NDArray[Any]) -> None:
        self._empty = empty
        self._rows: dict[str, list[NDArray[Any]]] = {name: [] for name in empty}

    def state(self) -> State:
        """The rows, one array a column."""
        return {name: np.concatenate([self._empty[name], *rows]) for name, rows in self._rows.items()}

    def load_state(self, state: State) -> None:
        """Replaces the rows."""
        self._rows = {name: [np.array(state[name])] for name in self._empty}

    def merge(self, state: State) -> None:
        """Appends the rows."""
        for name, rows in self._rows.items():
            rows.append(np.array(state[name]))

    def _add(self, **rows: NDArray[Any]) -> None:
        for name, array in rows.items():
            self._rows[name].append(np.asarray(array, self._empty[name].dtype))


class ClassificationMetric(_SumMetric):
    """``top1``, ``mean_per_class`` (mean recall over the classes present) and ``error`` = 1 - top1."""

    def __init__(self, num_classes: int) -> None:
        """``num_classes`` sizes the confusion matrix."""
        super().__init__(confusion_KK=np.zeros((num_classes, num_classes), np.int64))

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``label`` and ``label_B``; a negative true label is unknown and skipped."""
        truth_N = _array(batch["label_B"])
        label_N = np.array([prediction.label for prediction in predictions], np.int64)
        known_N = truth_N >= 0
        self._sums["confusion_KK"] += _confusion(truth_N[known_N], label_N[known_N], len(self._sums["confusion_KK"]))

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        confusion_KK = self._sums["confusion_KK"]
        num_K, right_K = confusion_KK.sum(1), confusion_KK.diagonal()
        _require(num_K.sum(), "label_B", "a known label")
        top1 = float(right_K.sum() / num_K.sum())
        recall_K = right_K[num_K > 0] / num_K[num_K > 0]
        return {"error": 1 - top1, "top1": top1, "mean_per_class": float(recall_K.mean())}


class MultilabelMetric(_ListMetric):
    """``map``, the mean over concepts present of the average precision, and ``error`` = 1 - map.

    The exact value needs every score: 4 bytes an image and concept are kept, and 1 byte for the truth.
    """

    def __init__(self, num_classes: int) -> None:
        """``num_classes`` is the number of concepts."""
        super().__init__(scores_NK=np.zeros((0, num_classes), np.float32), truth_NK=np.zeros((0, num_classes), bool))

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``scores`` and ``concepts_BK``."""
        truth_NK = _array(batch["concepts_BK"]) > 0.5
        scores_N = [prediction.scores for prediction in predictions]
        # The reshape is for a batch of no image, which a rank may get at the end.
        self._add(scores_NK=np.array(scores_N).reshape(truth_NK.shape), truth_NK=truth_NK)

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        state = self.state()
        present = np.flatnonzero(state["truth_NK"].any(0))
        _require(len(present), "concepts_BK", "a concept that is present")
        mean = float(np.mean([average_precision(state["truth_NK"][:, k], state["scores_NK"][:, k]) for k in present]))
        return {"error": 1 - mean, "map": mean}


class DetectionMetric(_ListMetric):
    """``map`` (COCO AP, overlaps 0.50:0.95), ``ap50`` and ``error`` = 1 - ap50, means over the classes present."""

    def __init__(self, num_classes: int) -> None:
        """``num_classes`` is the number of box classes."""
        self._num_classes = num_classes
        self._num_images = 0
        super().__init__(
            images_M=np.zeros(0, np.int64),
            boxes_M4=np.zeros((0, 4), np.float32),
            scores_M=np.zeros(0, np.float32),
            labels_M=np.zeros(0, np.int64),
            true_images_G=np.zeros(0, np.int64),
            true_boxes_G4=np.zeros((0, 4), np.float32),
            true_labels_G=np.zeros(0, np.int64),
        )

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``boxes``, ``scores``, ``labels``, ``boxes_BN4`` and ``box_labels_BN`` (negative = padding)."""
        boxes_BN4, labels_BN = _array(batch["boxes_BN4"]), _array(batch["box_labels_BN"])
        for prediction, boxes_N4, labels_N in zip(predictions, boxes_BN4, labels_BN, strict=True):
            real_N = labels_N >= 0
            self._add(
                images_M=np.full(len(prediction.scores), self._num_images),
                boxes_M4=prediction.boxes,
                scores_M=prediction.scores,
                labels_M=prediction.labels,
                true_images_G=np.full(real_N.sum(), self._num_images),
                true_boxes_G4=boxes_N4[real_N],
                true_labels_G=labels_N[real_N],
            )
            self._num_images += 1

    def state(self) -> State:
        """The boxes, found and true, with the number of images."""
        return {**super().state(), "num_images": np.array(self._num_images)}

    def load_state(self, state: State) -> None:
        """Replaces boxes and images."""
        super().load_state(state)
        self._num_images = int(state["num_images"])

    def merge(self, state: State) -> None:
        """Appends boxes; the other's images are numbered after these."""
        shifted = {name: state[name] + self._num_images for name in ("images_M", "true_images_G")}
        super().merge({**state, **shifted})
        self._num_images += int(state["num_images"])

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        state = self.state()
        _require(len(state["true_labels_G"]), "boxes_BN4", "a true box")
        precision_TRK = _coco_precision(state, self._num_classes)
        # -1 marks a class without a true box; COCO leaves it out of the mean.
        mean = float(precision_TRK[precision_TRK > -1].mean())
        ap50 = float(precision_TRK[0][precision_TRK[0] > -1].mean())
        return {"error": 1 - ap50, "ap50": ap50, "map": mean}


class SegmentationMetric(_SumMetric):
    """``miou`` over the classes seen or predicted, ``pixel_accuracy`` and ``error`` = 1 - miou."""

    def __init__(self, num_classes: int) -> None:
        """``num_classes`` sizes the confusion matrix."""
        super().__init__(confusion_KK=np.zeros((num_classes, num_classes), np.int64))

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``mask`` and ``mask_BHW``; pixels of 255 take no part."""
        for prediction, mask_HW in zip(predictions, _array(batch["mask_BHW"]), strict=True):
            known_HW = mask_HW != IGNORE_LABEL
            num_classes = len(self._sums["confusion_KK"])
            self._sums["confusion_KK"] += _confusion(mask_HW[known_HW], prediction.mask[known_HW], num_classes)

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        confusion_KK = self._sums["confusion_KK"]
        _require(confusion_KK.sum(), "mask_BHW", "a pixel that is not 255")
        right_K = confusion_KK.diagonal()
        union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - right_K
        miou = float((right_K[union_K > 0] / union_K[union_K > 0]).mean())
        accuracy = float(right_K.sum() / confusion_KK.sum())
        return {"error": 1 - miou, "miou": miou, "pixel_accuracy": accuracy}


class DepthMetric(_SumMetric):
    """``abs_rel``, ``rmse_m``, ``delta1`` and ``error`` = abs_rel.

    Each is a mean over an image's valid pixels, then over images, as in BTS's evaluation (arXiv 1907.10326):
    an image with few valid pixels counts as much as any other. ``rmse_m`` is in metres.
    """

    def __init__(self, max_depth_m: float) -> None:
        """True depths above ``max_depth_m`` take no part; predictions are clamped to it."""
        self._max_depth_m = max_depth_m
        super().__init__(
            num_images=np.zeros((), np.int64), abs_rel=np.zeros(()), rmse_m=np.zeros(()), delta1=np.zeros(())
        )

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``depth`` and ``depth_BHW``; an image without a valid pixel takes no part."""
        for prediction, depth_HW in zip(predictions, _array(batch["depth_BHW"]), strict=True):
            valid_HW = (depth_HW > 0) & (depth_HW <= self._max_depth_m)
            if not valid_HW.any():
                continue
            truth = depth_HW[valid_HW].astype(np.float64)
            guess = prediction.depth[valid_HW].astype(np.float64).clip(MIN_DEPTH_M, self._max_depth_m)
            self.merge(
                {
                    "num_images": np.int64(1),
                    "abs_rel": np.mean(np.abs(guess - truth) / truth),
                    "rmse_m": np.sqrt(np.mean(np.square(guess - truth))),
                    "delta1": np.mean(np.maximum(guess / truth, truth / guess) < DELTA),
                }
            )

    def compute(self) -> dict[str, float]:
        """``abs_rel`` and ``delta1`` are shares; ``abs_rel`` may pass 1."""
        num_images = self._sums["num_images"]
        _require(num_images, "depth_BHW", "a known depth")
        means = {name: float(self._sums[name] / num_images) for name in ("abs_rel", "rmse_m", "delta1")}
        return {"error": means["abs_rel"], **means}


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


def _confusion(truth: NDArray[Any], guess: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """``(K, K)`` counts, rows = truth; both inputs are flat and of one length."""
    if truth.size and truth.max() >= num_classes:
        raise DataError(f"labels: expected class indices below {num_classes}, got {truth.max()}; check class_names")
    cells = truth.astype(np.int64) * num_classes + guess
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _coco_precision(state: State, num_classes: int) -> NDArray[np.float64]:
    """Interpolated precision by overlap (0.50, 0.55 .. 0.95), recall (0, 0.01 .. 1) and class; -1 = class absent."""
    from faster_coco_eval import COCO, COCOeval_faster

    def index(annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO(print_function=_silent)
        coco.dataset = {
            "images": [{"id": image} for image in range(int(state["num_images"]))],
            "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        return coco

    truth = _annotations(state["true_images_G"], state["true_boxes_G4"], state["true_labels_G"])
    found = _annotations(state["images_M"], state["boxes_M4"], state["labels_M"])
    for annotation, score in zip(found, state["scores_M"].tolist(), strict=True):
        annotation["score"] = score
    evaluation = COCOeval_faster(index(truth), index(found), "bbox", print_function=_silent)
    # Only boxes of any area and the usual cap an image and class are read, so nothing else is matched.
    evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]


def _annotations(images: NDArray[Any], boxes: NDArray[Any], labels: NDArray[Any]) -> list[dict[str, Any]]:
    corners = boxes.astype(np.float64)
    sizes = corners[:, 2:] - corners[:, :2]
    rows = np.concatenate([corners[:, :2], sizes], 1).tolist()
    areas = sizes.prod(1).tolist()
    # Numbered from 1: COCO's matching takes 0 for "no match".
    return [
        {"id": number, "image_id": image, "category_id": label, "bbox": row, "area": area, "iscrowd": 0}
        for number, (image, label, row, area) in enumerate(
            zip(images.tolist(), labels.tolist(), rows, areas, strict=True), start=1
        )
    ]


def _silent(*_: object) -> None:
    """Where the COCO library's progress lines go."""


def _array(value: Any) -> NDArray[Any]:
    """A tensor on any device, or an array, as an array."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _require(count: Any, field: str, what: str) -> None:
    if not count:
        raise DataError(f"batch.{field}: expected {what} in at least one image, got none; check the split")
