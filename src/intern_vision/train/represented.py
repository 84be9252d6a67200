"""Images drawn anew from an upstream codebook, once, for multi-stage fine-tuning (MF; OTA, arXiv 2111.12386).

B batch, C channels, H W height and width, N images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intern_vision.bench.protocol import list_digest
from intern_vision.data.augment import Resize
from intern_vision.data.loader import ShardSource, Source, evaluation_batches
from intern_vision.data.sample import Sample
from intern_vision.data.settings import AugmentConfig
from intern_vision.models.quantised import QuantisedAutoencoder
from intern_vision.ref import Ref
from intern_vision.stages.base import StageContext
from intern_vision.train.array_cache import ArrayCache, cache_key
from intern_vision.train.features import KEYS_FILE, compute_device
from intern_vision.train.objective import Objective

IMAGES_FILE = "images.npy"
CACHE_FOLDER = "represented"


class CodebookObjective(Objective):
    """Restores images through the codebook."""

    model: QuantisedAutoencoder

    def forward(self, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See ``Objective``."""
        return self.model.losses(batch["image_BCHW"]), {}


class RepresentedSource:
    """The samples of a source with their images drawn anew; everything else about them stays.

    Args:
        images: the samples.
        restored_NHWC: uint8 images drawn anew, at the codebook's size.
        keys: their samples' keys.
    """

    def __init__(self, images: Source, restored_NHWC: np.ndarray, keys: Sequence[str]) -> None:
        """Keeps the three."""
        self._images = images
        self._restored_NHWC = restored_NHWC
        self._row_of = {key: row for row, key in enumerate(keys)}

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """One sample, its image at the size it had, so that boxes and masks fit."""
        import cv2

        sample = self._images[index]
        height, width = sample.image.shape[:2]
        restored_HWC = np.ascontiguousarray(self._restored_NHWC[self._row_of[sample.key]])
        if restored_HWC.shape[:2] != (height, width):
            restored_HWC = cv2.resize(restored_HWC, (width, height), interpolation=cv2.INTER_LINEAR)
        return replace(sample, image=restored_HWC)


def represented_source(
    images: Source, labelled: ShardSource, codebook: Ref, context: StageContext, *, bf16: bool
) -> RepresentedSource:
    """The samples of ``images`` drawn anew; all of ``labelled`` are restored once and kept on this machine.

    Args:
        images: some of ``labelled``.
        labelled: every labelled image.
        codebook: output of a represent stage.
        context: of the stage.
        bf16: whether the codebook runs under bfloat16 autocast.

    Raises:
        CheckpointError: ``codebook`` holds none.
    """

    def make(folder: Path) -> None:
        model = QuantisedAutoencoder.load(context.fetch(codebook)).to(compute_device())
        size_px = model.config.image_size_px
        resize = Resize(AugmentConfig(image_size_px=size_px), num_concepts=len(labelled.info.concept_names))
        shape = (len(labelled), size_px, size_px, 3)
        restored_NHWC = np.lib.format.open_memmap(folder / IMAGES_FILE, "w+", np.uint8, shape)
        row = 0
        for batch in evaluation_batches(labelled, 64, resize):
            image_BCHW = batch["image_BCHW"].to(compute_device())
            with torch.autocast(image_BCHW.device.type, dtype=torch.bfloat16, enabled=bf16):
                restored_BCHW = model.restore(image_BCHW)
            restored_NHWC[row : row + len(restored_BCHW)] = restored_BCHW.permute(0, 2, 3, 1).cpu().numpy()
            row += len(restored_BCHW)
        restored_NHWC.flush()
        (folder / KEYS_FILE).write_text(json.dumps(labelled.keys))

    def read(folder: Path) -> tuple[np.ndarray, list[str]]:
        return np.load(folder / IMAGES_FILE, mmap_mode="r"), json.loads((folder / KEYS_FILE).read_text())

    key = cache_key(codebook.digest, [labelled.info.to_dict(), "train", list_digest(labelled.keys)], bf16)
    return RepresentedSource(images, *ArrayCache(context.cache_dir / CACHE_FOLDER).get(key, make, read))
