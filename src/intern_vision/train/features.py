"""Features of a frozen backbone, computed once and read from disk. B batch, C channels, D width, N images."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intern_vision.models.features import Features
from intern_vision.models.vision import VisionModel, read_tensors

TARGETS = ("label_B", "concepts_BK", "mask_BHW", "depth_BHW")
KEYS_FILE = "keys.json"
_BOX_FILES = ("boxes", "box_labels", "box_ends")


@dataclass(slots=True)
class FeatureCache:
    """Memory-mapped float16 features and the targets of the same images.

    Attributes:
        keys: sample keys in row order.
        arrays: ``pooled`` ``(N, D)``, or ``map_<k>`` ``(N, C, H, W)`` and ``vector`` ``(N, D)``.
        targets: an example's other fields by name, each with a row an image.
        boxes: of all images one after the other, ``boxes`` ``(M, 4)`` and ``box_labels`` ``(M,)``, and ``box_ends``
            ``(N,)``, where an image's end; empty where there are none.
    """

    keys: list[str]
    arrays: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]

    @classmethod
    def open(cls, folder: Path) -> "FeatureCache":
        """Maps what ``cache_features`` wrote."""

        def mapped(prefix: str) -> dict[str, np.ndarray]:
            paths = sorted(folder.glob(f"{prefix}-*.npy"))
            return {path.stem.removeprefix(f"{prefix}-"): np.load(path, mmap_mode="r") for path in paths}

        # A file without a box cannot be mapped, and boxes are small.
        boxes = {name: np.load(folder / f"{name}.npy") for name in _BOX_FILES if (folder / f"{name}.npy").exists()}
        keys = json.loads((folder / KEYS_FILE).read_text())
        return cls(keys, mapped("feature"), mapped("target"), boxes)

    def rows(self, keys: Sequence[str]) -> list[int]:
        """Row numbers of these keys, in row order."""
        wanted = set(keys)
        return [row for row, key in enumerate(self.keys) if key in wanted]

    def source(self, keys: Sequence[str]) -> "CachedSource":
        """Random access to the examples of these keys."""
        return CachedSource(self, self.rows(keys))

    def example(self, row: int) -> dict[str, Any]:
        """Features and targets of one image."""
        example = {"key": self.keys[row]}
        example |= {name: array[row] for name, array in (self.arrays | self.targets).items()}
        if self.boxes:
            ends = self.boxes["box_ends"]
            own = slice(ends[row - 1] if row else 0, ends[row])
            example |= {name: self.boxes[name][own] for name in ("boxes", "box_labels")}
        return example


class CachedSource:
    """Examples for ``CachedFeaturesObjective``: features instead of an image.

    Args:
        cache: all rows.
        rows: the rows to serve.
    """

    def __init__(self, cache: FeatureCache, rows: Sequence[int]) -> None:
        """Keeps the rows."""
        self._cache = cache
        self._rows = list(rows)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        return self._cache.example(self._rows[index])


@torch.inference_mode()
def cache_features(
    model: VisionModel,
    batches: Iterable[dict[str, Any]],
    *,
    num_images: int,
    folder: Path,
    bf16: bool,
    pooled: bool,
) -> FeatureCache:
    """Runs a frozen model over all images once.

    Args:
        model: in eval mode.
        batches: collated batches with ``image_BCHW`` and targets.
        num_images: images in all batches.
        folder: where the arrays go.
        bf16: whether the forward pass runs under bfloat16 autocast.
        pooled: keep only the pooled pyramid, enough for a linear probe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    keys: list[str] = []
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        features = infer(model, batch["image_BCHW"], bf16=bf16)
        if pooled:
            named = {"feature-pooled": features.pooled_pyramid()}
        else:
            named = {f"feature-map_{k}": map_BCHW for k, map_BCHW in enumerate(features.maps)}
            named["feature-vector"] = features.vector_BD
        rows = {name: value.to(torch.float16).cpu().numpy() for name, value in named.items()}
        rows |= {f"target-{name.rsplit('_', 1)[0]}": batch[name].numpy() for name in TARGETS if name in batch}
        for name, values in rows.items():
            if name not in arrays:
                shape = (num_images, *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
            arrays[name][len(keys) : len(keys) + len(values)] = values
        boxes += _boxes(batch)
        keys += batch["keys"]
    for array in arrays.values():
        array.flush()
    if boxes:
        np.save(folder / "boxes.npy", np.concatenate([own for own, _ in boxes]))
        np.save(folder / "box_labels.npy", np.concatenate([labels for _, labels in boxes]))
        np.save(folder / "box_ends.npy", np.cumsum([len(own) for own, _ in boxes]))
    (folder / KEYS_FILE).write_text(json.dumps(keys))
    return FeatureCache.open(folder)


def compute_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def infer(model: VisionModel, image_BCHW: Tensor, *, bf16: bool) -> Features:
    """Features in float32 on the model's device, computed under bfloat16 autocast where asked."""
    image_BCHW = image_BCHW.to(next(model.parameters()).device)
    with torch.autocast(image_BCHW.device.type, dtype=torch.bfloat16, enabled=bf16):
        features = model(image_BCHW)
    return Features(maps=tuple(m.float() for m in features.maps), vector_BD=features.vector_BD.float())


def backbone_digest(folder: Path) -> str:
    """SHA-256 over names, shapes and bytes of a saved model's backbone weights, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(folder).items()):
        if name.startswith("backbone."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _boxes(batch: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and labels of each image to learn from; none where the images have no such field."""
    if "boxes_BN4" not in batch:
        return []
    boxes_BN4, labels_BN = batch["boxes_BN4"].numpy(), batch["box_labels_BN"].numpy()
    real_BN = labels_BN >= 0
    # A box that a benchmark ignores is no object.
    if "ignored" in batch.get("box_attributes", {}):
        real_BN &= batch["box_attributes"]["ignored"].numpy() != 1
    return [(own[real], labels[real]) for own, labels, real in zip(boxes_BN4, labels_BN, real_BN, strict=True)]
