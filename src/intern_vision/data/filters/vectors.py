"""Rules on what a model sees: image against caption, and images that mean the same.

B images of a batch, C images of a cluster, D width of a vector, N images.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.augment import resize_image
from intern_vision.data.filters.rows import FilterRows
from intern_vision.data.filters.rules import ClusterRule, ScoreRule
from intern_vision.data.image_vectors import BATCH_IMAGES, ImageVectors
from intern_vision.data.manifest_store import open_images
from intern_vision.data.tables import TableWriter
from intern_vision.errors import ConfigError
from intern_vision.stages.prepare import TOKENIZER_FILE

if TYPE_CHECKING:
    from torch import Tensor

SCORES_FILE = "scores.parquet"
IMAGES_PER_CLUSTER = 1_000
_CHUNK_ROWS = 1_024
_UNREADABLE = "the image cannot be read: "


def score_faults(rule: ScoreRule, rows: FilterRows) -> dict[int, str]:
    """Captioned rows whose image and caption are unlike: reason by position; all cosines go to ``scores.parquet``.

    Raises:
        ConfigError: there is no model, or it has no text tower.
        DataError: the tokenizer cannot be read.
    """
    import pyarrow as pa

    vectors = _vectors(rows, "score")
    if vectors.model.text is None:
        raise ConfigError("rule score: the model has no text tower; give the weights of an amateur")
    similar = _similarity(vectors, rows.model_dir)
    found: dict[int, str] = {}
    scored: list[tuple[float, str, int]] = []
    schema = pa.schema([("key", pa.string()), ("similarity", pa.float64())])
    captioned = ((position, row) for position, row in rows.rows("key", "uri", "caption") if row["caption"])
    num_captioned = sum(bool(row["caption"]) for _, row in rows.rows("caption"))
    with TableWriter(rows.out_dir / SCORES_FILE, schema) as writer:
        for good, bad in _batches(captioned, rows, num_captioned, vectors.model.spec.image_size_px):
            found |= {position: f"score: {_UNREADABLE}{error}" for position, error in bad.items()}
            if not good:
                continue
            values_B = similar([row["caption"] for _, row, _ in good], [image for _, _, image in good])
            for (position, row, _), value in zip(good, values_B.tolist(), strict=True):
                writer.add({"key": row["key"], "similarity": value})
                scored.append((value, row["key"], position))
    limit = rule.min_similarity
    if limit is None:
        # The most similar stay; of equal ones those that come first by key.
        scored.sort(key=lambda item: (-item[0], item[1]))
        kept = math.ceil(rule.keep_share * len(scored))  # type: ignore[operator]
        dropped: Iterable[tuple[float, str, int]] = scored[kept:]
    else:
        dropped = (item for item in scored if item[0] < limit)
    return found | {position: f"score: caption and image have cosine {value:.3f}" for value, _, position in dropped}


def cluster_faults(rule: ClusterRule, rows: FilterRows) -> dict[int, str]:
    """Images that mean the same as another of their cluster: reason by position.

    Raises:
        ConfigError: there is no model.
    """
    vectors = _vectors(rows, "cluster")
    num_rows = rows.num_rows()
    if not num_rows:
        return {}
    found: dict[int, str] = {}
    positions: list[int] = []
    keys: list[str] = []
    path = rows.scratch_dir / "vectors.npy"
    vectors_ND: Any = None
    for good, bad in _batches(rows.rows("key", "uri"), rows, num_rows, vectors.model.spec.image_size_px):
        found |= {position: f"cluster: {_UNREADABLE}{error}" for position, error in bad.items()}
        if not good:
            continue
        own_BD = vectors.unit([image for _, _, image in good])
        if vectors_ND is None:
            shape = (num_rows, own_BD.shape[1])
            # On disk: a million vectors need not lie in memory.
            vectors_ND = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        vectors_ND[len(positions) : len(positions) + len(good)] = own_BD
        positions += [position for position, _, _ in good]
        keys += [row["key"] for _, row, _ in good]
    if not positions:
        return found
    vectors_ND = vectors_ND[: len(positions)]
    num_clusters = rule.num_clusters or math.ceil(len(positions) / IMAGES_PER_CLUSTER)
    centroids_KD, cluster_N = clusters(vectors_ND, min(num_clusters, len(positions)), rule.seed)
    order = np.argsort(cluster_N, kind="stable")
    for members_C in np.split(order, np.flatnonzero(np.diff(cluster_N[order])) + 1):
        near_C = vectors_ND[members_C] @ centroids_KD[cluster_N[members_C[0]]]
        for row, other, value in repeats(vectors_ND[members_C], near_C, rule.max_similarity):
            words = f"cosine {value:.3f} to {keys[members_C[other]]}"
            found[positions[members_C[row]]] = f"cluster: {words}"
    return found


def clusters(
    vectors_ND: NDArray[np.float32], num_clusters: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """K-means of unit vectors: centroids ``(K, D)`` of length 1 and the cluster of each vector ``(N,)``.

    On one thread: with several, sums would depend on how the work was divided.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        means = MiniBatchKMeans(num_clusters, random_state=seed, n_init=3, batch_size=4 * _CHUNK_ROWS).fit(vectors_ND)
        parts = [
            means.predict(vectors_ND[start : start + 16 * _CHUNK_ROWS])
            for start in range(0, len(vectors_ND), 16 * _CHUNK_ROWS)
        ]
    centroids_KD = means.cluster_centers_.astype(np.float32)
    norms_K1 = np.maximum(np.linalg.norm(centroids_KD, axis=1, keepdims=True), 1e-12)
    return centroids_KD / norms_K1, np.concatenate(parts).astype(np.int64)


def repeats(
    vectors_CD: NDArray[np.float32], near_C: NDArray[np.float32], max_similarity: float
) -> Iterator[tuple[int, int, float]]:
    """Vectors that are too similar to one before them, in the order from the farthest from the centroid to the nearest.

    Args:
        vectors_CD: of length 1.
        near_C: cosine to the centroid; ties go by the lower row.
        max_similarity: largest cosine.

    Yields:
        The row that goes, the row it is most like among those before it, and their cosine.
    """
    order_C = np.argsort(near_C, kind="stable")
    sorted_CD = vectors_CD[order_C]
    for start in range(0, len(sorted_CD), _CHUNK_ROWS):
        block_BD = sorted_CD[start : start + _CHUNK_ROWS]
        cosine_BC = block_BD @ sorted_CD[: start + len(block_BD)].T
        before_BC = np.arange(cosine_BC.shape[1]) < start + np.arange(len(block_BD))[:, None]
        cosine_BC = np.where(before_BC, cosine_BC, -np.inf)
        best_B = cosine_BC.argmax(1)
        for row, best in enumerate(best_B.tolist()):
            if cosine_BC[row, best] > max_similarity:
                yield int(order_C[start + row]), int(order_C[best]), float(cosine_BC[row, best])


def _vectors(rows: FilterRows, rule: str) -> ImageVectors:
    if rows.model_dir is None:
        raise ConfigError(f"rule {rule}: needs a model; give the Ref of its weights (--model)")
    return ImageVectors.load(rows.model_dir)


Opened = tuple[int, Mapping[str, Any], NDArray[np.uint8]]


def _batches(
    found: Iterable[tuple[int, Mapping[str, Any]]], rows: FilterRows, num_rows: int, size_px: int
) -> Iterator[tuple[list[Opened], dict[int, str]]]:
    """Rows in batches: those that open with their image ``(size_px, size_px, 3)``, and what is wrong with others."""
    numbered = ({**row, "position": position} for position, row in found)
    done = 0
    images = open_images(numbered, rows.num_threads)
    while opened := list(islice(images, BATCH_IMAGES)):
        good: list[Opened] = []
        bad: dict[int, str] = {}
        for row, image in opened:
            if isinstance(image, str):
                bad[row["position"]] = image
            else:
                good.append((row["position"], row, resize_image(image, size_px)))
        done += len(opened)
        rows.progress.step(done, num_rows, "images")
        yield good, bad


def _similarity(
    vectors: ImageVectors, folder: Path
) -> Callable[[list[str], list[NDArray[np.uint8]]], NDArray[np.float64]]:
    """A function from B captions and images, of one batch, to their cosines ``(B,)`` in the joint space."""
    import torch

    from intern_vision.data.text import Tokenizer

    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    text = vectors.model.text
    context_length = vectors.model.spec.text.context_length  # type: ignore[union-attr]

    @torch.inference_mode()
    def similar(captions: list[str], images: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        tokens_BL = torch.from_numpy(np.stack([tokenizer.encode(caption, context_length) for caption in captions]))
        (image_BCHW,) = vectors.batches(images)
        image_BD = _unit(text.projection(vectors.features(image_BCHW).vector_BD))  # type: ignore[union-attr]
        text_BD = _unit(text.encoder(tokens_BL.to(image_BD.device))[0])  # type: ignore[union-attr]
        return (image_BD * text_BD).sum(1).double().cpu().numpy()

    return similar


def _unit(vector_BD: "Tensor") -> "Tensor":
    import torch.nn.functional as F

    return F.normalize(vector_BD.float(), dim=-1)
