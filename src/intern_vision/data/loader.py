"""Samples and batches from a dataset on the store, in an order that is a function of seed and index only."""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from intern_vision.data.batch import Batch, Example, collate
from intern_vision.data.codec import decode_image, decode_map
from intern_vision.data.members import FIELDS, MEMBERS, fill_from_json
from intern_vision.data.mixture import MixtureSource
from intern_vision.data.sample import IGNORE_LABEL, Sample, Split
from intern_vision.data.shard import INDEX_NAME, INFO_NAME, DatasetInfo, ShardInfo
from intern_vision.errors import ConfigError, DataError, MissingObjectError
from intern_vision.store import Store, join_uri

if TYPE_CHECKING:
    import pyarrow as pa

Transform = Callable[[Any, np.random.Generator], Example]

_MAX_OPEN_FILES = 64
_JSON_ONLY = ("concepts", "boxes", "box_labels", "box_attributes", "frame")


class Source(Protocol):
    """Random access to samples."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> Any:
        """The sample at ``index``, 0-based; called from several threads."""
        ...


def load_info(store: Store, uri: str) -> DatasetInfo:
    """Reads the ``dataset.json`` under a dataset's address; raises DataError where there is none."""
    address = join_uri(uri, INFO_NAME)
    try:
        return DatasetInfo.from_json(store.read(address).decode(), at=address)
    except MissingObjectError as error:
        raise DataError(f"{address}: no dataset lies here; give the address of a committed dataset") from error
    except ConfigError as error:
        raise DataError(str(error)) from error


def read_index(store: Store, uri: str, info: DatasetInfo | None = None) -> "pa.Table":
    """Reads the index: key, split, caption, stratum, label (-1 = none), shard, offset and size of every member.

    Raises:
        DataError: it is missing or does not match the digest in ``dataset.json``.
    """
    import pyarrow.parquet as pq

    info = info or load_info(store, uri)
    address = join_uri(uri, INDEX_NAME)
    data = store.read(address)
    if hashlib.sha256(data).hexdigest() != info.index_sha256:
        raise DataError(f"{address}: its SHA-256 is not the one in {INFO_NAME}; write the dataset again")
    return pq.read_table(BytesIO(data))


class _OpenShard:
    """A file descriptor that closes when the last reader lets go of it."""

    __slots__ = ("_fd",)

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)

    def read(self, start: int, num_bytes: int) -> bytes:
        """Bytes from offset ``start`` on.

        The descriptor is used only here, where ``self`` keeps it open: a number taken out could be closed by another
        thread and stand for another file by the time it is read.
        """
        return os.pread(self._fd, num_bytes, start)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # An argument, because modules may be gone already where the interpreter ends with a reader alive.
        if hasattr(self, "_fd"):
            close(self._fd)


class ShardCache:
    """Local copies of shards, named by digest, so that datasets and processes share one folder.

    A copy appears by rename after its digest was checked. When the folder grows beyond
    ``max_cache_bytes``, the copies used longest ago go (a process that has one open keeps reading it).
    """

    def __init__(self, store: Store, uri: str, cache_dir: Path, max_cache_bytes: int) -> None:
        """Makes the folder; nothing is fetched."""
        self._store = store
        self._uri = uri
        self._dir = cache_dir
        self._max_bytes = max_cache_bytes
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        cache_dir.mkdir(parents=True, exist_ok=True)

    def open(self, shard: ShardInfo) -> _OpenShard:
        """The open local copy of a shard; downloads it first where there is none.

        Raises:
            DataError: the shard is missing or its bytes do not have the digest that the dataset states.
        """
        with self._lock:
            handle = self._open.get(shard.sha256)
            if handle is not None:
                self._open.move_to_end(shard.sha256)
                return handle
        # The lock is not held during a download: other threads go on reading shards that are here.
        handle = self._open_file(shard)
        with self._lock:
            self._open[shard.sha256] = handle
            while len(self._open) > _MAX_OPEN_FILES:
                self._open.popitem(last=False)
        return handle

    def address(self, shard: ShardInfo) -> str:
        """Where the shard lies on the store."""
        return join_uri(self._uri, shard.path)

    def _open_file(self, shard: ShardInfo) -> _OpenShard:
        path = self._dir / f"{shard.sha256}.tar"
        with open(self._dir / f"{shard.sha256}.lock", "w") as lock:
            # One process (and one thread) downloads, the others wait for its copy.
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size == shard.num_bytes:
                    os.utime(path)
                    return _OpenShard(path)
            self._download(shard, path)
            handle = _OpenShard(path)
        self._evict(keep=path)
        return handle

    def _download(self, shard: ShardInfo, path: Path) -> None:
        try:
            self._store.get(self.address(shard), path, sha256=shard.sha256)
        except DataError as error:
            raise DataError(f"{self.address(shard)}: shard is missing or corrupt: {error}") from error

    def _evict(self, keep: Path) -> None:
        copies = []
        for path in self._dir.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_mtime_ns, status.st_size, path))
        total_bytes = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total_bytes <= self._max_bytes:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total_bytes -= size


class ShardSource:
    """Random access to the samples of a dataset on the store; safe to use from several threads.

    Only what ``fields`` asks for is read and decoded. Where a sample lacks a field that has a
    value for "unknown", it gets that value: label -1, mask all 255, depth all 0. Boxes come with their attributes.
    ``keys``, ``splits``, ``labels`` (-1 = none) and ``strata`` (what a draw is balanced over; empty where nothing is
    known) are in the samples' order.
    """

    def __init__(
        self,
        store: Store,
        uri: str,
        *,
        cache_dir: Path,
        fields: Sequence[str],
        split: Split | None = None,
        keys: Sequence[str] | None = None,
        max_cache_bytes: int = 64 * 2**30,
    ) -> None:
        """Reads the index; shards are fetched when first needed.

        Args:
            store: where the dataset lies.
            uri: the dataset's address.
            cache_dir: folder of local shard copies; may be shared by processes.
            fields: names of ``Sample`` fields besides ``image``, which is always decoded.
            split: only samples of this split.
            keys: only these samples, for example a 10 % draw; the order is the index's, not theirs.
            max_cache_bytes: size of the local copies; below the dataset's size, shuffled reading downloads anew.

        Raises:
            ConfigError: a name in ``fields`` is not a field.
            DataError: the dataset lacks a field or key asked for, has no such sample, or is corrupt.
        """
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise ConfigError(f"fields: unknown name {unknown[0]!r}; known: {', '.join(FIELDS)}")
        self.info = load_info(store, uri)
        self.uri = uri
        lacking = sorted(set(fields) - set(self.info.fields) - {"image"})
        if lacking:
            has = ", ".join(self.info.fields)
            raise DataError(f"{uri}: dataset {self.info.name} has no {', '.join(lacking)}; it has {has}")
        self._fields = frozenset(fields) | ({"box_attributes"} if "boxes" in fields else set())
        wanted = {"image", *self._fields} | ({"json"} if self._fields & set(_JSON_ONLY) else set())
        self._members = tuple(name for name in MEMBERS if name in wanted)
        table = _select(read_index(store, uri, self.info), split, keys, uri)
        self.keys: list[str] = table["key"].to_pylist()
        self.splits: list[Split] = table["split"].to_pylist()
        self.labels: list[int] = table["label"].to_pylist()
        # Datasets written before this column existed know of no strata.
        known = "stratum" in table.column_names
        self.strata: list[str] = table["stratum"].to_pylist() if known else [""] * len(self.keys)
        self._captions = table["caption"].to_pylist() if "caption" in self._fields else None
        spans = [table[f"{name}_{what}"].to_numpy() for name in self._members for what in ("offset", "num_bytes")]
        self._spans = np.stack([table["shard"].to_numpy().astype(np.int64), *spans], axis=1)
        self._cache = ShardCache(store, uri, cache_dir, max_cache_bytes)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Reads and decodes one sample; DataError names the shard and key where that fails."""
        shard_number, *spans = self._spans[index].tolist()
        shard = self.info.shards[shard_number]
        parts = self._read(shard, spans)
        try:
            # Supervision refers to the pixels as stored, whatever a file that was kept unchanged says of viewing.
            image = decode_image(parts["image"], upright=False)
            sample = Sample(key=self.keys[index], split=self.splits[index], image=image)
            self._fill(sample, index, parts)
        except ValueError as error:
            raise DataError(f"{self._cache.address(shard)}: sample {self.keys[index]}: {error}") from error
        return sample

    def _read(self, shard: ShardInfo, spans: list[int]) -> dict[str, memoryview]:
        # A sample's members lie side by side: one read fetches them all.
        present = [
            (name, offset, num_bytes)
            for name, offset, num_bytes in zip(self._members, spans[::2], spans[1::2], strict=True)
            if num_bytes
        ]
        start = present[0][1]
        end = present[-1][1] + present[-1][2]
        data = memoryview(self._cache.open(shard).read(start, end - start))
        return {name: data[offset - start : offset - start + num_bytes] for name, offset, num_bytes in present}

    def _fill(self, sample: Sample, index: int, parts: dict[str, memoryview]) -> None:
        fields = self._fields
        if "label" in fields:
            sample.label = self.labels[index]
        if self._captions is not None:
            sample.caption = self._captions[index]
        if "json" in parts:
            fill_from_json(sample, bytes(parts["json"]), fields)
        size = sample.image.shape[:2]
        if "mask" in fields:
            sample.mask = decode_map(parts["mask"]) if "mask" in parts else np.full(size, IGNORE_LABEL, np.uint8)
        if "depth" in fields:
            scale = np.float32(self.info.depth_scale)
            sample.depth = decode_map(parts["depth"]) * scale if "depth" in parts else np.zeros(size, np.float32)


def _select(table: "pa.Table", split: Split | None, keys: Sequence[str] | None, uri: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    if keys is not None:
        table = table.filter(pc.is_in(table["key"], value_set=pa.array(list(keys), pa.string())))
        missing = set(keys) - set(table["key"].to_pylist())
        if missing:
            raise DataError(
                f"{uri}: no sample {min(missing)!r} in split {split or 'any'} ({len(missing)} keys missing)"
            )
    if not len(table):
        raise DataError(f"{uri}: no sample in split {split or 'any'}")
    return table


def make_loader(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    rank: int,
    num_ranks: int,
    transform: Transform,
    num_threads: int = 1,
    prefetch: int = 2,
    shuffle: bool = True,
) -> Iterator[Batch]:
    """Batches of one rank; the global batches are the same whatever ``num_ranks`` and ``start_step``.

    Global batch ``s`` holds positions ``[s * batch_size, (s + 1) * batch_size)`` of the dataset repeated
    for ever, each epoch a new permutation; rank ``r`` gets its contiguous share. The generator handed to
    ``transform`` depends on (seed, position) alone. Order by ``grain.MapDataset``: starting at any step is O(1).

    Args:
        source: the samples.
        batch_size: images in a global batch; a multiple of ``num_ranks``.
        seed: of order and augmentation.
        start_step: index of the first batch to give, 0 for a new run.
        num_steps: how many batches to give, counted from ``start_step``.
        rank: this process, 0-based.
        num_ranks: number of processes.
        transform: sample and generator to example.
        num_threads: threads that prepare batches; 0 prepares them in the caller's thread.
        prefetch: batches kept ready, at least one a thread.
        shuffle: without it every epoch is in the source's order.

    Yields:
        Batches as ``collate`` describes them.

    Raises:
        ConfigError: sizes or ranks that do not fit each other.
        DataError: from reading a sample, when its batch is due.
    """
    if not len(source):
        raise DataError("source: it holds no sample")
    if batch_size < 1 or num_ranks < 1 or batch_size % num_ranks:
        raise ConfigError(f"batch_size: expected a multiple of the {num_ranks} ranks, got {batch_size}")
    if not 0 <= rank < num_ranks or start_step < 0 or num_steps < 0:
        raise ConfigError(f"loader: rank {rank} of {num_ranks}, start_step {start_step}, num_steps {num_steps}")
    grain = _use_grain()
    order = grain.MapDataset.range(len(source))
    # Grain's epoch e under seed s is its epoch 0 under seed s + e; mixing keeps near seeds apart.
    order_seed, noise_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    if shuffle:
        order = source.order(order_seed, batch_size) if isinstance(source, MixtureSource) else order.shuffle(order_seed)
    num_own = batch_size // num_ranks

    def prepare(number: int) -> Batch:
        # Positions beyond the last sample belong to later epochs: ``order`` counts on.
        positions = range(number * num_own, (number + 1) * num_own)
        examples = (transform(source[order[at]], np.random.default_rng((noise_seed, at))) for at in positions)
        return collate(examples, num_own)

    # Batches are numbered over all ranks. Grain's threads are given these numbers, because each sample that passes
    # through one of its stages costs microseconds.
    numbers = grain.MapDataset.range(start_step * num_ranks + rank, (start_step + num_steps) * num_ranks, num_ranks)
    return _prepared(grain, numbers, prepare, num_threads, prefetch)


def evaluation_batches(
    source: Source,
    batch_size: int,
    transform: Callable[[Any, None], Example],
    *,
    num_threads: int = 1,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Every sample once, in order; the last batch may be smaller. Fields as ``collate`` describes them.

    ``transform`` is given ``None`` for a generator: nothing about an evaluation is random.
    """

    def prepare(start: int) -> Batch:
        indices = range(start, min(start + batch_size, len(source)))
        return collate((transform(source[index], None) for index in indices), len(indices))

    grain = _use_grain()
    return _prepared(grain, grain.MapDataset.range(0, len(source), batch_size), prepare, num_threads, prefetch)


def _use_grain() -> Any:
    # Grain looks for JAX's profiler and warns through absl that this environment has none.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import grain
    finally:
        logger.setLevel(level)
    return grain


def _prepared(
    grain: Any, numbers: Any, prepare: Callable[[int], Batch], num_threads: int, prefetch: int
) -> Iterator[Batch]:
    # A thread without a place in the buffer would have nothing to do.
    buffer_size = max(prefetch, num_threads) if num_threads else 0
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size)
    return iter(numbers.map(prepare).to_iter_dataset(options))
