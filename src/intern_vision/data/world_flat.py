"""The downstream sets without a camera: flat pictures, full-frame textures and real digits."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from intern_vision.data.world_caption import pick
from intern_vision.data.world_names import COLOUR_RGB, NOVEL_TEXTURES, SKETCH_SHAPES, SPECIES
from intern_vision.data.world_scene import Colour, any_tint, contrasting_tint, expose, jitter_tint
from intern_vision.data.world_shapes import sample_distance, sample_texture

Rng = np.random.Generator

_CAST = 0.05
_COUNT_SHAPES = ("capsule", "clover", "lens", "trapezoid")


def flower(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    """One flower of ``label + 3`` petals seen from above."""
    image = _gradient(rng, size_px)
    radius_px = size_px * float(rng.uniform(0.27, 0.42))
    centre = tuple(rng.uniform(0.42, 0.58, 2) * size_px)
    petals = contrasting_tint(rng, image.mean(axis=(0, 1)))
    _stamp(image, f"flower{label + 3}", radius_px, centre, float(rng.uniform(-np.pi, np.pi)), petals)
    _stamp(image, "disc", radius_px * float(rng.uniform(0.2, 0.3)), centre, 0.0, contrasting_tint(rng, petals))
    return {"label": label, "image": expose(rng, image, 0.04, _CAST)}


def species(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    """One flower of a species on dark leaves: easy classes, but many, and alike but for two details or more."""
    num_petals, outer, inner, centre_shape = SPECIES[label]
    image = _gradient(rng, size_px) * np.float32([0.1, 0.22, 0.1]) + np.float32([0.02, 0.05, 0.02])
    radius_px = size_px * float(rng.uniform(0.38, 0.45))
    centre = tuple(rng.uniform(0.46, 0.54, 2) * size_px)
    petals, heart = (jitter_tint(rng, COLOUR_RGB[colour]) for colour in (outer, inner))
    _stamp(image, f"flower{num_petals}", radius_px, centre, float(rng.uniform(-np.pi, np.pi)), petals)
    # A rim of the leaves' colour: a petal and a centre of one lightness stay two things.
    _stamp(image, "disc", 0.42 * radius_px, centre, 0.0, (0.06, 0.12, 0.06))
    _stamp(image, centre_shape, 0.34 * radius_px, centre, float(rng.uniform(-0.2, 0.2)), heart)
    return {"label": label, "image": expose(rng, image, 0.03, _CAST)}


def count(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    """``label + 1`` objects of one shape that do not touch."""
    image = _gradient(rng, size_px)
    ground = image.mean(axis=(0, 1))
    shape, tint = pick(rng, _COUNT_SHAPES), contrasting_tint(rng, ground)
    radius = float(rng.uniform(0.065, 0.1))
    centres: list[NDArray] = []
    while len(centres) <= label:
        centre = rng.uniform(0.12, 0.88, 2)
        if all(np.hypot(*(centre - other)) > 2.2 * radius for other in centres):
            centres.append(centre)
    for centre in centres:
        size = size_px * radius * float(rng.uniform(0.8, 1.1))
        _stamp(image, shape, size, tuple(centre * size_px), float(rng.uniform(-np.pi, np.pi)), jitter_tint(rng, tint))
    return {"label": label, "image": expose(rng, image, 0.05, _CAST)}


def sketch(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    """A line drawing with up to five stray strokes, white on black every other time."""
    paper, ink = float(rng.uniform(0.85, 1)), float(rng.uniform(0, 0.3))
    image = np.full((size_px, size_px, 3), paper, np.float32)
    line_px = float(rng.uniform(0.018, 0.034)) * size_px
    for start, end in rng.uniform(0, size_px, (int(rng.random() * 6), 2, 2)):
        shade = (ink + 0.3,) * 3
        cv2.line(image, start.astype(int).tolist(), end.astype(int).tolist(), shade, max(1, size_px // 64), cv2.LINE_AA)
    radius_px = size_px * float(rng.uniform(0.2, 0.4))
    centre = tuple(rng.uniform(0.33, 0.67, 2) * size_px)
    _stamp(image, SKETCH_SHAPES[label], radius_px, centre, float(rng.normal(0, 0.5)), (ink,) * 3, line_px)
    if rng.random() < 0.5:
        image = 1 - image
    return {"label": label, "image": expose(rng, image, 0.08, 0.0)}


def texture(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    """One texture in two colours of random contrast, scale and turn."""
    mix, first, second = _textured(rng, NOVEL_TEXTURES[label], size_px)
    image = np.float32(first) + mix[..., None] * (np.float32(second) - np.float32(first))
    return {"label": label, "image": expose(rng, image, 0.07, _CAST)}


def seg_mosaic(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    """Four regions of four different textures; ``label`` is not used."""
    axis = ((np.arange(size_px, dtype=np.float32) + 0.5) / size_px).astype(np.float32)
    sway = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
    x = axis[None] + 0.05 * np.sin(9 * axis[:, None] + 3 * sway[0, 0]) * sway[0, 1]
    y = axis[:, None] + 0.05 * np.sin(9 * axis[None] + 3 * sway[1, 0]) * sway[1, 1]
    quarters = np.array([[0.27, 0.27], [0.73, 0.27], [0.27, 0.73], [0.73, 0.73]])
    sites = (quarters + rng.uniform(-0.18, 0.18, (4, 2))).astype(np.float32)
    region = np.argmin([(x - sx) ** 2 + (y - sy) ** 2 for sx, sy in sites], axis=0)
    classes = rng.permutation(len(NOVEL_TEXTURES))[:4]
    drawn = [_textured(rng, NOVEL_TEXTURES[texture], size_px) for texture in classes]
    mix = np.choose(region, [mix for mix, _, _ in drawn])[..., None]
    first, second = (np.array([tints[i] for tints in drawn], np.float32)[region] for i in (1, 2))
    image = first + mix * (second - first)
    return {"mask": classes[region].astype(np.uint8), "image": expose(rng, image, 0.05, _CAST)}


def digit(number: int, size_px: int) -> dict[str, Any]:
    """One of the 1797 digits of scikit-learn's ``load_digits``, enlarged.

    Args:
        number: position in the file.
        size_px: image side.

    Returns:
        ``label`` and ``image``, ``(size_px, size_px, 3)`` uint8.
    """
    images, labels = _digits()
    grey = cv2.resize(images[number], (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    grey = np.clip(grey + 0.5, 0, 255).astype(np.uint8)
    return {"label": int(labels[number]), "image": np.repeat(grey[..., None], 3, axis=2)}


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).astype(np.float32), data.target


def _stamp(
    image: NDArray[np.float32],
    shape: str,
    radius_px: float,
    centre_px: tuple[float, ...],
    roll_rad: float,
    tint: Colour,
    line_px: float = 0.0,
) -> None:
    """Blends a flat shape, or its outline where ``line_px`` > 0, into an image."""
    size = image.shape[0]
    (x, y), reach = centre_px, 1.35 * radius_px + line_px + 1
    window = (
        max(0, int(x - reach)),
        max(0, int(y - reach)),
        min(size, int(x + reach) + 1),
        min(size, int(y + reach) + 1),
    )
    distance = sample_distance(shape, radius_px, (x, y), roll_rad, window)
    if line_px:
        distance = abs(distance) - line_px / 2
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    under = image[window[1] : window[3], window[0] : window[2]]
    under += alpha * (np.asarray(tint, np.float32) - under)


def _textured(rng: Rng, texture: str, size_px: int) -> tuple[NDArray[np.float32], Colour, Colour]:
    """The share of the second colour in each pixel of a full frame, ``(H, W)``, and the two colours."""
    period_px = size_px * float(rng.uniform(0.3, 0.6))
    origin_px = tuple(rng.uniform(0, size_px, 2).tolist())
    mix = sample_texture(texture, period_px, origin_px, float(rng.normal(0, 0.5)), (0, 0, size_px, size_px))
    first = any_tint(rng)
    return mix, first, contrasting_tint(rng, first)


def _gradient(rng: Rng, size_px: int) -> NDArray[np.float32]:
    """A table top: one colour that drifts into another across the image."""
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    tone = rng.uniform(0.1, 0.9, 3)
    drift = rng.uniform(-0.2, 0.2, (2, 3)).astype(np.float32)
    return tone.astype(np.float32) + axis[:, None, None] * drift[0] + axis[None, :, None] * drift[1]
