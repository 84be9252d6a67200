"""Metres a pixel. B batch, H W height and width."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from intern_vision.bench.depth_metrics import MIN_DEPTH_M
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import Batch, MapHead, Prediction, resize, to_numpy
from intern_vision.models.features import Features
from intern_vision.models.necks import DenseDecoder
from intern_vision.task import Task

VARIANCE_FOCUS = 0.85
NUM_GRADIENT_SCALES = 4
# Keeps the square root's slope finite at a perfect fit.
SQRT_EPS = 1e-6
# Inverse metres; a constant image has no scale of its own.
SCALE_EPS = 1e-4


class DepthHead(MapHead):
    """Pyramid map, one doubling, log depth; bounded above by ``task.max_depth_m``."""

    def __init__(
        self, task: Task, channels: Sequence[int], strides: Sequence[int], config: HeadConfig, frozen_features: bool
    ) -> None:
        """See ``build_head``."""
        super().__init__(task, channels, strides, config, frozen_features)
        self.decoder = DenseDecoder(config.neck_width, 1)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``log_depth_B1HW``, float32 natural log of metres, at half the pyramid's finest stride.

        ``log(max) + log(sigmoid(z))`` is the log of BTS's ``max * sigmoid(z)`` without its underflow.
        """
        z_B1HW = self.decoder(self.pyramid_map(features))
        return {"log_depth_B1HW": math.log(self.task.max_depth_m) + F.logsigmoid(z_B1HW.float())}

    def shared_prefixes(self) -> tuple[str, ...]:
        """Everything: the largest depth is a factor outside the weights."""
        return ("standardizers", "neck", "decoder")

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``silog`` (or ``affine``) and ``gradient`` over pixels with known depth of at most ``task.max_depth_m``."""
        depth_BHW = self._target(batch, "depth_BHW").float()
        valid_BHW = (depth_BHW > 0) & (depth_BHW <= self.task.max_depth_m)
        log_depth_BHW = resize(outputs["log_depth_B1HW"], tuple(depth_BHW.shape[-2:])).squeeze(1)
        if self.config.depth_loss == "affine":
            inverse_BHW = torch.where(valid_BHW, depth_BHW, 1.0).reciprocal()
            error_BHW = align(torch.exp(-log_depth_BHW), valid_BHW) - align(inverse_BHW, valid_BHW)
            return {
                "affine": self.config.affine_weight * affine_loss(error_BHW, valid_BHW),
                "gradient": self.config.gradient_weight * gradient_loss(error_BHW, valid_BHW),
            }
        error_BHW = log_depth_BHW - torch.where(valid_BHW, depth_BHW, 1.0).log()
        return {
            "silog": self.config.silog_weight * silog_loss(error_BHW, valid_BHW),
            "gradient": self.config.gradient_weight * gradient_loss(error_BHW, valid_BHW),
        }

    @torch.no_grad()
    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """``depth`` in metres."""
        depth_BHW = resize(outputs["log_depth_B1HW"], image_size_px).squeeze(1).exp()
        return [
            Prediction(depth=depth_HW) for depth_HW in to_numpy(depth_BHW.clamp(MIN_DEPTH_M, self.task.max_depth_m))
        ]


def silog_loss(error_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Scale-invariant log loss ``sqrt(mean(g^2) - 0.85 mean(g)^2)`` over the batch's valid pixels.

    Eigen et al. (arXiv 1406.2283, section 3), with the square root and variance focus of BTS (arXiv 1907.10326).

    Args:
        error_BHW: ``g``, predicted minus true log depth, float32; finite everywhere.
        valid_BHW: bool; where none is set the loss is 0.
    """
    valid = valid_BHW.float()
    num_valid = valid.sum().clamp_min(1.0)
    error = error_BHW * valid
    mean = error.sum() / num_valid
    # The variance from centred values: a difference of squares would cancel in float32 when the scale is far off.
    variance = ((error - mean) * valid).square().sum() / num_valid
    loss = torch.sqrt(variance + (1.0 - VARIANCE_FOCUS) * mean.square() + SQRT_EPS)
    return loss * valid_BHW.any()


def align(inverse_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Each image's values less their median, over their mean absolute distance from it.

    The robust alignment of MiDaS (arXiv 1907.01341, section 5); the median of an even number is the lower one. An image
    without valid pixels is aligned by all its pixels, so that every number is finite.

    Args:
        inverse_BHW: inverse depth, float32; finite everywhere.
        valid_BHW: bool.
    """
    used_BX = (valid_BHW | ~valid_BHW.any(-1, keepdim=True).any(-2, keepdim=True)).flatten(1)
    inverse_BX = inverse_BHW.flatten(1)
    shift_B1 = torch.where(used_BX, inverse_BX, torch.nan).nanmedian(1, keepdim=True).values
    distance_BX = torch.where(used_BX, inverse_BX - shift_B1, 0.0)
    scale_B1 = distance_BX.abs().sum(1, keepdim=True) / used_BX.sum(1, keepdim=True)
    return ((inverse_BX - shift_B1) / scale_B1.clamp_min(SCALE_EPS)).view_as(inverse_BHW)


def affine_loss(error_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Mean absolute error of aligned inverse depths an image, averaged over the images with a valid pixel.

    MiDaS (arXiv 1907.01341, section 5, without trimming and its factor of 1/2): blind to a scale and a shift of either
    side.

    Args:
        error_BHW: aligned prediction minus aligned truth, float32; finite everywhere.
        valid_BHW: bool; where none is set the loss is 0.
    """
    num_valid_B = valid_BHW.sum((1, 2))
    mean_B = (error_BHW.abs() * valid_BHW).sum((1, 2)) / num_valid_B.clamp_min(1)
    return mean_B.sum() / (num_valid_B > 0).sum().clamp_min(1)


def gradient_loss(error_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Mean absolute horizontal and vertical difference of the error, summed over four scales.

    MegaDepth (arXiv 1804.00607, section 4, on log depth) and MiDaS (arXiv 1907.01341, section 5, on aligned inverse
    depth): keeps depth edges sharp and in place. Scale k takes every ``2^k``-th
    pixel; a difference counts where both its pixels are valid.

    Args:
        error_BHW: predicted minus true log or aligned inverse depth, float32; finite everywhere.
        valid_BHW: bool; where none is set the loss is 0.
    """
    loss = error_BHW.new_zeros(())
    for scale in range(NUM_GRADIENT_SCALES):
        step = 2**scale
        error, valid = error_BHW[:, ::step, ::step], valid_BHW[:, ::step, ::step]
        across = (error[:, :, 1:] - error[:, :, :-1]).abs() * (valid[:, :, 1:] & valid[:, :, :-1])
        down = (error[:, 1:] - error[:, :-1]).abs() * (valid[:, 1:] & valid[:, :-1])
        loss = loss + (across.sum() + down.sum()) / valid.sum().clamp_min(1)
    return loss
