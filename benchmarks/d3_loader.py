"""D3: our shards and loader against the webdataset library, and against decoding alone.

All arms decode the same JPEG bytes with the same decoder on one worker and give (image, label): ours in
shuffled order with random access, webdataset in the order of the tar file, which is all it can do without a
shuffle buffer. The files were just written, so no disk is waited for.

H W height and width.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import webdataset
from numpy.typing import NDArray

from benchmarks.measure import Figure, Settings, interleave, median_ratio, run_script
from intern_vision.data.batch import Batch, collate
from intern_vision.data.codec import decode_image
from intern_vision.data.loader import ShardSource, make_loader
from intern_vision.data.sample import Sample
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.store import open_store

BATCH_SIZE = 50
NUM_DISTINCT = 200
"""Different images; a dataset repeats them under other keys."""
NUM_INDICES = 30_000
"""Length of the shuffled order, as of the nano preset's upstream set: grain's shuffle walks longer on a short one."""


class Repeated:
    """A source that counts its samples many times over."""

    def __init__(self, source: ShardSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return NUM_INDICES

    def __getitem__(self, index: int) -> Sample:
        return self._source[index % len(self._source)]


class Dataset:
    """Crops of two photographs as a dataset on a file store.

    Args:
        folder: where it goes.
        sizes_px: smallest and largest height and width.
        num_samples: a multiple of ``BATCH_SIZE``.
    """

    def __init__(self, folder: Path, sizes_px: tuple[int, int], num_samples: int) -> None:
        self.num_samples = num_samples
        self.crop_px = sizes_px[0]
        root = f"file://{folder}"
        write_dataset(self._samples(sizes_px), DatasetInfo(name="photographs"), folder / "dataset")
        self.source = ShardSource(
            open_store(root), f"{root}/dataset", cache_dir=folder / "cache", fields=("label",), split="train"
        )
        self.shards = [str(folder / "dataset" / shard.path) for shard in self.source.info.shards]
        encoded = {row["__key__"]: row["jpg"] for row in webdataset.WebDataset(self.shards, shardshuffle=False)}
        # The very images that our loader draws, in its order.
        keys = [key for batch in self._batches() for key in batch["keys"]]
        self.encoded = [encoded[key] for key in keys]
        positions = {key: index for index, key in enumerate(self.source.keys)}
        self.indices = [positions[key] for key in keys]

    def _samples(self, sizes_px: tuple[int, int]) -> Iterator[Sample]:
        images = _crops(sizes_px)
        for number in range(self.num_samples):
            image = images[number % len(images)]
            yield Sample(key=f"sample-{number}", split="train", image=image, label=number % 10)

    def transform(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        """Cuts to the common size, so that images can be stacked."""
        return {"key": sample.key, "image": self._cut(sample.image), "label": sample.label}

    def _cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # A copy, as every real transform makes: a view would keep the whole image alive.
        return np.ascontiguousarray(image[: self.crop_px, : self.crop_px])

    def decode(self) -> None:
        """Decodes the same images from memory."""
        for data in self.encoded:
            decode_image(data)

    def read(self) -> None:
        """The same samples through the source alone."""
        for index in self.indices:
            self.source[index]

    def load(self) -> None:
        """The same samples through our loader."""
        for _ in self._batches():
            pass

    def _batches(self) -> Iterator[Batch]:
        num_steps = self.num_samples // BATCH_SIZE
        options = {"seed": 0, "start_step": 0, "num_steps": num_steps, "rank": 0, "num_ranks": 1, "num_threads": 1}
        return make_loader(Repeated(self.source), batch_size=BATCH_SIZE, transform=self.transform, **options)

    def load_webdataset(self) -> None:
        """As many samples through webdataset, collated by the same function."""

        def values(row: dict[str, Any]) -> tuple[str, NDArray[np.uint8], int]:
            return row["__key__"], self._cut(decode_image(row["jpg"])), json.loads(row["json"])["label"]

        def collated(rows: list[tuple[str, NDArray[np.uint8], int]]) -> Batch:
            return collate([{"key": key, "image": image, "label": label} for key, image, label in rows])

        dataset = webdataset.WebDataset(self.shards, shardshuffle=False)
        for _ in dataset.map(values).batched(BATCH_SIZE, collation_fn=collated):
            pass


def _crops(sizes_px: tuple[int, int]) -> list[NDArray[np.uint8]]:
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    images = []
    for number in range(NUM_DISTINCT):
        photograph = photographs[number % len(photographs)]
        height, width = rng.integers(200, photograph.shape[0], 2)
        y, x = rng.integers(0, photograph.shape[0] - height), rng.integers(0, photograph.shape[1] - width)
        size = tuple(rng.integers(sizes_px[0], sizes_px[1] + 1, 2).tolist())
        images.append(cv2.resize(photograph[y : y + height, x : x + width], size, interpolation=cv2.INTER_AREA))
    return images


def figures_at(name: str, dataset: Dataset, num_rounds: int) -> list[Figure]:
    """Our speed over webdataset's, and our cost over that of decoding."""
    arms: dict[str, Callable[[], None]] = {
        "loader": dataset.load,
        "webdataset": dataset.load_webdataset,
        "source": dataset.read,
        "decode": dataset.decode,
    }
    seconds = interleave(arms, num_rounds)
    us = {arm: 1e6 * min(values) / dataset.num_samples for arm, values in seconds.items()}
    figure = functools.partial(Figure, limit=f"decoding: {us['decode']:.0f} us of CPU an image, {_rate(us['decode'])}")
    return [
        figure(
            name=f"D3 loader, {name}",
            value=median_ratio(seconds, "webdataset", "loader"),
            target=1.2,
            at_most=False,
            reference=f"speed of webdataset, one worker: {us['webdataset']:.0f} us an image, ours {us['loader']:.0f}",
        ),
        figure(
            name=f"D3 loader over decode, {name}",
            value=median_ratio(seconds, "loader", "decode"),
            target=1.1,
            reference=f"CPU of decoding alone; the source without order and batches: "
            f"{median_ratio(seconds, 'source', 'decode'):.2f} x",
        ),
    ]


def _rate(us_per_image: float) -> str:
    return f"{1e6 / us_per_image:,.0f} images/s a core"


def measure(settings: Settings) -> list[Figure]:
    """Small and photograph-sized images."""
    # Threads inside OpenCV would fight the loader's own.
    cv2.setNumThreads(0)
    found = []
    for name, sizes_px, num_samples in (("64 px", (64, 64), 5_000), ("224-500 px", (224, 500), 800)):
        with tempfile.TemporaryDirectory() as folder:
            dataset = Dataset(Path(folder), sizes_px, 2 * BATCH_SIZE if settings.quick else num_samples)
            found += figures_at(name, dataset, settings.num_rounds)
    return found


if __name__ == "__main__":
    run_script(measure, __doc__.splitlines()[0])
