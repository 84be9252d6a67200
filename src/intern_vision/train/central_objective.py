"""Training of the generalist's central model: every head on the features of its own view."""

from collections.abc import Sequence

from intern_vision.data.shard import DatasetInfo
from intern_vision.models.vision import VisionModel
from intern_vision.train.objective import Batch, Losses, MultiTaskObjective


class CentralObjective(MultiTaskObjective):
    """One step runs every view once, each with only its own heads, so an expert learns from its own losses alone.

    Source: the recommended recipe for INTERN's Up-G (arXiv 2111.08687); its partner experts are read-only
    feature sources. The parameters of every view get a gradient in every step.

    Args:
        model: with a central backbone.
        task_weights: as in ``MultiTaskObjective``.
        freeze_heads: as in ``MultiTaskObjective``; the first of two phases.
        infos: as in ``MultiTaskObjective``.
        attached: whether an expert's losses also reach the experts it reads.
    """

    def __init__(
        self,
        model: VisionModel,
        task_weights: dict[str, float] | None = None,
        *,
        freeze_heads: bool | Sequence[str] = False,
        infos: Sequence[DatasetInfo] = (),
        attached: bool = False,
    ) -> None:
        """Counts the passes: one for each view, and one for each expert that is read."""
        super().__init__(model, task_weights, freeze_heads=freeze_heads, infos=infos)
        model.backbone.attached = attached
        self.passes_per_sample = len(model.views)
        self.forward_passes_per_sample = model.num_sources

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``."""
        losses: Losses = {}
        for name, features in self.model.head_features(batch["image_BCHW"], list(self.model.heads)).items():
            losses |= self.task_losses(features, batch, (name,))
        return losses, {}
