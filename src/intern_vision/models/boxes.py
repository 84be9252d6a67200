"""Boxes as ``x0 y0 x1 y1``. N and M count boxes; a box covers ``x0 <= x < x1``, ``y0 <= y < y1``."""

import torch
from torch import Tensor


def box_area(boxes_N4: Tensor) -> Tensor:
    """Areas ``(N,)`` in squared units of the coordinates; a box with a negative side has area 0."""
    sides_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clamp(min=0)
    return sides_N2[:, 0] * sides_N2[:, 1]


def box_iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Intersection over union of every pair, ``(N, M)``, 0 to 1; 0 where both boxes are empty."""
    top_left_NM2 = torch.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    bottom_right_NM2 = torch.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    overlap_NM = (bottom_right_NM2 - top_left_NM2).clamp(min=0).prod(-1)
    union_NM = box_area(a_N4)[:, None] + box_area(b_M4)[None] - overlap_NM
    return torch.where(union_NM > 0, overlap_NM / union_NM.clamp(min=torch.finfo(union_NM.dtype).tiny), 0)


def clip_boxes(boxes_N4: Tensor, height_px: int, width_px: int) -> Tensor:
    """The boxes cut at the borders of an image, in pixels."""
    limits_4 = boxes_N4.new_tensor([width_px, height_px, width_px, height_px])
    return torch.minimum(boxes_N4.clamp(min=0), limits_4)


def batched_nms(boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each label.

    Boxes are visited by falling score, equal scores by index; one is kept unless it overlaps a
    kept box of its label by more than the threshold. Memory grows with ``N * N``: keep the best
    few thousand boxes before calling.

    Args:
        boxes_N4: floating point.
        scores_N: floating point.
        labels_N: integers.
        iou_threshold: 0 to 1.

    Returns:
        Indices of the kept boxes, int64, by falling score.
    """
    order_N = scores_N.argsort(descending=True, stable=True)
    boxes_N4, labels_N = boxes_N4[order_N], labels_N[order_N]
    suppresses_NN = (box_iou(boxes_N4, boxes_N4) > iou_threshold) & (labels_N[:, None] == labels_N[None])
    suppresses_NN = suppresses_NN.triu(1)
    # The greedy result is the only fixed point. Each round settles at least one more box, and in
    # practice a handful of rounds settles all, against one step a kept box in the usual loop.
    kept_N = torch.ones_like(labels_N, dtype=torch.bool)
    while True:
        next_N = ~(suppresses_NN & kept_N[:, None]).any(0)
        if torch.equal(next_N, kept_N):
            return order_N[kept_N]
        kept_N = next_N
