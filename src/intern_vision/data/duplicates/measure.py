"""How many planted duplicates are found, and how many distinct images are taken for the same, by threshold.

The images of a sample are changed as ``intern_vision.data.duplicates.planted`` says. Recall is the share of changed
images that are paired with their own source; false positives are the share of the images that are paired with any other
image of the sample. What the sample truly holds twice counts as false, so it must hold no duplicates.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.comparisons import wilson_interval
from intern_vision.data.duplicates.near import MIN_SEEN, PictureIndex, near_between
from intern_vision.data.duplicates.planted import CHANGES
from intern_vision.data.duplicates.prints import Embed
from intern_vision.data.duplicates.search import Hits, cosine_hits
from intern_vision.data.duplicates.thumbnail import WHOLE, thumbnail, view_hashes

DIFFERENCES = (0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.03, 0.05)
COSINES = tuple(round(0.5 + 0.01 * step, 2) for step in range(49)) + (0.99, 0.995, 0.999)
_MIN_COSINE = 0.5


def measure_perceptual(images: Sequence[NDArray[np.uint8]], *, seed: int = 0) -> dict[str, Any]:
    """Shares by the largest difference that counts as the same; images too plain to be recognised are left out.

    Args:
        images: distinct, each ``(height, width, 3)`` uint8 RGB.
        seed: of the changes.

    Returns:
        ``thresholds``; ``num_images`` and ``num_plain``; ``changes``: by name the ``recall`` a threshold with ``low``
        and ``high``, a 95 % interval; ``distinct``: likewise the ``share`` of false positives.
    """
    thumbnails = np.stack([thumbnail(image) for image in images])
    is_plain = view_hashes(thumbnails["grey"], [WHOLE])[1][:, 0] < MIN_SEEN
    kept = [image for image, plain in zip(images, is_plain, strict=True) if not plain]
    index = PictureIndex(thumbnails[~is_plain], max_difference=DIFFERENCES[-1])
    changes = {}
    for name in CHANGES:
        changed = PictureIndex(
            np.stack([thumbnail(image) for image in changed_images(kept, name, seed)]), max_difference=DIFFERENCES[-1]
        )
        hits = near_between(changed, index)
        changes[name] = _shares(_least(hits, len(kept), own=True), DIFFERENCES, "recall")
    return {
        "thresholds": list(DIFFERENCES),
        "num_images": len(kept),
        "num_plain": int(is_plain.sum()),
        "changes": changes,
        "distinct": _shares(_least(_both_ways(index.pairs()), len(kept), own=False), DIFFERENCES, "share"),
    }


def measure_embedding(images: Sequence[NDArray[np.uint8]], embed: Embed, *, seed: int = 0) -> dict[str, Any]:
    """Shares by the least cosine that counts as the same, as ``measure_perceptual`` gives them.

    Args:
        images: distinct, each ``(height, width, 3)`` uint8 RGB.
        embed: images to embeddings of length 1.
        seed: of the changes.
    """
    sources = _embedded(images, embed)
    limits = [1 - cosine for cosine in COSINES]
    changes = {}
    for name in CHANGES:
        hits = cosine_hits(_embedded(changed_images(images, name, seed), embed), sources, _MIN_COSINE)
        changes[name] = _shares(_least(hits, len(images), own=True), limits, "recall")
    distinct = _least(cosine_hits(sources, sources, _MIN_COSINE), len(images), own=False)
    return {
        "thresholds": list(COSINES),
        "num_images": len(images),
        "num_plain": 0,
        "changes": changes,
        "distinct": _shares(distinct, limits, "share"),
    }


def least_cosine(curve: Mapping[str, Any], max_false_share: float) -> float:
    """The least of a curve's cosines from which on no more than this share of distinct images is paired; else 1."""
    good = [share <= max_false_share for share in curve["distinct"]["share"]]
    fitting = [cosine for at, cosine in enumerate(curve["thresholds"]) if all(good[at:])]
    return fitting[0] if fitting else 1.0


def changed_images(images: Sequence[NDArray[np.uint8]], change: str, seed: int) -> list[NDArray[np.uint8]]:
    """Each image after a change of ``CHANGES``; what is drawn depends on seed, change and the image's number alone."""
    number = list(CHANGES).index(change)
    return [CHANGES[change](image, np.random.default_rng((seed, number, at))) for at, image in enumerate(images)]


def curve_svg(curve: Mapping[str, Any], title: str, used: float) -> str:
    """A drawing: recall of each change, and false positives, over the threshold.

    Args:
        curve: of ``measure_perceptual`` or ``measure_embedding``.
        title: above it.
        used: the threshold that is drawn as a line.
    """
    width, height, left, right, top, bottom = 520, 250, 44, 380, 30, 210
    thresholds = curve["thresholds"]
    num_steps = max(1, len(thresholds) - 1)

    def place(at: float, share: float) -> str:
        return f"{left + (right - left) * at / num_steps:.1f},{bottom - (bottom - top) * share:.1f}"

    lines = {name: change["recall"] for name, change in curve["changes"].items()}
    lines["distinct images"] = curve["distinct"]["share"]
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" font-size="11" fill="currentColor">']
    parts.append(f"<title>{escape(title)}</title><text x='{left}' y='16' font-weight='bold'>{escape(title)}</text>")
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        parts.append(f"<line x1='{left}' x2='{right}' y1='{y}' y2='{y}' stroke='currentColor' opacity='.2'/>")
        parts.append(f"<text x='{left - 6}' y='{y + 4}' text-anchor='end'>{share:.0%}</text>")
    at_used = float(np.interp(used, thresholds, range(len(thresholds))))
    parts.append(f"<polyline points='{place(at_used, 0)} {place(at_used, 1)}' stroke='currentColor' opacity='.5'/>")
    for number, (name, shares) in enumerate(lines.items()):
        is_false = name == "distinct images"
        hue = f"var(--c{number}, hsl({number * 51} 60% 45%))"
        dashes = " stroke-dasharray='4 3'" if is_false else ""
        points = " ".join(place(at, share) for at, share in enumerate(shares))
        parts.append(f"<polyline points='{points}' fill='none' stroke='{hue}' stroke-width='2'{dashes}/>")
        y = top + 16 * (number + 1)
        parts.append(
            f"<line x1='{right + 10}' x2='{right + 26}' y1='{y}' y2='{y}' stroke='{hue}' stroke-width='2'{dashes}/>"
        )
        parts.append(f"<text x='{right + 31}' y='{y + 4}'>{escape(name)}</text>")
    for at in sorted({0, len(thresholds) // 2, len(thresholds) - 1}):
        x, _ = place(at, 0).split(",")
        parts.append(f"<text x='{x}' y='{bottom + 16}' text-anchor='middle'>{thresholds[at]:g}</text>")
    parts.append(f"<text x='{(left + right) / 2}' y='{bottom + 32}' text-anchor='middle'>threshold</text></svg>")
    return "".join(parts)


def _embedded(images: Sequence[NDArray[np.uint8]], embed: Embed) -> NDArray[np.float32]:
    return np.concatenate([embed(images[start : start + 64]) for start in range(0, len(images), 64)])


def _both_ways(hits: Hits) -> Hits:
    return Hits(
        np.concatenate([hits.queries, hits.rows]),
        np.concatenate([hits.rows, hits.queries]),
        np.concatenate([hits.distances, hits.distances]),
    )


def _least(hits: Hits, num_images: int, *, own: bool) -> NDArray[np.float64]:
    """The least distance of each image to its own source, or to any other image; infinite where none was found."""
    chosen = (hits.queries == hits.rows) == own
    least = np.full(num_images, np.inf)
    np.minimum.at(least, hits.queries[chosen], hits.distances[chosen])
    return least


def _shares(least: NDArray[np.float64], limits: Sequence[float], name: str) -> dict[str, list[float]]:
    # A cosine of 1 - 1e-7 is one of 1 but for rounding.
    shares = [float((least <= limit + 1e-6).mean()) for limit in limits]
    intervals = [wilson_interval(share, len(least)) for share in shares]
    return {name: shares, "low": [low for low, _ in intervals], "high": [high for _, high in intervals]}
