"""Facts of images that need not be opened again: of an earlier ingest, or of this one before it was interrupted."""

import io
import itertools
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from intern_vision.errors import DataError, MissingObjectError
from intern_vision.stages.base import StageContext
from intern_vision.stages.shard import PROGRESS_FOLDER
from intern_vision.store import join_uri

if TYPE_CHECKING:
    import pyarrow as pa

STAMPS_NAME = "stamps.parquet"
PART_S = 30.0
"""Time after which a part is kept though it has few rows: images behind slow addresses come one by one."""

_MANIFEST_COLUMNS = ("key", "uri", "digest", "width_px", "height_px", "num_bytes", "mask", "depth", "status")


@dataclass(slots=True, frozen=True, kw_only=True)
class Facts:
    """What opening the files of an offer showed.

    Attributes:
        place: what the image's file is called in its source.
        stamp: of the files, another one when they may have changed; empty where nothing is known of that.
        fault: ``<kind>: <words>`` where a file cannot be used; what follows is then unknown.
        uri: the image's address.
        digest: SHA-256 of its bytes.
        height_px: upright.
        width_px: upright.
        num_bytes: of the encoded file.
        orientation: EXIF orientation, 1 to 8; 0 where it was not kept.
        mask: address of the mask, or None.
        depth: address of the depth map, or None.
        num_mask_classes: largest index found in the mask plus one; 0 without mask.
        max_depth_m: largest depth found; 0 without depth.
    """

    place: str
    stamp: str
    fault: str = ""
    uri: str = ""
    digest: str = ""
    height_px: int = 0
    width_px: int = 0
    num_bytes: int = 0
    orientation: int = 0
    mask: str | None = None
    depth: str | None = None
    num_mask_classes: int = 0
    max_depth_m: float = 0.0


def stamps_schema() -> "pa.Schema":
    """A row an image: its key, where it lay in its source, and a stamp of the files that the row was made from."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("key", "place", "stamp")])


class Earlier:
    """Facts by key; Arrow columns, some 400 bytes a row.

    Args:
        table: sorted by ``key``; its other columns are fields of ``Facts``, those without a default among them.
    """

    def __init__(self, table: "pa.Table") -> None:
        # One chunk a column: finding a row in many would take a walk over them.
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        self._num_rows = len(table)

    @classmethod
    def of_manifest(cls, manifest: Path, stamps: Path) -> Self:
        """The usable rows of an earlier manifest.

        Args:
            manifest: its table, sorted by key.
            stamps: the ``stamps.parquet`` that was written with it.

        Raises:
            DataError: the two files do not belong together.
        """
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        rows = pq.read_table(manifest, columns=list(_MANIFEST_COLUMNS))
        stamped = pq.read_table(stamps)
        if not rows["key"].equals(stamped["key"]):
            raise DataError(f"{stamps}: is not of the manifest beside it; ingest anew without the earlier result")
        table = rows.append_column("place", stamped["place"]).append_column("stamp", stamped["stamp"])
        return cls(table.filter(pc.equal(table["status"], "ok")).drop_columns("status"))

    def find(self, key: str, place: str, stamp: str) -> Facts | None:
        """The facts of an image whose files have not changed since; else None."""
        index = bisect_left(range(self._num_rows), key, key=lambda row: self._columns["key"][row].as_py())
        if index == self._num_rows or self._columns["key"][index].as_py() != key:
            return None
        facts = Facts(**{name: column[index].as_py() for name, column in self._columns.items() if name != "key"})
        return facts if (facts.place, facts.stamp) == (place, stamp) else None


class OpenedParts:
    """What this ingest has opened, kept beside its output as it goes, so that after an interruption it opens the rest.

    A part is a Parquet file of facts; it lies there whole or not at all. The stage's commit deletes them all.

    Attributes:
        earlier: what an attempt before this one opened; None where there was none.
        num_earlier: images in it.

    Args:
        context: of the stage.
        max_rows: images of a part.
    """

    def __init__(self, context: StageContext, max_rows: int) -> None:
        self._context = context
        self._max_rows = max_rows
        self._rows: list[dict[str, Any]] = []
        self._kept_at_s = time.monotonic()
        found = list(self._read())
        self._number = len(found)
        self.num_earlier = sum(map(len, found))
        self.earlier = Earlier(_joined(found)) if found else None

    def add(self, key: str, facts: Facts) -> None:
        """Takes the facts of an image that was opened now."""
        self._rows.append({"key": key, **asdict(facts)})
        if len(self._rows) >= self._max_rows or time.monotonic() - self._kept_at_s >= PART_S:
            self.keep()

    def keep(self) -> None:
        """Writes what was taken since the last part; RetryableError where the store is away or full."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._rows:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self._rows, schema=_part_schema()), buffer, compression="zstd")
            self._context.store.put(buffer.getvalue(), self._uri(self._number))
            self._number, self._rows = self._number + 1, []
        self._kept_at_s = time.monotonic()

    def _read(self) -> "Iterator[pa.Table]":
        import pyarrow.parquet as pq

        for number in itertools.count():
            try:
                yield pq.read_table(io.BytesIO(self._context.store.read(self._uri(number))))
            except MissingObjectError:
                return

    def _uri(self, number: int) -> str:
        return join_uri(self._context.output_uri, PROGRESS_FOLDER, f"part-{number:05d}.parquet")


def _joined(parts: "list[pa.Table]") -> "pa.Table":
    import pyarrow as pa

    return pa.concat_tables(parts).sort_by("key")


def _part_schema() -> "pa.Schema":
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64()}
    columns = [(field.name, types.get(field.type, pa.string())) for field in fields(Facts)]
    return pa.schema([("key", pa.string()), *columns])
