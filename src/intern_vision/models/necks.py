"""Necks: backbone levels to one fine map. B batch, C channels, H W height and width, F pyramid width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.errors import ConfigError
from intern_vision.heads import NORM_GROUPS


def conv_norm_relu(in_channels: int, out_channels: int, *, kernel_size: int = 3, dilation: int = 1) -> nn.Sequential:
    """Convolution, group normalisation, ReLU; the size is kept.

    Group normalisation (arXiv 1803.08494) has no running state, so small or uneven batches and many
    ranks give what one large batch gives.
    """
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        ),
        nn.GroupNorm(NORM_GROUPS, out_channels),
        nn.ReLU(inplace=True),
    )


class ChannelStandardizer(nn.Module):
    """Shifts and scales each channel of frozen features to mean 0 and variance 1.

    The statistics are the running average over the training batches seen so far and serve training
    and evaluation alike: frozen features have one fixed distribution, so the average settles and a
    batch of one image works. Same purpose as the parameter-free batch normalisation before a linear
    probe in MAE (arXiv 2111.06377, appendix A.1).

    Attributes:
        is_settled: training batches no longer change the statistics.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        """Starts from mean 0 and variance 1, which the first training batch replaces."""
        super().__init__()
        self.eps = eps
        self.is_settled = False
        self.register_buffer("mean_C", torch.zeros(num_channels))
        self.register_buffer("var_C", torch.ones(num_channels))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Standardises ``x`` of shape ``(B, C)`` or ``(B, C, H, W)``; dtype and shape are kept."""
        if self.training and not self.is_settled:
            self._update(x.detach().float())
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale_C = torch.rsqrt(self.var_C.float() + self.eps)
        return ((x.float() - self.mean_C.float().view(shape)) * scale_C.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var_C, mean_C = torch.var_mean(x, axes, correction=0)
        self.num_batches += 1
        share = 1.0 / self.num_batches
        shift_C = mean_C - self.mean_C
        # Variance of a mixture: the mean of the variances plus the variance of the means (Chan et al. 1979).
        self.var_C += share * (var_C - self.var_C) + share * (1.0 - share) * shift_C.square()
        self.mean_C += share * shift_C


class FeaturePyramid(nn.Module):
    """Top-down pyramid: 1x1 laterals, nearest upsampling and sum, 3x3 smoothing (FPN, arXiv 1612.03144).

    Attributes:
        stride: pixels a cell of the finest map, ``strides[0]``.
        width: channels of every output map, F.
    """

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int], width: int, *, all_levels: bool = False
    ) -> None:
        """Builds one lateral convolution a level and a smoothing one for each level that is asked for.

        Args:
            in_channels: channels of each level, fine to coarse.
            strides: pixels a cell of each level, strictly growing.
            width: F, a multiple of 8.
            all_levels: also make what ``levels`` needs; without it no parameter stays unused.

        Raises:
            ConfigError: the two lists do not fit each other.
        """
        super().__init__()
        growing = all(fine < coarse for fine, coarse in zip(strides, strides[1:], strict=False))
        if not in_channels or len(in_channels) != len(strides) or not growing:
            raise ConfigError(
                "strides: expected one strictly growing stride a level, "
                f"got strides {tuple(strides)} for channels {tuple(in_channels)}"
            )
        self.stride, self.width = strides[0], width
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.smooths = nn.ModuleList(
            conv_norm_relu(width, width) for _ in (in_channels if all_levels else in_channels[:1])
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Finest map ``(B, F, H, W)`` from the levels ``(B, C_k, H_k, W_k)``, fine to coarse."""
        return self.smooths[0](self._top_down(maps)[0])

    def levels(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Every level ``(B, F, H_k, W_k)``, fine to coarse; only for a pyramid made with ``all_levels``."""
        return tuple(smooth(x) for smooth, x in zip(self.smooths, self._top_down(maps), strict=True))

    def _top_down(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged: list[Tensor] = []
        for lateral, x_BCHW in zip(reversed(self.laterals), reversed(maps), strict=True):
            x_BFHW = lateral(x_BCHW)
            if merged:
                # The size is taken from the finer level, so images no multiple of the top stride fit too.
                x_BFHW = x_BFHW + F.interpolate(merged[-1], size=x_BFHW.shape[-2:], mode="nearest")
            merged.append(x_BFHW)
        return merged[::-1]


class DenseDecoder(nn.Module):
    """Doubles a map's resolution once and predicts ``out_channels`` values a cell.

    Each coarse cell predicts its four fine cells (sub-pixel convolution, arXiv 1609.05158), so no
    convolution or normalisation runs at the fine resolution.
    """

    def __init__(self, width: int, out_channels: int) -> None:
        """``width`` is F of the incoming map, a multiple of 8."""
        super().__init__()
        self.conv = conv_norm_relu(width, width)
        self.predict = nn.Conv2d(width, 4 * out_channels, 1)

    def forward(self, x_BFHW: Tensor) -> Tensor:
        """``(B, out_channels, 2H, 2W)``."""
        return F.pixel_shuffle(self.predict(self.conv(x_BFHW)), 2)
