"""Ingest (GV-D): sources as people have them to a manifest, every image opened once and what is unusable set apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.ingest import AUTO, LAYOUTS
from intern_vision.errors import ConfigError, DataError, InternError, MissingObjectError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext, read_record
from intern_vision.stages.shard import PROGRESS_FOLDER
from intern_vision.store import join_uri

if TYPE_CHECKING:
    from intern_vision.data.ingest.earlier import Earlier, OpenedParts
    from intern_vision.data.ingest.offer import Offer, Offers
    from intern_vision.data.ingest.opening import Opened
    from intern_vision.data.ingest.origin import Origin
    from intern_vision.data.manifest import ManifestInfo, SourceInfo
    from intern_vision.data.tables import TableWriter
    from intern_vision.task import Family, Task

PROGRESS_EVERY = 500
_LISTS = ("table", "label_studio")


class SourceConfig(base.Config):
    """A source of images.

    Attributes:
        uri: a folder, archive or file with a list, as a local path or ``file://``; or such at an ``s3://`` address.
        name: what its rows say; by default the last part of ``uri``.
        layout: one of ``intern_vision.data.ingest.LAYOUTS``; ``auto`` takes the only one that fits.
        licence: of images that state none.
        split: of images that the source puts into none.
    """

    uri: str = Field(min_length=1)
    name: str = ""
    layout: str = AUTO
    licence: str = ""
    split: Literal["", "train", "val", "test"] = ""

    @property
    def label(self) -> str:
        """The name given, or the one that the address has."""
        return self.name or self.uri.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0] or "source"

    def faults(self) -> list[str]:
        """The layout is a known one."""
        known = (AUTO, *LAYOUTS)
        return [] if self.layout in known else [f"layout must be one of {', '.join(known)}, got {self.layout!r}"]


class FetchConfig(base.Config):
    """How web addresses in tables are read; only public ones unless private ones are allowed.

    Attributes:
        num_threads: addresses or stored objects read at once.
        timeout_s: for one try, redirects included.
        max_redirects: of one address.
        num_retries: further tries where a server did not answer or had a fault.
        backoff_s: pause before the first of them; it doubles, up to 30 s.
        private_urls: take addresses of this machine and the local network too.
    """

    num_threads: int = Field(default=16, ge=1, le=256)
    timeout_s: float = Field(default=20.0, gt=0)
    max_redirects: int = Field(default=3, ge=0)
    num_retries: int = Field(default=2, ge=0)
    backoff_s: float = Field(default=0.5, ge=0)
    private_urls: bool = False


class Config(base.Config):
    """What is taken up.

    Attributes:
        name: what the manifest is called.
        sources: in this order.
        max_bytes: size of one encoded image.
        max_pixels: height times width of one image; it takes 3 bytes a pixel once decoded.
        fetch: how web addresses are read.
        rows_per_part: images after which what was found is kept on the store, so that an interrupted ingest goes on
            there; half a minute after the last time it is kept too.
        version: any text; with another one the sources are looked at anew, though the config is the same.
    """

    name: str = "manifest"
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    max_bytes: int = Field(default=2**25, ge=1)
    max_pixels: int = Field(default=2**26, ge=1)
    fetch: FetchConfig = FetchConfig()
    rows_per_part: int = Field(default=4096, ge=1)
    version: str = ""

    def faults(self) -> list[str]:
        """Sources have names of their own."""
        twice = [name for name, count in Counter(source.label for source in self.sources).items() if count > 1]
        return [f"sources: the name {twice[0]!r} is given to two of them, name one otherwise"] if twice else []


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Reads the sources; rows of the optional input ``manifest``, an earlier result, are taken over where they can be.

    What was opened is kept as it goes: an attempt that was killed, lost its store or had wrong credentials is gone on
    with, and only the rest is opened.

    Raises:
        ConfigError: an address that cannot be one.
        DataError: a source that is missing, in no known or in an unclear layout, or with a list that cannot be read;
            no usable image at all; an earlier result that is none of this stage.
        AccessError: a store refuses the credentials; an object that they may not read is a row.
        RetryableError: the store is away, or the disk is full.
    """
    from intern_vision.data.manifest import ManifestInfo, StepInfo
    from intern_vision.data.manifest_store import commit_manifest

    before = _before(config, inputs, context)
    try:
        found = _take_up(config, before, context)
    except (ConfigError, DataError):
        # Another config or other sources follow, and their output lies elsewhere.
        _forget(context)
        raise
    num_rows, num_ok = sum(found.statuses.values()), found.statuses["ok"]
    step = StepInfo(
        name="ingest",
        settings={name: value for name, value in config.to_dict().items() if name != "version"},
        num_in=num_rows,
        num_out=num_ok,
        counts=dict(sorted(found.reasons.items())),
    )
    context.facts |= {
        "num_rows": num_rows,
        "num_ok": num_ok,
        "num_quarantined": num_rows - num_ok,
        "num_taken_over": found.num_taken_over,
    }
    reasons = ", ".join(f"{count} {kind}" for kind, count in found.reasons.most_common())
    context.progress.say(
        f"{num_ok} of {num_rows} images usable, {found.num_taken_over} as before"
        + (f"; set apart: {reasons}" * bool(reasons))
    )
    info = ManifestInfo(name=config.name, sources=tuple(found.sources), steps=(step,))
    return commit_manifest(context, info, config.name)


@dataclass(slots=True)
class _Found:
    """What was counted over all sources."""

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    sources: list[SourceInfo] = field(default_factory=list)
    num_taken_over: int = 0
    keys: set[str] = field(default_factory=set)
    first_reason: str = ""


@dataclass(frozen=True, slots=True)
class _Before:
    """What need not be opened: of an earlier result, and of an attempt at this one that was interrupted."""

    parts: OpenedParts
    info: ManifestInfo | None = None
    earlier: Earlier | None = None

    def tasks(self, source: str) -> dict[Family, Task]:
        """The tasks of a source in the earlier result."""
        return next((each.tasks for each in self.info.sources if each.name == source), {}) if self.info else {}


def _before(config: Config, inputs: Inputs, context: StageContext) -> _Before:
    from intern_vision.data.ingest.earlier import STAMPS_NAME, Earlier, OpenedParts
    from intern_vision.data.manifest_store import fetch_file, load_manifest

    parts = OpenedParts(context, config.rows_per_part)
    if parts.num_earlier:
        context.progress.say(f"{parts.num_earlier} images were opened before the interruption")
    ref = inputs.optional("manifest")
    if ref is None:
        return _Before(parts)
    folder = context.scratch_dir / "inputs"
    info, table = load_manifest(context, ref, folder)
    return _Before(parts, info, Earlier.of_manifest(table, fetch_file(context.store, ref, STAMPS_NAME, folder)))


def _forget(context: StageContext) -> None:
    """Deletes what an attempt has kept, unless another process has committed the same output meanwhile."""
    from intern_vision.data.manifest_store import BLOB_FOLDER

    with suppress(InternError):
        try:
            read_record(context.store, context.output_uri)
        except MissingObjectError:
            for folder in (BLOB_FOLDER, PROGRESS_FOLDER):
                context.store.delete(join_uri(context.output_uri, folder))


def _take_up(config: Config, before: _Before, context: StageContext) -> _Found:
    """Writes the rows of all sources, as they come and then sorted by key."""
    import pyarrow as pa

    from intern_vision.data.ingest.earlier import STAMPS_NAME, stamps_schema
    from intern_vision.data.manifest import MANIFEST_NAME, manifest_schema, manifest_writer, read_manifest
    from intern_vision.data.tables import TableWriter

    found = _Found()
    unsorted = context.scratch_dir / MANIFEST_NAME
    schema = manifest_schema()
    for name in ("place", "stamp"):
        schema = schema.append(pa.field(name, pa.string()))
    with TableWriter(unsorted, schema) as writer:
        for source in config.sources:
            found.sources.append(_read_source(config, source, before, found, writer, context))
    if not found.statuses["ok"]:
        raise DataError(f"no usable image in any source; the first: {found.first_reason or 'there are none at all'}")
    ordered = read_manifest(unsorted).sort("key").to_arrow_iter()
    output = context.output_dir
    with manifest_writer(output / MANIFEST_NAME) as rows, TableWriter(output / STAMPS_NAME, stamps_schema()) as stamps:
        for batch in ordered:
            table = pa.Table.from_batches([batch])
            rows.add_table(table)
            stamps.add_table(table)
    return found


def _read_source(
    config: Config, source: SourceConfig, before: _Before, found: _Found, writer: TableWriter, context: StageContext
) -> SourceInfo:
    from intern_vision.data.ingest.layouts import read_offers
    from intern_vision.data.ingest.opening import Opener
    from intern_vision.data.ingest.tasks import SeenTasks
    from intern_vision.data.manifest import SourceInfo
    from intern_vision.data.manifest_store import map_in_order, put_blob

    origin = _origin(config, source, context)
    offers = read_offers(origin, source.layout)
    opener = Opener(
        source=source.label,
        licence=source.licence,
        split=source.split,
        num_mask_classes=offers.num_mask_classes,
        max_bytes=config.max_bytes,
        max_pixels=config.max_pixels,
        keep=lambda data, suffix: put_blob(context, data, suffix),
        opened=before.parts.earlier,
        earlier=before.earlier,
    )
    seen = SeenTasks(before.tasks(source.label))
    num_rows = 0
    context.progress.say(f"{source.label}: {offers.layout} in {origin.uri}")
    context.progress.restart_clock()
    try:
        num_threads = _num_threads(config, origin, offers)
        for opened in map_in_order(opener.open, _keyed(offers, source.label, found), num_threads):
            num_rows += 1
            _count(opened, found)
            seen.add(opened)
            writer.add({**asdict(opened.row), **opened.stamped})
            if opened.is_new and opened.facts and opened.facts.stamp:
                before.parts.add(opened.row.key, opened.facts)
            if num_rows % PROGRESS_EVERY == 0:
                context.progress.step(num_rows, max(offers.num_rows, num_rows), source.label)
    finally:
        # Also of an attempt that ends here; where the store is why it ends, the parts before must do.
        before.parts.keep()
    return SourceInfo(
        name=source.label,
        uri=origin.uri,
        layout=offers.layout,
        licence=source.licence,
        tasks=seen.tasks(offers),
        num_rows=num_rows,
    )


def _origin(config: Config, source: SourceConfig, context: StageContext) -> Origin:
    from intern_vision.data.ingest.files import Fetching
    from intern_vision.data.ingest.origin import open_origin
    from intern_vision.pictures import Sources

    limits = Sources(
        private_urls=config.fetch.private_urls,
        max_bytes=config.max_bytes,
        max_pixels=config.max_pixels,
        timeout_s=config.fetch.timeout_s,
        max_redirects=config.fetch.max_redirects,
    )
    fetching = Fetching(sources=limits, num_retries=config.fetch.num_retries, backoff_s=config.fetch.backoff_s)
    folder: Path = context.scratch_dir / "sources"
    folder.mkdir(exist_ok=True)
    return open_origin(source.uri, folder, fetching)


def _num_threads(config: Config, origin: Origin, offers: Offers) -> int:
    """As many as there are processors; where answers are waited for, as many as may be."""
    num_processors = len(os.sched_getaffinity(0))
    waits = origin.uri.startswith("s3://") or offers.layout in _LISTS
    return max(num_processors, config.fetch.num_threads if waits else 1)


def _keyed(offers: Offers, source: str, found: _Found) -> Iterator[Offer]:
    """The offers with their keys; what is listed a second time gets a key of its own and its fault."""
    from intern_vision.data.reading import name_key

    for offer in offers.rows:
        name = f"{source}/{offer.name}".encode("utf-8", "backslashreplace").decode()
        key, number = name_key(name), 1
        while key in found.keys:
            number += 1
            key = name_key(f"{name}#{number}")
            offer.fault = offer.fault or "duplicate: is listed twice"
        found.keys.add(key)
        offer.key = key
        yield offer


def _count(opened: Opened, found: _Found) -> None:
    row = opened.row
    found.statuses[row.status] += 1
    found.num_taken_over += opened.taken_over
    if row.status != "ok":
        found.reasons[row.reason.split(":", 1)[0]] += 1
        found.first_reason = found.first_reason or f"{row.uri}: {row.reason}"
