"""Datasets on the store: plain tar shards, a Parquet index that makes every sample O(1), and ``dataset.json``.

Layout under a dataset's prefix::

    dataset.json  index.parquet  manifest.parquet  shards/00000.tar  shards/00001.tar ...

A shard holds, a sample after the other, ``{key}.jpg`` (or ``.png``), ``{key}.json``, ``{key}.mask.png`` and
``{key}.depth.png``: the convention of the webdataset library, which reads the shards as they are.
"""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from intern_vision.config import Config
from intern_vision.data.codec import encode_depth, encode_jpeg, encode_png, image_suffix
from intern_vision.data.manifest import MANIFEST_NAME, ManifestBox, ManifestRow, Quarantined, manifest_writer
from intern_vision.data.sample import BOX_ATTRIBUTES, IGNORE_LABEL, Sample
from intern_vision.data.tables import TableWriter
from intern_vision.errors import DataError
from intern_vision.store import file_sha256
from intern_vision.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

INFO_NAME = "dataset.json"
INDEX_NAME = "index.parquet"
MEMBERS = ("image", "json", "mask", "depth")
JSON_FIELDS = ("caption", "label", "concepts", "boxes", "box_labels", "box_attributes", "frame")
FIELDS = ("image", *JSON_FIELDS, "mask", "depth")
MAX_SHARD_BYTES = 64 * 2**20
MAX_QUARANTINED_SHARE = 0.05
# A tar header without extensions holds names of 100 bytes; the longest suffix is ".depth.png".
_KEY = re.compile(r"[A-Za-z0-9_-]{1,88}")
_BLOCK_BYTES = 512


class ShardInfo(Config):
    """One tar file: its path under the dataset's prefix, SHA-256, size and number of samples."""

    path: str
    sha256: str
    num_bytes: int
    num_samples: int


class DatasetInfo(Config):
    """What a dataset is; ``write_dataset`` fills in what it counts (from ``fields`` on, but for ``depth_scale``).

    Attributes:
        name: short name.
        tasks: family name to its task; a sample may serve several families.
        licence: licence of the images.
        source: where the data came from.
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


def sample_fault(sample: Sample, info: DatasetInfo) -> str | None:
    """One line that says what is wrong with a sample under the dataset's tasks, or ``None``."""
    if sample.image.ndim != 3 or sample.image.shape[2] != 3 or sample.image.dtype != np.uint8 or not sample.image.size:
        return f"image: expected (height, width, 3) uint8, got {sample.image.shape} {sample.image.dtype}"
    height, width = sample.image.shape[:2]
    for name, values in (("mask", sample.mask), ("depth", sample.depth)):
        if values is not None and values.shape != (height, width):
            return f"{name}: expected {(height, width)} as the image, got {values.shape}"
    num_classes = {family: task.num_classes for family, task in info.tasks.items()}
    label_limit = num_classes.get("classify", 2**31)
    if sample.label is not None and not 0 <= sample.label < label_limit:
        return f"label: expected 0..{label_limit - 1}, got {sample.label}"
    concept_limit = len(info.concept_names) or num_classes.get("multilabel", 2**31)
    if sample.concepts and not (min(sample.concepts) >= 0 and max(sample.concepts) < concept_limit):
        return f"concepts: expected 0..{concept_limit - 1}, got {sample.concepts}"
    if sample.mask is not None:
        mask_limit = num_classes.get("segment", IGNORE_LABEL)
        largest = int(np.where(sample.mask == IGNORE_LABEL, 0, sample.mask).max())
        if largest >= mask_limit:
            return f"mask: expected 0..{mask_limit - 1} or {IGNORE_LABEL}, got {largest}"
    return _box_fault(sample, num_classes.get("detect", 2**31))


def _box_fault(sample: Sample, num_classes: int) -> str | None:
    if sample.boxes is None:
        beside = "box_labels" if sample.box_labels is not None else "box_attributes" if sample.box_attributes else ""
        return f"{beside}: given without boxes" if beside else None
    height, width = sample.image.shape[:2]
    if sample.boxes.ndim != 2 or sample.boxes.shape[1] != 4:
        return f"boxes: expected shape (num_boxes, 4), got {sample.boxes.shape}"
    if sample.box_labels is None or sample.box_labels.shape != (len(sample.boxes),):
        return f"box_labels: expected {len(sample.boxes)} labels, one a box"
    for name, values in sample.box_attributes.items():
        if name not in BOX_ATTRIBUTES:
            return f"box_attributes: unknown name {name!r}; known: {', '.join(BOX_ATTRIBUTES)}"
        if values.shape != (len(sample.boxes),):
            return f"box_attributes: {name}: expected {len(sample.boxes)} values, one a box, got shape {values.shape}"
    if not len(sample.boxes):
        return None
    x0, y0, x1, y1 = sample.boxes.T
    if not ((x0 >= 0) & (y0 >= 0) & (x1 > x0) & (y1 > y0) & (x1 <= width) & (y1 <= height)).all():
        return f"boxes: expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, got {sample.boxes.tolist()}"
    if sample.box_labels.min() < 0 or sample.box_labels.max() >= num_classes:
        return f"box_labels: expected 0..{num_classes - 1}, got {sample.box_labels.tolist()}"
    return None


def fill_from_json(sample: Sample, data: bytes, fields: Container[str]) -> None:
    """Sets those of ``fields`` that a shard's JSON member holds, but for caption and label, which the index has too."""
    values = {name: value for name, value in json.loads(data).items() if name in fields}
    if "concepts" in values:
        sample.concepts = tuple(values["concepts"])
    if "boxes" in values:
        sample.boxes = np.array(values["boxes"], np.float32).reshape(-1, 4)
    if "box_labels" in values:
        sample.box_labels = np.array(values["box_labels"], np.int64)
    attributes = values.get("box_attributes", {})
    sample.box_attributes = {name: np.array(numbers, np.float32) for name, numbers in attributes.items()}
    sample.frame = values.get("frame")


class _TarWriter:
    """One shard being written; its bytes depend on the members alone (no time, no owner)."""

    def __init__(self, out_dir: Path, path: str) -> None:
        self.path = path
        self.file_path = out_dir / path
        self.file_path.parent.mkdir(parents=True, exist_ok=True)
        self.num_bytes = 0
        self.num_samples = 0
        self._sha256 = hashlib.sha256()
        self._file: BinaryIO = open(self.file_path, "wb")  # noqa: SIM115 - closed by close()

    def add(self, name: str, data: bytes) -> int:
        """Appends a member; returns the offset of its data."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.num_bytes
        self._write(data + bytes(-len(data) % _BLOCK_BYTES))
        return offset

    def close(self) -> ShardInfo:
        """Ends the tar file and gives its digest and size."""
        self._write(bytes(2 * _BLOCK_BYTES))
        self._file.close()
        return ShardInfo(
            path=self.path, sha256=self._sha256.hexdigest(), num_bytes=self.num_bytes, num_samples=self.num_samples
        )

    def abort(self) -> None:
        """Closes the file without ending it."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.num_bytes += len(data)


class _DatasetWriter:
    def __init__(
        self,
        info: DatasetInfo,
        out_dir: Path,
        index: TableWriter,
        manifest: TableWriter,
        max_shard_bytes: int,
        lossless: bool,
        on_shard: Callable[[Path], None],
    ) -> None:
        self.info = info
        self.out_dir = out_dir
        self.max_shard_bytes = max_shard_bytes
        self.lossless = lossless
        self.on_shard = on_shard
        self.tar: _TarWriter | None = None
        self.shards: list[ShardInfo] = []
        self.index = index
        self.manifest = manifest
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
                self._write(sample, self._encode(sample))
                return
            except ValueError as error:
                fault = str(error)
        self.quarantine(Quarantined(key=sample.key, uri=uri, reason=fault))

    def quarantine(self, bad: Quarantined) -> None:
        """Keeps a sample that cannot be used as a row with its reason."""
        self.first_bad = self.first_bad or bad
        self._note(key=bad.key, uri=bad.uri, status="quarantined", reason=bad.reason)

    def close_shard(self) -> None:
        """Ends the shard being written and hands it on."""
        if self.tar is not None:
            self.shards.append(self.tar.close())
            path, self.tar = self.tar.file_path, None
            self.on_shard(path)

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

    def _note(self, **values: Any) -> None:
        row = ManifestRow(source=self.info.source, licence=self.info.licence, **values)
        self.manifest.add(asdict(row))

    def _shard_path(self, shard: int) -> str:
        return f"shards/{shard:05d}.tar"

    def _encode(self, sample: Sample) -> dict[str, tuple[str, bytes]]:
        if sample.encoded is not None and (suffix := image_suffix(sample.encoded)):
            members = {"image": (suffix, sample.encoded)}
        elif self.lossless:
            members = {"image": ("png", encode_png(sample.image))}
        else:
            members = {"image": ("jpg", encode_jpeg(sample.image))}
        values = {name: getattr(sample, name) for name in JSON_FIELDS if _has(sample, name)}
        if values:
            text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=lambda array: array.tolist())
            members["json"] = ("json", text.encode())
        if sample.mask is not None:
            members["mask"] = ("mask.png", encode_png(sample.mask.astype(np.uint8)))
        if sample.depth is not None:
            members["depth"] = ("depth.png", encode_png(encode_depth(sample.depth, self.info.depth_scale)))
        return members

    def _write(self, sample: Sample, members: dict[str, tuple[str, bytes]]) -> None:
        num_bytes = sum(len(data) + 2 * _BLOCK_BYTES for _, data in members.values())
        if self.tar is not None and self.tar.num_bytes + num_bytes > self.max_shard_bytes:
            self.close_shard()
        if self.tar is None:
            self.tar = _TarWriter(self.out_dir, self._shard_path(len(self.shards)))
        label = None if sample.label is None else int(sample.label)
        row: dict[str, Any] = {"key": sample.key, "split": sample.split, "caption": sample.caption}
        row |= {"stratum": sample.stratum, "label": -1 if label is None else label, "shard": len(self.shards)}
        for member in MEMBERS:
            suffix, data = members.get(member, ("", b""))
            row[f"{member}_offset"] = self.tar.add(f"{sample.key}.{suffix}", data) if suffix else 0
            row[f"{member}_num_bytes"] = len(data)
        self.tar.num_samples += 1
        self.index.add(row)
        self.splits[sample.split] += 1
        self.fields |= {name for name in FIELDS if _has(sample, name)}
        height, width = sample.image.shape[:2]
        self.sizes_px.add((height, width))
        suffix, data = members["image"]
        uris = {name: f"{self.tar.path}/{sample.key}.{suffix}" for name, (suffix, _) in members.items()}
        self._note(
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
    on_shard: Callable[[Path], None] | None = None,
    lossless: bool = False,
    max_quarantined_share: float = MAX_QUARANTINED_SHARE,
) -> DatasetInfo:
    """Writes a dataset; equal samples give equal bytes.

    Args:
        samples: read once, one at a time; a sample that contradicts ``info`` is quarantined too.
        info: name, tasks, licence, source, concept names, metric and depth scale; the counts are filled in.
        out_dir: where the files go.
        max_shard_bytes: a shard is ended before it would grow beyond this (a larger sample gets its own).
        on_shard: called with each finished shard, for example to upload and delete it.
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
        writer = _DatasetWriter(info, out_dir, index, rows, max_shard_bytes, lossless, on_shard or (lambda path: None))
        try:
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


def _has(sample: Sample, name: str) -> bool:
    value = getattr(sample, name)
    return value is not None and not (name == "box_attributes" and not value)


def _index_schema() -> "pa.Schema":
    import pyarrow as pa

    columns = [(name, pa.string()) for name in ("key", "split", "caption", "stratum")]
    columns += [("label", pa.int64()), ("shard", pa.int32())]
    columns += [(f"{member}_{what}", pa.int64()) for member in MEMBERS for what in ("offset", "num_bytes")]
    return pa.schema(columns)
