"""Regions of two-stage detectors: anchors, box coding, matching, sampling, pooling.

A anchors or regions, B batch, C channels, H W height and width, N true boxes, P side of a pooled region,
R regions, S samples, X cells of all levels. Every shape is fixed by the inputs' shapes, and random choices come
from torch's generator, so no function but the caller's suppression waits for the device.
Sources: Faster R-CNN (arXiv 1506.01497), FPN (1612.03144), Mask R-CNN (1703.06870, RoIAlign).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from intern_vision.models.boxes import box_iou

# A decoded side is at most this many times the reference's: exp must not overflow (Detectron's limit of 1000 / 16).
MAX_LOG_SCALE = math.log(1000 / 16)
# Shorter sides count as this long in the coding, so that padding gives finite numbers.
MIN_SIDE_PX = 1e-3


def anchor_shapes(scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """``(len(scales) * len(ratios), 2)`` float32 widths and heights in cells, scale by scale.

    Args:
        scales: square root of the area, in cells.
        ratios: height over width.
    """
    shapes = [(scale / math.sqrt(ratio), scale * math.sqrt(ratio)) for scale in scales for ratio in ratios]
    return torch.tensor(shapes, dtype=torch.float32)


def grid_anchors(shapes_A2: Tensor, stride_px: int, map_size: tuple[int, int]) -> Tensor:
    """Anchors of one level in pixels, ``(H * W * A, 4)`` float32: rows, then columns, then shapes.

    Anchors are centred on the cells, ``(x + 0.5) * stride``, which is where ``roi_align`` puts a cell's value.

    Args:
        shapes_A2: widths and heights in cells, see ``anchor_shapes``.
        stride_px: pixels a cell.
        map_size: ``(H, W)``.
    """
    y_H, x_W = (torch.arange(cells, device=shapes_A2.device) + 0.5 for cells in map_size)
    centre_HW12 = torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), -1).unsqueeze(2)
    half_A2 = shapes_A2 / 2
    return torch.cat([centre_HW12 - half_A2, centre_HW12 + half_A2], -1).view(-1, 4) * stride_px


def _centres_and_sides(boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    sides_N2 = (boxes_N4[..., 2:] - boxes_N4[..., :2]).clamp_min(MIN_SIDE_PX)
    return (boxes_N4[..., :2] + boxes_N4[..., 2:]) / 2, sides_N2


def encode_boxes(boxes_N4: Tensor, reference_N4: Tensor, deviations: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """Boxes as offsets from references, ``(..., 4)`` dx dy dw dh (Faster R-CNN, equation 2).

    Args:
        boxes_N4: boxes in pixels.
        reference_N4: anchors or regions in pixels.
        deviations: what centre offsets and log sizes are divided by.
    """
    (centre, sides), (from_centre, from_sides) = _centres_and_sides(boxes_N4), _centres_and_sides(reference_N4)
    shift = (centre - from_centre) / from_sides / deviations[0]
    return torch.cat([shift, (sides / from_sides).log() / deviations[1]], -1)


def decode_boxes(deltas_N4: Tensor, reference_N4: Tensor, deviations: Sequence[float] = (1.0, 1.0)) -> Tensor:
    """The inverse of ``encode_boxes``: boxes in pixels, float32; sides grow at most 62.5-fold."""
    deltas_N4 = deltas_N4.float()
    from_centre, from_sides = _centres_and_sides(reference_N4)
    centre = from_centre + deltas_N4[..., :2] * deviations[0] * from_sides
    half = from_sides * (deltas_N4[..., 2:] * deviations[1]).clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def match_boxes(
    boxes_BA4: Tensor, truth_BN4: Tensor, valid_BN: Tensor, *, low_quality: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The true box that each anchor or region overlaps most.

    The true boxes are visited one by one, so memory grows with ``B * A`` whatever N is.

    Args:
        boxes_BA4: ``(B or 1, A, 4)`` in pixels.
        truth_BN4: true boxes in pixels.
        valid_BN: bool; False marks padding.
        low_quality: whether the boxes that overlap some true box most (and at all) are bound to it, however small
            the overlap (Faster R-CNN, section 3.1.2, rule i); of several such true boxes the better overlapped.

    Returns:
        ``overlap_BA`` with any true box, 0 to 1; ``index_BA`` of the true box, int64, 0 where there is none;
        ``bound_BA`` bool, all False without ``low_quality``.
    """
    shape_BA = (len(truth_BN4), boxes_BA4.shape[1])
    overlap_BA, bound_overlap_BA = boxes_BA4.new_zeros(shape_BA), boxes_BA4.new_zeros(shape_BA)
    index_BA = torch.zeros(shape_BA, dtype=torch.int64, device=boxes_BA4.device)
    bound_index_BA = index_BA
    for n in range(truth_BN4.shape[1]):
        iou_BA = box_iou(boxes_BA4, truth_BN4[:, n : n + 1]).squeeze(-1) * valid_BN[:, n : n + 1]
        index_BA = torch.where(iou_BA > overlap_BA, n, index_BA)
        overlap_BA = torch.maximum(iou_BA, overlap_BA)
        if low_quality:
            binds_BA = (iou_BA == iou_BA.amax(1, keepdim=True)) & (iou_BA > bound_overlap_BA)
            bound_index_BA = torch.where(binds_BA, n, bound_index_BA)
            bound_overlap_BA = torch.where(binds_BA, iou_BA, bound_overlap_BA)
    bound_BA = bound_overlap_BA > 0
    return overlap_BA, torch.where(bound_BA, bound_index_BA, index_BA), bound_BA


def sample_balanced(
    positive_BA: Tensor, negative_BA: Tensor, num_samples: int, positive_share: float
) -> tuple[Tensor, Tensor]:
    """Random positives up to their share, filled up with random negatives.

    Args:
        positive_BA: bool.
        negative_BA: bool, nowhere True with the positives.
        num_samples: samples an image; fewer where an image has fewer candidates.
        positive_share: largest share of positives, 0 to 1.

    Returns:
        ``index_BS`` int64, positives first; ``valid_BS`` bool, False where the image had too few candidates.
        S is ``num_samples``, or A where that is less.
    """
    num_candidates = positive_BA.shape[1]
    num_samples = min(num_samples, num_candidates)
    num_positives = min(int(num_samples * positive_share), num_candidates)
    dice_BA = torch.rand(positive_BA.shape, device=positive_BA.device)
    order_BS = torch.where(positive_BA, dice_BA, -1.0).topk(num_positives, dim=1).indices
    chosen_BA = torch.zeros_like(positive_BA).scatter(1, order_BS, True) & positive_BA
    # Above every negative's number: positives come first, then negatives in random order, then the rest.
    rank_BA = torch.where(chosen_BA, 2.0, torch.where(negative_BA, dice_BA, -1.0))
    rank_BS, index_BS = rank_BA.topk(num_samples, dim=1)
    return index_BS, rank_BS >= 0


def take_rows(x_BA4: Tensor, index_BS: Tensor) -> Tensor:
    """The rows ``(B, S, 4)`` of each image at its indices, such as those of ``sample_balanced``."""
    return x_BA4.gather(1, index_BS.unsqueeze(-1).expand(-1, -1, x_BA4.shape[-1]))


def roi_levels(boxes_R4: Tensor, strides: Sequence[int], canonical_cells: float) -> Tensor:
    """The pyramid level ``(...)`` int64 that serves a region: the coarsest on which it is large enough.

    Args:
        boxes_R4: regions in pixels.
        strides: pixels a cell, fine to coarse.
        canonical_cells: square root of the area, in a level's cells, from which the level serves; for strides that
            are powers of two, 14 is equation 1 of FPN (224 px on the level of stride 16).
    """
    sides_R2 = (boxes_R4[..., 2:] - boxes_R4[..., :2]).clamp_min(0)
    side_R = (sides_R2[..., 0] * sides_R2[..., 1]).sqrt()
    # The small share keeps a region of exactly the limit on its side of it in float32.
    reached = [side_R * (1 + 1e-6) >= canonical_cells * stride for stride in strides[1:]]
    return torch.stack([torch.zeros_like(side_R, dtype=torch.int64), *(r.long() for r in reached)]).sum(0)


def roi_align(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes_BR4: Tensor,
    *,
    size: int,
    sampling_ratio: int,
    canonical_cells: float,
) -> Tensor:
    """Pools each region to ``P x P`` bins from its level of a pyramid (Mask R-CNN, section 3).

    Each bin is the mean of ``sampling_ratio ** 2`` bilinear samples. A cell's value lies at the cell's centre
    (the "aligned" form); samples within a cell of the border take the border's value, those further out 0.

    Args:
        maps: ``(B, C, H_k, W_k)`` floating point, fine to coarse.
        strides: pixels a cell of each map.
        boxes_BR4: regions in pixels; no gradient flows into them.
        size: P.
        sampling_ratio: samples a bin and axis.
        canonical_cells: see ``roi_levels``.

    Returns:
        ``(B, R, P, P, C)``, float32 (float64 for float64 maps); rows before columns.
    """
    batch_size, num_channels = maps[0].shape[:2]
    dtype = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
    table_XC = torch.cat([x_BCHW.flatten(2).transpose(1, 2) for x_BCHW in maps], 1).to(dtype).flatten(0, 1)
    sizes = [tuple(x_BCHW.shape[-2:]) for x_BCHW in maps]
    starts = [sum(height * width for height, width in sizes[:level]) for level in range(len(sizes))]
    levels = torch.tensor([(*size, start) for size, start in zip(sizes, starts, strict=True)], device=boxes_BR4.device)
    strides_L = torch.tensor(strides, device=boxes_BR4.device)
    boxes_BR4 = boxes_BR4.detach().to(dtype)
    level_BR = roi_levels(boxes_BR4, strides, canonical_cells)
    height_BR, width_BR, start_BR = levels[level_BR].unbind(-1)
    x0, y0, x1, y1 = (boxes_BR4 / strides_L[level_BR].unsqueeze(-1) - 0.5).unbind(-1)
    row_BRPS, row_weight_BRPS = _axis_samples(y0, y1, height_BR, size, sampling_ratio)
    column_BRPS, column_weight_BRPS = _axis_samples(x0, x1, width_BR, size, sampling_ratio)
    image_B1 = torch.arange(batch_size, device=boxes_BR4.device).unsqueeze(1) * (len(table_XC) // batch_size)
    # Bilinear weights are products of a row's and a column's, and so are the means over samples.
    cell_BRPPSS = (
        (image_B1 + start_BR)[..., None, None, None, None]
        + (row_BRPS * width_BR[..., None, None])[:, :, :, None, :, None]
        + column_BRPS[:, :, None, :, None, :]
    )
    weight_BRPPSS = row_weight_BRPS[:, :, :, None, :, None] * column_weight_BRPS[:, :, None, :, None, :]
    # One fused gather and weighted sum: the gathered cells are never stored. Its backward pass sorts the indices,
    # which 32 bits make cheaper.
    cells, weights = (x_BRPPSS.flatten(4).flatten(0, 3) for x_BRPPSS in (cell_BRPPSS, weight_BRPPSS))
    pooled = F.embedding_bag(cells.int(), table_XC, mode="sum", per_sample_weights=weights)
    return pooled.view(batch_size, -1, size, size, num_channels)


def _axis_samples(
    low_BR: Tensor, high_BR: Tensor, num_cells_BR: Tensor, size: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Cells and weights, ``(B, R, P, 2 * sampling_ratio)``, of each bin's samples along one axis."""
    num_samples = size * sampling_ratio
    share_T = (torch.arange(num_samples, dtype=low_BR.dtype, device=low_BR.device) + 0.5) / num_samples
    at_BRT = low_BR.unsqueeze(-1) + (high_BR - low_BR).unsqueeze(-1) * share_T
    last_BR1 = (num_cells_BR - 1).unsqueeze(-1)
    inside_BRT = (at_BRT >= -1) & (at_BRT <= last_BR1 + 1)
    at_BRT = torch.minimum(at_BRT.clamp_min(0), last_BR1.to(at_BRT.dtype))
    before_BRT = at_BRT.floor()
    after_weight_BRT = at_BRT - before_BRT
    before_BRT = before_BRT.long()
    cells = torch.stack([before_BRT, torch.minimum(before_BRT + 1, last_BR1)], -1)
    weights = torch.stack([1 - after_weight_BRT, after_weight_BRT], -1) * inside_BRT.unsqueeze(-1) / sampling_ratio
    shape = (*low_BR.shape, size, 2 * sampling_ratio)
    return cells.view(shape), weights.view(shape)
