"""Recall of planted duplicates and false positives among distinct images, on photographs and on the made world.

The photographs are those that scikit-image and scikit-learn ship, cut into tiles that do not overlap; each tile is an
image of its own. Left out are a drawn colour chart and a retina scan, whose tiles at the border of the disc are mirror
images of each other.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import hardware
from intern_vision.data.codec import decode_image
from intern_vision.data.duplicates.measure import curve_svg, measure_perceptual
from intern_vision.data.duplicates.near import MAX_DIFFERENCE

PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
    *("page.png", "rocket.jpg", "text.png"),
)


def photo_tiles(num_a_side: int) -> list[NDArray[np.uint8]]:
    """The photographs, each cut into ``num_a_side`` times as many tiles, ``(height, width, 3)`` uint8."""
    import skimage
    import sklearn.datasets

    folder = Path(skimage.__file__).parent / "data"
    photos = [decode_image((folder / name).read_bytes()) for name in PHOTOS]
    photos += [np.asarray(image) for image in sklearn.datasets.load_sample_images().images]
    tiles = []
    for photo in photos:
        rows, columns = (np.linspace(0, side, num_a_side + 1).astype(int) for side in photo.shape[:2])
        tiles += [
            np.ascontiguousarray(photo[top:bottom, left:right])
            for top, bottom in zip(rows, rows[1:], strict=False)
            for left, right in zip(columns, columns[1:], strict=False)
        ]
    return tiles


def made_images(num_a_set: int, size_px: int) -> list[NDArray[np.uint8]]:
    """Images of every set of the made world but the handwritten digits, ``(size_px, size_px, 3)`` uint8."""
    from intern_vision.data import world

    sets = [world.UPSTREAM, *(each for each in world.DOWNSTREAM.values() if each.name != "digits")]
    return [
        sample.image
        for each in sets
        for sample in world.render(each, 0, "train", range(num_a_set), image_size_px=size_px)
    ]


def figures(curve: dict[str, Any], used: float = MAX_DIFFERENCE) -> dict[str, tuple[float, float, float]]:
    """Recall by change, and the share of false positives as ``distinct``, at a threshold, with a 95 % interval."""
    at = curve["thresholds"].index(used)
    shares = {name: (change["recall"], change["low"], change["high"]) for name, change in curve["changes"].items()}
    distinct = curve["distinct"]
    shares["distinct"] = (distinct["share"], distinct["low"], distinct["high"])
    return {name: (values[at], low[at], high[at]) for name, (values, low, high) in shares.items()}


def main(options: Sequence[str] | None = None) -> None:
    """Prints a line a collection and change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=5, help="tiles a side of a photograph")
    parser.add_argument("--num-a-set", type=int, default=250, help="images of each made set")
    parser.add_argument("--size-px", type=int, default=96, help="side of made images")
    parser.add_argument("--out", type=Path, help="folder for curve.json and curve.svg")
    given = parser.parse_args(options)
    collections = {"photographs": photo_tiles(given.tiles), "made world": made_images(given.num_a_set, given.size_px)}
    curves = {}
    for name, images in collections.items():
        started = time.process_time()
        curves[name] = curve = measure_perceptual(images)
        seconds = time.process_time() - started
        print(f"{name}: {curve['num_images']} images, {curve['num_plain']} more too plain; {seconds:.1f} CPU-s")
        for change, (share, low, high) in figures(curve).items():
            print(f"  {change:<12} {share:8.4f}  [{low:.4f}, {high:.4f}]")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "curve.json").write_text(json.dumps(curves, indent=1), encoding="utf-8")
        pictures = [curve_svg(curve, f"By thumbnails, {name}", MAX_DIFFERENCE) for name, curve in curves.items()]
        (given.out / "curve.svg").write_text("\n".join(pictures), encoding="utf-8")
    print(f"threshold {MAX_DIFFERENCE}; {hardware()}")


if __name__ == "__main__":
    main()
