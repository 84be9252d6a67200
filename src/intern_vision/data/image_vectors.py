"""What a frozen model makes of images of any size, a batch in memory at a time.

N images, B images of a batch, D width of a vector.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from intern_vision.models.features import Features
    from intern_vision.models.vision import VisionModel

BATCH_IMAGES = 64


class ImageVectors:
    """A frozen model and how images are given to it, for all who compare images by what it sees.

    Attributes:
        model: in eval mode, on the GPU where there is one.

    Args:
        model: moved and set to eval mode in place.
    """

    def __init__(self, model: "VisionModel") -> None:
        from intern_vision.train.features import compute_device

        self.model = model.to(compute_device()).eval()

    @classmethod
    def load(cls, folder: Path) -> "ImageVectors":
        """The weights that a training stage wrote: of an adapted model those learned from the most labels.

        Raises:
            CheckpointError: the weights and their description are missing or do not fit.
        """
        from intern_vision.models.vision import VisionModel, best_labelled_dir

        return cls(VisionModel.load(best_labelled_dir(folder)))

    def batches(self, images: Sequence[NDArray[np.uint8]]) -> "Iterator[Tensor]":
        """Images as the model takes them.

        Args:
            images: RGB, each ``(height, width, 3)`` uint8, stretched to the model's square where they are not of it.

        Yields:
            ``(B, 3, side, side)`` uint8 on the model's device, B at most ``BATCH_IMAGES``.
        """
        import torch

        from intern_vision.data.augment import resize_image

        side_px = self.model.spec.image_size_px
        device = next(self.model.parameters()).device
        for start in range(0, len(images), BATCH_IMAGES):
            batch = images[start : start + BATCH_IMAGES]
            square = [each if each.shape[:2] == (side_px, side_px) else resize_image(each, side_px) for each in batch]
            yield torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2).to(device)

    def features(self, image_BCHW: "Tensor") -> "Features":
        """What the backbone gives for a batch, as the first head's family sees it; to be called in inference mode."""
        view, *_ = self.model.views
        return self.model.view_features(image_BCHW, (view,))[view]

    def unit(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Pooled image vectors ``(N, D)`` float32 of length 1, for images as ``batches`` takes them."""
        import torch
        import torch.nn.functional as F

        vectors_ND = np.zeros((len(images), self.model.backbone.vector_width), np.float32)
        with torch.inference_mode():
            for number, image_BCHW in enumerate(self.batches(images)):
                unit_BD = F.normalize(self.features(image_BCHW).vector_BD.float(), dim=1)
                vectors_ND[number * BATCH_IMAGES :][: len(unit_BD)] = unit_BD.cpu().numpy()
        return vectors_ND
