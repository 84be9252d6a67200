"""Prepare (GV-D): the made world, a person's own files or a set of GV-B, to a dataset of shards on the store."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.bench.suite import SUITE, find_row
from intern_vision.errors import ConfigError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.train.local_ranks import die_with_parent

if TYPE_CHECKING:
    from concurrent.futures import Future

    from intern_vision.data.check import DataCheck
    from intern_vision.data.manifest import Quarantined
    from intern_vision.data.sample import Sample, Split
    from intern_vision.data.shard import DatasetInfo
    from intern_vision.data.world import WorldSet

CHUNK_SIZE = 250
MIN_IMAGES_FOR_WORKERS = 8_000
PROGRESS_EVERY = 10 * CHUNK_SIZE
TOKENIZER_FILE = "tokenizer.json"
FINDINGS_FILE = "findings.json"
UPSTREAM = "upstream"
REAL_SET = "digits"


class Config(base.Config):
    """What to prepare.

    Attributes:
        dataset: ``upstream`` or a downstream set of the made world; for own and official data any name.
        path: a folder or file of own data, or the data root of official data; empty renders the made world.
        official: a set of ``intern_vision.bench.suite``, which lies as downloaded in ``<path>/<official>/``; its
            splits, metric and licence are taken over.
        num_train: training images of the made world; 0 = the set's own number.
        num_val: validation images, likewise.
        num_test: test images, likewise.
        image_size_px: height and width of rendered images.
        vocab_size: tokens to learn from the captions, where there are any.
        seed: of the rendered scenes, or of splits that own or official data does not name.
        content_digest: digest of the own data's file list, so that changed files are prepared anew.
        family: task that is wanted of own data which has labels for several; ``auto`` takes what is there.
        allow_leaks: take own data that has one picture in two splits.
        allow_unlabelled: leave out own images without a label, instead of refusing the data.
    """

    dataset: str
    path: str = ""
    official: str = ""
    num_train: int = Field(default=0, ge=0)
    num_val: int = Field(default=0, ge=0)
    num_test: int = Field(default=0, ge=0)
    image_size_px: int = Field(default=64, ge=16)
    vocab_size: int = Field(default=512, ge=260)
    seed: int = 0
    content_digest: str = ""
    family: Literal["auto", "classify", "multilabel", "detect", "segment", "depth"] = "auto"
    allow_leaks: bool = False
    allow_unlabelled: bool = False

    def faults(self) -> list[str]:
        """An official set is one of the suite and has a data root."""
        if not self.official:
            return []
        known = [row.name for row in SUITE]
        unknown = [] if self.official in known else [f"official must be one of {', '.join(known)}"]
        return unknown + ([] if self.path else ["path must be the data root where official is given"])


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Writes shards, index and manifest; learns a tokenizer where there are captions.

    Raises:
        ConfigError: the made world has no such set.
        DataError: own or official data that cannot be read, or too many bad files.
    """
    from intern_vision.data.manifest import MANIFEST_NAME
    from intern_vision.data.shard import MAX_QUARANTINED_SHARE, write_dataset
    from intern_vision.data.text import Tokenizer

    check: DataCheck | None = None
    max_bad_share = MAX_QUARANTINED_SHARE
    if config.official:
        max_bad_share = find_row(config.official).max_missing_share
        info, samples = _official_data(config)
    elif config.path:
        info, samples = _own_data(config)
        check = samples
    else:
        info, samples = _made_world(config, context)
    captions: list[str] = []
    info = write_dataset(
        _keeping_captions(samples, captions),
        info,
        context.output_dir,
        # Official pixels stay as they are; a JPEG or PNG file is kept, whatever this says.
        lossless=bool(config.official),
        max_quarantined_share=max_bad_share,
    )
    if check is not None:
        findings = check.findings()
        findings.require_none_wrong()
        (context.output_dir / FINDINGS_FILE).write_text(findings.to_json())
    if captions:
        Tokenizer.train(captions, config.vocab_size).save(context.output_dir / TOKENIZER_FILE)
    if info.num_quarantined:
        context.progress.say(f"{info.num_quarantined} unusable images kept out; the reasons are in {MANIFEST_NAME}")
    context.facts |= {
        "num_train": info.num_train,
        "num_val": info.num_val,
        "num_test": info.num_test,
        "num_quarantined": info.num_quarantined,
    }
    return context.commit("dataset", config.dataset)


def _own_data(config: Config) -> tuple[DatasetInfo, DataCheck]:
    from intern_vision.data.check import DataCheck
    from intern_vision.data.manifest_dataset import depth_unit_m
    from intern_vision.data.readers import read_dataset
    from intern_vision.data.reading import SplitRule
    from intern_vision.data.shard import DatasetInfo

    reading = read_dataset(Path(config.path), SplitRule(seed=config.seed), config.family)
    multilabel = reading.tasks.get("multilabel")
    info = DatasetInfo(
        name=config.dataset,
        tasks=reading.tasks,
        source=Path(config.path).absolute().as_uri(),
        concept_names=multilabel.class_names if multilabel else (),
        depth_scale=depth_unit_m(reading.tasks.get("depth")),
    )
    return info, DataCheck(reading, allow_leaks=config.allow_leaks, allow_unlabelled=config.allow_unlabelled)


def _official_data(config: Config) -> tuple[DatasetInfo, Iterable[Sample | Quarantined]]:
    from intern_vision.data.official import read_official
    from intern_vision.data.reading import SplitRule
    from intern_vision.data.shard import DatasetInfo

    row = find_row(config.official)
    reading = read_official(row.name, Path(config.path), SplitRule(seed=config.seed))
    info = DatasetInfo(
        name=config.dataset,
        tasks=reading.tasks,
        licence=row.licence,
        source=row.source_url,
        metric=row.metric,
        depth_scale=row.depth_scale,
    )
    return info, reading


def _keeping_captions(samples: Iterable[Sample | Quarantined], captions: list[str]) -> Iterator[Sample | Quarantined]:
    from intern_vision.data.sample import Sample

    for sample in samples:
        if isinstance(sample, Sample) and sample.caption is not None and sample.split == "train":
            captions.append(sample.caption)
        yield sample


def _made_world(config: Config, context: StageContext) -> tuple[DatasetInfo, Iterator[Sample]]:
    from intern_vision.data import world
    from intern_vision.data.shard import DatasetInfo
    from intern_vision.data.world_names import SYNONYMS

    sets = {UPSTREAM: world.UPSTREAM, **world.DOWNSTREAM}
    if config.dataset not in sets:
        raise ConfigError(f"dataset: expected one of {', '.join(sets)}, got {config.dataset!r}")
    own = sets[config.dataset]
    counts: dict[Split, int] = {
        "train": config.num_train or own.num_train,
        "val": config.num_val or own.num_val,
        "test": config.num_test or own.num_test,
    }
    if config.dataset == REAL_SET:
        # Real images cannot be drawn anew: a larger number takes all there are.
        counts = {split: min(count, own.num_samples(split)) for split, count in counts.items()}
    else:
        numbers = {f"num_{split}": count for split, count in counts.items()}
        own = dataclasses.replace(own, **numbers)
    multilabel = own.tasks.get("multilabel")
    info = DatasetInfo(
        name=own.name,
        tasks=own.tasks,
        licence=own.licence,
        source="intern_vision.data.world",
        concept_names=multilabel.class_names if multilabel else (),
        synonyms=SYNONYMS if "caption" in own.fields else {},
    )
    return info, _render_all(config, own, counts, context)


def _render_all(
    config: Config, world_set: WorldSet, counts: dict[Split, int], context: StageContext
) -> Iterator[Sample]:
    """Chunks rendered by as many processes as the stage has ranks, in order and a few ahead only."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from intern_vision.data import world

    chunks = [
        (world_set, config.seed, split, range(start, min(start + CHUNK_SIZE, count)), config.image_size_px)
        for split, count in counts.items()
        for start in range(0, count, CHUNK_SIZE)
    ]
    total = sum(counts.values())
    num_workers = min(context.num_ranks, os.cpu_count() or 1)
    if num_workers <= 1 or total < MIN_IMAGES_FOR_WORKERS:
        for chunk in chunks:
            yield from world.render(*chunk)
        return
    done = 0
    # spawn: a fork would copy the tracker's thread and its locks.
    workers = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=workers, initializer=die_with_parent)
    waiting = iter(chunks)
    pending: deque[Future[list[Sample]]] = deque()
    try:
        while True:
            while len(pending) < 2 * num_workers and (chunk := next(waiting, None)) is not None:
                pending.append(pool.submit(world.render, *chunk))
            if not pending:
                return
            samples = pending.popleft().result()
            yield from samples
            done += len(samples)
            if done % PROGRESS_EVERY == 0 or done == total:
                context.progress.step(done, total, "images")
    finally:
        # Work is left only after a fault or a signal, which the workers got too: a dead one may never answer.
        pool.shutdown(wait=not pending, cancel_futures=True)
