"""Dedup (GV-D): one image of each group of duplicates is kept, and none that a benchmark set has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from intern_vision.data.duplicates.find import FindConfig
from intern_vision.errors import ConfigError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from intern_vision.data.duplicates.find import ImageSet
    from intern_vision.data.duplicates.prints import Embed, Prints
    from intern_vision.data.duplicates.removal import Benchmark

CURVE_FILE, CURVE_PICTURE = "curve.json", "curve.svg"
CACHE_FOLDER = "prints"
MIN_MEASURED = 200


class Config(FindConfig):
    """What counts as the same image, and which one is kept.

    Attributes:
        name: what the result is called.
        protected_splits: rows in these splits are kept before all others, those in the first before those in the next.
        against_splits: splits of the input ``against`` that must not be in the manifest; empty for all.
        num_measured: images on which recall and false positives are measured, into ``curve.json``; 0 measures
            nothing, but a cosine that is not given is then measured on 200.
        num_threads: images opened at once.
        seed: of the images that are measured on, and of how they are changed.
    """

    name: str = "dedup"
    protected_splits: tuple[str, ...] = ("test", "val")
    against_splits: tuple[str, ...] = ()
    num_measured: int = Field(default=0, ge=0)
    num_threads: int = Field(default=2, ge=1)
    seed: int = 0

    def faults(self) -> list[str]:
        """Splits are those that there are."""
        return [
            f"{field} must be of train, val and test, got {name!r}"
            for field in ("protected_splits", "against_splits")
            for name in getattr(self, field)
            if name not in ("train", "val", "test")
        ]


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Takes duplicates out of the input ``manifest``, and whatever an input ``against`` has too.

    ``against`` are manifests and prepared datasets. With an input ``model``, neighbours of its image vectors are
    duplicates too. What was computed of the images is kept in the cache and used by the next run.

    Raises:
        ConfigError: an input of another kind.
        DataError: an input that is missing or corrupt.
    """
    from intern_vision.data.duplicates.find import ImageSet
    from intern_vision.data.duplicates.removal import Removal
    from intern_vision.data.image_vectors import ImageVectors
    from intern_vision.data.manifest_store import commit_manifest, load_manifest

    ref = inputs.one("manifest")
    info, path = load_manifest(context, ref, context.scratch_dir / "inputs")
    model = inputs.optional("model")
    embed = ImageVectors.load(context.fetch(model)).unit if model else None
    prints = _prints(config, ref, model, embed, context)
    config = _measure(config, prints, embed, context)
    images = ImageSet(prints, config)
    removal = Removal(path, images, config.protected_splits)
    for other in inputs.many("against"):
        for benchmark in _benchmarks(config, other, _prints(config, other, model, embed, context)):
            context.progress.say(f"comparing with {benchmark.name}, {benchmark.num_images} images")
            removal.compare(benchmark)
    outcome = removal.write(context.output_dir)
    if outcome.num_conflicts:
        context.progress.say(f"{outcome.num_conflicts} duplicates have other labels than the image that is kept")
    context.facts |= outcome.facts() | {"num_plain": images.num_plain, "num_crowded": images.num_crowded}
    settings = config.to_dict() | {"against": [other.uri for other in inputs.many("against")]}
    settings |= {"model": model.uri} if model else {}
    info = info.model_copy(update={"steps": (*info.steps, outcome.step(settings))})
    return commit_manifest(context, info, config.name)


def _prints(config: Config, ref: Ref, model: Ref | None, embed: Embed | None, context: StageContext) -> Prints:
    """Of every usable image of a manifest or dataset, from the cache where they were made before."""
    from intern_vision.data.duplicates.prints import open_dataset, open_manifest, read_prints, write_prints
    from intern_vision.train.array_cache import ArrayCache, cache_key

    if ref.kind not in ("manifest", "dataset"):
        raise ConfigError(f"{ref.name}: expected a Ref of kind manifest or dataset, got {ref.kind}")
    with_images = config.perceptual or embed is not None

    def make(folder: Path) -> None:
        open_all = open_manifest if ref.kind == "manifest" else open_dataset
        num_images, opened = open_all(context, ref, config.num_threads, with_images)
        context.progress.restart_clock()

        def report(done: int) -> None:
            if done % 1000 == 0 or done == num_images:
                context.progress.step(done, num_images, f"images of {ref.name}")

        write_prints(opened, num_images, folder, embed=embed, on_image=report)

    cache = ArrayCache(context.cache_dir / CACHE_FOLDER)
    return cache.get(cache_key(ref.digest, with_images, model.digest if model else ""), make, read_prints)


def _benchmarks(config: Config, ref: Ref, prints: Prints) -> list[Benchmark]:
    """A benchmark set split by split."""
    import numpy as np

    from intern_vision.data.duplicates.find import ImageSet
    from intern_vision.data.duplicates.removal import Benchmark

    split_N = prints.rows["split"].to_numpy()
    found = []
    for split in sorted(set(split_N), key=("test", "val", "train", "").index):
        if not config.against_splits or split in config.against_splits:
            part: ImageSet = ImageSet(prints.select(np.flatnonzero(split_N == split)), config)
            found.append(Benchmark(f"{ref.name}/{split}" if split else ref.name, ref.name, split, part))
    return found


def _measure(config: Config, prints: Prints, embed: Embed | None, context: StageContext) -> Config:
    """Writes the curves where they are asked for or needed; the config with a cosine in any case."""
    import json

    from intern_vision.data.duplicates.measure import curve_svg, least_cosine, measure_embedding, measure_perceptual
    from intern_vision.data.duplicates.near import without_near

    num_images = config.num_measured
    if embed is not None and not config.min_cosine:
        num_images = num_images or MIN_MEASURED
    images = _sample(config, prints, num_images, context)
    if not images:
        return config.model_copy(update={"min_cosine": config.min_cosine or 1.0})
    curves, pictures = {}, []
    if config.perceptual:
        curves["perceptual"] = measure_perceptual(images, seed=config.seed) | {"used": config.max_difference}
        pictures.append(curve_svg(curves["perceptual"], "By thumbnails", config.max_difference))
    if embed is not None:
        # What thumbnails show to be the same is no evidence against an embedding that says so too.
        curve = measure_embedding(without_near(images), embed, seed=config.seed)
        cosine = config.min_cosine or least_cosine(curve, config.max_false_share)
        config = config.model_copy(update={"min_cosine": cosine})
        curves["embedding"] = curve | {"used": cosine}
        pictures.append(curve_svg(curves["embedding"], "By embeddings", cosine))
    (context.output_dir / CURVE_FILE).write_text(json.dumps(curves, indent=1), encoding="utf-8")
    (context.output_dir / CURVE_PICTURE).write_text("\n".join(pictures), encoding="utf-8")
    return config


def _sample(config: Config, prints: Prints, num_images: int, context: StageContext) -> list[NDArray[np.uint8]]:
    """Images of so many rows at most, of which no two are the same file."""
    import numpy as np

    from intern_vision.data.duplicates.groups import digest_links
    from intern_vision.data.manifest_store import open_images

    if not num_images:
        return []
    is_candidate = prints.rows["fault"].to_numpy() == ""
    is_candidate[digest_links(prints.rows["digest"]).first] = False
    order = np.random.default_rng(config.seed).permutation(np.flatnonzero(is_candidate))
    rows = prints.rows.take(np.sort(order[:num_images])).to_pylist()
    context.progress.say(f"measuring on {len(rows)} images")
    return [image for _, image in open_images(rows, config.num_threads) if not isinstance(image, str)]
