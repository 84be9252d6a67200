"""Which detection is which true box, and precision over ranked detections; numpy only.

M detections, G true boxes, J distinct scores, all of one image or one class unless said otherwise. Boxes are
``x0 y0 x1 y1`` in pixels, continuous: a box from column 2 up to and with column 4 spans 2 to 5.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.floating[Any]]
HIT, MISS, IGNORED = 1, 0, -1


def overlaps(boxes_M4: Boxes, truth_G4: Boxes, *, extra_px: float = 0.0) -> tuple[NDArray[np.float64], ...]:
    """Overlap of every detection with every true box.

    Args:
        boxes_M4: detections.
        truth_G4: true boxes.
        extra_px: added to every width and height; 1 for evaluations that take the second corner for a pixel inside.

    Returns:
        Intersection over union and intersection over the detection's own area, both ``(M, G)`` in [0, 1].
    """
    boxes_M4, truth_G4 = boxes_M4.astype(np.float64), truth_G4.astype(np.float64)
    low_MG2 = np.maximum(boxes_M4[:, None, :2], truth_G4[None, :, :2])
    high_MG2 = np.minimum(boxes_M4[:, None, 2:], truth_G4[None, :, 2:])
    shared_MG = (high_MG2 - low_MG2 + extra_px).clip(0).prod(2)
    own_M1 = (boxes_M4[:, 2:] - boxes_M4[:, :2] + extra_px).prod(1)[:, None]
    union_MG = own_M1 + (truth_G4[:, 2:] - truth_G4[:, :2] + extra_px).prod(1) - shared_MG
    # A box without an area overlaps nothing.
    return tuple(
        np.divide(shared_MG, area, out=np.zeros_like(shared_MG), where=area > 0) for area in (union_MG, own_M1)
    )


def nearest_matches(
    overlap_MG: NDArray[np.float64], ignored_G: NDArray[np.bool_], threshold: float
) -> NDArray[np.int8]:
    """Judges each detection by the one true box it overlaps most, as PASCAL VOC and WIDER FACE do.

    Args:
        overlap_MG: rows in the order of falling scores.
        ignored_G: true boxes that are neither to be found nor wrong to find.
        threshold: least overlap.

    Returns:
        ``(M,)``: ``HIT`` for the first detection of a true box, ``MISS`` for later ones and for those that overlap
        none, ``IGNORED``.
    """
    verdict_M = np.full(len(overlap_MG), MISS, np.int8)
    if overlap_MG.size:
        nearest_M = overlap_MG.argmax(1)
        near_M = overlap_MG.max(1) >= threshold
        verdict_M[near_M & ignored_G[nearest_M]] = IGNORED
        sought = np.flatnonzero(near_M & ~ignored_G[nearest_M])
        verdict_M[sought[np.unique(nearest_M[sought], return_index=True)[1]]] = HIT
    return verdict_M


def greedy_matches(
    iou_MG: NDArray[np.float64], share_MG: NDArray[np.float64], ignored_G: NDArray[np.bool_], threshold: float
) -> NDArray[np.int8]:
    """Gives each detection the free true box it overlaps most, else an ignored one, as COCO's evaluation does.

    Args:
        iou_MG: intersection over union, rows in the order of falling scores.
        share_MG: intersection over the detection's area, which decides for ignored boxes.
        ignored_G: true boxes that take any number of detections and count for nothing.
        threshold: least overlap; of equal overlaps the last true box is taken.

    Returns:
        As ``nearest_matches``.
    """
    verdict_M = np.where((share_MG[:, ignored_G] >= threshold).any(1), IGNORED, MISS).astype(np.int8)
    sought = np.flatnonzero(~ignored_G)
    free_G = np.ones(len(sought), bool)
    for row in np.flatnonzero((iou_MG[:, sought] >= threshold).any(1)):
        overlap_G = np.where(free_G, iou_MG[row, sought], -1.0)
        best = len(overlap_G) - 1 - int(overlap_G[::-1].argmax())
        if overlap_G[best] >= threshold:
            verdict_M[row], free_G[best] = HIT, False
    return verdict_M


def ranked_counts(
    scores_M: NDArray[np.floating[Any]], verdict_M: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hits and misses among the detections that score at least so much, for each score that occurs, falling.

    Equal scores make one step, so that the result does not depend on the order of images.

    Returns:
        Two arrays ``(J,)`` that never fall.
    """
    counted = verdict_M != IGNORED
    scores, hits = scores_M[counted], verdict_M[counted] == HIT
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)[: len(order)])
    return np.cumsum(hits[order])[last], np.cumsum(~hits[order])[last]


def eleven_point_precision(hits_J: NDArray[np.int64], misses_J: NDArray[np.int64], num_true: int) -> float:
    """Mean over the recalls 0, 0.1 .. 1 of the best precision at that recall or more (PASCAL VOC 2007).

    Recalls are compared in whole numbers: 3 of 10 is a recall of 0.3, which binary fractions may deny.
    """
    precision_J = hits_J / (hits_J + misses_J)
    return sum(float(precision_J[10 * hits_J >= k * num_true].max(initial=0.0)) for k in range(11)) / 11


def area_precision(hits_J: NDArray[Any], misses_J: NDArray[Any], num_true: int) -> float:
    """Area under the precision-recall curve whose precision is made to fall only (PASCAL VOC from 2010 on)."""
    total_J = hits_J + misses_J
    precision_J = np.divide(hits_J, total_J, out=np.zeros(len(total_J)), where=total_J > 0)
    recall = np.concatenate([[0.0], hits_J / num_true])
    return float(np.sum(np.diff(recall) * np.maximum.accumulate(precision_J[::-1])[::-1]))
