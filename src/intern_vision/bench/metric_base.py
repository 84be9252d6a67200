"""What every metric shares: the protocol, how states are joined, intervals by resampling; numpy only. N images."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import DataError

if TYPE_CHECKING:
    from intern_vision.heads.base import Prediction

State = dict[str, NDArray[Any]]
M = TypeVar("M")
# Share of the resampled scores that an interval holds.
INTERVAL_SHARE = 0.95


@runtime_checkable
class Metric(Protocol):
    """A score over a data set, fed batch by batch and joined across ranks.

    The score does not depend on the order of the images, nor on how batches and ranks divide them.
    """

    def update(self, predictions: Sequence[Prediction], batch: Mapping[str, Any]) -> None:
        """Takes in one batch: a prediction an image and the batch's targets (tensors on any device, or arrays)."""

    def compute(self) -> dict[str, float]:
        """Scores so far; ``error``, lower is better, is the figure of merit.

        Raises:
            DataError: nothing was annotated, so there is no score.
        """

    def state(self) -> State:
        """Everything taken in so far, as plain arrays for an all-gather."""

    def load_state(self, state: State) -> None:
        """Replaces what was taken in by another metric's ``state``."""

    def merge(self, state: State) -> None:
        """Adds another metric's ``state``, for example another rank's."""

    def resample(self, rng: np.random.Generator) -> Self:
        """A metric that has taken in as many images, drawn with replacement from this one's."""


class ListMetric:
    """A metric whose state is rows kept until the end.

    Args:
        empty: for each column an array without rows, of the column's dtype and trailing axes.
    """

    def __init__(self, **empty: NDArray[Any]) -> None:
        """Starts without rows."""
        self._empty = empty
        self._rows: dict[str, list[NDArray[Any]]] = {name: [] for name in empty}

    def state(self) -> State:
        """The rows, one array a column."""
        return {name: np.concatenate([self._empty[name], *rows]) for name, rows in self._rows.items()}

    def load_state(self, state: State) -> None:
        """Replaces the rows."""
        self._rows = {name: [np.array(state[name])] for name in self._empty}

    def merge(self, state: State) -> None:
        """Appends the rows."""
        for name, rows in self._rows.items():
            rows.append(np.array(state[name]))

    def resample(self, rng: np.random.Generator) -> Self:
        """For metrics of one row an image."""
        state = self.state()
        num_images = len(next(iter(state.values())))
        drawn_N = rng.integers(0, num_images, num_images) if num_images else np.zeros(0, np.int64)
        return loaded(self, {name: rows[drawn_N] for name, rows in state.items()})

    def _add(self, **rows: NDArray[Any]) -> None:
        for name, array in rows.items():
            self._rows[name].append(np.asarray(array, self._empty[name].dtype))


def bootstrap_interval(
    metric: Metric, *, name: str = "error", num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a score over images drawn with replacement (Efron, Ann. Stat. 7, 1979, 1-26).

    It says how much the score would differ on other test images of the same kind; not how much it would with other
    training images. With few images it is too narrow. A draw without any annotation has no score and is left out.

    Args:
        metric: what has taken in the data set; a segmentation metric must have been made with ``per_image``.
        name: which of its scores.
        num_resamples: draws; 1000 settle the bounds to a few percent of the interval's width.
        seed: of the draws.

    Returns:
        Lower and upper bound, in the score's own unit.

    Raises:
        DataError: no draw has a score.
    """
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(num_resamples):
        drawn = metric.resample(rng)
        try:
            scores.append(drawn.compute()[name])
        except (DataError, KeyError):
            continue
    if not scores:
        raise DataError(f"interval of {name}: no draw of the images has this score; score more images")
    low, high = np.quantile(scores, [(1 - INTERVAL_SHARE) / 2, (1 + INTERVAL_SHARE) / 2])
    return float(low), float(high)


def loaded(metric: M, state: State) -> M:
    """A metric of the same kind and settings with another state."""
    other = copy.copy(metric)
    other.load_state(state)
    return other


def as_array(value: Any) -> NDArray[Any]:
    """A tensor on any device, or an array, as an array."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def require(count: Any, field: str, what: str) -> None:
    """Raises DataError where ``count`` is 0: there is nothing to score."""
    if not count:
        raise DataError(f"batch.{field}: expected {what} in at least one image, got none; check the split")
