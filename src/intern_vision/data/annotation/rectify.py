"""Which pool images show none of the concepts: noise, covariate shift and semantic shift, judged from labelled data.

Plain active learning fails on a raw pool because images from outside look most uncertain, so they are taken out
first (Bamboo, arXiv 2203.07845, section 3). D feature width, K classes, N images, S image statistics.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import DataError

Kind = Literal["noise", "covariate_shift", "semantic_shift"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANINGS: dict[Kind, str] = {
    "noise": "shows no object",
    "covariate_shift": "what it shows cannot be used: too small, blurred or dark",
    "semantic_shift": "shows something else",
}
_NUM_FOLDS = 5
_CHUNK_IMAGES = 4096
_MIN_DEVIATION = 1e-6
_MAX_DEVIATIONS = 8.0


@dataclass(slots=True, frozen=True, kw_only=True)
class Described:
    """Images as the detectors see them.

    Attributes:
        vectors_ND: a backbone's vectors, floating point; may be memory-mapped.
        statistics_NS: ``image_statistics``, float32.
    """

    vectors_ND: NDArray[Any]
    statistics_NS: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.vectors_ND)

    def __getitem__(self, rows: Any) -> "Described":
        return Described(vectors_ND=self.vectors_ND[rows], statistics_NS=self.statistics_NS[rows])


class Rectifier:
    """One detector a kind; all that they know comes from labelled images.

    Noise and covariate shift are told from labelled images by a linear discriminant with shrinkage, over vectors and
    image statistics, against copies of these images without their object and spoiled ones (``spoil.py``). Semantic
    shift is the Mahalanobis distance to the nearest class under a Ledoit-Wolf covariance (arXiv 1807.03888), or that
    less the distance to all images together (arXiv 2106.09022), whichever tells classes that were left out better; how
    far they lie is what is learned. Every detector is judged on labelled images that it was not fitted to.

    Attributes:
        thresholds: by kind, the probability above which an image is taken out.
        losses: by kind, the share of labelled images above it.
        recalls: by kind, the share above it of spoiled copies, and of images whose own class was left out.

    Args:
        labelled: the labelled images.
        labels_N: their class indices, int64.
        empty: copies without the object.
        spoiled: copies that cannot be used.
        max_loss: share of labelled images that each detector may take for outsiders, in (0, 1).
        seed: of the folds.

    Raises:
        DataError: fewer than two classes with two labelled images each.
    """

    def __init__(
        self,
        labelled: Described,
        labels_N: NDArray[np.int64],
        empty: Described,
        spoiled: Described,
        max_loss: float,
        seed: int = 0,
    ) -> None:
        classes, counts = np.unique(labels_N, return_counts=True)
        if (counts >= 2).sum() < 2:
            raise DataError(
                f"labelled images: expected 2 or more of at least 2 classes, got {len(labels_N)} of {len(classes)}; "
                "label a few images of each class first"
            )
        folds_N = _folds(labels_N, seed)
        self.thresholds: dict[Kind, float] = {}
        self.losses: dict[Kind, float] = {}
        self.recalls: dict[Kind, float] = {}
        self._detectors: dict[Kind, _Outliers | _OtherConcepts] = {}
        strange: dict[Kind, Described] = {"noise": empty, "covariate_shift": spoiled}
        for kind, copies in strange.items():
            inside_N, outside_M = _judged_apart(labelled, copies, folds_N)
            self._detectors[kind] = _Outliers(labelled, copies)
            self._set_threshold(kind, inside_N, outside_M, max_loss)
        concepts = _OtherConcepts(labelled.vectors_ND, labels_N)
        inside_N, outside_M = concepts.calibrate(labelled.vectors_ND, labels_N, folds_N, seed)
        self._detectors["semantic_shift"] = concepts
        self._set_threshold("semantic_shift", inside_N, outside_M, max_loss)

    def score(self, images: Described) -> dict[Kind, NDArray[np.float32]]:
        """Each detector's probability that an image is of its kind, ``(N,)`` in [0, 1]."""
        found: dict[Kind, list[NDArray[np.float32]]] = {kind: [] for kind in KINDS}
        for chunk in _chunks(images):
            for kind in KINDS:
                found[kind].append(self._detectors[kind].probabilities(chunk))
        empty = np.zeros(0, np.float32)
        return {kind: np.concatenate([empty, *parts]) for kind, parts in found.items()}

    def kinds_of(self, scores: dict[Kind, NDArray[np.float32]]) -> NDArray[np.int64]:
        """Index in ``KINDS`` of the detector that is surest beyond its threshold, or -1 for an image that stays."""
        over_KN = np.stack([scores[kind] - self.thresholds[kind] for kind in KINDS])
        return np.where((over_KN > 0).any(0), over_KN.argmax(0), -1)

    def _set_threshold(
        self, kind: Kind, inside_N: NDArray[np.float32], outside_M: NDArray[np.float32], max_loss: float
    ) -> None:
        # Never below one half: of a detector that cannot tell, the quantile would lie among images that it likes.
        threshold = max(0.5, float(np.quantile(inside_N, 1 - max_loss, method="higher")))
        self.thresholds[kind] = threshold
        self.losses[kind] = float((inside_N > threshold).mean())
        self.recalls[kind] = float((outside_M > threshold).mean()) if len(outside_M) else 0.0


def probability_of_any(scores: dict[Kind, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Probability that an image is of some kind, ``(N,)`` in [0, 1], the detectors taken as independent."""
    return 1 - np.prod([1 - scores[kind] for kind in KINDS], axis=0)


class _Outliers:
    """Labelled images against spoiled copies of them: a linear discriminant with even priors."""

    def __init__(self, inside: Described, outside: Described) -> None:
        x_ND = _columns(inside)
        self._mean_D, self._deviation_D = x_ND.mean(0), x_ND.std(0) + _MIN_DEVIATION
        parts = [self._scaled(x_ND), self._scaled(_columns(outside))]
        means = [part.mean(0) for part in parts]
        lower_DD = _covariance_root(np.concatenate([part - mean for part, mean in zip(parts, means, strict=True)]))
        # The logarithm of the two Gaussians' ratio is linear; how many copies were made says nothing about the pool.
        whitened = _solved(lower_DD, np.stack(means, axis=1))
        self._weight_D = _solved(lower_DD, whitened[:, 1] - whitened[:, 0], transposed=True)
        self._offset = float((whitened[:, 0] ** 2).sum() - (whitened[:, 1] ** 2).sum()) / 2

    def _scaled(self, x_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        # A statistic that hardly differs among labelled images must not become infinite elsewhere.
        return np.clip((x_ND - self._mean_D) / self._deviation_D, -_MAX_DEVIATIONS, _MAX_DEVIATIONS, dtype=np.float64)

    def probabilities(self, images: Described) -> NDArray[np.float32]:
        return _logistic(self._scaled(_columns(images)) @ self._weight_D + self._offset)


class _OtherConcepts:
    """Mahalanobis distance to the nearest class, by itself or less that to all images together.

    The latter says more where there are many classes; with few, all images together span too little.
    """

    def __init__(self, vectors_ND: NDArray[Any], labels_N: NDArray[np.int64]) -> None:
        x_ND = np.asarray(vectors_ND, np.float64)
        self._mean_D, self._deviation_D = x_ND.mean(0), x_ND.std(0) + _MIN_DEVIATION
        z_ND = (x_ND - self._mean_D) / self._deviation_D
        classes, index_N = np.unique(labels_N, return_inverse=True)
        centres_KD = np.stack([z_ND[index_N == k].mean(0) for k in range(len(classes))])
        identity_DD = np.eye(z_ND.shape[1])
        self._whiten_DD = _solved(_covariance_root(z_ND - centres_KD[index_N]), identity_DD).T
        self._all_whiten_DD = _solved(_covariance_root(z_ND), identity_DD).T
        self._centres_KD = centres_KD @ self._whiten_DD
        self._measure, self._slope, self._offset = 0, 1.0, 0.0

    def distances(self, vectors_ND: NDArray[Any]) -> NDArray[np.float64]:
        """Squared distance to the nearest centre, and that less the one to the centre of all, ``(N, 2)``."""
        z_ND = (np.asarray(vectors_ND, np.float64) - self._mean_D) / self._deviation_D
        own_ND = z_ND @ self._whiten_DD
        squares_NK = (own_ND**2).sum(1)[:, None] - 2 * own_ND @ self._centres_KD.T + (self._centres_KD**2).sum(1)
        nearest_N = squares_NK.min(1)
        return np.stack([nearest_N, nearest_N - ((z_ND @ self._all_whiten_DD) ** 2).sum(1)], axis=1)

    def calibrate(
        self, vectors_ND: NDArray[Any], labels_N: NDArray[np.int64], folds_N: NDArray[np.int64], seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Chooses the measure and learns its probability; gives it for images held out, and of classes left out."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score

        groups_N = _class_groups(labels_N, seed)
        # The only image of a class, held out, would be of a class left out.
        _, index_N, counts_K = np.unique(labels_N, return_inverse=True, return_counts=True)
        folds_N = np.where(counts_K[index_N] > 1, folds_N, -1)
        held = [folds_N == fold for fold in range(_NUM_FOLDS) if (folds_N == fold).any()]
        inside_N2 = np.concatenate([_judged(vectors_ND, labels_N, is_held_N) for is_held_N in held])
        outside_M2 = np.concatenate([_judged(vectors_ND, labels_N, groups_N == group) for group in np.unique(groups_N)])
        is_outside = np.repeat([0, 1], [len(inside_N2), len(outside_M2)])
        both = np.concatenate([inside_N2, outside_M2])
        self._measure = int(np.argmax([roc_auc_score(is_outside, both[:, measure]) for measure in (0, 1)]))
        distance = both[:, self._measure]
        scale = float(distance.std()) + _MIN_DEVIATION
        model = LogisticRegression(class_weight="balanced").fit(distance[:, None] / scale, is_outside)
        self._slope, self._offset = float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
        found = self._calibrated(both)
        return found[is_outside == 0], found[is_outside == 1]

    def _calibrated(self, distances_N2: NDArray[np.float64]) -> NDArray[np.float32]:
        return _logistic(self._slope * distances_N2[:, self._measure] + self._offset)

    def probabilities(self, images: Described) -> NDArray[np.float32]:
        return self._calibrated(self.distances(images.vectors_ND))


def _judged(vectors_ND: NDArray[Any], labels_N: NDArray[np.int64], is_held_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distances of images to what the others show."""
    return _OtherConcepts(vectors_ND[~is_held_N], labels_N[~is_held_N]).distances(vectors_ND[is_held_N])


def _class_groups(labels_N: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Which group of classes each image belongs to; groups are left out in turn, at least one class stays."""
    classes, index_N = np.unique(labels_N, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(classes))[index_N] % min(_NUM_FOLDS, len(classes))


def _covariance_root(centred_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower Cholesky factor of the Ledoit-Wolf covariance of centred rows, ``(D, D)``."""
    from sklearn.covariance import ledoit_wolf

    covariance_DD, _ = ledoit_wolf(centred_ND, assume_centered=True)
    return np.linalg.cholesky(covariance_DD + _MIN_DEVIATION * np.eye(len(covariance_DD)))


def _solved(lower_DD: NDArray[Any], right: NDArray[Any], transposed: bool = False) -> NDArray[np.float64]:
    from scipy.linalg import solve_triangular

    return solve_triangular(lower_DD, right, lower=True, trans=int(transposed), check_finite=False)


def _logistic(logits_N: NDArray[np.float64]) -> NDArray[np.float32]:
    return (1 / (1 + np.exp(-np.clip(logits_N, -60, 60)))).astype(np.float32)


def _judged_apart(
    inside: Described, outside: Described, folds_N: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities of each image and copy by detectors that saw neither it nor its copies."""
    repeats = len(outside) // len(inside)
    copy_folds = np.tile(folds_N, repeats)
    inside_N, outside_M = np.zeros(len(inside), np.float32), np.zeros(len(outside), np.float32)
    for fold in range(_NUM_FOLDS):
        detector = _Outliers(inside[folds_N != fold], outside[copy_folds != fold])
        inside_N[folds_N == fold] = detector.probabilities(inside[folds_N == fold])
        outside_M[copy_folds == fold] = detector.probabilities(outside[copy_folds == fold])
    return inside_N, outside_M


def _folds(labels_N: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Fold of each image; the images of a class are spread over the folds."""
    rng = np.random.default_rng(seed)
    folds_N = np.zeros(len(labels_N), np.int64)
    start = 0
    for label in np.unique(labels_N):
        rows = rng.permutation(np.flatnonzero(labels_N == label))
        # Going on where the last class ended keeps the folds of one size.
        folds_N[rows] = (start + np.arange(len(rows))) % _NUM_FOLDS
        start += len(rows)
    return folds_N


def _columns(images: Described) -> NDArray[np.float32]:
    return np.concatenate([np.asarray(images.vectors_ND, np.float32), images.statistics_NS], axis=1)


def _chunks(images: Described) -> Iterator[Described]:
    for start in range(0, len(images), _CHUNK_IMAGES):
        yield images[start : start + _CHUNK_IMAGES]
