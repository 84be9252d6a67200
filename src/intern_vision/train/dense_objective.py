"""Up-A-L: feature maps that learn from images alone.

B batch, C channels, D width, H W height and width, L levels, N cells, P prototypes.

What INTERN's own Up-A-L minimises is not published beyond its purpose: dense features that serve detection and
segmentation, with the image-text ability kept. Two published ways are here, each beside a loss that keeps the image
embedding of Up-A-G: pixels of two overlapping views (PixPro, arXiv 2011.10043) and patches that the student does not
see (iBOT, arXiv 2111.07832; DINOv2, arXiv 2304.07193).
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.errors import ConfigError
from intern_vision.models.features import Features
from intern_vision.models.layers import DropPath, normalise
from intern_vision.models.vision import VisionModel
from intern_vision.train.batch_norm import GlobalBatchNorm
from intern_vision.train.losses import mean_over_ranks, negative_cosine
from intern_vision.train.objective import Batch, Losses, Objective
from intern_vision.train.settings import LocalConfig

# About ImageNet's mean, so that a hidden patch is near 0 after normalisation.
HIDDEN_RGB = (124, 116, 104)


class LocalObjective(Objective):
    """What both ways share: a student, its momentum teacher, and the frozen amateur it started from.

    The teacher is a part of the state, so a resumed training finds it. It sees batch statistics like
    the student, as in PixPro, but drops no path.

    Args:
        model: the student; must have a text tower, of which only the image projection is trained.
        anchor: the amateur of Up-A-G, whose image embedding the student keeps.
        config: sizes and weights.
        num_updates: forward passes in training, over which the teacher's momentum grows to 1.

    Raises:
        ConfigError: the backbone has fewer maps than ``num_levels``.
    """

    num_views = 1

    def __init__(self, model: VisionModel, anchor: VisionModel, config: LocalConfig, num_updates: int) -> None:
        """Adds projections and copies the teacher."""
        super().__init__(model)
        channels = model.backbone.channels
        if config.num_levels > len(channels):
            raise ConfigError(
                f"local.num_levels: expected at most {len(channels)} for this backbone, got {config.num_levels}"
            )
        self.config = config
        self.passes_per_sample = self.num_views
        # A view's pass through the teacher, and one through the anchor where it is asked.
        self.forward_passes_per_sample = self.num_views + bool(config.embedding_weight)
        self.last_update = num_updates
        self.levels = range(len(channels) - config.num_levels, len(channels))
        model.text.requires_grad_(False)
        model.text.projection.requires_grad_(True)
        self.projectors = nn.ModuleList(self._new_projector(channels[level]) for level in self.levels)
        student = nn.ModuleDict({"backbone": model.backbone, "projectors": self.projectors})
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        # A tuple hides the anchor from parameters(), state_dict() and train(): it stays frozen and unsaved.
        self._anchor = (anchor.eval().requires_grad_(False),)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "LocalObjective":
        self._anchor[0]._apply(fn)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> "LocalObjective":
        """The teacher drops no path: its output is a target."""
        super().train(mode)
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``."""
        if self.training:
            self._follow()
        local, vector_BD, image_BCHW = self._local(batch)
        losses = {"local": self.config.local_weight * local}
        if self.config.embedding_weight:
            losses["embedding"] = self.config.embedding_weight * self._distance(vector_BD, image_BCHW)
        return losses, {}

    @abstractmethod
    def _local(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The pixel or patch loss; the student's vectors of whole images; these images."""

    def _new_projector(self, width: int) -> nn.Module:
        """PixPro's projection of a map: two 1x1 convolutions with a BatchNorm between."""
        hidden = self.config.hidden_width
        return nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False),
            GlobalBatchNorm(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, self.config.projection_width, 1),
        )

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the teacher's weights towards the student's."""
        progress = (self.num_updates / self.last_update).clamp(max=1.0)
        share = (1 - self.config.momentum) * 0.5 * (1 + torch.cos(math.pi * progress))
        student = nn.ModuleDict({"backbone": self.model.backbone, "projectors": self.projectors})
        for own, target in zip(self.teacher.parameters(), student.parameters(), strict=True):
            own.lerp_(target.detach(), share.to(own.dtype))
        self.num_updates += 1

    @torch.no_grad()
    def _teacher_maps(self, image_BCHW: Tensor) -> list[Tensor]:
        x_BCHW = normalise(image_BCHW).contiguous(memory_format=torch.channels_last)
        features = self.teacher["backbone"](x_BCHW)
        return self._projected(self.teacher["projectors"], features)

    def _projected(self, projectors: nn.ModuleList, features: Features) -> list[Tensor]:
        return [project(features.maps[level]).float() for project, level in zip(projectors, self.levels, strict=True)]

    def _distance(self, vector_BD: Tensor, image_BCHW: Tensor) -> Tensor:
        """1 minus the mean cosine between the student's and the anchor's image embedding."""
        (anchor,) = self._anchor
        with torch.no_grad():
            target_BD = anchor.text.projection(anchor(image_BCHW).vector_BD)
        return 1 + negative_cosine(self.model.text.projection(vector_BD).float(), target_BD.float())


class PixelObjective(LocalObjective):
    """PixPro: cells of two views that show the same place have the same features.

    Args:
        model: see ``LocalObjective``.
        anchor: see ``LocalObjective``.
        config: see ``LocalObjective``.
        num_updates: see ``LocalObjective``.
    """

    num_views = 2

    def __init__(self, model: VisionModel, anchor: VisionModel, config: LocalConfig, num_updates: int) -> None:
        """Adds the pixel propagation, which only the student has."""
        super().__init__(model, anchor, config, num_updates)
        self.propagations = nn.ModuleList(PixelPropagation(config.projection_width) for _ in self.levels)

    def _local(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        images_BCHW = torch.cat([batch["image_BCHW"], batch["second_image_BCHW"]])
        features = self.model(images_BCHW)
        targets = self._teacher_maps(images_BCHW)
        size_px = images_BCHW.shape[-1]
        losses = []
        for propagate, own, target in zip(
            self.propagations, self._projected(self.projectors, features), targets, strict=True
        ):
            positive_BNN = positive_cells(
                batch["affine_B23"], batch["second_affine_B23"], own.shape[2:], size_px, self.config.positive_threshold
            )
            first, second = propagate(own).chunk(2)
            first_target, second_target = target.chunk(2)
            losses.append(
                pixel_loss(first, second_target, positive_BNN) + pixel_loss(second, first_target, positive_BNN.mT)
            )
        return torch.stack(losses).mean(), features.vector_BD[: len(batch["image_BCHW"])], batch["image_BCHW"]


class PatchObjective(LocalObjective):
    """Masked self-distillation: the student says what the teacher sees in patches that are hidden from it.

    Every other image of a batch is masked, as in iBOT; the rest, whole, keep the image embedding. Patches
    are as large as a cell of the coarsest map.

    Args:
        model: see ``LocalObjective``.
        anchor: see ``LocalObjective``.
        config: see ``LocalObjective``.
        num_updates: see ``LocalObjective``.
    """

    def __init__(self, model: VisionModel, anchor: VisionModel, config: LocalConfig, num_updates: int) -> None:
        """Adds the centres of the teacher's outputs."""
        super().__init__(model, anchor, config, num_updates)
        self.register_buffer("hidden_C11", torch.tensor(HIDDEN_RGB, dtype=torch.uint8)[:, None, None], persistent=False)
        self.register_buffer("centres_LP", torch.zeros(config.num_levels, config.num_prototypes))

    def _new_projector(self, width: int) -> nn.Module:
        return nn.Sequential(
            super()._new_projector(width), Prototypes(self.config.projection_width, self.config.num_prototypes)
        )

    def _local(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        image_BCHW = batch["image_BCHW"]
        if len(image_BCHW) < 2:
            raise ConfigError("trainer.batch_size: mode masked needs 2 images or more a rank and micro-batch")
        hidden_BHW = self._hide(image_BCHW)
        pixels_B1HW = F.interpolate(hidden_BHW[:, None], image_BCHW.shape[2:]) > 0
        features = self.model(torch.where(pixels_B1HW, self.hidden_C11, image_BCHW))
        targets = self._teacher_maps(image_BCHW[::2])
        losses = []
        for level, (own, target) in enumerate(zip(self._projected(self.projectors, features), targets, strict=True)):
            weight_BHW = F.interpolate(hidden_BHW[::2, None], own.shape[2:])[:, 0]
            losses.append(self._patch_loss(own[::2], target, weight_BHW, self.centres_LP[level]))
        return torch.stack(losses).mean(), features.vector_BD[1::2], image_BCHW[1::2]

    def _hide(self, image_BCHW: Tensor) -> Tensor:
        """Which patches are hidden: ``(B, H, W)`` float32, 1 = hidden; 0 everywhere in every other image."""
        stride = self.model.backbone.strides[-1]
        height, width = (math.ceil(side / stride) for side in image_BCHW.shape[2:])
        num_hidden = max(1, round(self.config.mask_share * height * width))
        rank_BN = torch.rand(len(image_BCHW), height * width, device=image_BCHW.device).argsort(1).argsort(1)
        hidden_BN = (rank_BN < num_hidden).float()
        hidden_BN[1::2] = 0
        return hidden_BN.view(-1, height, width)

    def _patch_loss(self, own_BPHW: Tensor, target_BPHW: Tensor, weight_BHW: Tensor, centre_P: Tensor) -> Tensor:
        """Cross-entropy between the teacher's and the student's assignment, averaged over the hidden cells."""
        config = self.config
        target = ((target_BPHW - centre_P[:, None, None]) / config.teacher_temperature).softmax(1)
        loss_BHW = -(target * (own_BPHW / config.student_temperature).log_softmax(1)).sum(1)
        if self.training:
            mean_P = mean_over_ranks(target_BPHW.mean((0, 2, 3)))
            centre_P.lerp_(mean_P, 1 - config.centre_momentum)
        return (loss_BHW * weight_BHW).sum() / weight_BHW.sum()


class PixelPropagation(nn.Module):
    """Each cell becomes the sum of all cells' transformed features, weighted by similarity (PixPro, equation 3).

    Args:
        width: channels D.
        sharpness: exponent of the cosine, negative ones counting 0 (PixPro: 2).
    """

    def __init__(self, width: int, sharpness: float = 2.0) -> None:
        """Builds the transform, one 1x1 convolution."""
        super().__init__()
        self.transform = nn.Conv2d(width, width, 1)
        self.sharpness = sharpness

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` float32."""
        rows_BDN = F.normalize(x_BDHW, dim=1).flatten(2)
        weight_BNN = (rows_BDN.mT @ rows_BDN).clamp(min=0) ** self.sharpness
        return (self.transform(x_BDHW).float().flatten(2) @ weight_BNN.mT).view_as(x_BDHW)


class Prototypes(nn.Module):
    """Cosine of each cell to each of P prototypes.

    Args:
        width: channels D.
        num_prototypes: P.
    """

    def __init__(self, width: int, num_prototypes: int) -> None:
        """Draws the prototypes."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_prototypes, width) / math.sqrt(width))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, P, H, W)`` in [-1, 1]."""
        rows_BDHW, weight_PD = F.normalize(x_BDHW.float(), dim=1), F.normalize(self.weight.float(), dim=1)
        return F.conv2d(rows_BDHW, weight_PD[:, :, None, None])


def positive_cells(
    first_B23: Tensor, second_B23: Tensor, grid: tuple[int, int], size_px: int, threshold: float
) -> Tensor:
    """Which cells of two views show the same place of the image (PixPro, equation 1).

    Args:
        first_B23: map from source pixels to the first view's, of crops and flips only.
        second_B23: the second view's.
        grid: height and width of the feature map.
        size_px: side of the views.
        threshold: largest distance of two centres, in diagonals of the larger of the two views' cells.

    Returns:
        ``(B, N, N)`` bool: cell of the first view, cell of the second; N = height times width, row by row.
    """
    (first_BN2, first_B), (second_BN2, second_B) = (
        _centres(affine_B23.float(), grid, size_px) for affine_B23 in (first_B23, second_B23)
    )
    diagonal_B11 = torch.maximum(first_B, second_B)[:, None, None]
    distance_BNN = (first_BN2[:, :, None] - second_BN2[:, None]).square().sum(-1).sqrt()
    return distance_BNN / diagonal_B11 < threshold


def _centres(affine_B23: Tensor, grid: tuple[int, int], size_px: int) -> tuple[Tensor, Tensor]:
    """Centres of a view's cells and the diagonal of one, in source pixels."""
    height, width = grid
    y_H = (torch.arange(height, device=affine_B23.device) + 0.5) * (size_px / height)
    x_W = (torch.arange(width, device=affine_B23.device) + 0.5) * (size_px / width)
    view_N2 = torch.stack([x_W.expand(height, width), y_H[:, None].expand(height, width)], dim=-1).flatten(0, 1)
    scale_B12 = torch.stack([affine_B23[:, 0, 0], affine_B23[:, 1, 1]], dim=-1)[:, None]
    diagonal_B = torch.hypot(size_px / width / scale_B12[:, 0, 0], size_px / height / scale_B12[:, 0, 1])
    return (view_N2 - affine_B23[:, None, :, 2]) / scale_B12, diagonal_B


def pixel_loss(own_BDHW: Tensor, target_BDHW: Tensor, positive_BNN: Tensor) -> Tensor:
    """Minus the cosine over the positive pairs of an image, averaged over images; without a pair an image counts 0."""
    own_BDN, target_BDN = (F.normalize(x.flatten(2), dim=1) for x in (own_BDHW, target_BDHW.detach()))
    cosine_BNN = own_BDN.mT @ target_BDN
    weight_BNN = positive_BNN.float()
    return -((cosine_BNN * weight_BNN).sum((1, 2)) / weight_BNN.sum((1, 2)).clamp(min=1)).mean()
