"""Whether two thumbnails show the same picture: align one with the other, then compare cell by cell.

A candidate comes with the view that the hashes agreed on. From there the window is refined by Gauss-Newton steps on its
four edges (Lucas and Kanade, 1981). Two differences are then taken: that of all cells, and that of two thirds of
them, those that agree best, so that a logo or a caption in the picture does no harm. The second has to be much smaller:
two pictures before the same background also agree in most cells, but never as exactly. Where both pictures have
colours, these have to agree too.

P pairs, T side of a thumbnail, C side of a thumbnail's colours.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.duplicates.thumbnail import COLOUR_CELLS, THUMBNAIL_PX, View, opposite

NUM_CELLS = 8
NUM_KEPT_CELLS = 44
"""Of the 64 cells those that agree best: something on a tenth of the area touches up to a quarter of them, and the
smoothing spreads it into a few more."""
PART_WEIGHT = 10.0
"""How much more exactly a part of two pictures must agree than the whole."""
NOISE_VARIANCE = 0.1
"""Squared grey values by which a saved picture may differ from its source, of a smoothed thumbnail."""
MIN_COLOUR = 4.0
"""Root mean square of the colour differences of a picture from which on it is not grey."""
MAX_COLOUR_DIFFERENCE = 0.15
"""Share of the weaker colours by which two coloured pictures may differ, in most of the cells."""
MIN_VARIANCE = 1.0
"""Squared grey values that must be left of a picture once it is smoothed; fine stripes are all the same."""
MIN_PART_DEVIATION = 2.0
"""Grey values: a part must show something."""
# Of the 16 larger cells in which colours are compared.
_NUM_COLOURS = 11
_CELL_PX = THUMBNAIL_PX // NUM_CELLS
_NUM_STEPS = 4
_SIGMA_PX = 1.5
_PAIRS_AT_ONCE = 256
# Edges move by at most this share of the side from where the view put them, and by this in a step.
_MAX_SHIFT = 0.05
_MAX_STEP = 0.03
# Candidates that differ more than this before any step are given up.
_MAX_START = 0.5


def differences(first_P: NDArray[np.void], second_P: NDArray[np.void], views: Sequence[View]) -> NDArray[np.float64]:
    """How much of their variation two pictures do not share.

    Args:
        first_P: each a ``THUMBNAIL``, of which the second ones show a view, or nearly.
        second_P: as many.
        views: for each pair.

    Returns:
        ``(P,)`` in [0, 2]: 1 minus the correlation, less what saving adds; or, where that is smaller, ``PART_WEIGHT``
        times the same of the cells that agree best. Not aligned, so only a bound, where it is above 0.5. Pictures of
        different colours are 2 apart.
    """
    found = np.empty(len(first_P))
    for start in range(0, len(first_P), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        found[part] = _compare(first_P[part], second_P[part], views[part])
    return found


def _compare(first_P: NDArray[np.void], second_P: NDArray[np.void], views: Sequence[View]) -> NDArray[np.float64]:
    is_mirrored_P = np.array([view.mirrored for view in views])
    first_PTT = np.where(is_mirrored_P[:, None, None], first_P["grey"][:, :, ::-1], first_P["grey"]).astype(np.float32)
    # A mirrored view is a window that is mirrored afterwards: in the mirrored picture it lies at the other side.
    edges_P4 = np.array([(*view.y, *(opposite(view.x) if view.mirrored else view.x)) for view in views], np.float32)
    # The first is smoothed after its window was taken: what lies outside must not show at the borders.
    second_PTT = _smoothing() @ second_P["grey"].astype(np.float32) @ _smoothing().T
    found_P, kept_PTT = _difference(_warp(first_PTT, edges_P4)[0], second_PTT)
    near = np.flatnonzero(found_P < _MAX_START)
    if len(near):
        first_PTT, second_PTT, kept_PTT = first_PTT[near], second_PTT[near], kept_PTT[near]
        start_P4 = edges_P4 = edges_P4[near]
        for _ in range(_NUM_STEPS):
            step_P4 = _step(*_warp(first_PTT, edges_P4), second_PTT, kept_PTT)
            edges_P4 = np.clip(edges_P4 + step_P4, start_P4 - _MAX_SHIFT, start_P4 + _MAX_SHIFT)
            aligned_P, kept_PTT = _difference(_warp(first_PTT, edges_P4)[0], second_PTT)
        found_P[near] = np.minimum(found_P[near], aligned_P)
        colours = (each["colour"][near].astype(np.float32) - 128 for each in (first_P, second_P))
        found_P[near[_has_other_colours(*colours, is_mirrored_P[near], edges_P4)]] = 2.0
    return found_P


def _has_other_colours(
    first_PCC2: NDArray[np.float32],
    second_PCC2: NDArray[np.float32],
    is_mirrored_P: NDArray[np.bool_],
    edges_P4: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Whether both pictures are coloured, and differently in more cells than something laid over them explains."""
    first_PCC2 = np.where(is_mirrored_P[:, None, None, None], first_PCC2[:, :, ::-1], first_PCC2)
    down_PCC, across_PCC = (_resampling(edges_P4[:, at], edges_P4[:, at + 1], COLOUR_CELLS)[0] for at in (0, 2))
    first_PCC2 = np.einsum("pij,pjkc,plk->pilc", down_PCC, first_PCC2, across_PCC)
    strength_P = np.minimum(*((each**2).sum(3).mean((1, 2)) for each in (first_PCC2, second_PCC2))) ** 0.5
    # Means over larger cells: at edges between colours the alignment is never exact.
    apart_PKK2 = (first_PCC2 - second_PCC2).reshape(-1, COLOUR_CELLS // 2, 2, COLOUR_CELLS // 2, 2, 2).mean((2, 4))
    squares_PN = (apart_PKK2**2).sum(3).reshape(len(apart_PKK2), -1)
    apart_P = np.sort(squares_PN, axis=1)[:, :_NUM_COLOURS].mean(1) ** 0.5
    return (strength_P >= MIN_COLOUR) & (apart_P > MAX_COLOUR_DIFFERENCE * strength_P)


@cache
def _smoothing() -> NDArray[np.float32]:
    at = np.arange(THUMBNAIL_PX)
    weights_TT = np.exp(-((at[:, None] - at) ** 2) / (2 * _SIGMA_PX**2))
    return (weights_TT / weights_TT.sum(axis=1, keepdims=True)).astype(np.float32)


def _warp(
    image_PTT: NDArray[np.float32], edges_P4: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The windows of the images, and their slopes down and to the right, a side of the image being 1."""
    row_PTT, row_slope_PTT = (_smoothing() @ each for each in _resampling(edges_P4[:, 0], edges_P4[:, 1]))
    across = _resampling(edges_P4[:, 2], edges_P4[:, 3])
    column_PTT, column_slope_PTT = ((_smoothing() @ each).swapaxes(1, 2) for each in across)
    rows_PTT = row_PTT @ image_PTT
    return rows_PTT @ column_PTT, row_slope_PTT @ image_PTT @ column_PTT, rows_PTT @ column_slope_PTT


def _resampling(
    start_P: NDArray[np.float32], end_P: NDArray[np.float32], side: int = THUMBNAIL_PX
) -> tuple[NDArray[np.float32], ...]:
    """Matrices ``(P, side, side)`` that interpolate along one axis, and that give the slope there.

    By cubic convolution (R. Keys, 1981, a = -1/2): linear interpolation would blur the first picture alone.
    """
    centre_T = (np.arange(side, dtype=np.float32) + 0.5) / side
    at_PT = (start_P[:, None] + (end_P - start_P)[:, None] * centre_T) * side - 0.5
    at_PT = np.clip(at_PT, 0, side - 1)
    left_PT = np.floor(at_PT).astype(np.int64)
    t = at_PT - left_PT
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    slopes = (((4 - 3 * t) * t - 1) / 2, (9 * t - 10) * t / 2, ((8 - 9 * t) * t + 1) / 2, (3 * t - 2) * t / 2)
    value, slope = (np.zeros((*at_PT.shape, side), np.float32) for _ in range(2))
    pairs, rows = np.indices(at_PT.shape)
    for tap in range(4):
        # Beyond the border the last pixel goes on.
        place = np.clip(left_PT + tap - 1, 0, side - 1)
        value[pairs, rows, place] += weights[tap]
        slope[pairs, rows, place] += side * slopes[tap]
    return value, slope


def _step(
    warped_PTT: NDArray[np.float32],
    slope_y_PTT: NDArray[np.float32],
    slope_x_PTT: NDArray[np.float32],
    target_PTT: NDArray[np.float32],
    kept_PTT: NDArray[np.float32],
) -> NDArray[np.float32]:
    """How to move the four edges, by least squares with contrast and brightness free."""
    along_T = (np.arange(THUMBNAIL_PX, dtype=np.float32) + 0.5) / THUMBNAIL_PX
    down, right = along_T[:, None], along_T[None, :]
    columns = [slope_y_PTT * (1 - down), slope_y_PTT * down, slope_x_PTT * (1 - right), slope_x_PTT * right]
    num_pairs = len(warped_PTT)
    design = np.stack([*columns, warped_PTT, np.ones_like(warped_PTT)], axis=-1).reshape(num_pairs, -1, 6)
    weighted = (design * kept_PTT.reshape(num_pairs, -1, 1)).swapaxes(1, 2)
    normal_P66 = weighted @ design
    # Enough to keep an even picture from a step of any length, too little to slow others down.
    damping_P = 1e-4 * np.trace(normal_P66, axis1=1, axis2=2) / 6 + 1e-3
    normal_P66 += damping_P[:, None, None] * np.eye(6, dtype=np.float32)
    solved_P6 = np.linalg.solve(normal_P66, weighted @ target_PTT.reshape(num_pairs, -1, 1))[..., 0]
    # The slopes were taken before the change of contrast.
    contrast_P1 = np.maximum(solved_P6[:, 4:5], 0.2)
    return np.clip(solved_P6[:, :4] / contrast_P1, -_MAX_STEP, _MAX_STEP)


def _difference(
    warped_PTT: NDArray[np.float32], target_PTT: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The difference as ``differences`` gives it, and 1 for the pixels of the cells that agree best, else 0."""
    whole_PTT = np.ones_like(warped_PTT)
    whole_P, variance_P, _ = _lack_of_correlation(warped_PTT, target_PTT, whole_PTT)
    # What saving adds explains a part of the difference; all of it where hardly anything is left to see.
    is_seen_P = variance_P >= MIN_VARIANCE
    whole_P = np.where(is_seen_P, np.maximum(0.0, whole_P - NOISE_VARIANCE / (2 * np.maximum(variance_P, 1e-3))), 2.0)
    # A first choice of cells without a fit, which a large logo in either picture would spoil; then by a fit of these.
    apart_PTT = target_PTT - warped_PTT
    kept_PTT = _best_cells((apart_PTT - np.median(apart_PTT, axis=(1, 2), keepdims=True)) ** 2)
    kept_PTT = _best_cells(_lack_of_correlation(warped_PTT, target_PTT, kept_PTT)[2])
    part_P, variance_P, _ = _lack_of_correlation(warped_PTT, target_PTT, kept_PTT)
    part_P = np.where(variance_P >= MIN_PART_DEVIATION**2, PART_WEIGHT * part_P, 2.0)
    return np.minimum(whole_P, part_P).astype(np.float64), kept_PTT


def _lack_of_correlation(
    warped_PTT: NDArray[np.float32], target_PTT: NDArray[np.float32], kept_PTT: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """1 minus the correlation over the pixels kept, the lesser variance there, and the squared error everywhere."""
    num_P = kept_PTT.sum((1, 2))

    def mean(values_PTT: NDArray[np.float32]) -> NDArray[np.float32]:
        return (values_PTT * kept_PTT).sum((1, 2)) / num_P

    first_PTT = warped_PTT - mean(warped_PTT)[:, None, None]
    second_PTT = target_PTT - mean(target_PTT)[:, None, None]
    first_P, second_P, shared_P = mean(first_PTT**2), mean(second_PTT**2), mean(first_PTT * second_PTT)
    contrast_P = np.maximum(0, shared_P) / np.maximum(first_P, 1e-6)
    error_PTT = (second_PTT - contrast_P[:, None, None] * first_PTT) ** 2
    lack_P = np.maximum(0, 1 - shared_P / np.sqrt(np.maximum(first_P * second_P, 1e-6)))
    return lack_P, np.minimum(first_P, second_P), error_PTT


def _best_cells(error_PTT: NDArray[np.float32]) -> NDArray[np.float32]:
    shape = (len(error_PTT), NUM_CELLS, _CELL_PX, NUM_CELLS, _CELL_PX)
    cells = error_PTT.reshape(shape).sum((2, 4)).reshape(len(error_PTT), -1)
    kept = np.zeros_like(cells)
    np.put_along_axis(kept, np.argsort(cells, axis=1, kind="stable")[:, :NUM_KEPT_CELLS], 1, axis=1)
    return kept.reshape(-1, NUM_CELLS, NUM_CELLS).repeat(_CELL_PX, axis=1).repeat(_CELL_PX, axis=2)
