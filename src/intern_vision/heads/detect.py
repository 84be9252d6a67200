"""Boxes as centre points. B batch, N boxes, M kept boxes, K classes, F pyramid width, H W height and width, X = HW."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.heads import HeadConfig
from intern_vision.heads.base import Batch, MapHead, Prediction, to_numpy
from intern_vision.models.boxes import batched_nms, clip_boxes
from intern_vision.models.features import Features
from intern_vision.models.necks import conv_norm_relu
from intern_vision.task import Task

# Log-odds of a centre before anything is learned, about 0.1 (CenterNet's own value).
HEATMAP_PRIOR_BIAS = -2.19
FOCAL_ALPHA = 2
FOCAL_BETA = 4
# A box whose corners move by the radius still overlaps the truth by this much (mmdetection's CenterNetHead).
MIN_OVERLAP = 0.3
# Boxes splatted at once: bounds the memory to B * 64 * H * W values whatever N is.
SPLAT_CHUNK = 64


class DetectHead(MapHead):
    """CenterNet (arXiv 1904.07850): a centre heatmap a class, and the size and centre offset of the box there.

    Sizes and offsets are in cells of the pyramid's finest map.
    """

    def __init__(
        self, task: Task, channels: Sequence[int], strides: Sequence[int], config: HeadConfig, frozen_features: bool
    ) -> None:
        """See ``build_head``."""
        super().__init__(task, channels, strides, config, frozen_features)
        width = config.neck_width
        self.conv = conv_norm_relu(width, width)
        self.heatmap = nn.Conv2d(width, task.num_classes, 1)
        self.size = nn.Conv2d(width, 2, 1)
        self.offset = nn.Conv2d(width, 2, 1)
        nn.init.constant_(self.heatmap.bias, HEATMAP_PRIOR_BIAS)

    def shared_prefixes(self) -> tuple[str, ...]:
        """All but the heatmap, whose channels are classes."""
        return ("neck", "conv", "size", "offset")

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``heatmap_BKHW`` logits, ``size_B2HW`` (width, height) and ``offset_B2HW`` (x, y)."""
        x_BFHW = self.conv(self.pyramid_map(features))
        return {
            "heatmap_BKHW": self.heatmap(x_BFHW),
            "size_B2HW": self.size(x_BFHW),
            "offset_B2HW": self.offset(x_BFHW),
        }

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``heatmap`` focal loss, and ``size`` and ``offset`` L1 losses at the true centres.

        A class that a sample's source does not annotate (``known_BK``) takes no part there: its heatmap gets no
        gradient, so its objects are no background.
        """
        logits_BKHW = outputs["heatmap_BKHW"].float()
        boxes_BN4, labels_BN = self._target(batch, "boxes_BN4"), self._target(batch, "box_labels_BN")
        height, width = logits_BKHW.shape[-2:]
        centre_BN2, size_BN2, valid_BN = centres_and_sizes(boxes_BN4, labels_BN, self.neck.stride, (height, width))
        known_BK = batch.get("known_BK")
        if known_BK is not None:
            valid_BN = valid_BN & known_BK.gather(1, labels_BN.clamp_min(0))
        cell_BN2 = centre_BN2.floor()
        target_BKHW = gaussian_heatmap(cell_BN2, size_BN2, labels_BN, valid_BN, (self.task.num_classes, height, width))
        index_BN = (cell_BN2[..., 1] * width + cell_BN2[..., 0]).long()
        size_loss = l1_at(outputs["size_B2HW"], index_BN, size_BN2, valid_BN)
        offset_loss = l1_at(outputs["offset_B2HW"], index_BN, centre_BN2 - cell_BN2, valid_BN)
        return {
            "heatmap": self.config.heatmap_weight * focal_loss(logits_BKHW, target_BKHW, known_BK),
            "size": self.config.size_weight * size_loss,
            "offset": self.config.offset_weight * offset_loss,
        }

    @torch.no_grad()
    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """The best 3x3 peaks of the heatmap as ``boxes``, ``scores`` and ``labels``, best first."""
        scores_BM, labels_BM, index_BM = top_peaks(outputs["heatmap_BKHW"].float(), self.config.max_detections)
        boxes_BM4 = self._boxes_at(outputs, index_BM, image_size_px)
        if self.config.nms_iou_threshold:
            return [
                _prediction(*_suppress(boxes_M4, scores_M, labels_M, self.config.nms_iou_threshold))
                for boxes_M4, scores_M, labels_M in zip(boxes_BM4, scores_BM, labels_BM, strict=True)
            ]
        boxes, scores, labels = boxes_BM4.cpu(), scores_BM.cpu(), labels_BM.cpu()
        return [_prediction(*fields) for fields in zip(boxes, scores, labels, strict=True)]

    def _boxes_at(self, outputs: dict[str, Tensor], index_BM: Tensor, image_size_px: tuple[int, int]) -> Tensor:
        width = outputs["heatmap_BKHW"].shape[-1]
        cell_BM2 = torch.stack([index_BM % width, index_BM // width], -1).float()
        centre_BM2 = cell_BM2 + gather_cells(outputs["offset_B2HW"], index_BM)
        half_BM2 = gather_cells(outputs["size_B2HW"], index_BM).clamp_min(0) / 2
        boxes_BM4 = torch.cat([centre_BM2 - half_BM2, centre_BM2 + half_BM2], -1) * self.neck.stride
        return clip_boxes(boxes_BM4, *image_size_px)


def centres_and_sizes(
    boxes_BN4: Tensor, labels_BN: Tensor, stride_px: int, map_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Box centres and sizes in cells, and which rows are boxes at all.

    Args:
        boxes_BN4: ``x0 y0 x1 y1`` in pixels.
        labels_BN: class indices; a negative one marks padding.
        stride_px: pixels a cell.
        map_size: ``(H, W)`` in cells; a centre outside is moved to the nearest cell.

    Returns:
        ``centre_BN2`` (x, y) and ``size_BN2`` (width, height), float32; ``valid_BN``, bool: labelled
        and of positive area.
    """
    boxes_BN4 = boxes_BN4.float() / stride_px
    size_BN2 = boxes_BN4[..., 2:] - boxes_BN4[..., :2]
    valid_BN = (labels_BN >= 0) & (size_BN2 > 0).all(-1)
    x_BN, y_BN = ((boxes_BN4[..., :2] + boxes_BN4[..., 2:]) / 2).unbind(-1)
    # Just under the map's size, so that the floor is the last cell at most.
    centre_BN2 = torch.stack([x_BN.clamp(0, map_size[1] - 1e-3), y_BN.clamp(0, map_size[0] - 1e-3)], -1)
    return centre_BN2, size_BN2, valid_BN


def gaussian_radius(size_N2: Tensor, min_overlap: float = MIN_OVERLAP) -> Tensor:
    """Largest whole radius by which both corners may move while the overlap stays at ``min_overlap``.

    The smallest of CornerNet's three cases (arXiv 1808.01244, section 3.2: truth shifted, shrunk, grown), each
    the smallest positive root of a quadratic. CornerNet's first code divided by 2 instead of 2a and so got larger
    radii at its overlap of 0.7; this is the geometry itself, with a smaller overlap instead.

    Args:
        size_N2: ``(..., 2)`` widths and heights, positive.
        min_overlap: intersection over union in (0, 1).

    Returns:
        ``(...)`` float, whole numbers >= 0.
    """
    half_perimeter_N = size_N2.sum(-1)
    area_N = size_N2.prod(-1)
    shifted = half_perimeter_N - torch.sqrt(
        half_perimeter_N.square() - 4 * area_N * (1 - min_overlap) / (1 + min_overlap)
    )
    shrunk = half_perimeter_N - torch.sqrt(half_perimeter_N.square() - 4 * area_N * (1 - min_overlap))
    grown = torch.sqrt(half_perimeter_N.square() + 4 * area_N * (1 - min_overlap) / min_overlap) - half_perimeter_N
    return torch.stack([shifted / 2, shrunk / 4, grown / 4]).amin(0).floor()


def gaussian_heatmap(
    cell_BN2: Tensor, size_BN2: Tensor, labels_BN: Tensor, valid_BN: Tensor, shape_KHW: tuple[int, int, int]
) -> Tensor:
    """Target heatmap: 1 at each centre, a gaussian cut at its radius around it, the larger value where two meet.

    Args:
        cell_BN2: whole x and y of the centre cell, inside the map, float32.
        size_BN2: box widths and heights in cells, float32.
        labels_BN: class indices, int64; ignored where invalid.
        valid_BN: bool.
        shape_KHW: classes, height and width of the map.

    Returns:
        ``(B, K, H, W)`` float32 in [0, 1].
    """
    num_classes, height, width = shape_KHW
    device = cell_BN2.device
    radius_BN1 = gaussian_radius(size_BN2.clamp_min(1e-6)).unsqueeze(-1)
    sigma_BN1 = (2 * radius_BN1 + 1) / 6
    dx_BNW = torch.arange(width, device=device) - cell_BN2[..., 0:1]
    dy_BNH = torch.arange(height, device=device) - cell_BN2[..., 1:2]
    gauss_x_BNW = torch.exp(-dx_BNW.square() / (2 * sigma_BN1.square())) * (dx_BNW.abs() <= radius_BN1)
    gauss_y_BNH = torch.exp(-dy_BNH.square() / (2 * sigma_BN1.square())) * (dy_BNH.abs() <= radius_BN1)
    gauss_y_BNH = gauss_y_BNH * valid_BN.unsqueeze(-1)
    heat_BKX = torch.zeros(cell_BN2.shape[0], num_classes, height * width, device=device)
    for start in range(0, cell_BN2.shape[1], SPLAT_CHUNK):
        rows = slice(start, start + SPLAT_CHUNK)
        gauss_BNX = (gauss_y_BNH[:, rows, :, None] * gauss_x_BNW[:, rows, None, :]).flatten(2)
        index_BNX = labels_BN[:, rows].clamp_min(0).unsqueeze(-1).expand_as(gauss_BNX)
        heat_BKX.scatter_reduce_(1, index_BNX, gauss_BNX, "amax")
    return heat_BKX.view(-1, num_classes, height, width)


def focal_loss(logits_BKHW: Tensor, target_BKHW: Tensor, known_BK: Tensor | None = None) -> Tensor:
    """Penalty-reduced focal loss over the number of centres (CenterNet, equation 1; alpha 2, beta 4).

    Args:
        logits_BKHW: float32.
        target_BKHW: float32 in [0, 1], exactly 1 at centres.
        known_BK: bool; the maps of other classes take no part. All count where left out.
    """
    prob_BKHW = logits_BKHW.sigmoid()
    positive_BKHW = target_BKHW == 1
    at_centre = (1 - prob_BKHW).pow(FOCAL_ALPHA) * F.logsigmoid(logits_BKHW)
    elsewhere = (1 - target_BKHW).pow(FOCAL_BETA) * prob_BKHW.pow(FOCAL_ALPHA) * F.logsigmoid(-logits_BKHW)
    loss_BKHW = -torch.where(positive_BKHW, at_centre, elsewhere)
    if known_BK is not None:
        known_BK11 = known_BK[..., None, None]
        loss_BKHW, positive_BKHW = loss_BKHW * known_BK11, positive_BKHW & known_BK11
    return loss_BKHW.sum() / positive_BKHW.sum().clamp_min(1)


def gather_cells(x_BCHW: Tensor, index_BN: Tensor) -> Tensor:
    """Values ``(B, N, C)``, float32, at flat cell indices ``y * W + x``."""
    x_BCX = x_BCHW.float().flatten(2)
    return x_BCX.gather(2, index_BN.unsqueeze(1).expand(-1, x_BCX.shape[1], -1)).transpose(1, 2)


def l1_at(x_B2HW: Tensor, index_BN: Tensor, target_BN2: Tensor, valid_BN: Tensor) -> Tensor:
    """Mean absolute difference at the valid boxes' centre cells; 0 where there is no box."""
    error_BN2 = (gather_cells(x_B2HW, index_BN) - target_BN2).abs() * valid_BN.unsqueeze(-1)
    return error_BN2.sum() / (2 * valid_BN.sum()).clamp_min(1)


def top_peaks(logits_BKHW: Tensor, num_peaks: int) -> tuple[Tensor, Tensor, Tensor]:
    """The highest cells that are the maximum of their 3x3 surroundings in their class's map.

    Returns:
        ``scores_BM`` sigmoid values, descending; ``labels_BM`` and ``index_BM`` (flat cell), int64. M is ``num_peaks``
        or the number of cells where that is less; cells that are no peak come last with score 0.
    """
    num_cells = math.prod(logits_BKHW.shape[-2:])
    peak_BKHW = logits_BKHW == F.max_pool2d(logits_BKHW, 3, stride=1, padding=1)
    scores_BKX = (logits_BKHW.sigmoid() * peak_BKHW).flatten(1)
    scores_BM, flat_BM = scores_BKX.topk(min(num_peaks, scores_BKX.shape[1]), dim=1)
    return scores_BM, flat_BM // num_cells, flat_BM % num_cells


def _suppress(boxes_M4: Tensor, scores_M: Tensor, labels_M: Tensor, iou_threshold: float) -> tuple[Tensor, ...]:
    kept = batched_nms(boxes_M4, scores_M, labels_M, iou_threshold)
    return boxes_M4[kept], scores_M[kept], labels_M[kept]


def _prediction(boxes_M4: Tensor, scores_M: Tensor, labels_M: Tensor) -> Prediction:
    """Drops the cells that were no peak."""
    real = scores_M > 0
    return Prediction(boxes=to_numpy(boxes_M4[real]), scores=to_numpy(scores_M[real]), labels=to_numpy(labels_M[real]))
