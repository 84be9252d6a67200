"""Small sources for the ingest, and the ingest itself on a store of its own."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import set_environment
from PIL import Image

from intern_vision.data.manifest import ManifestInfo
from intern_vision.data.manifest_store import load_manifest
from intern_vision.data.tables import iter_rows
from intern_vision.ref import Ref
from intern_vision.stages import ingest
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store

HEIGHT_PX, WIDTH_PX = 24, 32


def encoded(form: str = "PNG", seed: int = 0, size: tuple[int, int] = (WIDTH_PX, HEIGHT_PX), **options: Any) -> bytes:
    """A picture of noise as a file's bytes; ``size`` is width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return saved(Image.fromarray(pixels), form, **options)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    """A file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@dataclass(frozen=True)
class Taken:
    """What an ingest made: its Ref, what it says of itself, and its rows in order."""

    ref: Ref
    info: ManifestInfo
    rows: list[dict[str, Any]]
    facts: dict[str, Any]

    def by_name(self, suffix: str) -> dict[str, Any]:
        """The only row whose image's address ends so."""
        (row,) = [row for row in self.rows if row["uri"].endswith(suffix)]
        return row

    @property
    def reasons(self) -> list[str]:
        """Of the rows that are not ok."""
        return [row["reason"] for row in self.rows if row["status"] != "ok"]


class Ingest:
    """Runs the stage on a store below a folder.

    Args:
        folder: of the store and of the local state.
        patch: sets the environment.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.num_runs = folder, 0
        self.store_root = f"file://{folder}/store"
        set_environment(patch, {"INTERN_STORE": self.store_root, "INTERN_STATE": str(folder / "state")})

    def __call__(self, *sources: Any, earlier: Taken | None = None, **values: Any) -> Taken:
        """Sources as paths or as plain values of their config."""
        each = [source if isinstance(source, dict) else {"uri": str(source)} for source in sources]
        # The same config twice would be what is committed already.
        self.num_runs += 1
        config = ingest.Config.from_dict({"sources": each, "version": str(self.num_runs), **values})
        ref = run_stage("ingest", config, Inputs({"manifest": (earlier.ref,)} if earlier else {}))
        store = open_store(self.store_root)
        info, table = load_manifest(store, ref, self.folder / "got")
        return Taken(ref, info, list(iter_rows(table)), dict(read_record(store, ref.uri).facts))

    def fetched(self, taken: Taken) -> Path:
        """All files of the output."""
        return fetch(open_store(self.store_root), taken.ref, self.folder / "all")
