"""Which images of a rectified pool people are asked about: informative, unlike each other, even over the concepts.

D feature width, K classes, N images.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Measure = Literal["margin", "entropy"]
_LARGE_CLUSTERING = 20_000


def uncertainty(probabilities_NK: NDArray[np.float32], measure: Measure) -> NDArray[np.float32]:
    """How unsure a classifier is, ``(N,)`` in [0, 1].

    Args:
        probabilities_NK: a row an image, each summing to 1, of two classes or more.
        measure: ``margin``: 1 less the difference of the two largest; ``entropy``: entropy over its largest value.
    """
    if measure == "margin":
        two_N2 = np.partition(probabilities_NK, -2, axis=1)[:, -2:]
        return 1 - (two_N2[:, 1] - two_N2[:, 0])
    logs_NK = np.log(np.clip(probabilities_NK, 1e-12, None))
    return -(probabilities_NK * logs_NK).sum(1) / np.float32(np.log(probabilities_NK.shape[1]))


def box_uncertainty(scores: NDArray[np.float32], num_boxes: int = 5) -> float:
    """How unsure a detector is about an image: mean binary entropy, in bits, of its highest box scores.

    Args:
        scores: of the boxes, in [0, 1], descending.
        num_boxes: boxes looked at.

    Returns:
        A number in [0, 1]; 0.5 where there is no box, which a detector that misses objects does too.
    """
    top = np.clip(scores[:num_boxes].astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(top * np.log2(top) + (1 - top) * np.log2(1 - top)).mean()) if len(top) else 0.5


def budgets(counts_K: Sequence[int], available_K: Sequence[int], total: int) -> NDArray[np.int64]:
    """Images to ask about a concept: inversely proportional to what it has, at most what there is.

    What a concept cannot use goes to the others by the same rule.

    Args:
        counts_K: labelled images a concept.
        available_K: pool images that may show it.
        total: images to ask about.

    Returns:
        ``(K,)``, with the sum ``min(total, sum(available_K))``.
    """
    available = np.asarray(available_K, np.int64)
    weights = 1 / (1 + np.asarray(counts_K, np.float64))
    given = np.zeros(len(available), np.int64)
    left = min(total, int(available.sum()))
    while left:
        open_K = given < available
        shares = np.where(open_K, weights, 0) / weights[open_K].sum() * left
        step = np.minimum(np.floor(shares).astype(np.int64), available - given)
        if not step.any():
            # Less than one each: one to those with the largest shares.
            step[np.argsort(-shares, kind="stable")[:left]] = 1
            step = np.minimum(step, np.where(open_K, 1, 0))
        given += step
        left -= int(step.sum())
    return given


def diverse(
    vectors_ND: NDArray[Any], values_N: NDArray[np.float32], num_wanted: int, breadth: float, seed: int
) -> NDArray[np.int64]:
    """Rows of high value that are unlike each other.

    Of the ``breadth * num_wanted`` rows of highest value, k-means weighted by the values makes ``num_wanted`` clusters,
    of each of which the row nearest to the centre is taken (arXiv 1901.05954, section 3).

    Args:
        vectors_ND: features.
        values_N: how much is wanted of each, at least 0.
        num_wanted: rows to give; all where there are not more.
        breadth: at least 1; with 1 only the value counts.
        seed: of the clustering.

    Returns:
        Row numbers, ascending.
    """
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    num_near = min(len(values_N), max(num_wanted, round(breadth * num_wanted)))
    near = np.sort(np.argsort(-values_N, kind="stable")[:num_near])
    if num_wanted >= len(near):
        return near
    x = np.asarray(vectors_ND[near], np.float32)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    weights = np.maximum(values_N[near], 1e-6)
    method = MiniBatchKMeans if len(near) > _LARGE_CLUSTERING else KMeans
    # On one thread: with several, sums would depend on how the work was divided. Equal images share a cluster, and the
    # library would warn of the empty ones.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = method(num_wanted, n_init=1, random_state=seed).fit(x, sample_weight=weights)
    distances = np.linalg.norm(x - found.cluster_centers_[found.labels_], axis=1)
    taken = []
    for cluster in range(num_wanted):
        rows = np.flatnonzero(found.labels_ == cluster)
        if len(rows):
            taken.append(int(rows[distances[rows].argmin()]))
    # A cluster may end up empty, where images are equal; then the next best rows are taken.
    rest = [row for row in np.argsort(-values_N[near], kind="stable").tolist() if row not in set(taken)]
    return np.sort(near[[*taken, *rest[: num_wanted - len(taken)]]])


def choose(
    vectors_ND: NDArray[Any],
    values_N: NDArray[np.float32],
    proposed_N: NDArray[np.int64],
    counts_K: Sequence[int],
    num_wanted: int,
    breadth: float,
    seed: int,
) -> NDArray[np.int64]:
    """Rows to ask about: a budget a proposed concept, spent on valuable rows that are unlike each other.

    Args:
        vectors_ND: features of the pool.
        values_N: informativeness times the probability of belonging to the pool.
        proposed_N: index of the concept that each row is taken to show.
        counts_K: labelled images a concept.
        num_wanted: rows to give.
        breadth: see ``diverse``.
        seed: of the clustering.

    Returns:
        Row numbers, ascending.
    """
    available_K = np.bincount(proposed_N, minlength=len(counts_K))
    taken = [np.zeros(0, np.int64)]
    for concept, budget in enumerate(budgets(counts_K, available_K, num_wanted).tolist()):
        rows = np.flatnonzero(proposed_N == concept)
        if budget:
            taken.append(rows[diverse(vectors_ND[rows], values_N[rows], budget, breadth, seed)])
    return np.sort(np.concatenate(taken))
