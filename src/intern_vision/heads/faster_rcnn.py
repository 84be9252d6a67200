"""Boxes in two stages: proposed regions, then their classes.

A anchors of all levels, B batch, F pyramid width, H W height and width, K classes, M kept boxes, N true boxes,
P proposals, R regions, S samples.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.heads import FasterRcnnConfig, HeadConfig
from intern_vision.heads.base import Batch, MapHead, Prediction, to_numpy
from intern_vision.models.boxes import batched_nms, clip_boxes, greedy_keep
from intern_vision.models.features import Features
from intern_vision.models.regions import (
    anchor_shapes,
    decode_boxes,
    encode_boxes,
    grid_anchors,
    match_boxes,
    roi_align,
    sample_balanced,
    take_rows,
)
from intern_vision.task import Task

# What the regions' coded boxes are divided by (Fast R-CNN's code: 0.1 for centres, 0.2 for log sizes).
REGION_DEVIATIONS = (0.1, 0.2)
# Regions of unannotated classes that shield anchors, an image: bounds the work, and few images hold more objects.
MAX_SHIELDS = 32
# Candidates of an image that reach the last suppression, whose memory grows with their square.
MAX_CANDIDATES = 2_000
# Regions pooled at once in prediction: bounds the memory whatever the batch.
REGION_CHUNK = 4_096


class RegionProposals(nn.Module):
    """The region proposal network of Faster R-CNN (arXiv 1506.01497, section 3.1), shared by all levels.

    Args:
        width: F of the pyramid.
        config: anchors.

    Attributes:
        conv: 3x3 convolution.
        objectness: a logit a anchor shape.
        deltas: dx dy dw dh a anchor shape.
    """

    def __init__(self, width: int, config: FasterRcnnConfig) -> None:
        super().__init__()
        shapes_A2 = anchor_shapes(config.anchor_scales, config.anchor_ratios)
        self.register_buffer("shapes_A2", shapes_A2, persistent=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.objectness = nn.Conv2d(width, len(shapes_A2), 1)
        self.deltas = nn.Conv2d(width, 4 * len(shapes_A2), 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``(B, A)`` logits and ``(B, A, 4)`` deltas, level by level in the order of ``anchors``."""
        logits, deltas = [], []
        for x_BFHW in levels:
            x_BFHW = F.relu(self.conv(x_BFHW))
            logits.append(self.objectness(x_BFHW).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x_BFHW).permute(0, 2, 3, 1).reshape(x_BFHW.shape[0], -1, 4))
        return torch.cat(logits, 1), torch.cat(deltas, 1)

    def anchors(self, strides: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Anchors ``(A_k, 4)`` in pixels of levels with these strides and ``(H, W)``."""
        shapes_A2 = self.shapes_A2.float()
        return [grid_anchors(shapes_A2, stride, size) for stride, size in zip(strides, sizes, strict=True)]


class FasterRcnnHead(MapHead):
    """Faster R-CNN on a feature pyramid (arXiv 1506.01497, 1612.03144), as in gv-benchmark's detection configs.

    Differences from that code: the pyramid's smoothing convolutions have group normalisation and ReLU (this project's
    neck), anchors are centred on cells, a bin has a fixed number of samples (a number that follows the region's size
    has no fixed shape), and every true box binds the anchors that overlap it most, however little.

    Classes that a sample's source does not annotate (``known_BK``): their logits are left out of the softmax, so
    they are neither raised nor lowered there. A region that shows no annotated object but that the current second
    stage gives to such a class takes no part, and anchors that overlap it are no background for the proposals.
    Every other region and anchor counts as usual: its being none of the annotated classes is known.

    Attributes:
        neck: the pyramid, with a coarser level made by striding.
        rpn: proposals.
        trunk: two fully connected layers on a pooled region.
        score: a logit a class, the background last.
        deltas: box corrections, one a class or one for all.
    """

    def __init__(
        self, task: Task, channels: Sequence[int], strides: Sequence[int], config: HeadConfig, frozen_features: bool
    ) -> None:
        """See ``build_head``."""
        super().__init__(task, channels, strides, config, frozen_features, all_levels=True)
        settings = config.faster_rcnn
        self.settings = settings
        self.strides = tuple(strides[: len(self.standardizers)])
        self.rpn = RegionProposals(config.neck_width, settings)
        width = settings.hidden_width
        self.trunk = nn.Sequential(
            *(nn.Linear(config.neck_width * settings.pooled_size**2, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
        )
        self.score = nn.Linear(width, task.num_classes + 1)
        self.deltas = nn.Linear(width, 4 if settings.class_agnostic else 4 * task.num_classes)
        for layer, std in ((self.score, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def shared_prefixes(self) -> tuple[str, ...]:
        """All but the class scores, and the box corrections where each class has its own."""
        return ("neck", "rpn", "trunk", "deltas") if self.settings.class_agnostic else ("neck", "rpn", "trunk")

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``level_<k>_BFHW`` (one more than the backbone's), ``objectness_BA`` logits and ``deltas_BA4``."""
        levels = self.pyramid_levels(features)
        # Max pooling with a 1x1 window and stride 2, as in FPN: only proposals read it.
        levels = (*levels, levels[-1][:, :, ::2, ::2])
        objectness_BA, deltas_BA4 = self.rpn(levels)
        named = {f"level_{k}_BFHW": x_BFHW for k, x_BFHW in enumerate(levels)}
        return {**named, "objectness_BA": objectness_BA, "deltas_BA4": deltas_BA4}

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``anchor_scores``, ``anchor_boxes``, ``region_classes`` and ``region_boxes``.

        Each is a sum over the sampled anchors or regions divided by their number in the batch.
        """
        truth_BN4, labels_BN = self._target(batch, "boxes_BN4").float(), self._target(batch, "box_labels_BN")
        if not labels_BN.shape[1]:
            # A row of padding, so that there always is one to point at.
            truth_BN4, labels_BN = F.pad(truth_BN4, (0, 0, 0, 1)), F.pad(labels_BN, (0, 1), value=-1)
        valid_BN = (labels_BN >= 0) & (truth_BN4[..., 2:] > truth_BN4[..., :2]).all(-1)
        known_BK = batch.get("known_BK")
        if known_BK is not None:
            valid_BN = valid_BN & known_BK.gather(1, labels_BN.clamp_min(0))
        truth = (truth_BN4, labels_BN, valid_BN)
        # The maps' extent: the image's size up to one cell, and all that cached features tell.
        map_size_px = tuple(cells * self.strides[0] for cells in outputs["level_0_BFHW"].shape[-2:])
        boxes_BP4, _, real_BP = self._propose(outputs, map_size_px)
        region_losses, shields = self._region_losses(outputs, boxes_BP4, real_BP, truth, known_BK)
        return {**self._anchor_losses(outputs, truth, known_BK, shields), **region_losses}

    @torch.no_grad()
    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """The best boxes of each class after suppression, at most ``max_detections`` an image, best first."""
        regions_BP4, _, real_BP = self._propose(outputs, image_size_px)
        num_images = max(1, REGION_CHUNK // regions_BP4.shape[1])
        predictions = []
        for start in range(0, len(regions_BP4), num_images):
            images = slice(start, start + num_images)
            part = {name: tensor[images] for name, tensor in outputs.items()}
            logits_BPK, deltas_BPK4 = self._classify(part, regions_BP4[images])
            probs_BPK = logits_BPK.softmax(-1)[..., :-1] * real_BP[images].unsqueeze(-1)
            boxes_BPK4 = decode_boxes(deltas_BPK4, regions_BP4[images].unsqueeze(2), REGION_DEVIATIONS)
            boxes_BPK4 = clip_boxes(boxes_BPK4, *image_size_px).expand(*probs_BPK.shape, 4)
            predictions += [self._detections(*fields) for fields in zip(probs_BPK, boxes_BPK4, strict=True)]
        return predictions

    def _anchors(self, outputs: dict[str, Tensor]) -> list[Tensor]:
        sizes = [tuple(outputs[f"level_{k}_BFHW"].shape[-2:]) for k in range(len(self.strides) + 1)]
        return self.rpn.anchors((*self.strides, 2 * self.strides[-1]), sizes)

    @torch.no_grad()
    def _propose(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best regions ``(B, P, 4)`` in pixels inside the image, their logits, and which rows are real."""
        settings = self.settings
        anchors = self._anchors(outputs)
        num_anchors = [len(anchors_A4) for anchors_A4 in anchors]
        objectness = outputs["objectness_BA"].float().split(num_anchors, 1)
        deltas = outputs["deltas_BA4"].float().split(num_anchors, 1)
        boxes, scores = [], []
        for anchors_A4, objectness_BA, deltas_BA4 in zip(anchors, objectness, deltas, strict=True):
            scores_BM, index_BM = objectness_BA.topk(min(settings.num_candidates, len(anchors_A4)), dim=1)
            deltas_BM4 = take_rows(deltas_BA4, index_BM)
            boxes_BM4 = clip_boxes(decode_boxes(deltas_BM4, anchors_A4[index_BM]), *image_size_px)
            sides_BM2 = boxes_BM4[..., 2:] - boxes_BM4[..., :2]
            large_BM = ((sides_BM2 > 0) & (sides_BM2 >= settings.min_proposal_px)).all(-1)
            kept_BM = greedy_keep(boxes_BM4, large_BM, settings.proposal_nms_iou)
            boxes.append(boxes_BM4)
            scores.append(scores_BM.masked_fill(~kept_BM, -math.inf))
        boxes_BM4, scores_BM = torch.cat(boxes, 1), torch.cat(scores, 1)
        scores_BP, index_BP = scores_BM.topk(min(settings.num_proposals, scores_BM.shape[1]), dim=1)
        boxes_BP4 = take_rows(boxes_BM4, index_BP)
        return boxes_BP4, scores_BP, scores_BP > -math.inf

    def _classify(self, outputs: dict[str, Tensor], boxes_BR4: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, R, K + 1)`` and deltas ``(B, R, K or 1, 4)`` of regions, float32."""
        settings = self.settings
        pooled = roi_align(
            [outputs[f"level_{k}_BFHW"] for k in range(len(self.strides))],
            self.strides,
            boxes_BR4,
            size=settings.pooled_size,
            sampling_ratio=settings.sampling_ratio,
            canonical_cells=settings.canonical_cells,
        )
        hidden = self.trunk(pooled.flatten(2))
        return self.score(hidden).float(), self.deltas(hidden).float().unflatten(-1, (-1, 4))

    def _region_losses(
        self,
        outputs: dict[str, Tensor],
        boxes_BP4: Tensor,
        real_BP: Tensor,
        truth: tuple[Tensor, Tensor, Tensor],
        known_BK: Tensor | None,
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
        """Losses of the second stage, and the boxes that shield anchors with which of them count."""
        settings = self.settings
        truth_BN4, labels_BN, valid_BN = truth
        # The true boxes are regions too, so that the second stage has objects from the first step on.
        boxes_BR4, real_BR = torch.cat([boxes_BP4, truth_BN4], 1), torch.cat([real_BP, valid_BN], 1)
        overlap_BR, index_BR, _ = match_boxes(boxes_BR4, truth_BN4, valid_BN)
        if known_BK is not None:
            real_BR = real_BR & known_BK.any(1, keepdim=True)
        object_BR = real_BR & (overlap_BR >= settings.region_iou)
        sample_BS, used_BS = sample_balanced(
            object_BR, real_BR & ~object_BR, settings.num_region_samples, settings.region_positive_share
        )
        boxes_BS4 = take_rows(boxes_BR4, sample_BS)
        object_BS, index_BS = object_BR.gather(1, sample_BS), index_BR.gather(1, sample_BS)
        logits_BSK, deltas_BSK4 = self._classify(outputs, boxes_BS4)
        shields = None
        if known_BK is not None:
            shield_BS = _shields(logits_BSK, known_BK, used_BS & ~object_BS)
            shields = (boxes_BS4, shield_BS)
            used_BS = used_BS & ~shield_BS
            logits_BSK = logits_BSK.masked_fill(~_with_background(known_BK).unsqueeze(1), -math.inf)
        classes_BS = torch.where(object_BS, labels_BN.gather(1, index_BS), self.task.num_classes)
        class_loss_BS = F.cross_entropy(logits_BSK.transpose(1, 2), classes_BS, reduction="none")
        num_used = used_BS.sum().clamp_min(1)
        own_class_BS = torch.zeros_like(classes_BS) if settings.class_agnostic else classes_BS
        own_class_BS = own_class_BS.clamp_max(deltas_BSK4.shape[2] - 1)
        deltas_BS4 = deltas_BSK4.gather(2, own_class_BS[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        matched_BS4 = take_rows(truth_BN4, index_BS)
        targets_BS4 = encode_boxes(matched_BS4, boxes_BS4, REGION_DEVIATIONS)
        box_loss = masked_smooth_l1(deltas_BS4, targets_BS4, object_BS & used_BS, settings.region_box_beta)
        losses = {"region_classes": (class_loss_BS * used_BS).sum(), "region_boxes": box_loss}
        return {name: settings.region_weight * loss / num_used for name, loss in losses.items()}, shields

    def _anchor_losses(
        self,
        outputs: dict[str, Tensor],
        truth: tuple[Tensor, Tensor, Tensor],
        known_BK: Tensor | None,
        shields: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Tensor]:
        settings = self.settings
        truth_BN4, _, valid_BN = truth
        anchors_1A4 = torch.cat(self._anchors(outputs)).unsqueeze(0)
        overlap_BA, index_BA, bound_BA = match_boxes(anchors_1A4, truth_BN4, valid_BN, low_quality=True)
        object_BA = bound_BA | (overlap_BA >= settings.positive_iou)
        ground_BA = ~object_BA & (overlap_BA < settings.negative_iou)
        if known_BK is not None and shields is not None:
            ground_BA = ground_BA & known_BK.any(1, keepdim=True)
            boxes_BS4, shield_BS = shields
            _, first_BS = shield_BS.long().topk(min(MAX_SHIELDS, shield_BS.shape[1]), dim=1)
            boxes_BS4 = take_rows(boxes_BS4, first_BS)
            shielded_BA, _, _ = match_boxes(anchors_1A4, boxes_BS4, shield_BS.gather(1, first_BS))
            ground_BA = ground_BA & (shielded_BA < settings.negative_iou)
        sample_BS, used_BS = sample_balanced(
            object_BA, ground_BA, settings.num_anchor_samples, settings.anchor_positive_share
        )
        object_BS = object_BA.gather(1, sample_BS)
        logits_BS = outputs["objectness_BA"].float().gather(1, sample_BS)
        score_loss_BS = F.binary_cross_entropy_with_logits(logits_BS, object_BS.float(), reduction="none")
        deltas_BS4 = take_rows(outputs["deltas_BA4"].float(), sample_BS)
        matched_BS4 = take_rows(truth_BN4, index_BA.gather(1, sample_BS))
        targets_BS4 = encode_boxes(matched_BS4, anchors_1A4[0][sample_BS])
        box_loss = masked_smooth_l1(deltas_BS4, targets_BS4, object_BS & used_BS, settings.anchor_box_beta)
        losses = {"anchor_scores": (score_loss_BS * used_BS).sum(), "anchor_boxes": box_loss}
        return {name: settings.rpn_weight * loss / used_BS.sum().clamp_min(1) for name, loss in losses.items()}

    def _detections(self, probs_PK: Tensor, boxes_PK4: Tensor) -> Prediction:
        """Thresholded, suppressed within each class and cut to the best."""
        settings = self.settings
        scores_M, flat_M = probs_PK.flatten().topk(min(MAX_CANDIDATES, probs_PK.numel()))
        flat_M = flat_M[scores_M > settings.score_threshold]
        scores_M, labels_M = scores_M[: len(flat_M)], flat_M % probs_PK.shape[1]
        boxes_M4 = boxes_PK4.reshape(-1, 4)[flat_M]
        kept_M = batched_nms(boxes_M4, scores_M, labels_M, settings.nms_iou_threshold)[: self.config.max_detections]
        return Prediction(
            boxes=to_numpy(boxes_M4[kept_M]), scores=to_numpy(scores_M[kept_M]), labels=to_numpy(labels_M[kept_M])
        )


def masked_smooth_l1(deltas_N4: Tensor, targets_N4: Tensor, counts_N: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 distance (Fast R-CNN, equation 3; 0 = L1) over the rows that count."""
    loss_N4 = F.smooth_l1_loss(deltas_N4, targets_N4, reduction="none", beta=beta)
    return (loss_N4 * counts_N.unsqueeze(-1)).sum()


@torch.no_grad()
def _shields(logits_BSK: Tensor, known_BK: Tensor, ground_BS: Tensor) -> Tensor:
    """Which background regions the current scores give to a class that their source does not annotate, ``(B, S)``."""
    best_BS = logits_BSK.argmax(-1)
    return ground_BS & ~_with_background(known_BK).gather(1, best_BS)


def _with_background(known_BK: Tensor) -> Tensor:
    """``(B, K + 1)``: the background, the last class, is known everywhere."""
    return F.pad(known_BK, (0, 1), value=True)
