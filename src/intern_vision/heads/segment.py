"""A class a pixel. B batch, K classes, H W height and width."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import Batch, MapHead, Prediction, TaskHead, cross_entropy, resize, to_numpy
from intern_vision.heads.segment_decoders import AtrousPyramid, PooledPyramid
from intern_vision.models.features import Features
from intern_vision.models.necks import ChannelStandardizer, DenseDecoder, conv_norm_relu
from intern_vision.task import Task


class Segmenter(TaskHead):
    """What every segmentation head shares: losses, predictions and metric of ``logits_BKHW``."""

    def _take_classes(self) -> None:
        """Checks the task against the settings and keeps the classes' weights; called once by each ``__init__``."""
        task, config = self.task, self.config
        unknown = [name for name in config.background_classes if name not in task.class_names]
        if unknown:
            raise ConfigError(
                f"head.background_classes: expected names among {', '.join(task.class_names)}, got {', '.join(unknown)}"
            )
        if task.num_classes > IGNORE_LABEL:
            raise ConfigError(f"task.class_names: expected at most {IGNORE_LABEL} for segment, got {task.num_classes}")
        weights = [config.background_weight if name in config.background_classes else 1.0 for name in task.class_names]
        self.register_buffer("class_weights_K", torch.tensor(weights), persistent=False)

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``segment``, and ``auxiliary`` where a head gives ``auxiliary_BKHW``: cross-entropies of the pixels.

        At the mask's own size, as a mask made coarser would shift every border; among the classes that the
        sample's source annotates.
        """
        losses = {"segment": self.config.segment_weight * self._pixel_loss(outputs["logits_BKHW"], batch)}
        if "auxiliary_BKHW" in outputs:
            weight = self.config.segment_weight * self.config.auxiliary_weight
            losses["auxiliary"] = weight * self._pixel_loss(outputs["auxiliary_BKHW"], batch)
        return losses

    def _pixel_loss(self, logits_BKHW: Tensor, batch: Batch) -> Tensor:
        mask_BHW = self._target(batch, "mask_BHW")
        return cross_entropy(
            resize(logits_BKHW, tuple(mask_BHW.shape[-2:])),
            mask_BHW,
            ignore_index=IGNORE_LABEL,
            class_weights_K=self.class_weights_K.float(),
            known_BK=batch.get("known_BK"),
        )

    @torch.no_grad()
    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """``mask`` of the most probable class."""
        labels_BHW = resize(outputs["logits_BKHW"], image_size_px).argmax(1)
        return [Prediction(mask=mask_HW) for mask_HW in to_numpy(labels_BHW.to(torch.uint8))]


class SegmentHead(Segmenter, MapHead):
    """Pyramid map, one doubling, a logit a class; bilinear to the image's size."""

    def __init__(
        self, task: Task, channels: Sequence[int], strides: Sequence[int], config: HeadConfig, frozen_features: bool
    ) -> None:
        """See ``build_head``.

        Raises:
            ConfigError: a background class is unknown, or a class index would not fit beside 255 in 8 bits.
        """
        super().__init__(task, channels, strides, config, frozen_features)
        self._take_classes()
        self.decoder = DenseDecoder(config.neck_width, task.num_classes)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``logits_BKHW`` at half the pyramid's finest stride."""
        return {"logits_BKHW": self.decoder(self.pyramid_map(features))}

    def shared_prefixes(self) -> tuple[str, ...]:
        """All but the layer that gives the classes."""
        return ("standardizers", "neck", "decoder.conv")


class ContextHead(Segmenter):
    """A context module, a 1x1 classifier, and while training a second classifier on the second coarsest map.

    The second one is a small fully convolutional head that the benchmark's configurations add to either module;
    a prediction does not use it.
    """

    def __init__(
        self, task: Task, channels: Sequence[int], strides: Sequence[int], config: HeadConfig, frozen_features: bool
    ) -> None:
        """See ``build_head``.

        Raises:
            ConfigError: as for ``SegmentHead``.
        """
        super().__init__(task, config)
        self._take_classes()
        self.standardizers = nn.ModuleList(
            ChannelStandardizer(width) if frozen_features else nn.Identity() for width in channels
        )
        self.context = self._new_context(channels, strides)
        self.classify = nn.Conv2d(config.neck_width, task.num_classes, 1)
        if config.auxiliary_weight and len(channels) > 1:
            self.auxiliary = nn.Sequential(
                conv_norm_relu(channels[-2], config.neck_width), nn.Conv2d(config.neck_width, task.num_classes, 1)
            )

    @abstractmethod
    def _new_context(self, channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
        """The module from all maps to one of ``neck_width`` channels."""

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``logits_BKHW`` at the context module's stride; ``auxiliary_BKHW`` while training."""
        maps = [standardize(x_BCHW) for standardize, x_BCHW in zip(self.standardizers, features.maps, strict=True)]
        outputs = {"logits_BKHW": self.classify(self.context(maps))}
        if self.training and hasattr(self, "auxiliary"):
            outputs["auxiliary_BKHW"] = self.auxiliary(maps[-2])
        return outputs

    def shared_prefixes(self) -> tuple[str, ...]:
        """All but the layers that give the classes."""
        return ("standardizers", "context", *(("auxiliary.0",) if hasattr(self, "auxiliary") else ()))


class DeepLabHead(ContextHead):
    """DeepLabv3: atrous spatial pyramid pooling on the coarsest map."""

    def _new_context(self, channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
        return AtrousPyramid(channels[-1], self.config.neck_width, self.config.aspp_rates)


class UPerNetHead(ContextHead):
    """UPerNet: pyramid pooling on the coarsest map, a feature pyramid, all its levels fused at the finest."""

    def _new_context(self, channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
        return PooledPyramid(channels, strides, self.config.neck_width, self.config.pooling_scales)


SEGMENT_HEADS = {"pyramid": SegmentHead, "deeplab_v3": DeepLabHead, "upernet": UPerNetHead}
