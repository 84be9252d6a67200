"""Whether two thumbnails show the same picture: align one with the other, then compare cell by cell.

A candidate comes with the view that the hashes agreed on. From there the window is refined by Gauss-Newton steps on its
four edges (Lucas and Kanade, 1981). Two differences are then taken: that of all cells, and that of two thirds of
them, those that agree best, so that a logo or a caption in the picture does no harm. The second has to be much smaller:
two pictures before the same background also agree in most cells, but never as exactly. In a faint picture something
glaring spoils the cells around it as well, once smoothed: where only few pixels stand out from the others, they are
covered in both pictures before these are smoothed. Where both pictures have colours, these have to agree too.

P pairs, T side of a thumbnail, C side of a thumbnail's colours.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.duplicates.thumbnail import COLOUR_CELLS, THUMBNAIL_PX, WHOLE, View, opposite

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
_SIGMA_PX = 1.5
_PAIRS_AT_ONCE = 256
# Edges move by at most this share of the side from where the view put them, and by this in a step.
_MAX_SHIFT = 0.05
_MAX_STEP = 0.03
# Pairs that differ more than so many times what is looked for are given up: before any step, and after each of them.
# Of pairs that end near, none was seen above 33, 5.5, 2.4 and 1.4 times (tiles of photographs, cropped or saved).
_STEP_LIMITS = (40.0, 8.0, 3.5, 1.6)
_MAX_START = 0.5
# Pixels stand out by so many grey values, and so many times the others' spread, which must be little; they are few.
_MIN_GLARE, _GLARE_SPREADS, _MAX_SPREAD, _MAX_COVERED = 12.0, 5.0, 4.0, 0.25


def differences(
    first_P: NDArray[np.void], second_P: NDArray[np.void], views: Sequence[View], *, exact_to: float = 0.05
) -> NDArray[np.float64]:
    """How much of their variation two pictures do not share.

    Args:
        first_P: each a ``THUMBNAIL``, of which the second ones show a view, or nearly.
        second_P: as many.
        views: for each pair.
        exact_to: what is above it is only a bound: the pair is not aligned to the end.

    Returns:
        ``(P,)`` in [0, 2]: 1 minus the correlation, less what saving adds; or, where that is smaller, ``PART_WEIGHT``
        times the same of the cells that agree best. Pictures of different colours are 2 apart.
    """
    found = np.empty(len(first_P))
    for start in range(0, len(first_P), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        found[part] = _compare(first_P[part], second_P[part], views[part], exact_to)
    return found


def _compare(
    first_P: NDArray[np.void], second_P: NDArray[np.void], views: Sequence[View], exact_to: float
) -> NDArray[np.float64]:
    is_mirrored_P = np.array([view.mirrored for view in views])
    first_PTT = np.where(is_mirrored_P[:, None, None], first_P["grey"][:, :, ::-1], first_P["grey"]).astype(np.float32)
    first_PCC2, second_PCC2 = (each["colour"].astype(np.float32) - 128 for each in (first_P, second_P))
    first_PCC2 = np.where(is_mirrored_P[:, None, None, None], first_PCC2[:, :, ::-1], first_PCC2)
    raw_PTT = second_P["grey"].astype(np.float32)
    second_PTT = _smoothing() @ raw_PTT @ _smoothing().T
    # A mirrored view is a window that is mirrored afterwards: in the mirrored picture it lies at the other side.
    edges_P4 = np.array([(*view.y, *(opposite(view.x) if view.mirrored else view.x)) for view in views], np.float32)
    windows, window_P = np.unique(edges_P4, axis=0, return_inverse=True)
    down, across = (_smoothing() @ _resampling(windows[:, at], windows[:, at + 1])[0] for at in (0, 2))
    # The first is smoothed after its window was taken: what lies outside must not show at the borders.
    found_P = _difference(down[window_P] @ first_PTT @ across[window_P].swapaxes(1, 2), second_PTT)[0]
    limits = [min(_MAX_START, factor * exact_to) for factor in _STEP_LIMITS]
    near = np.flatnonzero(found_P <= limits[0])
    if len(near):
        found_P[near], edges_P4[near] = _align(first_PTT[near], second_PTT[near], edges_P4[near], limits)
        found_P[near[_has_other_colours(first_PCC2[near], second_PCC2[near], edges_P4[near])]] = 2.0
    is_whole_P = (windows == (*WHOLE.y, *WHOLE.x)).all(1)[window_P]
    whole = np.flatnonzero(is_whole_P & (found_P > 0))
    if not len(whole):
        return found_P
    glaring_PTT = _glaring(first_PTT[whole], raw_PTT[whole])
    is_some = glaring_PTT.any((1, 2))
    whole, glaring_PTT = whole[is_some], glaring_PTT[is_some]
    if len(whole):
        covered_P = _covered_difference(first_PTT[whole], raw_PTT[whole], glaring_PTT)
        cell_PCC = glaring_PTT.reshape(-1, COLOUR_CELLS, _CELL_PX, COLOUR_CELLS, _CELL_PX).any((2, 4))
        covered_PCC2 = np.where(cell_PCC[..., None], second_PCC2[whole], first_PCC2[whole])
        # As they lie: alignment may have followed what stands out.
        covered_P[_has_other_colours(covered_PCC2, second_PCC2[whole], windows[window_P[whole]])] = 2.0
        found_P[whole] = np.minimum(found_P[whole], covered_P)
    return found_P


def _align(
    first_PTT: NDArray[np.float32],
    second_PTT: NDArray[np.float32],
    start_P4: NDArray[np.float32],
    limits: Sequence[float],
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The least difference on the way to the best window, and where the way ended."""
    edges_P4, found_P = start_P4.copy(), np.full(len(start_P4), np.inf)
    near = np.arange(len(start_P4))
    for limit in (*limits, 0.0):
        warped = _warp(first_PTT[near], edges_P4[near])
        difference_P, kept_PTT = _difference(warped[0], second_PTT[near])
        found_P[near] = np.minimum(found_P[near], difference_P)
        is_near = (found_P[near] < limit) & (found_P[near] > 0)
        near = near[is_near]
        if not len(near):
            break
        step_P4 = _step(*(each[is_near] for each in warped), second_PTT[near], kept_PTT[is_near])
        edges_P4[near] = np.clip(edges_P4[near] + step_P4, start_P4[near] - _MAX_SHIFT, start_P4[near] + _MAX_SHIFT)
    return found_P, edges_P4


def _glaring(first_PTT: NDArray[np.float32], second_PTT: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels, and those around them, in which two pictures differ far more than in all others; none if not few."""
    import cv2

    apart_PTT = second_PTT - first_PTT
    apart_PTT -= np.median(apart_PTT, axis=(1, 2), keepdims=True)
    apart_PTT = np.abs(apart_PTT)
    spread_P = 1.4826 * np.median(apart_PTT, axis=(1, 2))
    found_PTT = apart_PTT > np.maximum(_MIN_GLARE, _GLARE_SPREADS * spread_P)[:, None, None]
    around = np.ones((3, 3), np.uint8)
    for number in np.flatnonzero(found_PTT.any((1, 2))):
        found_PTT[number] = cv2.dilate(found_PTT[number].view(np.uint8), around)
    found_PTT[(spread_P > _MAX_SPREAD) | (found_PTT.mean((1, 2)) > _MAX_COVERED)] = False
    return found_PTT


def _covered_difference(
    first_PTT: NDArray[np.float32], second_PTT: NDArray[np.float32], covered_PTT: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The difference of the cells that agree best, in which what is covered does not count."""
    smoothed = []
    for each_PTT in (first_PTT, second_PTT):
        mean_P11 = each_PTT.mean((1, 2), keepdims=True, where=~covered_PTT)
        smoothed.append(_smoothing() @ np.where(covered_PTT, mean_P11, each_PTT) @ _smoothing().T)
    return _part_difference(*smoothed, (~covered_PTT).astype(np.float32))[0]


def _has_other_colours(
    first_PCC2: NDArray[np.float32],
    second_PCC2: NDArray[np.float32],
    edges_P4: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Whether both pictures are coloured, and differently in more cells than something laid over them explains."""
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
    part_P, kept_PTT = _part_difference(warped_PTT, target_PTT, whole_PTT)
    return np.minimum(whole_P, part_P).astype(np.float64), kept_PTT


def _part_difference(
    warped_PTT: NDArray[np.float32], target_PTT: NDArray[np.float32], counted_PTT: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The weighted difference of the cells that agree best, and 1 for the pixels of these that count, else 0."""
    # A first choice of cells without a fit, which a large logo in either picture would spoil; then by a fit of these.
    apart_PTT = target_PTT - warped_PTT
    apart_PTT = (apart_PTT - np.median(apart_PTT, axis=(1, 2), keepdims=True)) ** 2
    kept_PTT = _best_cells(np.where(counted_PTT > 0, apart_PTT, np.inf)) * counted_PTT
    error_PTT = _lack_of_correlation(warped_PTT, target_PTT, kept_PTT)[2]
    kept_PTT = _best_cells(np.where(counted_PTT > 0, error_PTT, np.inf)) * counted_PTT
    part_P, variance_P, _ = _lack_of_correlation(warped_PTT, target_PTT, kept_PTT)
    part_P = np.where(variance_P >= MIN_PART_DEVIATION**2, PART_WEIGHT * part_P, 2.0)
    return part_P.astype(np.float64), kept_PTT


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
