"""Shard (GV-D): the rows of a manifest to a dataset of tar shards and an index, as every training reads it."""

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import SplitRule
from intern_vision.errors import MissingObjectError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.store import join_uri

if TYPE_CHECKING:
    from intern_vision.data.labels.union import LabelUnion
    from intern_vision.data.shard import DatasetInfo, FinishedShard
    from intern_vision.task import Family

MAX_THREADS = 8
PROGRESS_FOLDER = "checkpoints"


class Config(base.Config):
    """What dataset is written.

    Attributes:
        name: the dataset's name; by default that of its only source, else the manifest's.
        source: rows of this source only; empty takes all, which then must annotate the same classes.
        split: how splits that no row names are drawn; a share of 0 draws none.
        weight: share that a mixture gives to the dataset, in ratio to the weights of its other datasets; 0 = by size.
        max_shard_bytes: a shard is ended before it would grow beyond this; a larger sample gets its own.
        max_quarantined_share: largest share of unusable images, in [0, 1].
        vocab_size: tokens to learn from the training captions, where there are any.
    """

    name: str = ""
    source: str = ""
    split: SplitRule = SplitRule()
    weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_shard_bytes: int = Field(default=64 * 2**20, ge=2**10)
    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    vocab_size: int = Field(default=512, ge=260)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Writes the rows with status ``ok`` of the input ``manifest``; an attempt that was killed is gone on with.

    Each shard is uploaded once it is whole, with a record of it, so that a later attempt begins after the last one
    and no more than one shard lies on the local disk. The input ``labels`` (output of a label stage) gives the classes
    of several sources common names.

    Raises:
        ConfigError: the manifest has no such source.
        DataError: too many unusable images, no row to write, or sources that annotate different classes.
        RetryableError: a server does not answer, or the disk is full.
    """
    from intern_vision.data.manifest import MANIFEST_NAME
    from intern_vision.data.manifest_dataset import ManifestDataset
    from intern_vision.data.manifest_store import load_manifest
    from intern_vision.data.shard import write_dataset

    manifest, path = load_manifest(context, inputs.one("manifest"), context.scratch_dir / "inputs")
    dataset = ManifestDataset(
        path,
        manifest,
        name=config.name,
        source=config.source,
        unions=_unions(inputs, context),
        rule=config.split,
        weight=config.weight,
    )
    finished = list(_finished(context))
    start = sum(len(done.manifest) for done in finished)
    if finished:
        context.progress.say(f"{len(finished)} shards with {start} images are there already")
    context.progress.restart_clock(start)

    def keep(done: "FinishedShard") -> None:
        nonlocal start
        start += len(done.manifest)
        _keep(done, context)
        context.progress.step(start, len(dataset.rows), "images")

    info = write_dataset(
        dataset.samples(start, min(os.cpu_count() or 1, MAX_THREADS)),
        dataset.info,
        context.output_dir,
        max_shard_bytes=config.max_shard_bytes,
        on_shard=keep,
        finished=finished,
        max_quarantined_share=config.max_quarantined_share,
    )
    _learn_tokens(config, info, context)
    for count, what in ((info.num_quarantined, "unusable"), (dataset.num_unlabelled, "without labels")):
        if count:
            context.progress.say(f"{count} images {what} left out; {MANIFEST_NAME} lists those that were opened")
    counts = ("num_train", "num_val", "num_test", "num_quarantined")
    context.facts |= {name: getattr(info, name) for name in counts}
    context.facts |= {"num_unlabelled": dataset.num_unlabelled, "num_shards": len(info.shards)}
    return context.commit("dataset", info.name)


def _keep(done: "FinishedShard", context: StageContext) -> None:
    path = context.output_dir / done.shard.path
    context.store.put(path, join_uri(context.output_uri, *done.shard.path.split("/")))
    # Written last: where the record lies, the shard is whole.
    number = len(context.uploaded)
    context.store.put(done.to_json().encode(), _record_uri(context, number))
    path.unlink()
    _count(done, context)


def _finished(context: StageContext) -> "Iterator[FinishedShard]":
    from intern_vision.data.shard import FinishedShard

    for number in itertools.count():
        try:
            done = FinishedShard.from_json(context.store.read(_record_uri(context, number)).decode())
        except MissingObjectError:
            return
        _count(done, context)
        yield done


def _count(done: "FinishedShard", context: StageContext) -> None:
    context.uploaded[done.shard.path] = (done.shard.sha256, done.shard.num_bytes)


def _record_uri(context: StageContext, number: int) -> str:
    return join_uri(context.output_uri, PROGRESS_FOLDER, f"shard-{number:05d}.json")


def _learn_tokens(config: Config, info: "DatasetInfo", context: StageContext) -> None:
    from intern_vision.data.shard import INDEX_NAME
    from intern_vision.data.tables import iter_rows
    from intern_vision.data.text import Tokenizer

    if "caption" not in info.fields:
        return
    rows = iter_rows(context.output_dir / INDEX_NAME, ("split", "caption"))
    captions = (row["caption"] for row in rows if row["split"] == "train" and row["caption"] is not None)
    Tokenizer.train(captions, config.vocab_size).save(context.output_dir / TOKENIZER_FILE)


def _unions(inputs: Inputs, context: StageContext) -> "dict[Family, LabelUnion]":
    from intern_vision.data.labels.output import UNIONS_FILE
    from intern_vision.data.labels.union import read_unions
    from intern_vision.data.manifest_store import fetch_file

    ref = inputs.optional("labels")
    return read_unions(fetch_file(context.store, ref, UNIONS_FILE, context.scratch_dir / "inputs")) if ref else {}
