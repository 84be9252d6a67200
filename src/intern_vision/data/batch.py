"""The batch contract: examples (one transformed sample each) become a dict of torch tensors.

Shape letters: B batch, C channels, H W height and width, L tokens, K concepts, N boxes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import DataError

Example = dict[str, Any]
Batch = dict[str, Any]

# The box axis is padded to a multiple of this, so that few different shapes occur.
_BOX_COUNT_STEP = 4
_IMAGES = {"image": "image_BCHW", "second_image": "second_image_BCHW"}
_STACKED = {
    "label": ("label_B", np.int64),
    "tokens": ("tokens_BL", np.int64),
    "second_tokens": ("second_tokens_BL", np.int64),
    "concepts": ("concepts_BK", np.float32),
    "mask": ("mask_BHW", np.uint8),
    "depth": ("depth_BHW", np.float32),
    "original_size_px": ("original_size_px_B2", np.int64),
}
_KNOWN = {"key", "boxes", "box_labels", *_IMAGES, *_STACKED}


def collate(examples: Sequence[Example]) -> Batch:
    """Stacks examples; a key is in the batch when the first example has it, and then all must.

    ==========================  =========  ====================================================
    key                         dtype      meaning
    ==========================  =========  ====================================================
    ``image_BCHW``              uint8      RGB, 0..255
    ``second_image_BCHW``       uint8      the second view, where there are two
    ``tokens_BL``               int64      caption; ``second_tokens_BL`` the augmented caption
    ``label_B``                 int64      class index, -1 unknown
    ``concepts_BK``             float32    1 where concept k is present
    ``boxes_BN4``               float32    x0 y0 x1 y1 in pixels, padded with zeros
    ``box_labels_BN``           int64      class indices, padded with -1
    ``mask_BHW``                uint8      class indices, 255 ignore
    ``depth_BHW``               float32    metres, 0 unknown
    ``original_size_px_B2``     int64      height and width before an evaluation resize
    ``keys``                    list[str]  sample keys
    any other name              as given   arrays of equal shape, such as cached features
    ==========================  =========  ====================================================

    Raises:
        DataError: examples differ in the fields they have.
    """
    import torch

    names = examples[0].keys()
    for example in examples:
        if example.keys() != names:
            odd = ", ".join(sorted(example.keys() ^ names))
            raise DataError(
                f"samples {examples[0]['key']} and {example['key']} differ in {odd}; "
                "ask only for fields that every sample has"
            )
    arrays: dict[str, NDArray[Any]] = {}
    for name, batch_name in _IMAGES.items():
        if name in names:
            arrays[batch_name] = _channels_first([example[name] for example in examples])
    for name, (batch_name, dtype) in _STACKED.items():
        if name in names:
            arrays[batch_name] = np.array([example[name] for example in examples], dtype)
    for name in names - _KNOWN:
        arrays[name] = np.stack([example[name] for example in examples])
    if "boxes" in names:
        arrays["boxes_BN4"], arrays["box_labels_BN"] = _pad_boxes(examples)
    batch: Batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    batch["keys"] = [example["key"] for example in examples]
    return batch


def _channels_first(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    import cv2

    height, width, num_channels = images[0].shape
    out = np.empty((len(images), num_channels, height, width), np.uint8)
    # OpenCV's split is several times as fast as a strided numpy copy.
    for image, planes in zip(images, out, strict=True):
        cv2.split(image, list(planes))
    return out


def _pad_boxes(examples: Sequence[Example]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    most = max(len(example["boxes"]) for example in examples)
    num_boxes = max(1, -(-most // _BOX_COUNT_STEP)) * _BOX_COUNT_STEP
    boxes = np.zeros((len(examples), num_boxes, 4), np.float32)
    labels = np.full((len(examples), num_boxes), -1, np.int64)
    for row, example in enumerate(examples):
        count = len(example["boxes"])
        boxes[row, :count] = example["boxes"]
        labels[row, :count] = example["box_labels"]
    return boxes, labels
