"""What more labels would buy: a power law through the errors at several numbers of labels.

D draws, P points.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from intern_vision.config import Config

Logs = NDArray[np.float64]
NUM_DRAWS = 2000
# The standard normal quantile of a two-sided 95 % interval, twice.
_INTERVAL_WIDTH = 2 * 1.959963984540054


class CurvePoint(Config):
    """The error at one number of labels.

    Attributes:
        num_train: labelled images.
        error: of the test images, above 0 or 0.
        num_test: test images.
        interval: 95 % interval of the error, where it is no share of images.
    """

    num_train: int = Field(ge=1)
    error: float = Field(ge=0)
    num_test: int = Field(ge=1)
    interval: tuple[float, float] | None = None


class Extrapolation(Config):
    """The law ``error = scale * labels ** -exponent`` and what it says of more labels.

    Attributes:
        exponent: at least 0: labels are not expected to do harm.
        scale: error at one label.
        num_train: labels that the extrapolation is for.
        error: at so many labels.
        low: 2.5 % quantile of that error.
        high: 97.5 % quantile.
        gain: how much lower than the last measured error the law's value is, as a share of the law's value there.
        gain_low: 2.5 % quantile of the gain.
        gain_high: 97.5 % quantile.
    """

    exponent: float
    scale: float
    num_train: int
    error: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


def extrapolate(points: Sequence[CurvePoint], factor: float = 2.0, seed: int = 0) -> Extrapolation | None:
    """Fits the power law of learning curves (Hestness et al., arXiv 1712.00409) and goes on from the last point.

    A straight line through the logarithms, each point weighed by how well its error is known. The uncertainty is that
    of the errors alone: each is drawn anew, from a binomial law where it is a share of images, else from its
    interval. The points are drawn independently although they share their test images, which makes the result
    rather too wide than too narrow. It holds only as far as the law does: an error that no label can remove (wrong
    labels, unclear pictures) is not seen in it.

    Args:
        points: at least two different numbers of labels.
        factor: times the most labels measured.
        seed: of the draws.

    Returns:
        The law; ``None`` where there are fewer than two numbers of labels.
    """
    points = sorted(points, key=lambda point: point.num_train)
    if len({point.num_train for point in points}) < 2:
        return None
    rng = np.random.default_rng(seed)
    sizes_P = np.log([point.num_train for point in points])
    target = math.log(factor * points[-1].num_train)
    logs_P = np.array([math.log(_positive(point.error, point)) for point in points])
    spread_P = np.array([_log_spread(point) for point in points])
    exponent, offset = _line(sizes_P, logs_P[None], spread_P)
    drawn_exponent_D, drawn_offset_D = _line(sizes_P, _draws(points, spread_P, rng), spread_P)
    ends_D = np.exp(drawn_offset_D - drawn_exponent_D * target)
    gains_D = 1 - factor**-drawn_exponent_D
    low, high = np.quantile(ends_D, (0.025, 0.975))
    gain_low, gain_high = np.quantile(gains_D, (0.025, 0.975))
    return Extrapolation(
        exponent=float(exponent[0]),
        scale=math.exp(offset[0]),
        num_train=round(factor * points[-1].num_train),
        error=math.exp(offset[0] - exponent[0] * target),
        low=float(low),
        high=float(high),
        gain=float(1 - factor ** -exponent[0]),
        gain_low=float(gain_low),
        gain_high=float(gain_high),
    )


def _line(sizes_P: Logs, logs_DP: Logs, spread_P: Logs) -> tuple[Logs, Logs]:
    """Weighted least squares of each row; exponents (at least 0) and logarithms of the scale, each ``(D,)``."""
    weights_P = spread_P**-2 / (spread_P**-2).sum()
    centre = (weights_P * sizes_P).sum()
    mean_D = logs_DP @ weights_P
    slope_D = (
        (logs_DP - mean_D[:, None]) @ (weights_P * (sizes_P - centre)) / (weights_P * (sizes_P - centre) ** 2).sum()
    )
    exponent_D = np.maximum(-slope_D, 0.0)
    return exponent_D, mean_D + exponent_D * centre


def _draws(points: Sequence[CurvePoint], spread_P: Logs, rng: np.random.Generator) -> Logs:
    """``(D, P)`` logarithms of errors that might have been measured."""
    columns = []
    for point, spread in zip(points, spread_P, strict=True):
        if point.interval is None:
            share = (point.error * point.num_test + 0.5) / (point.num_test + 1)  # no error of 0 or 1 is certain
            counts_D = rng.binomial(point.num_test, min(share, 1.0), NUM_DRAWS)
            columns.append(np.log(np.maximum(counts_D, 0.5) / point.num_test))
        else:
            columns.append(math.log(_positive(point.error, point)) + spread * rng.standard_normal(NUM_DRAWS))
    return np.stack(columns, 1)


def _positive(error: float, point: CurvePoint) -> float:
    """An error of no image counts as half an image: its logarithm is wanted."""
    return max(error, 0.5 / point.num_test)


def _log_spread(point: CurvePoint) -> float:
    """Standard deviation of the error's logarithm."""
    error = _positive(point.error, point)
    if point.interval is not None:
        low, high = (_positive(bound, point) for bound in point.interval)
        return max((math.log(high) - math.log(low)) / _INTERVAL_WIDTH, 1e-3)
    return max(math.sqrt(max(1 - error, 0.0) / (error * point.num_test)), 1e-3)
