"""The manifest: one row for every image that was offered, used or quarantined; a Parquet file written with Daft."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import daft

Status = Literal["ok", "quarantined"]


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
class ManifestRow:
    """One image; the fields are the manifest's columns, in order.

    Attributes:
        key: unique within the dataset.
        uri: where the image lies: an address, or a member of one of the dataset's shards.
        digest: SHA-256 of the image's encoded bytes; empty where they could not be read.
        width_px: image width.
        height_px: image height.
        num_bytes: size of the encoded image.
        source: where the data came from.
        licence: licence of the image.
        split: ``train``, ``val``, ``test``, or empty for a quarantined row.
        caption: free text or ``None``.
        label: class index or ``None``.
        num_boxes: number of annotated boxes, 0 when there are none.
        status: ``ok`` or ``quarantined``.
        reason: why a row is quarantined; empty otherwise.
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
    label: int | None = None
    num_boxes: int = 0
    status: Status = "ok"
    reason: str = ""


COLUMNS = tuple(field.name for field in fields(ManifestRow))
_INT_COLUMNS = {"width_px", "height_px", "num_bytes", "label", "num_boxes"}


def use_daft() -> Any:
    """Imports Daft with its usage reports off and, unless one was chosen, the native runner on."""
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("DAFT_RUNNER", "native")
    import daft

    return daft


def write_manifest(rows: Iterable[ManifestRow], path: Path) -> None:
    """Writes the manifest as one Parquet file with the columns ``COLUMNS``; equal rows give equal bytes."""
    import pyarrow as pa

    daft = use_daft()
    rows = list(rows)
    schema = pa.schema([(name, pa.int64() if name in _INT_COLUMNS else pa.string()) for name in COLUMNS])
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Daft writes a folder of parts with random names; one part larger than any manifest gives one file to move.
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        daft.execution_config_ctx(parquet_target_filesize=1 << 62),
    ):
        daft.from_arrow(table.combine_chunks()).write_parquet(folder)
        parts = sorted(Path(folder).rglob("*.parquet"))
        if len(parts) != 1:
            raise RuntimeError(f"{path}: expected Daft to write one Parquet part, got {len(parts)}")
        os.replace(parts[0], path)


def read_manifest(path: Path) -> "daft.DataFrame":
    """The manifest as a lazy Daft table."""
    return use_daft().read_parquet(str(path))
