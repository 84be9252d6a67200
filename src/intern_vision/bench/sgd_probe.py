"""Linear probe by momentum SGD, gv-benchmark's published recipe, with every point of its grid trained at once.

B batch, D feature width, G grid points, K classes, N images.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from intern_vision.bench.probe import Probe, feature_moments, fit_probe, held_out_rows
from intern_vision.train.settings import ProbeConfig, SgdProbeConfig

Point = tuple[float, float, float]
"""Learning rate, weight decay, momentum."""


def fit_sgd_probe(features_ND: Tensor, labels_N: Tensor, num_classes: int, config: ProbeConfig) -> Probe:
    """Chooses rate, weight decay and momentum on held-out training images, then trains on all of them.

    Where nothing can be held out, with one image a class, it is logistic regression with the strongest penalty instead.

    Args:
        features_ND: float32 features.
        labels_N: int64 class indices.
        num_classes: number of classes K.
        config: ``sgd`` and ``validation_share``.
    """
    sgd = config.sgd
    train_rows, held_rows = held_out_rows(labels_N, config.validation_share, seed=0)
    if not len(held_rows):
        probe = fit_probe(features_ND, labels_N, num_classes, config)
        return replace(probe, chosen=probe.chosen | {"probe": "lbfgs"})
    mean_D, std_D = feature_moments(features_ND)
    if not sgd.standardise:
        # What the serving standardiser makes of these two is the raw feature.
        mean_D, std_D = torch.zeros_like(mean_D), torch.ones_like(std_D)
    x_ND = (features_ND - mean_D) / std_D
    points = list(product(sgd.learning_rates, sgd.weight_decays, sgd.momenta))
    weight_GKD, bias_GK = train_points(x_ND[train_rows], labels_N[train_rows], num_classes, points, sgd)
    logits_GBK = x_ND[held_rows] @ weight_GKD.transpose(1, 2) + bias_GK[:, None]
    accuracies_G = (logits_GBK.argmax(2) == labels_N[held_rows]).float().mean(1)
    # A rate that was too high leaves numbers that are none; its answers are worth nothing.
    accuracies_G[~logits_GBK.isfinite().all(2).all(1)] = -1.0
    # Of equally good points the one with the strongest decay, then the smallest rate: the simplest probe.
    best = max(range(len(points)), key=lambda g: (round(float(accuracies_G[g]), 6), points[g][1], -points[g][0]))
    weight_1KD, bias_1K = train_points(x_ND, labels_N, num_classes, [points[best]], sgd)
    learning_rate, weight_decay, momentum = points[best]
    return Probe(
        mean_D=mean_D,
        std_D=std_D,
        weight_KD=weight_1KD[0],
        bias_K=bias_1K[0],
        chosen={
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "validation_accuracy": float(accuracies_G[best]),
        },
    )


@torch.no_grad()
def train_points(
    x_ND: Tensor, labels_N: Tensor, num_classes: int, points: Sequence[Point], config: SgdProbeConfig, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Trains one linear classifier a grid point, all on the same batches: one product a step for all of them.

    Each point's arithmetic is ``torch.optim.SGD``'s. The loss is convex, so all start from 0.

    Args:
        x_ND: float32 features.
        labels_N: int64 class indices.
        num_classes: number of classes K.
        points: what to train with.
        config: steps, batch size and decay of the rate.
        seed: of the order of images.

    Returns:
        Weights ``(G, K, D)`` and biases ``(G, K)``.
    """
    num_points, (num_images, width) = len(points), x_ND.shape
    # The bias is the weight of a feature that is always 1.
    x_ND = torch.cat([x_ND, x_ND.new_ones(num_images, 1)], 1)
    rate_G11, decay_G11, momentum_G11 = (x_ND.new_tensor(column).view(-1, 1, 1) for column in zip(*points, strict=True))
    weight_GKD = x_ND.new_zeros(num_points, num_classes, width + 1)
    velocity_GKD = torch.zeros_like(weight_GKD)
    target_NK = F.one_hot(labels_N, num_classes).to(x_ND.dtype)
    drops = {round(share * config.num_steps) for share in config.decay_at}
    batch_size = min(config.batch_size, num_images)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(config.num_steps):
        if step in drops:
            rate_G11 = rate_G11 * config.decay_factor
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(num_images, generator=generator)])
        rows, order = order[:batch_size], order[batch_size:]
        x_BD = x_ND[rows]
        logits_BGK = (x_BD @ weight_GKD.flatten(0, 1).T).unflatten(1, (num_points, num_classes))
        error_BGK = (logits_BGK.softmax(2) - target_NK[rows][:, None]) / batch_size
        gradient_GKD = (error_BGK.flatten(1).T @ x_BD).view_as(weight_GKD)
        velocity_GKD = momentum_G11 * velocity_GKD + gradient_GKD + decay_G11 * weight_GKD
        weight_GKD = weight_GKD - rate_G11 * velocity_GKD
    return weight_GKD[..., :-1], weight_GKD[..., -1]
