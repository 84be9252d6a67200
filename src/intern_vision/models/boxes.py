"""Boxes as ``x0 y0 x1 y1``. N and M count boxes; a box covers ``x0 <= x < x1``, ``y0 <= y < y1``.

Leading axes (written ``...``) are batch axes and broadcast; most callers have none or one.
"""

import torch
from torch import Tensor


def box_area(boxes_N4: Tensor) -> Tensor:
    """Areas ``(..., N)`` in squared units of the coordinates; a box with a negative side has area 0."""
    sides_N2 = (boxes_N4[..., 2:] - boxes_N4[..., :2]).clamp(min=0)
    return sides_N2[..., 0] * sides_N2[..., 1]


def box_iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Intersection over union of every pair, ``(..., N, M)``, 0 to 1; 0 where both boxes are empty."""
    # Each coordinate in one run of memory: strided by four, no operation below would be vectorised.
    a_x0, a_y0, a_x1, a_y1 = a_N4.movedim(-1, 0).contiguous().unsqueeze(-1)
    b_x0, b_y0, b_x1, b_y1 = b_M4.movedim(-1, 0).contiguous().unsqueeze(-2)
    across_NM = (torch.minimum(a_x1, b_x1) - torch.maximum(a_x0, b_x0)).clamp(min=0)
    down_NM = (torch.minimum(a_y1, b_y1) - torch.maximum(a_y0, b_y0)).clamp(min=0)
    overlap_NM = across_NM * down_NM
    union_NM = box_area(a_N4).unsqueeze(-1) + box_area(b_M4).unsqueeze(-2) - overlap_NM
    return overlap_NM / union_NM.clamp(min=torch.finfo(union_NM.dtype).tiny)


def clip_boxes(boxes_N4: Tensor, height_px: int, width_px: int) -> Tensor:
    """The boxes ``(..., N, 4)`` cut at the borders of an image, in pixels."""
    x_N2, y_N2 = boxes_N4[..., 0::2].clamp(0, width_px), boxes_N4[..., 1::2].clamp(0, height_px)
    return torch.stack([x_N2, y_N2], -1).flatten(-2)


def greedy_keep(boxes_N4: Tensor, valid_N: Tensor, iou_threshold: float, labels_N: Tensor | None = None) -> Tensor:
    """Greedy non-maximum suppression of boxes that lie in falling order of score.

    A valid box is kept unless it overlaps an earlier kept box of its label by more than the
    threshold. Memory grows with ``N * N`` for each entry of the leading axes.

    Args:
        boxes_N4: ``(..., N, 4)`` floating point.
        valid_N: ``(..., N)`` bool; an invalid box neither is kept nor suppresses.
        iou_threshold: 0 to 1.
        labels_N: ``(..., N)`` integers; None = all boxes have one label.

    Returns:
        ``(..., N)`` bool.
    """
    suppresses_NN = box_iou(boxes_N4, boxes_N4) > iou_threshold
    if labels_N is not None:
        suppresses_NN &= labels_N.unsqueeze(-1) == labels_N.unsqueeze(-2)
    counts_NN = suppresses_NN.triu(1).to(boxes_N4.dtype)
    # The greedy result is the only fixed point. Each round settles at least one more box, and in
    # practice a handful of rounds settles all, against one step a kept box in the usual loop.
    kept_N = valid_N
    while True:
        num_suppressors_N = (kept_N.to(boxes_N4.dtype).unsqueeze(-2) @ counts_NN).squeeze(-2)
        next_N = valid_N & (num_suppressors_N == 0)
        if torch.equal(next_N, kept_N):
            return kept_N
        kept_N = next_N


def batched_nms(boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each label.

    Boxes are visited by falling score, equal scores by index; see ``greedy_keep``. Keep the best
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
    valid_N = torch.ones_like(labels_N, dtype=torch.bool)
    return order_N[greedy_keep(boxes_N4[order_N], valid_N, iou_threshold, labels_N[order_N])]
