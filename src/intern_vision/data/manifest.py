"""The manifest: one row for every image that was offered, used, removed or quarantined; Parquet, queried with Daft.

What flows between the steps of the data pipeline is a folder on the store::

    manifest.json     what the sources are and what each step did, a ``ManifestInfo``
    manifest.parquet  the rows; equal rows give equal bytes
    blobs/...         bytes that have no address of their own: members of archives, fetched URLs, drawn masks

A dataset of shards (``data/shard.py``) has a ``manifest.parquet`` too.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intern_vision.config import Config
from intern_vision.data.tables import TableWriter
from intern_vision.errors import ConfigError
from intern_vision.task import Task

if TYPE_CHECKING:
    import daft
    import pyarrow as pa

Status = Literal["ok", "removed", "quarantined"]
MANIFEST_NAME = "manifest.parquet"
MANIFEST_INFO_NAME = "manifest.json"


@dataclass(slots=True, frozen=True, kw_only=True)
class Quarantined:
    """A sample that cannot be used, yielded by a reader in place of a ``Sample``.

    Attributes:
        key: what the sample would have been called.
        uri: where its image lies.
        reason: one line that says what is wrong with it.
    """

    key: str
    uri: str
    reason: str


@dataclass(slots=True, frozen=True, kw_only=True)
class ManifestBox:
    """A box of a row: its class's name and ``x0 y0 x1 y1`` in pixels of the upright image.

    ``difficult`` and ``ignored`` are those of ``intern_vision.data.sample.BOX_ATTRIBUTES``.
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
    difficult: bool = False
    ignored: bool = False


@dataclass(slots=True, frozen=True, kw_only=True)
class ManifestRow:
    """One image; the fields are the manifest's columns, in order. ``None`` means never annotated.

    Attributes:
        key: unique within the manifest; letters, digits, ``_`` and ``-``.
        uri: where the image lies: an address, or a member of one of the dataset's shards.
        digest: SHA-256 of the image's encoded bytes; empty where they could not be read.
        width_px: image width.
        height_px: image height.
        num_bytes: size of the encoded image.
        source: name of the source the image came from.
        licence: licence of the image.
        split: ``train``, ``val``, ``test``, or empty where none was chosen.
        caption: free text.
        labels: names of the classes that the image shows, in its source's words: one of a ``classify`` task, any
            number of a ``multilabel`` one.
        boxes: the annotated boxes.
        mask: address of a PNG ``(height, width)`` of indices into the source's ``segment`` classes, 255 = ignore.
        depth: address of a 16-bit PNG or ``.npy``, 0 = unknown.
        depth_scale: metres a unit of ``depth``; 0 without depth.
        concepts: ids of a label system's concepts that labels and boxes mean; set by the label step.
        status: ``ok``, ``removed`` by a step's rule, or ``quarantined`` because it cannot be used.
        reason: ``<kind>: <words>`` where the status is not ``ok``, for example ``duplicate: same bytes as cat-7``;
            rows are counted by kind.
    """

    key: str
    uri: str
    digest: str = ""
    width_px: int = 0
    height_px: int = 0
    num_bytes: int = 0
    source: str = ""
    licence: str = ""
    split: str = ""
    caption: str | None = None
    labels: tuple[str, ...] | None = None
    boxes: tuple[ManifestBox, ...] | None = None
    mask: str | None = None
    depth: str | None = None
    depth_scale: float = 0.0
    concepts: tuple[str, ...] | None = None
    status: Status = "ok"
    reason: str = ""


COLUMNS = tuple(field.name for field in fields(ManifestRow))


class SourceInfo(Config):
    """A source of a manifest's rows.

    Attributes:
        name: what ``ManifestRow.source`` says.
        uri: where it was read from.
        layout: name of the layout it was read as.
        licence: its licence as stated; empty where nobody said.
        tasks: family to task, with the source's own class names.
        num_rows: rows that came from it.
    """

    name: str
    uri: str
    layout: str = ""
    licence: str = ""
    tasks: dict[str, Task] = {}
    num_rows: int = 0


class StepInfo(Config):
    """What a step did.

    Attributes:
        name: of the step, for example ``dedup``.
        settings: its config as plain values: the step can be repeated with them.
        num_in: rows with status ``ok`` before it.
        num_out: rows with status ``ok`` after it.
        counts: rows it took out, by kind of reason.
    """

    name: str
    settings: dict[str, Any] = {}
    num_in: int = 0
    num_out: int = 0
    counts: dict[str, int] = {}


class ManifestInfo(Config):
    """What a manifest holds and how it came to be.

    Attributes:
        name: short name.
        sources: where the rows came from.
        steps: what was done since, in order.
        num_rows: all rows.
        num_ok: rows with status ``ok``.
        sha256: SHA-256 of ``manifest.parquet``.
    """

    name: str
    sources: tuple[SourceInfo, ...] = ()
    steps: tuple[StepInfo, ...] = ()
    num_rows: int = 0
    num_ok: int = 0
    sha256: str = ""


def use_daft() -> Any:
    """Imports Daft with its usage reports off, on the runner that ``DAFT_RUNNER`` names: ``native`` or ``ray``.

    With ``ray`` its workers are those of the cluster at ``RAY_ADDRESS``, else of this machine.

    Raises:
        ConfigError: another runner, or Ray is not installed.
    """
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    runner = os.environ.setdefault("DAFT_RUNNER", "native")
    if runner not in ("native", "ray"):
        raise ConfigError(f"DAFT_RUNNER: expected native or ray, got {runner!r}")
    if runner == "ray" and find_spec("ray") is None:
        raise ConfigError("DAFT_RUNNER: Ray is not installed; pip install 'intern-vision[ray]', or unset the variable")
    import daft

    return daft


@cache
def manifest_schema() -> "pa.Schema":
    """The columns ``COLUMNS`` with their Arrow types."""
    import pyarrow as pa

    corner = [(name, pa.float32()) for name in ("x0", "y0", "x1", "y1")]
    flags = [(name, pa.bool_()) for name in ("difficult", "ignored")]
    special = {
        "width_px": pa.int64(),
        "height_px": pa.int64(),
        "num_bytes": pa.int64(),
        "labels": pa.list_(pa.string()),
        "boxes": pa.list_(pa.struct([("label", pa.string()), *corner, *flags])),
        "depth_scale": pa.float64(),
        "concepts": pa.list_(pa.string()),
    }
    return pa.schema([(name, special.get(name, pa.string())) for name in COLUMNS])


def manifest_writer(path: Path) -> TableWriter:
    """Writes a manifest row by row, each ``asdict(ManifestRow(...))``, or as tables."""
    return TableWriter(path, manifest_schema())


def write_manifest(rows: Iterable[ManifestRow], path: Path) -> None:
    """Writes rows as one Parquet file with the columns ``COLUMNS``; equal rows give equal bytes."""
    with manifest_writer(path) as writer:
        for row in rows:
            writer.add(asdict(row))


def write_frame(frame: "daft.DataFrame", path: Path) -> int:
    """Writes a Daft table's rows, sorted by key, as a manifest; on any engine the bytes are the same.

    Returns:
        Number of rows.
    """
    import pyarrow as pa

    with manifest_writer(path) as writer:
        for batch in frame.select(*COLUMNS).sort("key").to_arrow_iter():
            writer.add_table(pa.Table.from_batches([batch]))
        return writer.num_rows


def read_manifest(path: Path) -> "daft.DataFrame":
    """The manifest as a lazy Daft table."""
    return use_daft().read_parquet(str(path))
