"""Context modules of segmentation heads. B batch, C channels, F decoder width, H W height and width, K classes.

Normalisation is by groups, as in the pyramid: a dense crop allows few images a rank, where batch statistics are
noise, and several sources in one batch have no common statistics. Where a map is pooled to a few cells there is
none at all, because a group over one cell holds too few numbers to normalise.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.models.necks import FeaturePyramid, conv_norm_relu


class PooledContext(nn.Module):
    """The map averaged to ``num_cells`` x ``num_cells``, projected, and brought back to the map's own size."""

    def __init__(self, in_channels: int, width: int, num_cells: int) -> None:
        """``width`` is F of the result."""
        super().__init__()
        self.num_cells = num_cells
        self.project = nn.Conv2d(in_channels, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, F, H, W)``; bilinear between the cells' centres."""
        pooled = F.relu(self.project(F.adaptive_avg_pool2d(x_BCHW, self.num_cells)))
        return F.interpolate(pooled, size=x_BCHW.shape[-2:], mode="bilinear", align_corners=False)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling of DeepLabv3 (arXiv 1706.05587, section 3.3).

    A 1x1 convolution, one 3x3 convolution a dilation and the mean of the image, side by side, then fused by 1x1. On
    a map narrower than a dilation a 3x3 convolution sees its centre only; the image's mean is what remains of the
    context there.
    """

    def __init__(self, in_channels: int, width: int, rates: Sequence[int]) -> None:
        """One branch a dilation in ``rates``, each of ``width`` channels."""
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, width, kernel_size=1),
                *(conv_norm_relu(in_channels, width, dilation=rate) for rate in rates),
                PooledContext(in_channels, width, 1),
            ]
        )
        self.fuse = conv_norm_relu(width * len(self.branches), width, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``(B, F, H, W)`` from the coarsest of the maps, at its stride."""
        return self.fuse(torch.cat([branch(maps[-1]) for branch in self.branches], 1))


class PooledPyramid(nn.Module):
    """UPerNet's fusion (arXiv 1807.10221, section 3.1): context on the coarsest map, a pyramid, all levels joined.

    The pyramid pooling is PSPNet's (arXiv 1612.01105, section 3.2); the top-down part is ``FeaturePyramid``.
    """

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int], width: int, pooling_scales: Sequence[int]
    ) -> None:
        """One pooled branch a scale, one pyramid level a map."""
        super().__init__()
        coarsest = in_channels[-1]
        self.contexts = nn.ModuleList(PooledContext(coarsest, width, num_cells) for num_cells in pooling_scales)
        self.top = conv_norm_relu(coarsest + width * len(self.contexts), width)
        self.neck = FeaturePyramid([*in_channels[:-1], width], strides, width, all_levels=True)
        self.fuse = conv_norm_relu(width * len(in_channels), width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``(B, F, H, W)`` at the stride of the finest map."""
        coarsest = maps[-1]
        top = self.top(torch.cat([coarsest, *(context(coarsest) for context in self.contexts)], 1))
        levels = self.neck.levels([*maps[:-1], top])
        size = levels[0].shape[-2:]
        rest = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in levels[1:]]
        return self.fuse(torch.cat([levels[0], *rest], 1))
