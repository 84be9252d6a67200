"""Task heads: feature maps in, losses, predictions and a metric out; this module needs no torch."""

from typing import Literal

from pydantic import Field

from intern_vision.config import Config

NORM_GROUPS = 8


class HeadConfig(Config):
    """Sizes and loss weights of the heads; a head reads only what its family needs.

    Attributes:
        neck_width: channels of the feature pyramid, a multiple of 8.
        num_neck_levels: how many of the backbone's finest levels the pyramid reads; 0 = all.
        pooling: what a linear head reads: ``vector`` (the backbone's image vector) or
            ``pyramid`` (that and the mean of every finer map, as linear probes do).
        label_smoothing: share of the probability spread over all classes (classify).
        classify_weight: weight of the softmax cross-entropy.
        multilabel_weight: weight of the binary cross-entropy summed over concepts; 1/6 is
            8 times the mean when there are 48 concepts.
        heatmap_weight: weight of the centre heatmap's focal loss (CenterNet: 1).
        size_weight: weight of the box size's L1 loss, in cells (CenterNet: 0.1).
        offset_weight: weight of the centre offset's L1 loss, in cells (CenterNet: 1).
        max_detections: boxes kept an image, the best first.
        nms_iou_threshold: overlap above which the weaker box of one class is dropped; 0 = no
            suppression beyond the heatmap's 3x3 peaks (CenterNet's own way).
        segment_weight: weight of the pixel cross-entropy.
        background_classes: names of the classes that count less in that cross-entropy.
        background_weight: their weight; the other classes have 1.
        silog_weight: weight of the scale-invariant log loss (BTS: 10).
        gradient_weight: weight of the multi-scale log-depth gradient loss (MegaDepth: 0.5).
    """

    neck_width: int = Field(default=48, ge=NORM_GROUPS)
    num_neck_levels: int = Field(default=0, ge=0)
    pooling: Literal["vector", "pyramid"] = "vector"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    classify_weight: float = Field(default=1.0, gt=0.0)
    multilabel_weight: float = Field(default=1 / 6, gt=0.0)
    heatmap_weight: float = Field(default=1.0, gt=0.0)
    size_weight: float = Field(default=0.1, ge=0.0)
    offset_weight: float = Field(default=1.0, ge=0.0)
    max_detections: int = Field(default=100, ge=1)
    nms_iou_threshold: float = Field(default=0.0, ge=0.0, le=1.0)
    segment_weight: float = Field(default=2.0, gt=0.0)
    background_classes: tuple[str, ...] = ()
    background_weight: float = Field(default=0.3, gt=0.0)
    silog_weight: float = Field(default=10.0, gt=0.0)
    gradient_weight: float = Field(default=0.5, ge=0.0)

    def faults(self) -> list[str]:
        """The pyramid's width must split into equal normalisation groups."""
        if self.neck_width % NORM_GROUPS:
            return [f"neck_width: expected a multiple of {NORM_GROUPS}, got {self.neck_width}"]
        return []
