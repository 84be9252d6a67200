"""Merging of models that share a start: a generalist without training. M models, P weights.

All functions take and give weights by name. BatchNorm statistics are no weights: they are passed on from the
first model, fit no merged one, and ``reestimate_statistics`` measures them anew.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from intern_vision.models.vision import VisionModel
from intern_vision.train.features import infer

Tensors = Mapping[str, Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def average(models: Sequence[Tensors]) -> dict[str, Tensor]:
    """The mean of every weight (uniform model soup, arXiv 2203.05482)."""
    return _merged(models[0], lambda name: torch.stack([model[name].float() for model in models]).mean(0))


def task_vector(start: Tensors, trained: Tensors) -> dict[str, Tensor]:
    """What training changed in every weight (arXiv 2212.04089)."""
    return {name: trained[name] - start[name] for name in start if not name.endswith(_STATISTICS)}


def task_arithmetic(start: Tensors, vectors: Sequence[Tensors], scale: float) -> dict[str, Tensor]:
    """The start plus ``scale`` times the sum of the task vectors (arXiv 2212.04089)."""
    return _merged(start, lambda name: start[name] + scale * sum(vector[name] for vector in vectors))


def ties(start: Tensors, vectors: Sequence[Tensors], scale: float, density: float) -> dict[str, Tensor]:
    """TIES merging (arXiv 2306.01708): trim each task vector, elect a sign a weight, average those that agree.

    Args:
        start: the weights that are added to.
        vectors: task vectors.
        scale: factor on the merged task vector; 1 in the paper where nothing is validated.
        density: share of each task vector's entries that is kept, the largest ones, in (0, 1].
    """
    names = list(vectors[0])
    vectors_MP = torch.stack([torch.cat([vector[name].float().flatten() for name in names]) for vector in vectors])
    num_kept = max(1, round(density * vectors_MP.shape[1]))
    smallest_M1 = vectors_MP.abs().topk(num_kept, dim=1).values[:, -1:]
    vectors_MP = vectors_MP * (vectors_MP.abs() >= smallest_M1)
    agrees_MP = (vectors_MP.sign() == vectors_MP.sum(0).sign()) & (vectors_MP != 0)
    merged_P = (vectors_MP * agrees_MP).sum(0) / agrees_MP.sum(0).clamp_min(1)
    parts = dict(zip(names, merged_P.split([vectors[0][name].numel() for name in names]), strict=True))
    return _merged(start, lambda name: start[name] + scale * parts[name].view_as(start[name]))


@torch.no_grad()
def reestimate_statistics(model: VisionModel, batches: Iterable[Mapping[str, Tensor]], *, bf16: bool) -> int:
    """Replaces the backbone's BatchNorm statistics by the mean over these batches; forward passes only.

    Args:
        model: in eval mode, and so it stays.
        batches: with ``image_BCHW``, uint8.
        bf16: whether forward passes run under bfloat16 autocast.

    Returns:
        The number of images.
    """
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative mean over all batches
        norm.train()
    num_images = 0
    for batch in batches:
        infer(model, batch["image_BCHW"], bf16=bf16)
        num_images += len(batch["image_BCHW"])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return num_images


def _merged(first: Tensors, merge: Callable[[str], Tensor]) -> dict[str, Tensor]:
    return {
        name: value.clone() if name.endswith(_STATISTICS) else merge(name).to(value.dtype)
        for name, value in first.items()
    }
