"""What is kept of images to compare them: digests, thumbnails and, with a model, embeddings; on disk, not in memory.

N images, D width of an embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.duplicates.thumbnail import THUMBNAIL, thumbnail
from intern_vision.data.tables import TableWriter, iter_rows
from intern_vision.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from intern_vision.ref import Ref
    from intern_vision.stages.base import StageContext

Opened = tuple[Mapping[str, Any], "NDArray[np.uint8] | str"]
Embed = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]
ROWS_FILE, THUMBNAILS_FILE, EMBEDDINGS_FILE = "rows.parquet", "thumbnails.npy", "embeddings.npy"
COLUMNS = ("key", "uri", "split", "digest", "fault")
_BATCH_SIZE = 64
_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class Prints:
    """Images reduced to what tells them apart.

    Attributes:
        rows: a row an image: key, uri, split, digest (SHA-256 of the file), and ``fault``: why it could not be read.
        thumbnails: ``(N,)`` of ``THUMBNAIL``, mapped from a file; 0 where there is a fault.
        embeddings: ``(N, D)`` float32 of length 1, 0 where there is a fault; ``None`` without a model.
    """

    rows: "pa.Table"
    thumbnails: NDArray[np.void]
    embeddings: NDArray[np.float32] | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def select(self, numbers: NDArray[np.int64]) -> "Prints":
        """Only these images; all of them in order are not copied."""
        if len(numbers) == len(self):
            return self
        embeddings = None if self.embeddings is None else self.embeddings[numbers]
        return Prints(self.rows.take(numbers), self.thumbnails[numbers], embeddings)


def write_prints(
    opened: Iterable[Opened],
    num_images: int,
    folder: Path,
    *,
    embed: Embed | None = None,
    on_image: Callable[[int], None] = lambda number: None,
) -> None:
    """Writes prints, one batch of images in memory at a time.

    Args:
        opened: rows with ``COLUMNS`` but ``fault``, each with its image ``(height, width, 3)`` uint8 or with what is
            wrong with it.
        num_images: how many there are.
        folder: where the files go.
        embed: images to embeddings of length 1.
        on_image: called with the number of images done.
    """
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    thumbnails = _new_array(folder / THUMBNAILS_FILE, THUMBNAIL, (num_images,))
    embeddings: NDArray[np.float32] | None = None
    with TableWriter(folder / ROWS_FILE, schema) as table:
        waiting: list[tuple[int, NDArray[np.uint8]]] = []
        for number, (row, image) in enumerate(opened):
            is_read = not isinstance(image, str)
            table.add({**{name: row[name] for name in COLUMNS[:-1]}, "fault": "" if is_read else image})
            if is_read:
                thumbnails[number] = thumbnail(image)
                waiting.append((number, image))
            if embed and waiting and (len(waiting) == _BATCH_SIZE or number + 1 == num_images):
                vectors_BD = embed([each for _, each in waiting])
                if embeddings is None:
                    embeddings = _new_array(folder / EMBEDDINGS_FILE, np.float32, (num_images, vectors_BD.shape[1]))
                embeddings[[at for at, _ in waiting]] = vectors_BD
            if not embed or len(waiting) == _BATCH_SIZE:
                waiting.clear()
            on_image(number + 1)
    for array in (thumbnails, embeddings):
        if isinstance(array, np.memmap):
            array.flush()


def read_prints(folder: Path) -> Prints:
    """Maps what ``write_prints`` wrote."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / ROWS_FILE)
    embeddings = folder / EMBEDDINGS_FILE
    mode = "r" if len(rows) else None  # nothing cannot be mapped
    return Prints(
        rows,
        np.load(folder / THUMBNAILS_FILE, mmap_mode=mode),
        np.load(embeddings, mmap_mode=mode) if embeddings.exists() else None,
    )


def open_manifest(
    context: "StageContext", ref: "Ref", num_threads: int, with_images: bool = True
) -> tuple[int, Iterator[Opened]]:
    """Every usable row of a manifest with its upright image, or with what is wrong with it.

    Args:
        context: of the stage.
        ref: of the manifest.
        num_threads: images opened at once.
        with_images: without it nothing is opened, and every image is a single black pixel.

    Returns:
        How many there are, and the images.
    """
    from intern_vision.data.manifest_store import load_manifest, open_images

    info, path = load_manifest(context, ref, context.scratch_dir / "inputs")
    rows = _ok_rows(path)
    return info.num_ok, open_images(rows, num_threads) if with_images else ((row, _NO_IMAGE) for row in rows)


def open_dataset(
    context: "StageContext", ref: "Ref", num_threads: int, with_images: bool = True
) -> tuple[int, Iterator[Opened]]:
    """Every image of a prepared dataset, as ``open_manifest`` does it, with the pixels as they are stored.

    Raises:
        DataError: the dataset's index and manifest are not of the same samples, or it is corrupt.
    """
    from intern_vision.data.loader import ShardSource
    from intern_vision.data.manifest import MANIFEST_NAME
    from intern_vision.data.manifest_store import fetch_file, map_in_order
    from intern_vision.store import join_uri

    source = ShardSource(context.store, ref.uri, cache_dir=context.cache_dir / "shards", fields=())
    rows = _ok_rows(fetch_file(context.store, ref, MANIFEST_NAME, context.scratch_dir / "inputs"))

    def opened(numbered: tuple[int, dict[str, Any]]) -> Opened:
        number, row = numbered
        if number >= len(source) or source.keys[number] != row["key"]:
            raise DataError(f"{ref.uri}: {MANIFEST_NAME} and the index differ at {row['key']}; write the dataset again")
        image = source[number].image if with_images else _NO_IMAGE
        return row | {"uri": join_uri(ref.uri, *row["uri"].split("/"))}, image

    return len(source), map_in_order(opened, enumerate(rows), num_threads)


def _ok_rows(path: Path) -> Iterator[dict[str, Any]]:
    return (row for row in iter_rows(path, (*COLUMNS[:-1], "status")) if row["status"] == "ok")


def _new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    if 0 in shape:
        np.save(path, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)
