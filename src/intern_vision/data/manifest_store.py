"""Manifests on the store, and the images that their rows name: what every step of the data pipeline shares.

H and W are an image's height and width in pixels.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from intern_vision.data.manifest import MANIFEST_INFO_NAME, MANIFEST_NAME, ManifestInfo
from intern_vision.errors import ConfigError, DataError
from intern_vision.ref import Ref
from intern_vision.stages.base import StageContext, read_record
from intern_vision.store import Store, file_sha256, join_uri, open_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOB_FOLDER = "blobs"
MAX_IMAGE_BYTES = 2**25
"""Largest encoded image that is read: 32 MiB."""

_ROWS_PER_BATCH = 2**16

Item = TypeVar("Item")
Result = TypeVar("Result")


def load_manifest(source: Store | StageContext, ref: Ref, folder: Path) -> tuple[ManifestInfo, Path]:
    """Fetches ``manifest.json`` and ``manifest.parquet`` of a step's output, and none of its other files.

    Args:
        source: the store, or a stage's context that has it.
        ref: of kind ``manifest``.
        folder: local folder that the files go below.

    Returns:
        What the manifest is, and where its table lies.

    Raises:
        ConfigError: the Ref is of another kind.
        DataError: a file is missing, or its bytes are not those that were committed.
    """
    if ref.kind != "manifest":
        raise ConfigError(
            f"{ref.name}: expected a Ref of kind manifest, got {ref.kind}; give the output of ingest or of a later step"
        )
    store = source.store if isinstance(source, StageContext) else source
    info_path = fetch_file(store, ref, MANIFEST_INFO_NAME, folder)
    table_path = fetch_file(store, ref, MANIFEST_NAME, folder)
    return ManifestInfo.from_json(info_path.read_text(encoding="utf-8"), at=ref.uri), table_path


def manifest_info(ref: Ref) -> ManifestInfo:
    """What a manifest is, without its table; DataError where none lies there."""
    uri = join_uri(ref.uri, MANIFEST_INFO_NAME)
    return ManifestInfo.from_json(open_store(uri).read(uri).decode(), at=uri)


def fetch_file(store: Store, ref: Ref, name: str, folder: Path) -> Path:
    """One file of a committed output, below ``folder``, its digest checked.

    Raises:
        DataError: the output has no such file, or its bytes are not those that were committed.
    """
    files = read_record(store, ref.uri).files
    if name not in files:
        raise DataError(f"{ref.uri}: has no file {name}; make the output anew")
    path = folder / ref.digest[:16] / name
    if not path.exists():
        store.get(join_uri(ref.uri, *name.split("/")), path, sha256=files[name])
    return path


def commit_manifest(context: StageContext, info: ManifestInfo, name: str) -> Ref:
    """Commits the ``manifest.parquet`` of a stage's output folder with all that lies beside it.

    Args:
        context: whose ``output_dir`` holds the table, sorted by key.
        info: its counts and digest are filled in.
        name: what to call the output.

    Returns:
        A Ref of kind ``manifest``.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = context.output_dir / MANIFEST_NAME
    with pq.ParquetFile(path) as file:
        num_rows = file.metadata.num_rows
        batches = file.iter_batches(_ROWS_PER_BATCH, columns=["status"])
        num_ok = sum(pc.sum(pc.equal(batch["status"], "ok")).as_py() or 0 for batch in batches)
    counts = {"num_rows": num_rows, "num_ok": num_ok, "sha256": file_sha256(path)}
    text = info.model_copy(update=counts).to_json() + "\n"
    (context.output_dir / MANIFEST_INFO_NAME).write_text(text, encoding="utf-8")
    return context.commit("manifest", name)


def read_bytes(uri: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """All bytes at a ``file://`` or ``s3://`` address.

    Raises:
        ConfigError: the address is of another scheme or malformed.
        DataError: nothing lies there, or more than ``max_bytes``.
        AccessError: the credentials or permissions do not suffice.
        RetryableError: the server does not answer.
    """
    data = open_store(uri).read(uri, 0, max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{uri}: more than {max_bytes} bytes; save the image smaller")
    return data


def put_blob(context: StageContext, data: bytes, suffix: str) -> str:
    """Keeps bytes that have no address of their own, under their digest; equal bytes are kept once.

    Args:
        context: of the stage that makes the manifest.
        data: for example an encoded image.
        suffix: of the file's name, without a dot.

    Returns:
        The address, below ``<output_uri>/blobs/``.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    uri = join_uri(context.output_uri, BLOB_FOLDER, sha256[:2], f"{sha256}.{suffix}")
    context.store.put(data, uri)
    return uri


def open_images(
    rows: Iterable[Mapping[str, Any]], num_threads: int
) -> "Iterator[tuple[Mapping[str, Any], NDArray[np.uint8] | str]]":
    """The images of manifest rows, in order, each row with its pixels or with what is wrong.

    Memory holds at most ``2 * num_threads`` decoded images, whatever the number of rows.

    Args:
        rows: with the column ``uri``.
        num_threads: images read and decoded at once, at least 1.

    Yields:
        The row and its upright image ``(H, W, 3)`` uint8 RGB; or the row and one line of text where the image
        cannot be read or decoded.

    Raises:
        AccessError: the credentials or permissions do not suffice.
        RetryableError: the server does not answer.
    """
    return map_in_order(_opened, rows, num_threads)


def _opened(row: Mapping[str, Any]) -> "tuple[Mapping[str, Any], NDArray[np.uint8] | str]":
    from intern_vision.data.codec import decode_image

    try:
        return row, decode_image(read_bytes(row["uri"]))
    except (ValueError, DataError, ConfigError) as error:
        return row, " ".join(str(error).split())


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Results of a function in the order of its arguments, from a bounded number of threads, a few ahead only.

    Args:
        function: called in the threads; what it raises is raised here in its turn.
        items: read in this thread, at most ``2 * num_threads`` ahead.
        num_threads: at least 1; with 1 the function is called in this thread.

    Yields:
        The results.
    """
    if num_threads <= 1:
        yield from map(function, items)
        return
    waiting = iter(items)
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in waiting:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
