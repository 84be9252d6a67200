"""Task heads: feature maps in, losses, predictions and a metric out; this module needs no torch."""

from typing import Literal

from pydantic import Field

from intern_vision.config import Config

NORM_GROUPS = 8


class FasterRcnnConfig(Config):
    """Settings of the two-stage detector; the defaults are gv-benchmark's detection configs.

    Attributes:
        anchor_scales: square roots of the anchors' areas, in cells of their level (8; 4 for small objects).
        anchor_ratios: height over width of the anchors.
        positive_iou: overlap with a true box from which an anchor is an object.
        negative_iou: overlap below which an anchor is background; between the two it takes no part.
        num_anchor_samples: anchors an image in the loss of the region proposals.
        anchor_positive_share: largest share of objects among them.
        num_candidates: best-scored anchors of each level before suppression.
        num_proposals: regions an image after it.
        proposal_nms_iou: overlap above which the weaker proposal of a level is dropped.
        min_proposal_px: shorter proposals are dropped.
        canonical_cells: side of a region, in cells of a level, from which the level serves it (FPN: 224 px at
            stride 16 = 14).
        pooled_size: bins along a side of a pooled region.
        sampling_ratio: bilinear samples a bin and axis.
        region_iou: overlap with a true box from which a region is an object.
        num_region_samples: regions an image in the losses of the second stage.
        region_positive_share: largest share of objects among them.
        hidden_width: width of the two fully connected layers.
        class_agnostic: whether all classes share one box correction.
        anchor_box_beta: error up to which the anchors' box loss is quadratic, in coded units; 0 = L1.
        region_box_beta: the same for the regions.
        rpn_weight: weight of the two losses of the region proposals.
        region_weight: weight of the two losses of the second stage.
        score_threshold: probability below which a detection is dropped.
        nms_iou_threshold: overlap above which the weaker detection of one class is dropped.
    """

    anchor_scales: tuple[float, ...] = (8.0,)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    positive_iou: float = Field(default=0.7, gt=0.0, le=1.0)
    negative_iou: float = Field(default=0.3, ge=0.0, lt=1.0)
    num_anchor_samples: int = Field(default=256, ge=1)
    anchor_positive_share: float = Field(default=0.5, gt=0.0, le=1.0)
    num_candidates: int = Field(default=2_000, ge=1)
    num_proposals: int = Field(default=1_000, ge=1)
    proposal_nms_iou: float = Field(default=0.7, gt=0.0, le=1.0)
    min_proposal_px: float = Field(default=0.0, ge=0.0)
    canonical_cells: float = Field(default=14.0, gt=0.0)
    pooled_size: int = Field(default=7, ge=1)
    sampling_ratio: int = Field(default=2, ge=1)
    region_iou: float = Field(default=0.5, gt=0.0, le=1.0)
    num_region_samples: int = Field(default=512, ge=1)
    region_positive_share: float = Field(default=0.25, gt=0.0, le=1.0)
    hidden_width: int = Field(default=1_024, ge=1)
    class_agnostic: bool = False
    anchor_box_beta: float = Field(default=1 / 9, ge=0.0)
    region_box_beta: float = Field(default=1.0, ge=0.0)
    rpn_weight: float = Field(default=1.0, gt=0.0)
    region_weight: float = Field(default=1.0, gt=0.0)
    score_threshold: float = Field(default=0.05, ge=0.0, lt=1.0)
    nms_iou_threshold: float = Field(default=0.5, gt=0.0, le=1.0)

    def faults(self) -> list[str]:
        """Anchors have shapes, and background ends where objects begin at the latest."""
        faults = []
        for name in ("anchor_scales", "anchor_ratios"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                faults.append(f"{name}: expected numbers > 0, got {list(values)}")
        if self.negative_iou > self.positive_iou:
            faults.append(f"negative_iou: expected at most positive_iou {self.positive_iou}, got {self.negative_iou}")
        return faults


class HeadConfig(Config):
    """Sizes and loss weights of the heads; a head reads only what its family needs.

    Attributes:
        neck_width: channels of the feature pyramid, a multiple of 8.
        num_neck_levels: how many of the backbone's finest levels the pyramid reads; 0 = all.
        pooling: what a linear head reads: ``vector`` (the backbone's image vector) or
            ``pyramid`` (that and the mean of every finer map, as linear probes do).
        embedding_width: 0 = a linear head (classify); above 0 the image vector is projected to this
            width and compared with one embedding a class by their cosine, as in zero-shot classification.
        num_examples: 0 = a linear head (classify); above 0 the head keeps the features of this many images and
            classifies by the nearest of them.
        num_neighbours: how many of them vote.
        neighbour_temperature: of their weights ``exp(cosine / temperature)``.
        label_smoothing: share of the probability spread over all classes (classify).
        classify_weight: weight of the softmax cross-entropy.
        multilabel_weight: weight of the binary cross-entropy summed over concepts; 1/6 is
            8 times the mean when there are 48 concepts.
        detector: ``centernet`` (boxes as centre points, arXiv 1904.07850) or ``faster_rcnn`` (anchors and
            regions, arXiv 1506.01497 with the pyramid of 1612.03144).
        faster_rcnn: settings of that second kind; of the fields here it reads ``max_detections`` and the neck's.
        heatmap_weight: weight of the centre heatmap's focal loss (CenterNet: 1).
        size_weight: weight of the box size's L1 loss, in cells (CenterNet: 0.1).
        offset_weight: weight of the centre offset's L1 loss, in cells (CenterNet: 1).
        max_detections: boxes kept an image, the best first.
        nms_iou_threshold: overlap above which the weaker box of one class is dropped; 0 = no
            suppression beyond the heatmap's 3x3 peaks (CenterNet's own way).
        segmenter: ``pyramid`` (the finest map of the feature pyramid), ``deeplab_v3`` (arXiv 1706.05587)
            or ``upernet`` (arXiv 1807.10221).
        aspp_rates: dilations of DeepLabv3's 3x3 branches (gv-benchmark: 12, 24, 36).
        pooling_scales: cells along a side of UPerNet's pooled maps (PSPNet: 1, 2, 3, 6).
        auxiliary_weight: weight of the second cross-entropy that ``deeplab_v3`` and ``upernet`` take from
            the second coarsest map (gv-benchmark: 0.4), relative to the first; 0 = none.
        segment_weight: weight of the pixel cross-entropy.
        background_classes: names of the classes that count less in that cross-entropy.
        background_weight: their weight; the other classes have 1.
        depth_loss: ``metric`` (scale-invariant log loss), or ``affine`` for depth that is known only
            up to a scale and a shift of its inverse (MiDaS, arXiv 1907.01341).
        affine_weight: weight of the scale- and shift-invariant loss.
        silog_weight: weight of the scale-invariant log loss (BTS: 10).
        gradient_weight: weight of the multi-scale gradient loss (MegaDepth and MiDaS: 0.5).
    """

    neck_width: int = Field(default=48, ge=NORM_GROUPS)
    num_neck_levels: int = Field(default=0, ge=0)
    pooling: Literal["vector", "pyramid"] = "vector"
    embedding_width: int = Field(default=0, ge=0)
    num_examples: int = Field(default=0, ge=0)
    num_neighbours: int = Field(default=20, ge=1)
    neighbour_temperature: float = Field(default=0.07, gt=0.0)
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    classify_weight: float = Field(default=1.0, gt=0.0)
    multilabel_weight: float = Field(default=1 / 6, gt=0.0)
    detector: Literal["centernet", "faster_rcnn"] = "centernet"
    faster_rcnn: FasterRcnnConfig = FasterRcnnConfig()
    heatmap_weight: float = Field(default=1.0, gt=0.0)
    size_weight: float = Field(default=0.1, ge=0.0)
    offset_weight: float = Field(default=1.0, ge=0.0)
    max_detections: int = Field(default=100, ge=1)
    nms_iou_threshold: float = Field(default=0.0, ge=0.0, le=1.0)
    segmenter: Literal["pyramid", "deeplab_v3", "upernet"] = "pyramid"
    aspp_rates: tuple[int, ...] = (12, 24, 36)
    pooling_scales: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_weight: float = Field(default=0.4, ge=0.0)
    segment_weight: float = Field(default=2.0, gt=0.0)
    background_classes: tuple[str, ...] = ()
    background_weight: float = Field(default=0.3, gt=0.0)
    depth_loss: Literal["metric", "affine"] = "metric"
    affine_weight: float = Field(default=1.0, gt=0.0)
    silog_weight: float = Field(default=10.0, gt=0.0)
    gradient_weight: float = Field(default=0.5, ge=0.0)

    def faults(self) -> list[str]:
        """The pyramid's width must split into equal normalisation groups; dilations and pooled sizes start at 1."""
        faults = []
        if self.neck_width % NORM_GROUPS:
            faults.append(f"neck_width: expected a multiple of {NORM_GROUPS}, got {self.neck_width}")
        for name in ("aspp_rates", "pooling_scales"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                faults.append(f"{name}: expected whole numbers >= 1, got {list(values)}")
        return faults
