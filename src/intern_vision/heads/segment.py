"""A class a pixel. B batch, K classes, H W height and width."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intern_vision.bench.metrics import SegmentationMetric
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import Batch, MapHead, Prediction, cross_entropy, resize, to_numpy
from intern_vision.models.features import Features
from intern_vision.models.necks import DenseDecoder
from intern_vision.task import Task


class SegmentHead(MapHead):
    """Pyramid map, one doubling, a logit a class; bilinear to the image's size."""

    def __init__(
        self, task: Task, channels: Sequence[int], strides: Sequence[int], config: HeadConfig, frozen_features: bool
    ) -> None:
        """See ``build_head``.

        Raises:
            ConfigError: a background class is unknown, or a class index would not fit beside 255 in 8 bits.
        """
        super().__init__(task, channels, strides, config, frozen_features)
        unknown = [name for name in config.background_classes if name not in task.class_names]
        if unknown:
            raise ConfigError(
                f"head.background_classes: expected names among {', '.join(task.class_names)}, got {', '.join(unknown)}"
            )
        if task.num_classes > IGNORE_LABEL:
            raise ConfigError(f"task.class_names: expected at most {IGNORE_LABEL} for segment, got {task.num_classes}")
        self.decoder = DenseDecoder(config.neck_width, task.num_classes)
        weights = [config.background_weight if name in config.background_classes else 1.0 for name in task.class_names]
        self.register_buffer("class_weights_K", torch.tensor(weights), persistent=False)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``logits_BKHW`` at half the pyramid's finest stride."""
        return {"logits_BKHW": self.decoder(self.pyramid_map(features))}

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``segment``: cross-entropy at the mask's own size, as a mask made coarser would shift every border."""
        mask_BHW = self._target(batch, "mask_BHW")
        loss = cross_entropy(
            resize(outputs["logits_BKHW"], tuple(mask_BHW.shape[-2:])),
            mask_BHW,
            ignore_index=IGNORE_LABEL,
            class_weights_K=self.class_weights_K.float(),
        )
        return {"segment": self.config.segment_weight * loss}

    @torch.no_grad()
    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """``mask`` of the most probable class."""
        labels_BHW = resize(outputs["logits_BKHW"], image_size_px).argmax(1)
        return [Prediction(mask=mask_HW) for mask_HW in to_numpy(labels_BHW.to(torch.uint8))]

    def metric(self) -> SegmentationMetric:
        """Mean intersection over union."""
        return SegmentationMetric(self.task.num_classes)
