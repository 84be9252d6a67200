"""MetaNet: the network of a genotype. B batch, C channels, H W height and width, D vector width.

Source: gv-benchmark repository, ``metanet.py``.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from intern_vision.models.features import Features
from intern_vision.models.genotype import IMAGE_CHANNELS, STEM_STRIDE, Genotype, Operator
from intern_vision.models.layers import (
    AttentionBlock,
    CrossCovarianceBlock,
    FusedMBConv,
    MBConv,
    MixerBlock,
    init_weights,
    make_activation,
)

_BLOCKS: dict[Operator, type[nn.Module]] = {
    "mbconv": MBConv,
    "fused_mbconv": FusedMBConv,
    "attention": AttentionBlock,
    "cross_covariance": CrossCovarianceBlock,
    "mixer": MixerBlock,
}


class MetaNet(nn.Module):
    """Stem, one segment of blocks up to each tap, and the pooled head.

    Attributes:
        genotype: what the network was built from.
        channels: channels of the feature maps, fine to coarse.
        strides: strides of the feature maps.
        vector_width: width of the pooled image vector.
        stem: 3x3 stride-2 convolution, BatchNorm, activation.
        segments: the blocks between two taps; segment k ends at map k.
        head: 1x1 convolution, BatchNorm, activation; empty when ``head_width`` is 0.
    """

    def __init__(self, genotype: Genotype):
        """Builds the network with fresh weights."""
        super().__init__()
        self.genotype = genotype
        self.channels = genotype.channels
        self.strides = genotype.strides
        self.vector_width = genotype.vector_width
        self.stem = nn.Sequential(
            nn.Conv2d(IMAGE_CHANNELS, genotype.stem_width, 3, STEM_STRIDE, 1, bias=False),
            nn.BatchNorm2d(genotype.stem_width),
            make_activation(genotype.activation),
        )
        segments: list[list[nn.Module]] = [[] for _ in genotype.taps]
        for shape in genotype.blocks(genotype.image_size_px):
            level = sum(tap < shape.stage for tap in genotype.taps)
            segments[level].append(_BLOCKS[shape.operator](shape, genotype))
        self.segments = nn.ModuleList(nn.Sequential(*blocks) for blocks in segments)
        self.head = nn.Sequential()
        if genotype.head_width:
            self.head.extend(
                [
                    nn.Conv2d(genotype.stages[-1].width, genotype.head_width, 1, bias=False),
                    nn.BatchNorm2d(genotype.head_width),
                    make_activation(genotype.activation),
                ]
            )
        self.apply(init_weights)

    def forward(self, x_BCHW: Tensor) -> Features:
        """Computes every feature map and the image vector.

        Args:
            x_BCHW: normalised RGB images, floating point, any size; map k is
                ``ceil(H / strides[k])`` high. Channels-last memory is fastest.
        """
        maps = tuple(self.levels(x_BCHW))
        return Features(maps, self.pool(maps[-1]))

    def levels(self, x_BCHW: Tensor, fuse: Callable[[int, Tensor], Tensor] | None = None) -> Iterator[Tensor]:
        """Yields the feature maps fine to coarse; what is not asked for is not computed.

        Args:
            x_BCHW: normalised RGB images.
            fuse: called with the level and its map; what it returns is yielded and is what the
                next segment sees.
        """
        x_BCHW = self.stem(x_BCHW)
        for level, segment in enumerate(self.segments):
            x_BCHW = segment(x_BCHW)
            if fuse is not None:
                x_BCHW = fuse(level, x_BCHW)
            yield x_BCHW

    def pool(self, map_BCHW: Tensor) -> Tensor:
        """The image vector ``(B, D)`` of the coarsest map."""
        if self.genotype.head_width:
            return self.head(map_BCHW).mean((2, 3))
        return torch.cat([map_BCHW.mean((2, 3)), map_BCHW.amax((2, 3))], 1)

    @property
    def num_layers(self) -> int:
        """Depths that a layer-wise learning-rate decay tells apart: stem, every block, head."""
        return self.genotype.num_blocks + 2

    def layer_index(self, name: str) -> int:
        """Depth of a parameter, 0 (stem) to ``num_layers - 1`` (head).

        Args:
            name: as ``named_parameters`` gives it.
        """
        part, *rest = name.split(".")
        if part == "stem":
            return 0
        if part == "segments":
            level, block = int(rest[0]), int(rest[1])
            return 1 + block + sum(len(segment) for segment in self.segments[:level])
        return self.num_layers - 1
