"""Objectives: a batch in, losses to be summed and values to report out, kept apart.

B batch, C channels, D embedding width, H W height and width, K classes, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.models.features import Features
from intern_vision.models.vision import VisionModel
from intern_vision.train.losses import (
    NeighbourQueue,
    contrastive_loss,
    gather_rows,
    mask_tokens,
    masked_token_loss,
    negative_cosine,
    standardise,
)
from intern_vision.train.settings import SignalWeights

Batch = Mapping[str, Any]
Losses = dict[str, Tensor]


class Objective(nn.Module, ABC):
    """What a training minimises.

    Attributes:
        model: the part that is saved and used afterwards.
        passes_per_sample: image passes through a trained backbone a sample costs (two views
            count twice, and so does a teacher's pass).
    """

    passes_per_sample: int = 1

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


class ImageTextObjective(Objective):
    """Up-A-G: CLIP's contrast and DeCLIP's further signals (arXiv 2110.05208; code Sense-GVT/DeCLIP).

    Args:
        model: must have a text tower.
        weights: which signals count how much.
        mask_id: id of the mask token, the smallest of the special ids.
        queue_rows: length of the neighbour queue.
    """

    def __init__(self, model: VisionModel, weights: SignalWeights, *, mask_id: int, queue_rows: int) -> None:
        """Adds the parts that only training needs: predictors, token head and queue."""
        super().__init__(model)
        self.weights = weights
        self.mask_id = mask_id
        self.passes_per_sample = weights.num_views
        text = model.spec.text
        assert text is not None, "an amateur has a text tower"
        width = text.embedding_width
        if weights.image_self:
            self.projector = nn.Sequential(
                *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
                *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width)),
            )
            self.predictor = nn.Sequential(
                *(nn.Linear(width, width // 2, bias=False), nn.BatchNorm1d(width // 2), nn.ReLU()),
                nn.Linear(width // 2, width),
            )
        if weights.text_self:
            self.token_head = nn.Linear(text.width, text.vocab_size)
        if weights.neighbour:
            self.queue = NeighbourQueue(queue_rows, width)

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``; needs ``image_BCHW`` and ``tokens_BL``, and the second ones for two views."""
        weights, tower = self.weights, self.model.text
        scale = tower.scale().float()
        raw_views = self._project_views(batch)
        views = [gather_rows(F.normalize(raw_BD.float(), dim=-1)) for raw_BD in raw_views]
        losses: Losses = {}
        tokens_BL = batch["tokens_BL"]
        if weights.text_self:
            masked_BL, targets_BL = mask_tokens(tokens_BL, mask_id=self.mask_id, first_special_id=self.mask_id)
            embedding_BD, hidden_BLW = tower.encoder(masked_BL)
            losses["text_self"] = weights.text_self * masked_token_loss(self.token_head(hidden_BLW), targets_BL)
        else:
            embedding_BD, _ = tower.encoder(tokens_BL)
        text_BD = gather_rows(F.normalize(embedding_BD.float(), dim=-1))
        image_text = contrastive_loss(views[0], text_BD, scale)
        losses["image_text"] = weights.image_text * image_text
        if weights.multi_view or weights.neighbour:
            second_BD, _ = tower.encoder(batch["second_tokens_BL"])
            second_BD = gather_rows(F.normalize(second_BD.float(), dim=-1))
        if weights.multi_view:
            others = ((views[1], text_BD), (views[0], second_BD), (views[1], second_BD))
            losses["multi_view"] = weights.multi_view * sum(contrastive_loss(v, t, scale) for v, t in others) / 3
        if weights.image_self:
            losses["image_self"] = weights.image_self * self._image_self(*raw_views)
        if weights.neighbour:
            losses["neighbour"] = weights.neighbour * self._neighbour(views, text_BD, second_BD, scale)
        return losses, {"image_text": image_text.detach(), "scale": scale.detach()}

    def _project_views(self, batch: Batch) -> list[Tensor]:
        images = [batch["image_BCHW"]]
        if self.weights.num_views == 2:
            images.append(batch["second_image_BCHW"])
        vectors_BD = self.model(torch.cat(images)).vector_BD
        return list(self.model.text.projection(vectors_BD).chunk(len(images)))

    def _image_self(self, first_BD: Tensor, second_BD: Tensor) -> Tensor:
        first, second = self.projector(first_BD), self.projector(second_BD)
        predicted_first, predicted_second = self.predictor(first).float(), self.predictor(second).float()
        return 0.5 * (
            negative_cosine(predicted_first, second.float()) + negative_cosine(predicted_second, first.float())
        )

    def _neighbour(self, views: list[Tensor], text_BD: Tensor, second_BD: Tensor, scale: Tensor) -> Tensor:
        # Look up before pushing, or a caption would be its own neighbour.
        neighbours = (self.queue.nearest(text_BD), self.queue.nearest(second_BD))
        self.queue.push(second_BD)
        self.queue.push(text_BD)
        targets_B = torch.arange(len(text_BD), device=text_BD.device)
        terms = [F.cross_entropy(scale * v @ n.T, targets_B) for v in views for n in neighbours]
        return torch.stack(terms).mean()


class MultiTaskObjective(Objective):
    """Every head's own losses on one batch: an expert has one head, a joint generalist several.

    Args:
        model: its heads decide the tasks.
        task_weights: factor on a head's losses by head name; 1 where left out.
        freeze_backbone: trains the heads alone, with the backbone in eval mode.
        freeze_heads: trains the backbone alone.
    """

    def __init__(
        self,
        model: VisionModel,
        task_weights: dict[str, float] | None = None,
        *,
        freeze_backbone: bool = False,
        freeze_heads: bool = False,
    ) -> None:
        """Marks what is trained."""
        super().__init__(model)
        self.task_weights = task_weights or {}
        self.freeze_backbone = freeze_backbone
        model.backbone.requires_grad_(not freeze_backbone)
        model.heads.requires_grad_(not freeze_heads)

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

    def task_losses(self, features: Features, batch: Batch) -> Losses:
        """Each head's losses times its weight, as ``<head>/<loss>``."""
        losses: Losses = {}
        for name, head in self.model.heads.items():
            weight = self.task_weights.get(name, 1.0)
            for loss_name, loss in head.losses(head(features), batch).items():
                losses[f"{name}/{loss_name}"] = weight * loss
        return losses


class CachedFeaturesObjective(MultiTaskObjective):
    """Heads trained on features computed once: the batch holds ``map_<k>`` and ``vector`` instead of images."""

    def __init__(self, model: VisionModel) -> None:
        """Freezes the backbone, which no pass goes through any more."""
        super().__init__(model, freeze_backbone=True)

    def features(self, batch: Batch) -> Features:
        """The features the batch holds."""
        maps = tuple(batch[f"map_{level}"].float() for level in range(len(self.model.backbone.channels)))
        return Features(maps=maps, vector_BD=batch["vector"].float())


class DistillObjective(MultiTaskObjective):
    """Squeeze: several frozen teachers, and the tasks' own losses, into one backbone (X-Learner; AM-RADIO).

    For each teacher a small head turns the student's map into the teacher's; the loss is smooth
    L1 between standardised maps, averaged over levels and teachers.

    Args:
        model: the student.
        teachers: frozen models by name.
        distill_weight: weight of the feature loss.
        task_weights: as in ``MultiTaskObjective``; all 0 distils features alone.
    """

    def __init__(
        self,
        model: VisionModel,
        teachers: dict[str, VisionModel],
        distill_weight: float,
        task_weights: dict[str, float] | None = None,
    ) -> None:
        """Adds one projector for each teacher and level."""
        super().__init__(model, task_weights)
        self.distill_weight = distill_weight
        self.passes_per_sample = 1 + len(teachers)
        # A tuple hides the teachers from parameters(), state_dict() and train(): they stay frozen and unsaved.
        self._teachers = tuple(teachers.values())
        for teacher in self._teachers:
            teacher.eval().requires_grad_(False)
        widths = model.backbone.channels
        self.projectors = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, target, 1))
                for width, target in zip(widths, teacher.backbone.channels, strict=True)
            )
            for teacher in self._teachers
        )

    def _apply(self, fn: Any, recurse: bool = True) -> "DistillObjective":
        super()._apply(fn, recurse)
        for teacher in self._teachers:
            teacher._apply(fn)
        return self

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``."""
        features = self.features(batch)
        terms = []
        for teacher, projectors in zip(self._teachers, self.projectors, strict=True):
            with torch.no_grad():
                targets = teacher(batch["image_BCHW"]).maps
            for project, map_BCHW, target_BCHW in zip(projectors, features.maps, targets, strict=True):
                terms.append(F.smooth_l1_loss(standardise(project(map_BCHW).float()), standardise(target_BCHW.float())))
        distill = self.distill_weight * torch.stack(terms).mean()
        return {"distill": distill, **self.task_losses(features, batch)}, {}
