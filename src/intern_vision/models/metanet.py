"""MetaNet: the network of a genotype. B batch, C channels, H W height and width, D vector width.

Source: gv-benchmark repository, ``metanet.py``; with down-sampling modules, UniNet repository,
``uninet.py``.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from intern_vision.models.cost import IMAGE_CHANNELS, STEM_STRIDE, check_image_size
from intern_vision.models.downsampling import GlobalDownsampling, LocalDownsampling, LocalGlobalDownsampling
from intern_vision.models.features import Features
from intern_vision.models.genotype import Genotype
from intern_vision.models.layers import (
    AttentionBlock,
    CrossCovarianceBlock,
    FusedMBConv,
    MBConv,
    MixerBlock,
    init_weights,
    make_activation,
)

BLOCKS: dict[str, type[nn.Module]] = {
    "mbconv": MBConv,
    "fused_mbconv": FusedMBConv,
    "attention": AttentionBlock,
    "cross_covariance": CrossCovarianceBlock,
    "mixer": MixerBlock,
    "local": LocalDownsampling,
    "local_global": LocalGlobalDownsampling,
    "global": GlobalDownsampling,
}


class MetaNet(nn.Module):
    """Stem, one segment of blocks up to each tap, and the pooled head.

    Attributes:
        genotype: what the network was built from.
        channels: channels of the feature maps, fine to coarse.
        strides: strides of the feature maps.
        vector_width: width of the pooled image vector.
        stem: 3x3 stride-2 convolution, BatchNorm, activation.
        segments: the blocks (and down-sampling modules) between two taps; segment k ends at map k.
        head: 1x1 convolution, BatchNorm, activation; empty when ``head_width`` is 0.
        checkpoint_activations: whether training keeps only the input of every block and computes
            the rest again in the backward pass; less memory for about a third more time. Off in a
            new network and not part of its genotype: it changes neither results nor weights.
    """

    def __init__(self, genotype: Genotype):
        """Builds the network with fresh weights."""
        super().__init__()
        self.genotype = genotype
        self.channels = genotype.channels
        self.strides = genotype.strides
        self.vector_width = genotype.vector_width
        self.checkpoint_activations = False
        self.stem = nn.Sequential(
            nn.Conv2d(IMAGE_CHANNELS, genotype.stem_width, 3, STEM_STRIDE, 1, bias=False),
            nn.BatchNorm2d(genotype.stem_width),
            make_activation(genotype.activation),
        )
        segments: list[list[nn.Module]] = [[] for _ in genotype.taps]
        for shape in genotype.blocks(genotype.image_size_px):
            level = sum(tap < shape.stage for tap in genotype.taps)
            segments[level].append(BLOCKS[shape.operator](shape, genotype))
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
            x_BCHW: normalised RGB images, floating point, any size from ``strides[-1]`` on; map k
                is ``ceil(H / strides[k])`` high. Channels-last memory is fastest, and is kept.

        Raises:
            ConfigError: the images are smaller than the coarsest stride.
        """
        maps = tuple(self.levels(x_BCHW))
        return Features(maps, self.pool(maps[-1]))

    def levels(self, x_BCHW: Tensor, fuse: Callable[[int, Tensor], Tensor] | None = None) -> Iterator[Tensor]:
        """Yields the feature maps fine to coarse; what is not asked for is not computed.

        Args:
            x_BCHW: normalised RGB images.
            fuse: called with the level and its map; what it returns is yielded and is what the
                next segment sees.

        Raises:
            ConfigError: the images are smaller than the coarsest stride.
        """
        check_image_size(self.strides[-1], *x_BCHW.shape[-2:])
        x_BCHW = self.stem(x_BCHW)
        for level, segment in enumerate(self.segments):
            if self.checkpoint_activations and torch.is_grad_enabled():
                for block in segment:
                    contexts = partial(_recomputation_contexts, block)
                    x_BCHW = checkpoint(block, x_BCHW, use_reentrant=False, context_fn=contexts)
            else:
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
        """Depths that a layer-wise learning-rate decay tells apart: stem, every block or down-sampling module, head."""
        return sum(len(segment) for segment in self.segments) + 2

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


def _recomputation_contexts(block: nn.Module) -> tuple[nullcontext, "_Recomputation"]:
    return nullcontext(), _Recomputation(block)


class _Recomputation:
    """A block as it was when this was made, except that running its BatchNorms leaves their statistics alone.

    Between forward and backward a block may be put into another mode or be given another BatchNorm
    set, and its statistics must count every batch once. A mode is whatever a module keeps in plain
    attributes. A class and not a generator, because a graph that is kept can be walked twice.
    """

    def __init__(self, block: nn.Module):
        self._modes = [(module, _mode(module)) for module in block.modules()]
        self._found: list[tuple[nn.Module, dict[str, Any]]] = []

    def __enter__(self) -> None:
        self._found = [(module, _mode(module)) for module, _ in self._modes]
        for module, mode in self._modes:
            if isinstance(module, _BatchNorm):
                # Momentum 0 keeps the running mean and variance bit for bit; without its counter none is counted.
                mode = mode | {"momentum": 0.0, "num_batches_tracked": None}
            for name, value in mode.items():
                setattr(module, name, value)

    def __exit__(self, *_: object) -> None:
        for module, mode in self._found:
            for name, value in mode.items():
                setattr(module, name, value)


def _mode(module: nn.Module) -> dict[str, Any]:
    mode = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return mode | {"num_batches_tracked": module.num_batches_tracked} if isinstance(module, _BatchNorm) else mode
