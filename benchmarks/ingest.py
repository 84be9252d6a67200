"""Ingest: what the stage costs beside reading, hashing and decoding the same files, and what memory its rows take.

Both arms read the same photographs' files from the same folder in one process: one in a bare loop (read, SHA-256,
decode with the same decoder), the other through the whole stage: listing, headers, checks, keys, rows, sorting,
Parquet, and the commit on a file store. The clock is CPU seconds, of all threads.

With ``--rows N`` the stage takes up N names of a few small files, to show time a row and peak memory at that size.
"""

import argparse
import hashlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measure import Figure, Settings, hardware, interleave, median_ratio, run_script
from intern_vision.data.codec import decode_image, encode_jpeg
from intern_vision.events import listening
from intern_vision.ref import Ref
from intern_vision.services import variables
from intern_vision.stages.base import Inputs, run_stage
from intern_vision.stages.ingest import Config

TARGET = 1.6
LINKS_PER_FILE = 10_000
"""Below what file systems allow."""

NUM_IMAGES, NUM_QUICK = 600, 12
SIZES_PX = (256, 640)
"""Smallest and largest height and width: those of images that are collected for training."""


def write_photographs(folder: Path, num_images: int) -> list[Path]:
    """JPEG crops of two photographs, different ones, in ``folder/<class>/``."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    paths = []
    for number in range(num_images):
        photograph = photographs[number % len(photographs)]
        height, width = rng.integers(200, 400, 2)
        y, x = rng.integers(0, photograph.shape[0] - height), rng.integers(0, photograph.shape[1] - width)
        size = tuple(rng.integers(*SIZES_PX, 2).tolist())
        image = cv2.resize(photograph[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA)
        path = folder / f"class_{number % 10}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(image))
        paths.append(path)
    return paths


def bare_loop(paths: list[Path]) -> None:
    """Reads, hashes and decodes."""
    for path in paths:
        data = path.read_bytes()
        hashlib.sha256(data).hexdigest()
        decode_image(data, upright=False)


@contextmanager
def local_store(folder: Path) -> Iterator[None]:
    """The stage's store and state in a folder, its progress unheard."""
    own = {"INTERN_STORE": f"file://{folder}/store", "INTERN_STATE": f"{folder}/state"}
    with variables(own), listening(lambda event: None):
        yield


def take_up(source: Path, number: int) -> None:
    """Runs the stage; the number makes it work that was never done before."""
    config = Config.from_dict({"sources": [{"uri": str(source)}], "version": str(number)})
    run_stage("ingest", config, Inputs())


def measure(settings: Settings) -> list[Figure]:
    """The stage over the bare loop."""
    num_images = NUM_QUICK if settings.quick else NUM_IMAGES
    with tempfile.TemporaryDirectory() as name, local_store(Path(name)):
        source = Path(name) / "photographs"
        paths = write_photographs(source, num_images)
        numbers = iter(range(2**31))
        arms = {"ingest": lambda: take_up(source, next(numbers)), "bare": lambda: bare_loop(paths)}
        seconds = interleave(arms, settings.num_rounds)
    each_us = {arm: 1e6 * min(values) / num_images for arm, values in seconds.items()}
    return [
        Figure(
            name=f"ingest of {num_images} JPEG files",
            value=median_ratio(seconds, "ingest", "bare"),
            target=TARGET,
            reference="reading, hashing and decoding the same files in a bare loop, CPU seconds",
            limit=f"{each_us['bare']:.0f} us of CPU an image bare, {each_us['ingest']:.0f} us in the stage",
        )
    ]


def measure_rows(num_rows: int) -> None:
    """Time a row and peak memory of a manifest of so many small files, and of taking it up again."""
    with tempfile.TemporaryDirectory() as name, local_store(Path(name)):
        folder = Path(name) / "images"
        folder.mkdir()
        data = encode_jpeg(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
        for number in range(num_rows):
            path, first = folder / f"{number}.jpg", folder / f"{number - number % LINKS_PER_FILE}.jpg"
            path.write_bytes(data) if path == first else os.link(first, path)
        config = Config.from_dict({"sources": [{"uri": str(folder)}]})
        ref = run_timed("afresh", num_rows, config, Inputs())
        run_timed("with the earlier result", num_rows, config, Inputs(manifest=(ref,)))
    print(hardware())


def run_timed(text: str, num_rows: int, config: Config, inputs: Inputs) -> Ref:
    """Runs the stage and prints what it took."""
    started, cpu = time.perf_counter(), time.process_time()
    ref = run_stage("ingest", config, inputs)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    figures = f"{wall_s:.1f} s, {1e6 * cpu_s / num_rows:.0f} us of CPU a row, peak memory so far {peak_mb:.0f} MB"
    print(f"{num_rows} rows {text}: {figures}", flush=True)
    return ref


if __name__ == "__main__":
    if "--rows" in sys.argv:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--rows", type=int, required=True, help="rows of the manifest")
        measure_rows(parser.parse_args().rows)
    else:
        run_script(measure, __doc__.splitlines()[0])
