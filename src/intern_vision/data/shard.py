"""Datasets on the store: plain tar shards, a Parquet index that makes every sample O(1), and ``dataset.json``.

Layout under a dataset's prefix::

    dataset.json  index.parquet  manifest.parquet  shards/00000.tar  shards/00001.tar ...

A shard holds, a sample after the other, ``{key}.jpg`` (or ``.png``), ``{key}.json``, ``{key}.mask.png`` and
``{key}.depth.png``: the convention of the webdataset library, which reads the shards as they are.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from intern_vision.config import Config
from intern_vision.data.manifest import (
    MANIFEST_NAME,
    ManifestBox,
    ManifestRow,
    Quarantined,
    SourceInfo,
    manifest_writer,
)
from intern_vision.data.members import FIELDS, MEMBERS, encode_members, present_fields
from intern_vision.data.sample import Sample
from intern_vision.data.sample_check import sample_fault
from intern_vision.data.tables import TableWriter
from intern_vision.data.tar import BLOCK_BYTES, TarWriter
from intern_vision.errors import DataError
from intern_vision.store import file_sha256
from intern_vision.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

INFO_NAME = "dataset.json"
INDEX_NAME = "index.parquet"
MAX_SHARD_BYTES = 64 * 2**20
MAX_QUARANTINED_SHARE = 0.05
# A tar header without extensions holds names of 100 bytes; the longest suffix is ".depth.png".
_KEY = re.compile(r"[A-Za-z0-9_-]{1,88}")


class ShardInfo(Config):
    """One tar file: its path under the dataset's prefix, SHA-256, size and number of samples."""

    path: str
    sha256: str
    num_bytes: int
    num_samples: int


class DatasetInfo(Config):
    """What a dataset is; ``write_dataset`` fills in what it counts, from ``fields`` on.

    Attributes:
        name: short name.
        tasks: family name to its task; a sample may serve several families.
        licence: licence of the images; of several sources all of theirs, with names.
        source: where the data came from.
        sources: where it came from in parts, with the licence of each; empty where ``source`` and ``licence`` say all.
            One source occurs as often as it has licences. ``Sample.source`` counts them.
        weight: share that a mixture gives to the dataset, in ratio to the weights of its other datasets; 0 = by size.
        concept_names: names of the indices in ``Sample.concepts``.
        synonyms: caption word to another word for the same, for the augmentation of captions.
        metric: name of the metric that the dataset is scored by; empty for the default of its family.
        depth_scale: metres per unit of the 16-bit depth image; 0.001 reaches 65.5 m, KITTI's 1/256 reaches 256 m.
        fields: ``Sample`` fields present in at least one sample.
        num_train: samples in the train split.
        num_val: samples in the val split.
        num_test: samples in the test split.
        num_quarantined: samples that could not be used; their reasons are in the manifest.
        image_size_px: side of the images where all are squares of one size, else 0.
        index_sha256: SHA-256 of ``index.parquet``.
        shards: the tar files in order.
    """

    name: str
    tasks: dict[str, Task] = {}
    licence: str = ""
    source: str = ""
    sources: tuple[SourceInfo, ...] = ()
    weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    concept_names: tuple[str, ...] = ()
    synonyms: dict[str, str] = {}
    metric: str = ""
    depth_scale: float = 0.001
    fields: tuple[str, ...] = ()
    num_train: int = 0
    num_val: int = 0
    num_test: int = 0
    num_quarantined: int = 0
    image_size_px: int = 0
    index_sha256: str = ""
    shards: tuple[ShardInfo, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Total size of the shards."""
        return sum(shard.num_bytes for shard in self.shards)


@dataclass(slots=True, frozen=True, kw_only=True)
class FinishedShard:
    """A shard with all that its dataset's other files need to know of it, so that a later attempt goes on after it.

    Attributes:
        shard: the tar file.
        fields: ``Sample`` fields present in it.
        index: its rows of the index.
        manifest: the manifest's rows since the shard before: of its own samples and of those that were quarantined.
    """

    shard: ShardInfo
    fields: tuple[str, ...]
    index: tuple[dict[str, Any], ...]
    manifest: tuple[dict[str, Any], ...]

    def to_json(self) -> str:
        """JSON text that ``from_json`` takes back."""
        return json.dumps({**asdict(self), "shard": self.shard.to_dict()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The shard that ``to_json`` wrote."""
        values = json.loads(text)
        return cls(
            shard=ShardInfo.from_dict(values["shard"]),
            **{name: tuple(values[name]) for name in ("fields", "index", "manifest")},
        )


class _DatasetWriter:
    def __init__(
        self,
        info: DatasetInfo,
        out_dir: Path,
        index: TableWriter,
        manifest: TableWriter,
        max_shard_bytes: int,
        lossless: bool,
        on_shard: Callable[[FinishedShard], None],
    ) -> None:
        self.info = info
        self.out_dir = out_dir
        self.max_shard_bytes = max_shard_bytes
        self.lossless = lossless
        self.on_shard = on_shard
        self.tar: TarWriter | None = None
        self.shards: list[ShardInfo] = []
        self.index = index
        self.manifest = manifest
        # Of the shard being written.
        self.index_rows: list[dict[str, Any]] = []
        self.manifest_rows: list[dict[str, Any]] = []
        self.shard_fields: set[str] = set()
        self.splits: Counter[str] = Counter()
        self.first_bad: Quarantined | None = None
        self.keys: set[str] = set()
        self.fields: set[str] = set()
        self.sizes_px: set[tuple[int, int]] = set()

    def add(self, sample: Sample) -> None:
        """Writes a sample, or its reason where it has a fault."""
        if not _KEY.fullmatch(sample.key):
            raise DataError(f"key {sample.key!r}: expected 1..88 letters, digits, '_' or '-'")
        if sample.key in self.keys:
            raise DataError(f"key {sample.key!r} occurs twice in dataset {self.info.name}; keys must be unique")
        self.keys.add(sample.key)
        uri = f"{self._shard_path(len(self.shards))}/{sample.key}"
        fault = sample_fault(sample, self.info)
        if fault is None:
            try:
                members = encode_members(sample, lossless=self.lossless, depth_scale=self.info.depth_scale)
                self._write(sample, members)
                return
            except ValueError as error:
                fault = str(error)
        self.quarantine(Quarantined(key=sample.key, uri=uri, reason=fault))

    def quarantine(self, bad: Quarantined) -> None:
        """Keeps a sample that cannot be used as a row with its reason."""
        self.first_bad = self.first_bad or bad
        self._note(None, key=bad.key, uri=bad.uri, status="quarantined", reason=bad.reason)

    def take_over(self, done: FinishedShard) -> None:
        """Takes a shard that an earlier attempt wrote as it is."""
        for row in done.index:
            self.index.add(row)
        for row in done.manifest:
            self.manifest.add(row)
            self.keys.add(row["key"])
            if row["status"] == "quarantined":
                self.first_bad = self.first_bad or Quarantined(**{name: row[name] for name in ("key", "uri", "reason")})
        self._count(done)

    def close_shard(self) -> None:
        """Ends the shard being written and hands it on."""
        if self.tar is None:
            return
        shard = ShardInfo(
            path=self._shard_path(len(self.shards)),
            sha256=self.tar.close(),
            num_bytes=self.tar.num_bytes,
            num_samples=self.tar.num_samples,
        )
        done = FinishedShard(
            shard=shard,
            fields=tuple(name for name in FIELDS if name in self.shard_fields),
            index=tuple(self.index_rows),
            manifest=tuple(self.manifest_rows),
        )
        self.tar, self.index_rows, self.manifest_rows, self.shard_fields = None, [], [], set()
        self._count(done)
        self.on_shard(done)

    def _count(self, done: FinishedShard) -> None:
        self.shards.append(done.shard)
        self.fields |= set(done.fields)
        self.splits.update(row["split"] for row in done.index)
        self.sizes_px |= {(row["height_px"], row["width_px"]) for row in done.manifest if row["status"] == "ok"}

    def finish(self, max_quarantined_share: float) -> DatasetInfo:
        """Writes the info, once index and manifest are whole."""
        num_rows, num_good = self.manifest.num_rows, self.index.num_rows
        num_bad = num_rows - num_good
        if not num_good or num_bad > max_quarantined_share * num_rows:
            first = f"; first: {self.first_bad.uri}: {self.first_bad.reason}" if self.first_bad else ""
            raise DataError(
                f"dataset {self.info.name}: {num_bad} of {num_rows} samples are unusable, "
                f"the limit is {max_quarantined_share:.0%}{first}"
            )
        height_px, width_px = next(iter(self.sizes_px))
        counts = {
            "fields": tuple(name for name in FIELDS if name in self.fields),
            "num_train": self.splits["train"],
            "num_val": self.splits["val"],
            "num_test": self.splits["test"],
            "num_quarantined": num_bad,
            "image_size_px": height_px if len(self.sizes_px) == 1 and height_px == width_px else 0,
            "index_sha256": file_sha256(self.out_dir / INDEX_NAME),
            "shards": tuple(self.shards),
        }
        done = self.info.model_copy(update=counts)
        (self.out_dir / INFO_NAME).write_text(done.to_json() + "\n", encoding="utf-8")
        return done

    def _note(self, sample: Sample | None, **values: Any) -> None:
        source, licence = self.info.source, self.info.licence
        if self.info.sources and sample is not None and sample.source is not None:
            source, licence = self.info.sources[sample.source].name, self.info.sources[sample.source].licence
        row = asdict(ManifestRow(source=source, licence=licence, **values))
        self.manifest.add(row)
        self.manifest_rows.append(row)

    def _shard_path(self, shard: int) -> str:
        return f"shards/{shard:05d}.tar"

    def _write(self, sample: Sample, members: dict[str, tuple[str, bytes]]) -> None:
        num_bytes = sum(len(data) + 2 * BLOCK_BYTES for _, data in members.values())
        if self.tar is not None and self.tar.num_bytes + num_bytes > self.max_shard_bytes:
            self.close_shard()
        if self.tar is None:
            self.tar = TarWriter(self.out_dir / self._shard_path(len(self.shards)))
        label = None if sample.label is None else int(sample.label)
        row: dict[str, Any] = {"key": sample.key, "split": sample.split, "caption": sample.caption}
        row |= {"stratum": sample.stratum, "label": -1 if label is None else label, "shard": len(self.shards)}
        for member in MEMBERS:
            suffix, data = members.get(member, ("", b""))
            row[f"{member}_offset"] = self.tar.add(f"{sample.key}.{suffix}", data) if suffix else 0
            row[f"{member}_num_bytes"] = len(data)
        self.tar.num_samples += 1
        self.index.add(row)
        self.index_rows.append(row)
        self.shard_fields |= set(present_fields(sample))
        height, width = sample.image.shape[:2]
        suffix, data = members["image"]
        shard = self._shard_path(len(self.shards))
        uris = {name: f"{shard}/{sample.key}.{suffix}" for name, (suffix, _) in members.items()}
        self._note(
            sample,
            key=sample.key,
            uri=uris["image"],
            digest=hashlib.sha256(data).hexdigest(),
            width_px=width,
            height_px=height,
            num_bytes=len(data),
            split=sample.split,
            caption=sample.caption,
            labels=self._labels(sample),
            boxes=self._boxes(sample),
            mask=uris.get("mask"),
            depth=uris.get("depth"),
            depth_scale=self.info.depth_scale if "depth" in uris else 0.0,
        )

    def _labels(self, sample: Sample) -> tuple[str, ...] | None:
        names = self.info.concept_names
        if sample.label is not None:
            names, indices = self._class_names("classify"), (sample.label,)
        else:
            indices = sample.concepts
        return None if indices is None else tuple(_class_name(names, index) for index in indices)

    def _boxes(self, sample: Sample) -> tuple[ManifestBox, ...] | None:
        if sample.boxes is None or sample.box_labels is None:
            return None
        names = self._class_names("detect")
        flags = {name: sample.box_attributes.get(name) for name in ("difficult", "ignored")}
        return tuple(
            ManifestBox(
                label=_class_name(names, label),
                **dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True)),
                **{name: bool(values[row] > 0) for name, values in flags.items() if values is not None},
            )
            for row, (box, label) in enumerate(zip(sample.boxes, sample.box_labels, strict=True))
        )

    def _class_names(self, family: str) -> tuple[str, ...]:
        return self.info.tasks[family].class_names if family in self.info.tasks else ()


def _class_name(names: tuple[str, ...], index: int) -> str:
    return names[index] if index < len(names) else str(index)


def write_dataset(
    samples: Iterable[Sample | Quarantined],
    info: DatasetInfo,
    out_dir: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_shard: Callable[[FinishedShard], None] | None = None,
    finished: Iterable[FinishedShard] = (),
    lossless: bool = False,
    max_quarantined_share: float = MAX_QUARANTINED_SHARE,
) -> DatasetInfo:
    """Writes a dataset; equal samples give equal bytes.

    Args:
        samples: read once, one at a time; a sample that contradicts ``info`` is quarantined too.
        info: all that is not counted; the counts are filled in.
        out_dir: where the files go.
        max_shard_bytes: a shard is ended before it would grow beyond this (a larger sample gets its own).
        on_shard: called with each shard once it is whole, for example to upload and delete its file.
        finished: the first shards, as an earlier attempt gave them to ``on_shard``; they are not written again, and
            ``samples`` are those after theirs: as many were read as they have rows of the manifest.
        lossless: PNG images instead of JPEG at quality 95; a sample's own ``encoded`` file is kept either way.
        max_quarantined_share: largest share of quarantined samples, in [0, 1].

    Returns:
        The completed info, as written to ``dataset.json``.

    Raises:
        DataError: too many quarantined samples, no sample at all, or a key that is malformed or occurs twice.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    # Both stay where too many samples are bad: the manifest says what is wrong with them.
    with TableWriter(out_dir / INDEX_NAME, _index_schema()) as index, manifest_writer(out_dir / MANIFEST_NAME) as rows:
        writer = _DatasetWriter(info, out_dir, index, rows, max_shard_bytes, lossless, on_shard or (lambda done: None))
        try:
            for done in finished:
                writer.take_over(done)
            for sample in samples:
                if isinstance(sample, Quarantined):
                    writer.quarantine(sample)
                else:
                    writer.add(sample)
            writer.close_shard()
        finally:
            if writer.tar is not None:
                writer.tar.abort()
    return writer.finish(max_quarantined_share)


def _index_schema() -> "pa.Schema":
    import pyarrow as pa

    columns = [(name, pa.string()) for name in ("key", "split", "caption", "stratum")]
    columns += [("label", pa.int64()), ("shard", pa.int32())]
    columns += [(f"{member}_{what}", pa.int64()) for member in MEMBERS for what in ("offset", "num_bytes")]
    return pa.schema(columns)
