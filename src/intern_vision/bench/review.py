"""A model image by image: which classes it confuses, what it finds of each, and its worst mistakes; numpy only.

Memory grows with classes and with the number of mistakes kept, not with images.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from intern_vision.bench.box_matching import HIT, IGNORED, greedy_matches, overlaps
from intern_vision.bench.metric_base import as_array
from intern_vision.config import Config
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.task import Family, Task

if TYPE_CHECKING:
    from intern_vision.data.batch import Batch
    from intern_vision.heads.base import Prediction

MAX_CONFUSION_CLASSES = 40
"""Larger confusion matrices are no picture that can be read; their largest cells are listed instead."""
MAX_PAIRS = 20
MIN_SHOWN_SCORE = 0.3
"""Boxes below this score are not counted as said."""
MATCH_IOU = 0.5
MIN_CONCEPT_SCORE = 0.5


class ClassReview(Config):
    """One class; units are images (classify, multilabel), boxes (detect) or pixels (segment).

    Attributes:
        name: of the class.
        num_true: units that are of the class.
        num_said: units that the model says are of it.
        num_right: units that are both.
    """

    name: str
    num_true: int = Field(ge=0)
    num_said: int = Field(ge=0)
    num_right: int = Field(ge=0)

    @property
    def recall(self) -> float | None:
        """Share of the true units that was found; ``None`` where there is none."""
        return self.num_right / self.num_true if self.num_true else None

    @property
    def precision(self) -> float | None:
        """Share of what was said that is right; ``None`` where nothing was said."""
        return self.num_right / self.num_said if self.num_said else None

    @property
    def iou(self) -> float | None:
        """Intersection over union."""
        union = self.num_true + self.num_said - self.num_right
        return self.num_right / union if union else None


class Mistake(Config):
    """One image that the model gets wrong.

    Attributes:
        key: of the sample.
        text: what is wrong, in a few words.
        badness: by which mistakes are ordered, within the family only: the score of the wrong label or concept,
            boxes missed and false, 1 - mean IoU, or the mean relative depth error.
    """

    key: str
    text: str
    badness: float


class Review(Config):
    """What a model does on the test images; the JSON of ``review-<protocol>.json``.

    Attributes:
        family: what is predicted.
        num_images: images looked at.
        num_faulty: images with any mistake.
        classes: every class; empty for depth.
        confusion: images (pixels for segment) by true and said class, up to ``MAX_CONFUSION_CLASSES`` classes.
        pairs: the most frequent confusions: true class, said class, count.
        mistakes: the worst first.
    """

    family: Family
    num_images: int
    num_faulty: int
    classes: tuple[ClassReview, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    pairs: tuple[tuple[str, str, int], ...] = ()
    mistakes: tuple[Mistake, ...] = ()


class Reviewer:
    """Takes in predictions batch by batch; see ``Review``."""

    def __init__(self, task: Task, num_kept: int) -> None:
        """Keeps the ``num_kept`` worst mistakes with their predictions."""
        self._task, self._num_kept = task, num_kept
        num_classes = task.num_classes
        self._true_K, self._said_K, self._right_K = (np.zeros(num_classes, np.int64) for _ in range(3))
        self._confusion: Counter[tuple[int, int]] = Counter()
        self._num_images = self._num_faulty = 0
        self._worst: list[tuple[float, int, Mistake, Prediction]] = []

    def update(self, predictions: Sequence[Prediction], batch: Batch, targets: Sequence[Batch]) -> None:
        """Takes in a batch of ``intern_vision.bench.scoring.original_batches``.

        Args:
            predictions: one an image, in the pixels of its original.
            batch: the images with label and concepts.
            targets: boxes, mask and depth of each image in its own pixels.
        """
        judge = {
            "classify": self._judge_label,
            "multilabel": self._judge_concepts,
            "detect": self._judge_boxes,
            "segment": self._judge_mask,
            "depth": self._judge_depth,
        }[self._task.family]
        field = {"classify": "label_B", "multilabel": "concepts_BK"}.get(self._task.family)
        truths = as_array(batch[field]) if field else targets
        for key, prediction, truth in zip(batch["keys"], predictions, truths, strict=True):
            self._keep(key, prediction, *judge(prediction, truth))

    def _keep(self, key: str, prediction: Prediction, badness: float, text: str) -> None:
        if badness > 0:
            self._num_faulty += 1
            # The earlier of two equal mistakes is kept; the number is unique, so nothing further is compared.
            entry = (badness, -self._num_images, Mistake(key=key, text=text, badness=badness), prediction)
            heapq.heappush(self._worst, entry)
            if len(self._worst) > self._num_kept:
                heapq.heappop(self._worst)
        self._num_images += 1

    def worst(self) -> list[tuple[int, Prediction]]:
        """Number of the image, in the order added, and prediction of each mistake kept, the worst first."""
        return [(-number, prediction) for _, number, _, prediction in sorted(self._worst, key=_order)]

    def review(self) -> Review:
        """What was taken in so far."""
        names = self._task.class_names
        wrong = Counter({cell: count for cell, count in self._confusion.items() if cell[0] != cell[1]})
        confusion: tuple[tuple[int, ...], ...] = ()
        if self._confusion and len(names) <= MAX_CONFUSION_CLASSES:
            classes = range(len(names))
            confusion = tuple(tuple(self._confusion[truth, said] for said in classes) for truth in classes)
        counts = zip(names, self._true_K.tolist(), self._said_K.tolist(), self._right_K.tolist(), strict=False)
        return Review(
            family=self._task.family,
            num_images=self._num_images,
            num_faulty=self._num_faulty,
            classes=tuple(
                ClassReview(name=name, num_true=true, num_said=said, num_right=right)
                for name, true, said, right in counts
            ),
            confusion=confusion,
            pairs=tuple((names[t], names[s], count) for (t, s), count in wrong.most_common(MAX_PAIRS)),
            mistakes=tuple(mistake for _, _, mistake, _ in sorted(self._worst, key=_order)),
        )

    def _judge_label(self, prediction: Prediction, label: int) -> tuple[float, str]:
        truth, said = int(label), prediction.label
        if truth < 0:
            return 0.0, ""
        self._count([truth], [said], [truth] if truth == said else [])
        self._confusion[truth, said] += 1
        score = float(prediction.scores[said])
        return (0.0 if truth == said else score), f"is {self._name(truth)}, said {self._name(said)} {score:.2f}"

    def _judge_concepts(self, prediction: Prediction, concepts_K: NDArray[np.float32]) -> tuple[float, str]:
        truth = set(np.flatnonzero(concepts_K > 0.5).tolist())
        said = set(np.flatnonzero(prediction.scores > MIN_CONCEPT_SCORE).tolist())
        self._count(truth, said, truth & said)
        if truth == said:
            return 0.0, ""
        # How far the score of each wrong concept is from the truth.
        faults = {index: abs(float(prediction.scores[index]) - (index in truth)) for index in truth ^ said}
        worst = max(faults, key=lambda index: faults[index])
        word = "said" if worst in said else "missed"
        return faults[worst], f"{word} {self._name(worst)}, {len(faults)} wrong in all"

    def _judge_boxes(self, prediction: Prediction, target: Batch) -> tuple[float, str]:
        labels_N, boxes_N4 = as_array(target["box_labels_BN"])[0], as_array(target["boxes_BN4"])[0]
        attributes = target.get("box_attributes", {})
        ignored_N = as_array(attributes["ignored"])[0] > 0 if "ignored" in attributes else np.zeros(len(labels_N), bool)
        shown = prediction.scores >= MIN_SHOWN_SCORE
        boxes, labels = prediction.boxes[shown], prediction.labels[shown]
        num_missed = num_false = 0
        for label in {*labels.tolist(), *labels_N[labels_N >= 0].tolist()}:
            own_N = labels_N == label
            iou_MG, share_MG = overlaps(boxes[labels == label], boxes_N4[own_N])
            verdict_M = greedy_matches(iou_MG, share_MG, ignored_N[own_N], MATCH_IOU)
            num_right, num_true = int((verdict_M == HIT).sum()), int((own_N & ~ignored_N).sum())
            num_said = int((verdict_M != IGNORED).sum())
            for counts_K, count in ((self._true_K, num_true), (self._said_K, num_said), (self._right_K, num_right)):
                counts_K[label] += count
            num_missed += num_true - num_right
            num_false += num_said - num_right
        return float(num_missed + num_false), f"{num_missed} missed, {num_false} false"

    def _judge_mask(self, prediction: Prediction, target: Batch) -> tuple[float, str]:
        mask_HW = as_array(target["mask_BHW"])[0]
        known_HW = mask_HW != IGNORE_LABEL
        truth, said = mask_HW[known_HW].astype(np.int64), prediction.mask[known_HW].astype(np.int64)
        num_classes = len(self._true_K)
        counts_KK = np.bincount(truth * num_classes + said, minlength=num_classes**2).reshape(num_classes, num_classes)
        true_K, said_K, right_K = counts_KK.sum(1), counts_KK.sum(0), counts_KK.diagonal()
        self._true_K += true_K
        self._said_K += said_K
        self._right_K += right_K
        self._confusion.update({(int(t), int(s)): int(counts_KK[t, s]) for t, s in np.argwhere(counts_KK)})
        union_K = true_K + said_K - right_K
        if not union_K.any():
            return 0.0, ""
        iou = float((right_K[union_K > 0] / union_K[union_K > 0]).mean())
        return 1 - iou, f"mean IoU {100 * iou:.0f} %"

    def _judge_depth(self, prediction: Prediction, target: Batch) -> tuple[float, str]:
        depth_HW = as_array(target["depth_BHW"])[0]
        known_HW = depth_HW > 0
        if not known_HW.any():
            return 0.0, ""
        truth = depth_HW[known_HW].astype(np.float64)
        error = float((np.abs(prediction.depth[known_HW] - truth) / truth).mean())
        return error, f"off by {100 * error:.0f} %"

    def _count(self, truth: Sequence[int] | set[int], said: Any, right: Any) -> None:
        for counts_K, indices in ((self._true_K, truth), (self._said_K, said), (self._right_K, right)):
            for index in indices:
                counts_K[index] += 1

    def _name(self, index: int) -> str:
        return self._task.class_names[index]


def _order(entry: tuple[float, int, Mistake, Any]) -> tuple[float, int]:
    badness, number, *_ = entry
    return -badness, -number
