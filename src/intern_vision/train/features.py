"""Features of a frozen backbone, computed once and read from disk. B batch, C channels, D width, N images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intern_vision.models.features import Features
from intern_vision.models.vision import VisionModel

TARGETS = ("label_B", "concepts_BK", "boxes_BN4", "box_labels_BN", "mask_BHW", "depth_BHW")


@dataclass(slots=True)
class FeatureCache:
    """Memory-mapped float16 features and the targets of the same images.

    Attributes:
        keys: sample keys in row order.
        arrays: ``pooled`` ``(N, D)``, or ``map_<k>`` ``(N, C, H, W)`` and ``vector`` ``(N, D)``.
        targets: for each image its targets, as an example's fields.
    """

    keys: list[str]
    arrays: dict[str, np.ndarray]
    targets: list[dict[str, Any]]

    def rows(self, keys: Sequence[str]) -> list[int]:
        """Row numbers of these keys, in row order."""
        wanted = set(keys)
        return [row for row, key in enumerate(self.keys) if key in wanted]

    def source(self, keys: Sequence[str]) -> "CachedSource":
        """Random access to the examples of these keys."""
        return CachedSource(self, self.rows(keys))


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
        row = self._rows[index]
        features = {name: array[row] for name, array in self._cache.arrays.items()}
        return {"key": self._cache.keys[row], **features, **self._cache.targets[row]}


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
        folder: where the memory-mapped arrays go.
        bf16: whether the forward pass runs under bfloat16 autocast.
        pooled: keep only the pooled pyramid, enough for a linear probe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    keys: list[str] = []
    targets: list[dict[str, Any]] = []
    for batch in batches:
        features = infer(model, batch["image_BCHW"], bf16=bf16)
        if pooled:
            named = {"pooled": features.pooled_pyramid()}
        else:
            named = {f"map_{k}": map_BCHW for k, map_BCHW in enumerate(features.maps)}
            named["vector"] = features.vector_BD
        for name, value in named.items():
            if name not in arrays:
                shape = (num_images, *value.shape[1:])
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
            arrays[name][len(keys) : len(keys) + len(value)] = value.to(torch.float16).cpu().numpy()
        targets += _targets(batch)
        keys += batch["keys"]
    return FeatureCache(keys, arrays, targets)


def compute_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def infer(model: VisionModel, image_BCHW: Tensor, *, bf16: bool) -> Features:
    """Features in float32 on the model's device, computed under bfloat16 autocast where asked."""
    image_BCHW = image_BCHW.to(next(model.parameters()).device)
    with torch.autocast(image_BCHW.device.type, dtype=torch.bfloat16, enabled=bf16):
        features = model(image_BCHW)
    return Features(maps=tuple(m.float() for m in features.maps), vector_BD=features.vector_BD.float())


def _targets(batch: dict[str, Any]) -> list[dict[str, Any]]:
    present = {name: batch[name].numpy() for name in TARGETS if name in batch}
    rows = []
    for index in range(len(batch["keys"])):
        row = {name.rsplit("_", 1)[0]: value[index] for name, value in present.items()}
        if "boxes" in row:
            real = row["box_labels"] >= 0
            row["boxes"], row["box_labels"] = row["boxes"][real], row["box_labels"][real]
        rows.append(row)
    return rows
