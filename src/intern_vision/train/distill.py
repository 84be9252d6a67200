"""Squeeze: several teachers into one backbone of ordinary size.

B batch, C channels, D vector width, H W height and width, T teachers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError
from intern_vision.models.features import Features
from intern_vision.models.necks import ChannelStandardizer
from intern_vision.models.vision import VisionModel
from intern_vision.task import View
from intern_vision.train.losses import mean_over_ranks, num_ranks
from intern_vision.train.objective import Batch, Losses, MultiTaskObjective


class TeacherMatch(nn.Module):
    """How far a student's features are from a teacher's, read through a projector for each level.

    The teacher's channels are standardised by the running statistics of its features, which settle because
    a frozen teacher has one distribution: then neither a teacher of large values nor a channel of large
    variance dominates. PHI-S (arXiv 2410.01680) also rotates the channels so that all have the same
    variance without dividing each by its own; here the division does it.

    Args:
        student: the backbone that learns, with ``channels`` and ``vector_width``.
        teacher: the backbone that is matched, with as many levels.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        """Builds a projector and a standardiser for every map and for the image vector."""
        super().__init__()
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, target, 1))
            for width, target in zip(student.channels, teacher.channels, strict=True)
        )
        width = student.vector_width
        self.projectors.append(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, teacher.vector_width))
        )
        self.standardizers = nn.ModuleList(map(ChannelStandardizer, (*teacher.channels, teacher.vector_width)))

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Smooth L1 loss of every sample, the mean over channels, places and levels, ``(B,)`` float32."""
        levels = zip(
            self.projectors,
            self.standardizers,
            (*student.maps, student.vector_BD),
            (*teacher.maps, teacher.vector_BD),
            strict=True,
        )
        terms = [
            F.smooth_l1_loss(project(own).float(), standardize(target.float()), reduction="none").flatten(1).mean(1)
            for project, standardize, own, target in levels
        ]
        return torch.stack(terms).mean(0)


class DistillObjective(MultiTaskObjective):
    """Frozen teachers' features and the tasks' own losses into one backbone (X-Learner's squeeze; AM-RADIO).

    Features are matched at every level and in the image vector, each teacher through projectors of its own
    (``TeacherMatch``). A teacher with several views is matched in each of them.

    Args:
        model: the student.
        teachers: models by name; they are frozen and not saved.
        distill_weight: weight of the feature loss, which is the mean over teachers.
        task_weights: as in ``MultiTaskObjective``; all 0 distils features alone.
        freeze_heads: as in ``MultiTaskObjective``.
        infos: as in ``MultiTaskObjective``.
        teacher_drop_probability: UNIC's balancing (arXiv 2408.05088): for each image the teacher matched
            worst always counts and each other one is left out with this probability, in [0, 1).

    Raises:
        ConfigError: a teacher has other strides than the student.
    """

    def __init__(
        self,
        model: VisionModel,
        teachers: Mapping[str, VisionModel],
        distill_weight: float,
        task_weights: dict[str, float] | None = None,
        *,
        freeze_heads: bool | Sequence[str] = False,
        infos: Sequence[DatasetInfo] = (),
        teacher_drop_probability: float = 0.0,
    ) -> None:
        """Freezes the teachers and adds what matches the student to them."""
        super().__init__(model, task_weights, freeze_heads=freeze_heads, infos=infos)
        self.distill_weight = distill_weight
        self.teacher_drop_probability = teacher_drop_probability
        # A tuple hides the teachers from parameters(), state_dict() and train(): they stay frozen and unsaved.
        self._teachers = tuple(teachers.values())
        self.forward_passes_per_sample = sum(len(teacher.views) + teacher.num_sources for teacher in self._teachers)
        names = []
        matches = []
        for name, teacher in teachers.items():
            if teacher.backbone.strides != model.backbone.strides:
                raise ConfigError(
                    f"teachers.{name}: expected strides {model.backbone.strides}, got {teacher.backbone.strides}"
                )
            teacher.eval().requires_grad_(False)
            for view in teacher.views:
                names.append(_target_name(name, view, len(teacher.views)))
                matches.append(TeacherMatch(model.backbone, teacher.backbone))
        self._names = tuple(names)
        self.matches = nn.ModuleList(matches)

    def _apply(self, fn: Any, recurse: bool = True) -> "DistillObjective":
        super()._apply(fn, recurse)
        for teacher in self._teachers:
            teacher._apply(fn)
        return self

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``; reports each teacher's mean loss as ``distill/<teacher>``."""
        features = self.features(batch)
        targets: list[Features] = []
        with torch.no_grad():
            for teacher in self._teachers:
                targets += teacher.view_features(batch["image_BCHW"], teacher.views).values()
        pairs = zip(self.matches, targets, strict=True)
        loss_BT = torch.stack([match(features, target) for match, target in pairs], dim=1)
        if self.training:
            self._agree_on_statistics()
        means = dict(zip(self._names, loss_BT.detach().mean(0).unbind(), strict=True))
        losses = {"distill": self.distill_weight * self._balanced(loss_BT), **self.task_losses(features, batch)}
        return losses, {f"distill/{name}": mean for name, mean in means.items()}

    def _balanced(self, loss_BT: Tensor) -> Tensor:
        if not self.training or not self.teacher_drop_probability:
            return loss_BT.mean()
        is_worst_BT = loss_BT.detach() >= loss_BT.detach().amax(1, keepdim=True)
        kept_BT = is_worst_BT | (torch.rand_like(loss_BT) >= self.teacher_drop_probability)
        return ((loss_BT * kept_BT).sum(1) / kept_BT.sum(1)).mean()

    @torch.no_grad()
    def _agree_on_statistics(self) -> None:
        """Averages the running statistics over the ranks, or each would match its own targets."""
        if num_ranks() == 1:
            return
        statistics = [
            value
            for match in self.matches
            for standardizer in match.standardizers
            for value in (standardizer.mean_C, standardizer.var_C)
        ]
        agreed = mean_over_ranks(torch.cat(statistics)).split([len(value) for value in statistics])
        for value, mean in zip(statistics, agreed, strict=True):
            value.copy_(mean)


def _target_name(teacher: str, view: View, num_views: int) -> str:
    if num_views == 1:
        return teacher
    return "-".join(part for part in (teacher, view.main, view.bn_set) if part)
