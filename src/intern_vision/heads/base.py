"""What every head shares. B batch, C channels, K classes, D vector width, F pyramid width, H W height and width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from intern_vision.bench.metric_base import Metric
from intern_vision.bench.metrics import make_metric
from intern_vision.errors import DataError
from intern_vision.heads import HeadConfig
from intern_vision.models.features import Features
from intern_vision.models.necks import ChannelStandardizer, FeaturePyramid
from intern_vision.task import Task

Batch = Mapping[str, Any]
"""A collated batch. Each head reads its own fields and no others:

``image_BCHW`` uint8; ``label_B`` int64, -1 = unknown; ``concepts_BK`` float32 multi-hot; ``boxes_BN4`` float32
``x0 y0 x1 y1`` in pixels, padded with 0; ``box_labels_BN`` int64, padded with -1; ``mask_BHW`` uint8, 255 = ignore;
``depth_BHW`` float32 metres, 0 = unknown; ``keys`` list of str. With several sources also ``known_BK`` bool, the
head's classes that are annotated in the sample's source; without the key all are.
"""


@dataclass(slots=True, kw_only=True)
class Prediction:
    """What a head says about one image; fields of other families are ``None``.

    Attributes:
        label: class index (classify).
        scores: float32 in [0, 1]; ``(num_classes,)`` for classify and multilabel, ``(num_boxes,)`` descending
            for detect.
        boxes: ``(num_boxes, 4)`` float32, ``x0 y0 x1 y1`` in pixels inside the image (detect).
        labels: ``(num_boxes,)`` int64 class indices (detect).
        mask: ``(height, width)`` uint8 class indices (segment).
        depth: ``(height, width)`` float32 metres in ``[1e-3, max_depth_m]`` (depth).
    """

    label: int | None = None
    scores: NDArray[np.float32] | None = None
    boxes: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    mask: NDArray[np.uint8] | None = None
    depth: NDArray[np.float32] | None = None


class TaskHead(nn.Module, ABC):
    """Feature maps to raw outputs, and those to losses, predictions and a metric.

    Losses are computed in float32 whatever the outputs' dtype, and never wait for the device.
    """

    def __init__(self, task: Task, config: HeadConfig) -> None:
        """Keeps the task and the settings."""
        super().__init__()
        self.task, self.config = task, config

    @abstractmethod
    def forward(self, features: Features) -> dict[str, Tensor]:
        """Raw outputs (logits and the like), named with their shapes."""

    @abstractmethod
    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Scalar float32 losses, already weighted: their sum is what training lowers.

        Raises:
            DataError: the batch lacks a field this family needs.
        """

    @abstractmethod
    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """One prediction an image; ``image_size_px`` is ``(height, width)`` of the batch's images."""

    def metric(self, name: str = "") -> Metric:
        """A fresh metric that takes this head's predictions; ``name`` as for ``make_metric``."""
        return make_metric(self.task, name)

    def shared_prefixes(self) -> tuple[str, ...]:
        """Submodules whose weights do not depend on the label space, so that another dataset's head can take them."""
        return ()

    def _target(self, batch: Batch, name: str) -> Tensor:
        if name not in batch:
            raise DataError(
                f"batch.{name}: expected for family {self.task.family}, got only {', '.join(sorted(batch))}; "
                "use a dataset annotated for this family"
            )
        return batch[name]


class MapHead(TaskHead):
    """A head that reads the finest map of a feature pyramid.

    Attributes:
        neck: the pyramid; its weights fit any other map head with the same backbone, width and levels.
    """

    def __init__(
        self,
        task: Task,
        channels: Sequence[int],
        strides: Sequence[int],
        config: HeadConfig,
        frozen_features: bool,
        *,
        all_levels: bool = False,
    ) -> None:
        """See ``build_head``; ``all_levels`` is for heads that read ``pyramid_levels``."""
        super().__init__(task, config)
        num_levels = config.num_neck_levels or len(channels)
        channels, strides = channels[:num_levels], strides[:num_levels]
        self.standardizers = nn.ModuleList(
            ChannelStandardizer(width) if frozen_features else nn.Identity() for width in channels
        )
        self.neck = FeaturePyramid(channels, strides, config.neck_width, all_levels=all_levels)

    def pyramid_map(self, features: Features) -> Tensor:
        """``(B, F, H, W)`` at the backbone's finest stride."""
        return self.neck(self._standardized(features))

    def pyramid_levels(self, features: Features) -> tuple[Tensor, ...]:
        """``(B, F, H_k, W_k)`` for every level, fine to coarse; only for a head made with ``all_levels``."""
        return self.neck.levels(self._standardized(features))

    def _standardized(self, features: Features) -> list[Tensor]:
        levels = zip(self.standardizers, features.maps[: len(self.standardizers)], strict=True)
        return [standardize(x_BCHW) for standardize, x_BCHW in levels]


def build_head(
    task: Task,
    channels: Sequence[int],
    strides: Sequence[int],
    vector_width: int,
    config: HeadConfig,
    frozen_features: bool = False,
) -> TaskHead:
    """Makes the head of a task's family.

    Args:
        task: family, label names and largest depth.
        channels: channels of the backbone's maps, fine to coarse.
        strides: pixels a cell of the backbone's maps, fine to coarse.
        vector_width: D of the backbone's pooled vector.
        config: sizes and loss weights.
        frozen_features: standardise each channel first, because a frozen backbone will not
            adapt its scales to a fresh head.

    Raises:
        ConfigError: the config does not fit the task or the backbone.
    """
    # Here and not at the top: each of these modules subclasses TaskHead.
    from intern_vision.heads.classify import ClassifyHead, CosineHead, MultilabelHead, NeighbourHead
    from intern_vision.heads.depth import DepthHead
    from intern_vision.heads.detect import DetectHead
    from intern_vision.heads.faster_rcnn import FasterRcnnHead
    from intern_vision.heads.segment import SEGMENT_HEADS

    classifier = CosineHead if config.embedding_width else NeighbourHead if config.num_examples else ClassifyHead
    vector_heads = {"classify": classifier, "multilabel": MultilabelHead}
    if task.family in vector_heads:
        width = vector_width + (sum(channels[:-1]) if config.pooling == "pyramid" else 0)
        return vector_heads[task.family](task, width, config, frozen_features)
    detectors = {"centernet": DetectHead, "faster_rcnn": FasterRcnnHead}
    map_heads = {"detect": detectors[config.detector], "segment": SEGMENT_HEADS[config.segmenter], "depth": DepthHead}
    return map_heads[task.family](task, channels, strides, config, frozen_features)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    class_weights_K: Tensor | None = None,
    label_smoothing: float = 0.0,
    known_BK: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy averaged by class weight over the known targets; 0 where none is known.

    The softmax, and what label smoothing spreads over, is each row's known classes only: the other logits get
    no gradient.

    Args:
        logits: ``(B, K, ...)`` floating point.
        target: ``(B, ...)`` integer class indices or ``ignore_index``.
        ignore_index: target value that takes no part.
        class_weights_K: ``(K,)`` float32.
        label_smoothing: in [0, 1).
        known_BK: bool, the classes annotated in each row's source; all where left out. A target that is not among
            them takes no part.
    """
    target, logits = target.long(), logits.float()
    if known_BK is not None:
        target = _annotated_target(target, known_BK, ignore_index)
        # The lowest number and not minus infinity, whose softmax over a row without known classes is not a number.
        known_BK11 = known_BK.view(*known_BK.shape, *(1,) * (logits.dim() - 2))
        logits = logits.masked_fill(~known_BK11, torch.finfo(torch.float32).min)
    own_smoothing = known_BK is not None and label_smoothing > 0
    total = F.cross_entropy(
        logits,
        target,
        weight=class_weights_K,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=0.0 if own_smoothing else label_smoothing,
    )
    known = target != ignore_index
    if own_smoothing:
        # Torch would spread over the masked classes too.
        weights_BK = known_BK.float() if class_weights_K is None else known_BK * class_weights_K
        log_prob = torch.where(known_BK11, logits.log_softmax(1), 0.0)
        mean = torch.einsum("bk...,bk->b...", log_prob, weights_BK / known_BK.sum(1, keepdim=True).clamp_min(1))
        total = (1 - label_smoothing) * total - label_smoothing * (mean * known).sum()
    weights = known.float()
    if class_weights_K is not None:
        weights = weights * class_weights_K[torch.where(known, target, 0)]
    # The clamp only matters where nothing is known: then 0 / 0 must be 0, without asking the device.
    return total / weights.sum().clamp_min(1e-6)


def _annotated_target(target: Tensor, known_BK: Tensor, ignore_index: int) -> Tensor:
    """The targets with ``ignore_index`` in place of classes that the row's source does not annotate."""
    is_class = target != ignore_index
    class_index = torch.where(is_class, target, 0)
    annotated = known_BK.gather(1, class_index.view(len(target), -1)).view_as(target)
    return torch.where(is_class & annotated, target, ignore_index)


def resize(x_BCHW: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Bilinear to ``(height, width)``, in float32; cell centres stay where they are."""
    return F.interpolate(x_BCHW.float(), size=size_px, mode="bilinear", align_corners=False)


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Detached copy on the host; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
