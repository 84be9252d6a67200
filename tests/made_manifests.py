"""Small manifests with real image files, committed as an earlier step would."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers import commit_folder
from numpy.typing import NDArray

from intern_vision.data.codec import encode_jpeg, encode_png
from intern_vision.data.manifest import (
    MANIFEST_INFO_NAME,
    MANIFEST_NAME,
    ManifestInfo,
    ManifestRow,
    SourceInfo,
    write_manifest,
)
from intern_vision.data.tables import iter_rows
from intern_vision.ref import Ref
from intern_vision.store import file_sha256


def picture(seed: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """Smooth colours that differ from seed to seed, ``(height, width, 3)`` uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0, 1, (3, 3))]
    return np.stack(waves, axis=2).astype(np.uint8)


def image_row(
    folder: Path, key: str, image: NDArray[np.uint8] | bytes, suffix: str = "jpg", **values: Any
) -> ManifestRow:
    """A row of an image that is written into the folder.

    Args:
        folder: of the file.
        key: the row's key and the file's name.
        image: pixels, or an encoded file.
        suffix: ``jpg`` or ``png``.
        values: further columns.
    """
    encoders = {"jpg": encode_jpeg, "png": encode_png}
    data = image if isinstance(image, bytes) else encoders[suffix](image)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.{suffix}"
    path.write_bytes(data)
    shape = (0, 0) if isinstance(image, bytes) else image.shape[:2]
    known = {"height_px": shape[0], "width_px": shape[1], "num_bytes": len(data)}
    digest = hashlib.sha256(data).hexdigest()
    return ManifestRow(**{"key": key, "uri": path.as_uri(), "digest": digest, **known, **values})


def commit_rows(
    store_root: str, folder: Path, rows: Iterable[ManifestRow], sources: Iterable[SourceInfo], name: str = "made"
) -> Ref:
    """Commits rows as a manifest.

    Args:
        store_root: address of the store.
        folder: a free local folder.
        rows: in any order.
        sources: of the rows.
        name: of the manifest.
    """
    ordered = sorted(rows, key=lambda row: row.key)
    write_manifest(ordered, folder / MANIFEST_NAME)
    info = ManifestInfo(
        name=name,
        sources=tuple(sources),
        num_rows=len(ordered),
        num_ok=sum(row.status == "ok" for row in ordered),
        sha256=file_sha256(folder / MANIFEST_NAME),
    )
    (folder / MANIFEST_INFO_NAME).write_text(info.to_json())
    return commit_folder(store_root, "ingest", "manifest", f"{name}-{info.sha256[:8]}", folder)


def rows_by_key(path: Path) -> Mapping[str, dict[str, Any]]:
    """A manifest's rows."""
    return {row["key"]: row for row in iter_rows(path)}
