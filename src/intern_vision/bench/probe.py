"""Linear probe: multinomial logistic regression on frozen features, its penalty chosen inside the training images.

D feature width, K classes, N images.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intern_vision.bench.protocol import validation_split
from intern_vision.train.settings import ProbeConfig

VARIANCE_EPS = 1e-5
"""Added to variances, as in the ``ChannelStandardizer`` that serves a fitted probe."""


@dataclass(slots=True, kw_only=True)
class Probe:
    """A fitted probe: ``logits = ((x - mean) / std) @ weight.T + bias``.

    Attributes:
        mean_D: feature means.
        std_D: square roots of the features' variances plus ``VARIANCE_EPS``.
        weight_KD: weights.
        bias_K: biases.
        chosen: the settings taken by name, and ``validation_accuracy``, their mean held-out accuracy in [0, 1].
    """

    mean_D: Tensor
    std_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor
    chosen: dict[str, Any]


def feature_moments(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations ``(D,)`` as the ``ChannelStandardizer`` that serves a probe has them."""
    return features_ND.mean(0), (features_ND.var(0, correction=0) + VARIANCE_EPS).sqrt()


def held_out_rows(labels_N: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to hold out, evenly over the classes; with one image a class none is held out."""
    names = [f"{row:08d}" for row in range(len(labels_N))]
    parts = validation_split(names, labels_N.tolist(), share, seed)
    train_M, held_L = (torch.tensor([int(name) for name in part], dtype=torch.int64) for part in parts)
    return train_M, held_L


def fit_probe(features_ND: Tensor, labels_N: Tensor, num_classes: int, config: ProbeConfig) -> Probe:
    """Chooses the penalty on splits of these images, then fits all of them.

    Args:
        features_ND: float32 features.
        labels_N: int64 class indices.
        num_classes: number of classes K.
        config: grid and splits.
    """
    mean_D, std_D = feature_moments(features_ND)
    x_ND = (features_ND - mean_D) / std_D
    accuracies = torch.zeros(len(config.l2_grid))
    for seed in range(config.num_splits):
        train_rows, held_rows = held_out_rows(labels_N, config.validation_share, seed)
        if not len(held_rows):
            continue
        weights = None
        # From strong to weak penalty: each fit starts from the last one's solution.
        for index in sorted(range(len(config.l2_grid)), key=lambda i: -config.l2_grid[i]):
            weights = _fit(x_ND[train_rows], labels_N[train_rows], num_classes, config.l2_grid[index], config, weights)
            guesses = (x_ND[held_rows] @ weights[0].T + weights[1]).argmax(1)
            accuracies[index] += (guesses == labels_N[held_rows]).float().mean() / config.num_splits
    # Few held-out images often tie; then the strongest penalty, the simplest probe, is taken.
    best = max(range(len(config.l2_grid)), key=lambda i: (round(float(accuracies[i]), 6), config.l2_grid[i]))
    weight_KD, bias_K = _fit(x_ND, labels_N, num_classes, config.l2_grid[best], config, None)
    return Probe(
        mean_D=mean_D,
        std_D=std_D,
        weight_KD=weight_KD,
        bias_K=bias_K,
        chosen={"l2": config.l2_grid[best], "validation_accuracy": float(accuracies[best])},
    )


def _fit(
    x_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    l2: float,
    config: ProbeConfig,
    start: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    weight = (start[0].clone() if start else torch.zeros(num_classes, x_ND.shape[1])).requires_grad_()
    bias = (start[1].clone() if start else torch.zeros(num_classes)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=config.num_iterations, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_ND @ weight.T + bias, labels_N) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
