"""Linear probe in closed form: ridge regression on class indicators, its penalty chosen by leaving one image out.

Nothing is held out and nothing iterates, so it works from one image a class on. D feature width, K classes, N images,
R rank of the decomposition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from intern_vision.bench.probe import Probe, feature_moments
from intern_vision.train.settings import ProbeConfig

_SCALES = tuple(10.0 ** (exponent / 8) for exponent in range(-8, 25))


def fit_ridge_probe(features_ND: Tensor, labels_N: Tensor, num_classes: int, config: ProbeConfig) -> Probe:
    """Least squares on +1 for an image's class and -1 for the others, biases without penalty.

    The leave-one-out errors of every penalty follow from one decomposition (the PRESS statistic): the residual
    divided by 1 minus the leverage. The penalty of the smallest mean square is taken, the strongest of equals. Scores
    are scaled so that their softmax fits the left-out labels; that changes no answer.

    Args:
        features_ND: float32 features.
        labels_N: int64 class indices.
        num_classes: number of classes K.
        config: ``ridge_grid``.
    """
    mean_D, std_D = feature_moments(features_ND)
    x_ND = ((features_ND - mean_D) / std_D).double()
    target_NK = 2.0 * F.one_hot(labels_N, num_classes).double() - 1.0
    shift_K = target_NK.mean(0)
    centred_NK = target_NK - shift_K
    # Of the smaller Gram matrix: over images, where these are fewer than features, else over features.
    is_dual = len(x_ND) <= x_ND.shape[1]
    values_R, vectors = torch.linalg.eigh(x_ND @ x_ND.T if is_dual else x_ND.T @ x_ND)
    values_R = values_R.clamp_min(0)
    basis_NR = vectors if is_dual else x_ND @ vectors
    projected_RK = basis_NR.T @ centred_NK
    best = (math.inf, 0.0, target_NK)
    for penalty in sorted(config.ridge_grid, reverse=True):
        gain_R = (values_R if is_dual else 1.0) / (values_R + penalty)
        residual_NK = centred_NK - basis_NR @ (gain_R[:, None] * projected_RK)
        leverage_N = 1.0 / len(x_ND) + basis_NR.square() @ gain_R
        left_out_NK = residual_NK / (1.0 - leverage_N).clamp_min(1e-9)[:, None]
        error = float(left_out_NK.square().mean())
        if error < best[0] * (1 - 1e-9):
            best = (error, penalty, target_NK - left_out_NK)
    _, penalty, scores_NK = best
    solved_RK = projected_RK / (values_R + penalty)[:, None]
    weight_DK = (x_ND.T @ vectors if is_dual else vectors) @ solved_RK
    scale = _scale(scores_NK, labels_N)
    return Probe(
        mean_D=mean_D,
        std_D=std_D,
        weight_KD=(scale * weight_DK.T).float(),
        bias_K=(scale * shift_K).float(),
        chosen={
            "l2": penalty,
            "validation_accuracy": float((scores_NK.argmax(1) == labels_N).double().mean()),
        },
    )


def _scale(scores_NK: Tensor, labels_N: Tensor) -> float:
    losses = [float(F.cross_entropy(scale * scores_NK, labels_N)) for scale in _SCALES]
    return _SCALES[min(range(len(_SCALES)), key=losses.__getitem__)]
