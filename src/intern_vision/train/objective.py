"""Objectives: a batch in, losses to be summed and values to report out, kept apart.

B batch, C channels, D embedding width, H W height and width, K classes, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError
from intern_vision.models.features import Features
from intern_vision.models.vision import VisionModel
from intern_vision.train.label_space import LabelSpace
from intern_vision.train.losses import mean_over_ranks, num_ranks

Batch = Mapping[str, Any]
Losses = dict[str, Tensor]


class Objective(nn.Module, ABC):
    """What a training minimises.

    Attributes:
        model: the part that is saved and used afterwards.
        passes_per_sample: passes of a sample through trained backbones, forward and back; two views
            count twice.
        forward_passes_per_sample: passes of a sample forward alone, as through a teacher.
    """

    passes_per_sample: int = 1
    forward_passes_per_sample: int = 0

    def __init__(self, model: VisionModel) -> None:
        """Keeps the model that is saved."""
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """Weighted scalar losses by name, and scalar values to report."""

    def save(self, folder: Path) -> None:
        """Writes the model's weights and spec."""
        self.model.save(folder)


class MultiTaskObjective(Objective):
    """Every head's own losses on one batch: an expert has one head, a joint generalist several.

    With several datasets each head learns from its own samples only: its losses are means over these, and 0
    with zero gradients where a batch holds none of them.

    Args:
        model: its heads decide the tasks.
        task_weights: factor on a head's losses by head name; 1 where left out.
        freeze_backbone: trains the heads alone, with the backbone in eval mode.
        freeze_heads: trains the backbone alone; names freeze these heads only.
        infos: the datasets of the samples by number; without them labels are taken to be in every head's numbering.

    Raises:
        ConfigError: ``task_weights`` or ``freeze_heads`` names a head that the model lacks.
        DataError: a head fits none of the datasets, see ``LabelSpace``.
    """

    def __init__(
        self,
        model: VisionModel,
        task_weights: dict[str, float] | None = None,
        *,
        freeze_backbone: bool = False,
        freeze_heads: bool | Sequence[str] = False,
        infos: Sequence[DatasetInfo] = (),
    ) -> None:
        """Marks what is trained."""
        super().__init__(model)
        self.task_weights = task_weights or {}
        self.freeze_backbone = freeze_backbone
        all_or_none = tuple(model.heads) if freeze_heads else ()
        frozen = all_or_none if isinstance(freeze_heads, bool) else freeze_heads
        check_head_names("task_weights", self.task_weights, model.heads)
        check_head_names("freeze_heads", frozen, model.heads)
        model.backbone.requires_grad_(not freeze_backbone)
        for name, head in model.heads.items():
            head.requires_grad_(name not in frozen)
        self.label_spaces = nn.ModuleDict(
            {
                name: LabelSpace(name, spec, infos)
                for name, spec in model.spec.heads.items()
                if len(infos) > 1 or (infos and spec.sources)
            }
        )

    def train(self, mode: bool = True) -> "MultiTaskObjective":
        """A frozen backbone stays in eval mode: its running statistics belong to its upstream data."""
        super().train(mode)
        if self.freeze_backbone:
            self.model.backbone.eval()
        return self

    def features(self, batch: Batch) -> Features:
        """The features the heads read."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            return self.model(batch["image_BCHW"])

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``."""
        return self.task_losses(self.features(batch), batch), {}

    def task_losses(self, features: Features, batch: Batch, heads: Iterable[str] | None = None) -> Losses:
        """Each head's losses times its weight, as ``<head>/<loss>``; of ``heads`` alone where these are named."""
        names = tuple(self.model.heads if heads is None else heads)
        shares = self._own_shares(names, batch)
        losses: Losses = {}
        for name in names:
            head, weight = self.model.heads[name], self.task_weights.get(name, 1.0) * shares.get(name, 1.0)
            own_batch = self.label_spaces[name].view(batch) if name in self.label_spaces else batch
            for loss_name, loss in head.losses(head(features), own_batch).items():
                losses[f"{name}/{loss_name}"] = weight * loss
        return losses

    def _own_shares(self, names: Sequence[str], batch: Batch) -> dict[str, Tensor]:
        """How many samples of a head's datasets this rank has, over the mean of all ranks.

        The engine averages over the ranks as if each had as many: weighted by this, means over a rank's samples become
        the mean over the global batch's.
        """
        spaces = {name: self.label_spaces[name] for name in names if name in self.label_spaces}
        if not spaces or num_ranks() == 1:
            return {}
        counts_H = torch.stack([space.num_samples(batch) for space in spaces.values()])
        shares_H = counts_H / mean_over_ranks(counts_H).clamp_min(1e-6)
        return dict(zip(spaces, shares_H.unbind(), strict=True))


def check_head_names(field: str, names: Iterable[str], heads: Iterable[str]) -> None:
    """ConfigError where a setting by head name names no head."""
    unknown = [name for name in names if name not in heads]
    if unknown:
        raise ConfigError(f"{field}: expected heads among {', '.join(heads)}, got {unknown[0]!r}")


class CachedFeaturesObjective(MultiTaskObjective):
    """Heads trained on features computed once: the batch holds ``map_<k>`` and ``vector`` instead of images."""

    def __init__(self, model: VisionModel) -> None:
        """Freezes the backbone, which no pass goes through any more."""
        super().__init__(model, freeze_backbone=True)

    def features(self, batch: Batch) -> Features:
        """The features the batch holds."""
        maps = tuple(batch[f"map_{level}"].float() for level in range(len(self.model.backbone.channels)))
        return Features(maps=maps, vector_BD=batch["vector"].float())
