"""Shapes as signed-distance tables and textures as periodic tiles, both sampled with an affine map.

A shape is a boolean predicate over object coordinates (x right, y down, about one unit of radius); its signed distance
is taken once, on a fine grid, by a Euclidean distance transform, so every shape is anti-aliased the same way
however it is composed. Letters: T = table side, H W = window height and width.
"""

from collections.abc import Callable, Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float32]
Predicate = Callable[[Grid, Grid], NDArray[np.bool_]]

EXTENT = 1.4  # a table covers [-EXTENT, EXTENT] on both axes, in object radii
_TABLE_PX = 160
_SUPERSAMPLE = 3
_TILE_SIDES_PX = (16, 32, 64, 128)


def _rho(x: Grid, y: Grid) -> Grid:
    return np.hypot(x, y)


def _box(x: Grid, y: Grid, x0: float, y0: float, x1: float, y1: float) -> NDArray[np.bool_]:
    return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)


def _ellipse(x: Grid, y: Grid, cx: float, cy: float, rx: float, ry: float) -> NDArray[np.bool_]:
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1


def _poly(x: Grid, y: Grid, points: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    """Even-odd rule over the polygon's edges."""
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


def _star(x: Grid, y: Grid, num_points: int, inner: float, outer: float = 1.0) -> NDArray[np.bool_]:
    angles = np.arange(2 * num_points) * np.pi / num_points
    radii = np.where(np.arange(2 * num_points) % 2 == 0, outer, inner)
    return _poly(x, y, [(float(r * np.sin(a)), float(-r * np.cos(a))) for a, r in zip(angles, radii, strict=True)])


def _ngon(x: Grid, y: Grid, num_sides: int) -> NDArray[np.bool_]:
    angles = np.arange(num_sides) * 2 * np.pi / num_sides + (np.pi / 4 if num_sides == 4 else 0)
    return _poly(x, y, [(float(np.sin(a)), float(-np.cos(a))) for a in angles])


def _petals(num_petals: int) -> Predicate:
    return lambda x, y: _rho(x, y) < 0.62 + 0.36 * np.cos(num_petals * np.arctan2(x, -y))


def _band(x: Grid, y: Grid, cx: float, cy: float, radius: float, half: float) -> NDArray[np.bool_]:
    return abs(_rho(x - cx, y - cy) - radius) < half


_PREDICATES: dict[str, Predicate] = {
    # Upstream, in families of four.
    "disc": lambda x, y: _rho(x, y) < 0.92,
    "ring": lambda x, y: _band(x, y, 0, 0, 0.74, 0.22),
    "oval": lambda x, y: _ellipse(x, y, 0, 0, 1.05, 0.58),
    "crescent": lambda x, y: (_rho(x, y) < 0.98) & (_rho(x - 0.5, y) > 0.74),
    "triangle": lambda x, y: _ngon(x, y, 3),
    "square": lambda x, y: _ngon(x, y, 4),
    "pentagon": lambda x, y: _ngon(x, y, 5),
    "hexagon": lambda x, y: _ngon(x, y, 6),
    "spark": lambda x, y: _star(x, y, 4, 0.33, 1.1),
    "pentagram": lambda x, y: _star(x, y, 5, 0.42, 1.08),
    "sunburst": lambda x, y: _star(x, y, 10, 0.62, 1.05),
    "gear": lambda x, y: (_rho(x, y) < 0.74 + 0.26 * (np.cos(6 * np.arctan2(x, -y)) > 0)) & (_rho(x, y) > 0.3),
    "cross": lambda x, y: _box(x, y, -0.3, -0.95, 0.3, 0.95) | _box(x, y, -0.95, -0.3, 0.95, 0.3),
    "tee": lambda x, y: _box(x, y, -0.9, -0.9, 0.9, -0.35) | _box(x, y, -0.28, -0.9, 0.28, 0.95),
    "ell": lambda x, y: _box(x, y, -0.8, -0.95, -0.22, 0.9) | _box(x, y, -0.8, 0.35, 0.85, 0.9),
    "zed": lambda x, y: (
        _box(x, y, -0.85, -0.9, 0.85, -0.45)
        | _box(x, y, -0.85, 0.45, 0.85, 0.9)
        | _poly(x, y, [(0.3, -0.5), (0.85, -0.5), (-0.3, 0.5), (-0.85, 0.5)])
    ),
    "arrow": lambda x, y: _poly(
        x, y, [(0, -1.05), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)]
    ),
    "chevron": lambda x, y: _poly(x, y, [(0, -0.8), (0.95, 0.2), (0.95, 0.9), (0, -0.05), (-0.95, 0.9), (-0.95, 0.2)]),
    "drop": lambda x, y: (_rho(x, y - 0.32) < 0.64) | _poly(x, y, [(0, -1.1), (0.58, 0.05), (-0.58, 0.05)]),
    "kite": lambda x, y: _poly(x, y, [(0, -0.95), (0.68, -0.3), (0, 1.1), (-0.68, -0.3)]),
    "house": lambda x, y: (
        (_box(x, y, -0.65, -0.15, 0.65, 0.9) & ~_box(x, y, -0.2, 0.3, 0.2, 0.9))
        | _poly(x, y, [(0, -1), (0.95, -0.12), (-0.95, -0.12)])
    ),
    "tree": lambda x, y: (
        _box(x, y, -0.17, 0.5, 0.17, 1)
        | _poly(x, y, [(0, -1.1), (0.6, -0.2), (-0.6, -0.2)])
        | _poly(x, y, [(0, -0.6), (0.8, 0.55), (-0.8, 0.55)])
    ),
    "cup": lambda x, y: _box(x, y, -0.8, -0.7, 0.4, 0.8) | (_band(x, y, 0.42, 0, 0.4, 0.14) & (x > 0.38)),
    "mushroom": lambda x, y: (_ellipse(x, y, 0, 0.05, 1, 0.95) & (y < 0.1)) | _box(x, y, -0.28, 0, 0.28, 0.95),
    # Downstream only.
    "heart": lambda x, y: (1.44 * x * x + 1.44 * (y - 0.05) ** 2 - 1) ** 3 + 2.49 * x * x * (y - 0.05) ** 3 < 0,
    "key": lambda x, y: (
        _band(x, y, 0, -0.55, 0.36, 0.16)
        | _box(x, y, -0.14, -0.2, 0.14, 1.1)
        | _box(x, y, 0, 0.45, 0.5, 0.66)
        | _box(x, y, 0, 0.86, 0.5, 1.08)
    ),
    "hourglass": lambda x, y: (abs(y) < 0.95) & (abs(x) < 0.12 + 0.66 * abs(y)),
    "dumbbell": lambda x, y: (_rho(abs(x) - 0.66, y) < 0.44) | _box(x, y, -0.6, -0.17, 0.6, 0.17),
    "pacman": lambda x, y: (_rho(x, y) < 0.95) & (abs(np.arctan2(y, x)) > 0.62),
    "fork": lambda x, y: (
        _box(x, y, -0.14, -1, 0.14, 1.1) | ((_box(abs(x), y, 0.45, -1, 0.7, 0.1)) | _box(x, y, -0.7, -0.05, 0.7, 0.2))
    ),
    "bolt": lambda x, y: _poly(
        x, y, [(0.15, -1.1), (-0.65, 0.15), (-0.08, 0.15), (-0.25, 1.1), (0.65, -0.3), (0.08, -0.3)]
    ),
    "flag": lambda x, y: _box(x, y, -0.6, -1.05, -0.38, 1.1) | _poly(x, y, [(-0.5, -1.05), (0.85, -0.5), (-0.5, 0.1)]),
    "fish": lambda x, y: _ellipse(x, y, -0.2, 0, 0.85, 0.5) | _poly(x, y, [(0.35, 0), (1.1, -0.55), (1.1, 0.55)]),
    "umbrella": lambda x, y: (
        ((_rho(x, y) < 1) & (y < 0))
        | _box(x, y, -0.08, -0.1, 0.08, 0.85)
        | (_band(x, y, 0.22, 0.8, 0.22, 0.08) & (y > 0.8))
    ),
    "anchor": lambda x, y: (
        _band(x, y, 0, -0.8, 0.2, 0.1)
        | _box(x, y, -0.1, -0.65, 0.1, 0.95)
        | _box(x, y, -0.5, -0.45, 0.5, -0.25)
        | (_band(x, y, 0, 0.15, 0.8, 0.12) & (y > 0.25))
    ),
    "bottle": lambda x, y: (
        _box(x, y, -0.45, -0.2, 0.45, 1.05) | _ellipse(x, y, 0, -0.2, 0.45, 0.35) | _box(x, y, -0.17, -1.1, 0.17, -0.2)
    ),
    "sailboat": lambda x, y: (
        _poly(x, y, [(-1, 0.45), (1, 0.45), (0.6, 0.95), (-0.6, 0.95)])
        | _poly(x, y, [(-0.05, -1.05), (-0.05, 0.3), (-0.8, 0.3)])
        | _poly(x, y, [(0.1, -0.8), (0.8, 0.3), (0.1, 0.3)])
    ),
    "crown": lambda x, y: _poly(
        x, y, [(-0.95, -0.65), (-0.45, 0.05), (0, -0.85), (0.45, 0.05), (0.95, -0.65), (0.75, 0.8), (-0.75, 0.8)]
    ),
    "glasses": lambda x, y: _band(abs(x), y, 0.58, 0, 0.38, 0.13) | _box(x, y, -0.3, -0.12, 0.3, 0.1),
    "bell": lambda x, y: (
        (_ellipse(x, y, 0, -0.1, 0.6, 0.85) & (y < 0.1))
        | _poly(x, y, [(-0.58, 0), (0.58, 0), (0.95, 0.65), (-0.95, 0.65)])
        | (_rho(x, y - 0.72) < 0.24)
    ),
    "capsule": lambda x, y: _rho(x, np.maximum(abs(y) - 0.55, 0)) < 0.45,
    "clover": lambda x, y: (_rho(x, y + 0.45) < 0.46) | (_rho(abs(x) - 0.46, y - 0.25) < 0.46),
    "lens": lambda x, y: (_rho(x, y - 0.75) < 1.22) & (_rho(x, y + 0.75) < 1.22),
    "trapezoid": lambda x, y: _poly(x, y, [(-0.45, -0.7), (0.45, -0.7), (1, 0.7), (-1, 0.7)]),
    "vase": lambda x, y: (abs(y) < 1.05) & (abs(x) < 0.42 + 0.28 * np.sin(2.6 * y)),
    "lamp": lambda x, y: (
        _poly(x, y, [(-0.35, -1.05), (0.35, -1.05), (0.75, -0.25), (-0.75, -0.25)])
        | _box(x, y, -0.09, -0.3, 0.09, 0.9)
        | _box(x, y, -0.5, 0.85, 0.5, 1.05)
    ),
    "chair": lambda x, y: (
        _box(x, y, -0.65, -1.05, -0.42, 1.05) | _box(x, y, -0.65, 0, 0.65, 0.28) | _box(x, y, 0.42, 0, 0.65, 1.05)
    ),
    "pillar": lambda x, y: _box(x, y, -0.35, -0.95, 0.35, 0.95) | _box(abs(x), abs(y), 0, 0.82, 0.6, 1.1),
    "pin": lambda x, y: (
        ((_rho(x, y + 0.4) < 0.62) & (_rho(x, y + 0.4) > 0.2)) | _poly(x, y, [(-0.5, -0.05), (0.5, -0.05), (0, 1.15)])
    ),
    **{f"flower{n}": _petals(n) for n in range(3, 9)},
}


@cache
def distance_table(shape: str) -> NDArray[np.float32]:
    """Signed distance of a shape, negative inside, in object radii.

    Args:
        shape: a shape's name; KeyError where there is none.

    Returns:
        ``(T, T)`` float32 over ``[-EXTENT, EXTENT]`` on both axes.
    """
    side = _TABLE_PX * _SUPERSAMPLE
    axis = ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1) * EXTENT
    inside = _PREDICATES[shape](*np.meshgrid(axis, axis)).astype(np.uint8)
    outer = cv2.distanceTransform(1 - inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    inner = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The edge lies half a cell from the first cell of either side.
    signed = np.where(inside > 0, 0.5 - inner, outer - 0.5) * (2 * EXTENT / side)
    return cv2.resize(signed.astype(np.float32), (_TABLE_PX, _TABLE_PX), interpolation=cv2.INTER_AREA)


@cache
def _outline(shape: str) -> NDArray[np.float32]:
    """Convex hull of a shape, ``(num_points, 2)``, in object radii."""
    rows, cols = np.nonzero(distance_table(shape) < 0)
    hull = cv2.convexHull(np.stack([cols, rows], axis=1).astype(np.float32))[:, 0]
    return (hull + 0.5) * (2 * EXTENT / _TABLE_PX) - EXTENT


def lowest_point(shape: str, roll_rad: float) -> float:
    """How far below its centre a rolled shape reaches, in object radii."""
    hull = _outline(shape)
    return float((hull[:, 0] * np.sin(roll_rad) + hull[:, 1] * np.cos(roll_rad)).max())


def sample_distance(
    shape: str, radius_px: float, centre_px: tuple[float, float], roll_rad: float, window_px: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """Signed distance in pixels of a placed shape inside a window.

    Args:
        shape: a shape's name.
        radius_px: length of one object radius in pixels.
        centre_px: the shape's ``x y`` in pixels; pixel ``i`` spans ``i`` to ``i + 1``.
        roll_rad: clockwise turn on screen.
        window_px: ``x0 y0 x1 y1``, whole pixels, end exclusive.

    Returns:
        ``(H, W)`` float32, negative inside.
    """
    step = 2 * EXTENT / _TABLE_PX
    matrix = _inverse_map(1 / (radius_px * step), centre_px, roll_rad, window_px, EXTENT / step)
    table = distance_table(shape)
    return _warp(table, matrix, window_px, cv2.BORDER_REPLICATE) * np.float32(radius_px)


def _inverse_map(
    scale: float,
    centre_px: tuple[float, float],
    roll_rad: float,
    window_px: tuple[int, int, int, int],
    origin: float,
) -> NDArray[np.float64]:
    """The ``(2, 3)`` map from a window's pixel indices to a table's indices."""
    cos, sin = scale * np.cos(roll_rad), scale * np.sin(roll_rad)
    dx, dy = window_px[0] + 0.5 - centre_px[0], window_px[1] + 0.5 - centre_px[1]
    return np.array(
        [[cos, sin, cos * dx + sin * dy + origin - 0.5], [-sin, cos, cos * dy - sin * dx + origin - 0.5]], np.float64
    )


def _warp(table: NDArray[np.float32], matrix: NDArray[np.float64], window_px: tuple[int, int, int, int], border: int):
    size = (window_px[2] - window_px[0], window_px[3] - window_px[1])
    return cv2.warpAffine(table, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)


def _wave(t: Grid) -> NDArray[np.bool_]:
    """Square wave of period one."""
    return t % 1 < 0.5


def _lattice(u: Grid, v: Grid, points: NDArray[np.float64]) -> tuple[Grid, Grid]:
    """Distances to the nearest and second nearest of points repeated with period one."""
    du = (u[..., None] - points[:, 0] + 0.5) % 1 - 0.5
    dv = (v[..., None] - points[:, 1] + 0.5) % 1 - 0.5
    nearest = np.partition(np.hypot(du, dv), 1, axis=-1)
    return nearest[..., 0], nearest[..., 1]


_SPECKS = np.random.default_rng(7).random((22, 2))
_CELLS = np.random.default_rng(11).random((7, 2))
_HEX = np.array([[0.0, 0.0], [0.5, 0.25], [0.0, 0.5], [0.5, 0.75]])

_TEXTURES: dict[str, Callable[[Grid, Grid], NDArray]] = {
    # Upstream.
    "plain": lambda u, v: np.zeros_like(u),
    "striped": lambda u, v: _wave(2 * v),
    "checked": lambda u, v: _wave(2 * u) ^ _wave(2 * v),
    "dotted": lambda u, v: np.hypot((2 * u) % 1 - 0.5, (2 * v) % 1 - 0.5) < 0.3,
    "ringed": lambda u, v: _wave(3.2 * np.hypot(u % 1 - 0.5, v % 1 - 0.5)),
    "zigzag": lambda u, v: _wave(2 * v + abs((2 * u) % 1 - 0.5)),
    "gridded": lambda u, v: ((2 * u) % 1 < 0.26) | ((2 * v) % 1 < 0.26),
    "speckled": lambda u, v: _lattice(u, v, _SPECKS)[0] < 0.075,
    # Downstream only.
    "brick": lambda u, v: ((4 * v) % 1 < 0.18) | ((2 * u + 0.5 * (np.floor(4 * v) % 2)) % 1 < 0.09),
    "honeycomb": lambda u, v: np.subtract(*_lattice(u, v, _HEX)[::-1]) < 0.07,
    "scaly": lambda u, v: abs(np.hypot((3 * u + 0.5 * (np.floor(3 * v) % 2)) % 1 - 0.5, (3 * v) % 1) - 0.62) < 0.16,
    "woven": lambda u, v: np.where(
        _wave(2 * u) ^ _wave(2 * v), 0.2 + 0.8 * np.sin(np.pi * ((4 * u) % 1)), 0.7 * np.sin(np.pi * ((4 * v) % 1))
    ),
    "plaid": lambda u, v: 0.5 * ((2 * u) % 1 < 0.4) + 0.5 * ((2 * v) % 1 < 0.4),
    "cracked": lambda u, v: np.subtract(*_lattice(u, v, _CELLS)[::-1]) < 0.06,
    "wavy": lambda u, v: _wave(3 * v + 0.28 * np.sin(2 * np.pi * 2 * u)),
    "sawtooth": lambda u, v: (3 * u) % 1 < (3 * v) % 1,
}


@cache
def texture_tile(texture: str, side_px: int) -> NDArray[np.float32]:
    """One period of a texture.

    Args:
        texture: a texture's name; KeyError where there is none.
        side_px: side of the tile.

    Returns:
        ``(side_px, side_px)`` float32 in 0..1: the share of the second colour.
    """
    fine = side_px * 4
    axis = (np.arange(fine) + 0.5) / fine
    values = np.asarray(_TEXTURES[texture](*np.meshgrid(axis, axis)), np.float32)
    return cv2.resize(values, (side_px, side_px), interpolation=cv2.INTER_AREA)


def sample_texture(
    texture: str,
    period_px: float,
    centre_px: tuple[float, float],
    roll_rad: float,
    window_px: tuple[int, int, int, int],
) -> NDArray[np.float32]:
    """A texture inside a window, ``(H, W)`` float32 in 0..1; arguments as in ``sample_distance``.

    The tile is taken at the resolution nearest above ``period_px``, which keeps small sprites from aliasing.
    """
    side_px = next((side for side in _TILE_SIDES_PX if side >= period_px), _TILE_SIDES_PX[-1])
    matrix = _inverse_map(side_px / period_px, centre_px, roll_rad, window_px, 0.0)
    return _warp(texture_tile(texture, side_px), matrix, window_px, cv2.BORDER_WRAP)
