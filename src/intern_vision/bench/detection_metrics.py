"""Scores of boxes: COCO, PASCAL VOC, WIDER FACE and CityPersons; numpy only, but for COCO's library.

M detections, G true boxes, A attributes of a true box, N images, K classes, T thresholds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.box_matching import (
    HIT,
    IGNORED,
    area_precision,
    eleven_point_precision,
    greedy_matches,
    nearest_matches,
    overlaps,
    ranked_counts,
)
from intern_vision.bench.metric_base import ListMetric, State, as_array, loaded, require
from intern_vision.errors import ConfigError, DataError

if TYPE_CHECKING:
    from intern_vision.heads.base import Prediction

# Detections kept an image, the best first: CityPersons' cap. 28 bytes each, so at most 28 kB an image.
MAX_KEPT = 1000
# Detections counted an image and class, COCO's largest setting.
MAX_DETECTIONS = 100
MIN_OVERLAP = 0.5
# WIDER FACE's thresholds on scores stretched to [0, 1].
NUM_THRESHOLDS = 1000
WIDER_SETTINGS = ("easy", "medium", "hard")
# Height in pixels and visible share that a pedestrian must have, both ends included (CityPersons' evaluation).
PEDESTRIAN_SETTINGS = {
    "reasonable": ((50, np.inf), (0.65, np.inf)),
    "small": ((50, 75), (0.65, np.inf)),
    "heavy": ((50, np.inf), (0.2, 0.65)),
    "all": ((20, np.inf), (0.2, np.inf)),
}
# A detection this factor outside a setting's heights is not looked at.
HEIGHT_SLACK = 1.25
# False positives an image, as that evaluation rounds them.
FALSE_POSITIVES_PER_IMAGE = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)
# The least miss rate whose logarithm is averaged (Dollar et al., TPAMI 34, 2012, 743-761).
MISS_RATE_FLOOR = 1e-10


class BoxMetric(ListMetric):
    """Keeps the best detections and the true boxes of every image; subclasses score them.

    A detection takes 28 bytes, a true box 24 and 4 an attribute.

    Attributes:
        ATTRIBUTES: keys of ``box_attributes`` that are kept; NaN where a box has none.
    """

    ATTRIBUTES: tuple[str, ...] = ()

    def __init__(self, num_classes: int) -> None:
        """``num_classes`` is the number of box classes."""
        self._num_classes = num_classes
        self._num_images = 0
        super().__init__(
            images_M=np.zeros(0, np.int32),
            boxes_M4=np.zeros((0, 4), np.float32),
            scores_M=np.zeros(0, np.float32),
            labels_M=np.zeros(0, np.int32),
            true_images_G=np.zeros(0, np.int32),
            true_boxes_G4=np.zeros((0, 4), np.float32),
            true_labels_G=np.zeros(0, np.int32),
            true_attributes_GA=np.zeros((0, len(self.ATTRIBUTES)), np.float32),
        )

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``boxes``, ``scores`` and ``labels``; ``boxes_BN4``, ``box_labels_BN`` (negative = padding).

        Of ``box_attributes``, where the batch has it, those named in ``ATTRIBUTES``.
        """
        boxes_BN4, labels_BN = as_array(batch["boxes_BN4"]), as_array(batch["box_labels_BN"])
        known = batch.get("box_attributes", {})
        absent_BN = np.full(labels_BN.shape, np.nan, np.float32)
        columns = [as_array(known[name]) if name in known else absent_BN for name in self.ATTRIBUTES]
        attributes_BNA = np.stack(columns, -1) if columns else np.zeros((*labels_BN.shape, 0), np.float32)
        for row, prediction in enumerate(predictions):
            real_N = labels_BN[row] >= 0
            best_M = np.argsort(-prediction.scores, kind="stable")[:MAX_KEPT]
            self._add(
                images_M=np.full(len(best_M), self._num_images),
                boxes_M4=prediction.boxes[best_M],
                scores_M=prediction.scores[best_M],
                labels_M=prediction.labels[best_M],
                true_images_G=np.full(real_N.sum(), self._num_images),
                true_boxes_G4=boxes_BN4[row][real_N],
                true_labels_G=labels_BN[row][real_N],
                true_attributes_GA=attributes_BNA[row][real_N],
            )
            self._num_images += 1

    def state(self) -> State:
        """The boxes, found and true, in the order of images, with the number of images."""
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

    def resample(self, rng: np.random.Generator) -> Self:
        """Draws images with all their boxes."""
        drawn_N = rng.integers(0, self._num_images, self._num_images) if self._num_images else np.zeros(0, np.int64)
        return loaded(self, images_of(self.state(), drawn_N))

    def _flag(self, attributes_GA: NDArray[np.float32], name: str) -> NDArray[np.bool_]:
        """Where an attribute is set; an unknown one is not."""
        return attributes_GA[:, self.ATTRIBUTES.index(name)] > 0.5

    def _needs(self, state: State, *names: str) -> None:
        columns = [self.ATTRIBUTES.index(name) for name in names]
        counted_G = ~self._flag(state["true_attributes_GA"], "ignored")
        num_unknown = int(np.isnan(state["true_attributes_GA"][counted_G][:, columns]).any(1).sum())
        if num_unknown:
            raise DataError(
                f"batch.box_attributes: expected {', '.join(names)} of every box, {num_unknown} of {counted_G.sum()} "
                "have none; prepare the data set from its official files, or score it by coco_ap"
            )


class DetectionMetric(BoxMetric):
    """``map`` (COCO AP, overlaps 0.50:0.95), ``ap50`` and ``error``, means over the classes present.

    Boxes with the attribute ``ignored`` are COCO's crowds: they absorb detections and count for nothing.
    """

    ATTRIBUTES = ("ignored",)

    def __init__(self, num_classes: int, figure: str = "ap50") -> None:
        """``error`` is 1 - ``figure``, which is ``ap50`` or ``map``."""
        super().__init__(num_classes)
        self._figure = figure

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        state = in_canonical_order(self.state())
        crowd_G = self._flag(state["true_attributes_GA"], "ignored")
        require((~crowd_G).sum(), "boxes_BN4", "a true box")
        precision_TRK = _coco_precision(state, crowd_G, self._num_classes)
        # -1 marks a class without a true box; COCO leaves it out of the mean.
        mean = float(precision_TRK[precision_TRK > -1].mean())
        ap50 = float(precision_TRK[0][precision_TRK[0] > -1].mean())
        return {"error": 1 - (mean if self._figure == "map" else ap50), "ap50": ap50, "map": mean}


class VocMetric(BoxMetric):
    """``voc_ap50`` (11 recalls, as VOC 2007), ``voc_ap50_area`` (as from 2010 on) and ``error`` = 1 - ``voc_ap50``.

    Means over the classes present. A detection is judged by the true box of its class that it overlaps most, at 0.5
    or more; later detections of a found box are wrong; boxes with the attribute ``difficult`` (or ``ignored``) are
    neither to be found nor wrong to find.

    The VOC2007 development kit takes box corners for pixels inside the box, and adds 1 to each width and height.
    Here boxes are continuous and end behind their last pixel, so a width is a difference and the overlaps are the
    kit's. Detections of equal score make one step of the curve; the kit leaves their order to the sorting.
    """

    ATTRIBUTES = ("ignored", "difficult")

    def compute(self) -> dict[str, float]:
        """All in [0, 1]."""
        state = self.state()
        skipped_G = (state["true_attributes_GA"] > 0.5).any(1)
        num_true_K = np.bincount(state["true_labels_G"][~skipped_G], minlength=self._num_classes)
        require(num_true_K.sum(), "boxes_BN4", "a true box that is not difficult")
        verdict_M = np.zeros(len(state["scores_M"]), np.int8)
        for found, true in image_slices(state):
            overlap_MG, _ = overlaps(state["boxes_M4"][found], state["true_boxes_G4"][true])
            # Below any true overlap, so that the nearest box is one of the same class where there is any.
            overlap_MG[state["labels_M"][found][:, None] != state["true_labels_G"][true]] = -1.0
            verdict_M[found] = nearest_matches(overlap_MG, skipped_G[true], MIN_OVERLAP)
        scores = []
        for label in np.flatnonzero(num_true_K):
            of_class = state["labels_M"] == label
            counts = ranked_counts(state["scores_M"][of_class], verdict_M[of_class])
            num_true = int(num_true_K[label])
            scores.append((eleven_point_precision(*counts, num_true), area_precision(*counts, num_true)))
        eleven, area = np.mean(scores, 0).tolist()
        return {"error": 1 - eleven, "voc_ap50": eleven, "voc_ap50_area": area}


class WiderMetric(BoxMetric):
    """``ap_easy``, ``ap_medium``, ``ap_hard`` as WIDER FACE's evaluation, and ``error`` = 1 - their mean.

    The official evaluation, arXiv 1511.06523: scores are stretched to [0, 1] over the data set and cut at 1000
    thresholds; a setting's faces are those flagged with its attribute, all others absorb detections; a detection is
    judged by the face it overlaps most, at 0.5 or more, with 1 px added to every side; images without a face are left
    out; the area under the curve is VOC's.
    """

    ATTRIBUTES = ("ignored", *WIDER_SETTINGS)

    def __init__(self, num_classes: int) -> None:
        """One class only."""
        super().__init__(num_classes)
        _require_one_class("wider_ap", num_classes)

    def compute(self) -> dict[str, float]:
        """All in [0, 1]; a setting without a face is left out."""
        state = self.state()
        self._needs(state, *WIDER_SETTINGS)
        ignored_G = self._flag(state["true_attributes_GA"], "ignored")
        counted = {name: self._flag(state["true_attributes_GA"], name) & ~ignored_G for name in WIDER_SETTINGS}
        counted = {name: counted_G for name, counted_G in counted.items() if counted_G.any()}
        require(len(counted), "boxes_BN4", "a face that is easy, medium or hard")
        counts_T2 = {name: np.zeros((NUM_THRESHOLDS, 2), np.int64) for name in counted}
        scores_M = _stretched(state["scores_M"])
        # 0.999, 0.998 .. 0: the last takes every detection.
        thresholds_T = 1 - np.arange(1, NUM_THRESHOLDS + 1) / NUM_THRESHOLDS
        for found, true in image_slices(state):
            if true.start == true.stop:
                continue
            overlap_MG, _ = overlaps(state["boxes_M4"][found], state["true_boxes_G4"][true], extra_px=1.0)
            num_taken_T = np.searchsorted(-scores_M[found], -thresholds_T, side="right")
            for name, counted_G in counted.items():
                verdict_M = nearest_matches(overlap_MG, ~counted_G[true], MIN_OVERLAP)
                steps_M2 = np.stack([verdict_M == HIT, verdict_M != IGNORED], 1)
                counts_T2[name] += np.concatenate([np.zeros((1, 2), int), np.cumsum(steps_M2, 0)])[num_taken_T]
        scores = {
            f"ap_{name}": area_precision(hits_T, taken_T - hits_T, int(counted[name].sum()))
            for name, (hits_T, taken_T) in ((name, counts.T) for name, counts in counts_T2.items())
        }
        return {"error": 1 - float(np.mean(list(scores.values()))), **scores}


class MissRateMetric(BoxMetric):
    """``miss_rate_reasonable``, ``_small``, ``_heavy`` and ``_all``, and ``error``, the mean of reasonable and heavy.

    Log-average miss rates as CityPersons' evaluation makes them (arXiv 1702.05693, after Dollar et al., TPAMI 34,
    2012): the geometric mean of the miss rates at nine numbers of false positives an image, from 0.01 to 1. A
    setting's pedestrians are those within its heights and visible shares; all others, and boxes with the attribute
    ``ignored``, absorb detections that lie in them by half of their own area. Detections whose height is off by more
    than a factor of 1.25 are not looked at.

    Where even the best detection makes more false positives than a point allows, the miss rate there is 1: the
    published script takes the last point of the curve instead, which only happens below 100 images.
    """

    ATTRIBUTES = ("ignored", "height_px", "visible_share")

    def __init__(self, num_classes: int) -> None:
        """One class only."""
        super().__init__(num_classes)
        _require_one_class("log_average_miss_rate", num_classes)

    def compute(self) -> dict[str, float]:
        """All in [1e-10, 1]; a setting without a pedestrian is left out."""
        state = self.state()
        self._needs(state, "height_px", "visible_share")
        rates = {name: self._miss_rate(state, *ranges) for name, ranges in PEDESTRIAN_SETTINGS.items()}
        scores = {f"miss_rate_{name}": rate for name, rate in rates.items() if rate is not None}
        main = [scores[name] for name in ("miss_rate_reasonable", "miss_rate_heavy") if name in scores]
        require(len(main), "box_attributes", "a pedestrian of at least 50 px that is visible by 0.2 or more")
        return {"error": float(np.mean(main)), **scores}

    def _miss_rate(self, state: State, heights_px: tuple[float, float], shares: tuple[float, float]) -> float | None:
        _, height_G, share_G = state["true_attributes_GA"].T
        counted_G = ~self._flag(state["true_attributes_GA"], "ignored")
        counted_G &= (height_G >= heights_px[0]) & (height_G <= heights_px[1])
        # The attributes are float32, so the bounds must be rounded alike for 0.65 to be 0.65.
        counted_G &= (share_G >= np.float32(shares[0])) & (share_G <= np.float32(shares[1]))
        num_true = int(counted_G.sum())
        if not num_true:
            return None
        height_M = state["boxes_M4"][:, 3] - state["boxes_M4"][:, 1]
        fits_M = (height_M >= heights_px[0] / HEIGHT_SLACK) & (height_M < heights_px[1] * HEIGHT_SLACK)
        verdict_M = np.full(len(height_M), IGNORED, np.int8)
        for found, true in image_slices(state):
            fits = fits_M[found]
            pair_MG = overlaps(state["boxes_M4"][found][fits], state["true_boxes_G4"][true])
            verdict_M[found][fits] = greedy_matches(*pair_MG, ~counted_G[true], MIN_OVERLAP)
        hits_J, misses_J = ranked_counts(state["scores_M"], verdict_M)
        step = np.searchsorted(misses_J / self._num_images, FALSE_POSITIVES_PER_IMAGE, side="right")
        recall = np.concatenate([[0.0], hits_J / num_true])[step]
        return float(np.exp(np.log((1 - recall).clip(MISS_RATE_FLOOR)).mean()))


def image_slices(state: State) -> Iterator[tuple[slice, slice]]:
    """For each image its rows among the detections, best first, and among the true boxes."""
    edges = np.arange(int(state["num_images"]) + 1)
    found, true = (np.searchsorted(state[name], edges).tolist() for name in ("images_M", "true_images_G"))
    for image in range(len(edges) - 1):
        yield slice(found[image], found[image + 1]), slice(true[image], true[image + 1])


def images_of(state: State, images_N: NDArray[np.integer[Any]]) -> State:
    """The state as if the data set had been these images in this order, some perhaps repeated."""
    taken: State = {"num_images": np.array(len(images_N))}
    for column, prefix in (("images_M", ""), ("true_images_G", "true_")):
        start_N = np.searchsorted(state[column], images_N)
        count_N = np.searchsorted(state[column], images_N, side="right") - start_N
        new_image_M = np.repeat(np.arange(len(images_N)), count_N)
        row_M = np.arange(len(new_image_M)) + (start_N - (np.cumsum(count_N) - count_N))[new_image_M]
        names = [name for name in state if name != "num_images" and name.startswith("true_") == bool(prefix)]
        taken |= {name: state[name][row_M] for name in names} | {column: new_image_M.astype(np.int32)}
    return taken


def in_canonical_order(state: State) -> State:
    """The images in an order that follows from their boxes alone; images that swap places are equal."""
    columns = [name for name in state if name not in ("num_images", "images_M", "true_images_G")]
    digests = [
        hashlib.blake2b(
            b"".join(state[name][true if name.startswith("true_") else found].tobytes() for name in columns)
        ).digest()
        for found, true in image_slices(state)
    ]
    return images_of(state, np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64))


def _coco_precision(state: State, crowd_G: NDArray[np.bool_], num_classes: int) -> NDArray[np.float64]:
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
    for annotation, crowd in zip(truth, crowd_G.tolist(), strict=True):
        annotation["iscrowd"] = int(crowd)
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


def _stretched(scores_M: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores moved and scaled so that the data set's least is 0 and its greatest 1."""
    if not len(scores_M):
        return scores_M.astype(np.float64)
    low, high = float(scores_M.min()), float(scores_M.max())
    return (scores_M.astype(np.float64) - low) / ((high - low) or 1.0)


def _require_one_class(name: str, num_classes: int) -> None:
    if num_classes != 1:
        raise ConfigError(f"metric: {name} is for one class, but the task has {num_classes}; choose coco_ap")


def _silent(*_: object) -> None:
    """Where the COCO library's progress lines go."""
