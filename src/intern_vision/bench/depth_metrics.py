"""Depth scores, an image at a time; numpy only. N images, H W height and width in pixels, P valid pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.metric_base import ListMetric, as_array, require

if TYPE_CHECKING:
    from intern_vision.heads.base import Prediction

# Depth predictions are clamped to this from below before scoring, as GV-B does.
MIN_DEPTH_M = 1e-3
# A depth within this factor of the truth is right for delta1, its square for delta2, its cube for delta3
# (Eigen et al., arXiv 1406.2283).
DELTA = 1.25
KITTI_CAP_M = 80.0
NYU_CAP_M = 10.0
# Rows and columns as shares of the height and width (Garg et al., arXiv 1603.04992).
GARG_CROP = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
# Rows and columns of the 480 x 640 images that Eigen et al. score (arXiv 1406.2283).
EIGEN_CROP_PX = (45, 471, 41, 601)
NYU_SIZE_PX = (480, 640)
COLUMNS = ("abs_rel", "rmse_m", "delta1", "delta2", "delta3", "silog")

Window = Callable[[int, int], tuple[slice, slice]]


class DepthMetric(ListMetric):
    """``abs_rel``, ``rmse_m``, ``delta1`` to ``delta3``, ``silog`` and ``error``, which is one of them.

    Each is computed over an image's valid pixels and averaged over images, as in BTS's evaluation (arXiv 1907.10326):
    an image with few valid pixels counts as much as any other. 48 bytes an image are kept.
    """

    def __init__(
        self, max_depth_m: float, *, figure: str = "abs_rel", window: Window | None = None, open_cap: bool = False
    ) -> None:
        """True depths above the cap, and pixels outside the window, take no part.

        Args:
            max_depth_m: the cap in metres; predictions are clamped to it.
            figure: which score is ``error``.
            window: rows and columns scored of an image of this height and width; ``None`` = all.
            open_cap: only depths in ``(1e-3, cap)`` count, as in the published evaluations, instead of ``(0, cap]``.
        """
        self._max_depth_m, self._figure, self._window, self._open_cap = max_depth_m, figure, window, open_cap
        super().__init__(scores_NS=np.zeros((0, len(COLUMNS))))

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Reads ``depth`` and ``depth_BHW``; an image without a valid pixel takes no part."""
        for prediction, depth_HW in zip(predictions, as_array(batch["depth_BHW"]), strict=True):
            guess_HW = prediction.depth
            if self._window is not None:
                window = self._window(*depth_HW.shape)
                guess_HW, depth_HW = guess_HW[window], depth_HW[window]
            if self._open_cap:
                valid_HW = (depth_HW > MIN_DEPTH_M) & (depth_HW < self._max_depth_m)
            else:
                valid_HW = (depth_HW > 0) & (depth_HW <= self._max_depth_m)
            if valid_HW.any():
                guess_P = guess_HW[valid_HW].astype(np.float64).clip(MIN_DEPTH_M, self._max_depth_m)
                self._add(scores_NS=depth_scores(guess_P, depth_HW[valid_HW].astype(np.float64))[None])

    def compute(self) -> dict[str, float]:
        """``rmse_m`` in metres, ``silog`` in percent, the deltas in [0, 1]; ``abs_rel`` is a share and may pass 1."""
        scores_NS = self.state()["scores_NS"]
        require(len(scores_NS), "depth_BHW", "a known depth")
        means = dict(zip(COLUMNS, scores_NS.mean(0).tolist(), strict=True))
        return {"error": means[self._figure], **means}


def depth_scores(guess_P: NDArray[np.float64], truth_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """One image's scores in the order of ``COLUMNS``.

    ``silog`` is 100 times the standard deviation of the log error, as KITTI's depth benchmark reports it; the other
    formulas are those of Eigen et al. (arXiv 1406.2283, section 4.1).

    Args:
        guess_P: metres, above 0.
        truth_P: metres, above 0; at least one.
    """
    error_P = guess_P - truth_P
    log_error_P = np.log(guess_P) - np.log(truth_P)
    ratio_P = np.maximum(guess_P / truth_P, truth_P / guess_P)
    deltas = [np.mean(ratio_P < DELTA**power) for power in (1, 2, 3)]
    return np.array(
        [np.mean(np.abs(error_P) / truth_P), np.sqrt(np.mean(error_P**2)), *deltas, 100 * np.std(log_error_P)]
    )


def garg_window(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of Garg's crop, a share of whatever size the true depth has."""
    top, bottom, left, right = GARG_CROP
    return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))


def eigen_window(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of Eigen's crop of 480 x 640; of another size, the same share rounded to whole pixels.

    The published crop is for 480 x 640 only: a score at another size is no published figure.
    """
    top, bottom, left, right = EIGEN_CROP_PX
    full_height, full_width = NYU_SIZE_PX
    rows = (round(edge * height / full_height) for edge in (top, bottom))
    columns = (round(edge * width / full_width) for edge in (left, right))
    return slice(*rows), slice(*columns)
