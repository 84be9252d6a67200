"""The batch contract: examples (one transformed sample each) become a dict of torch tensors.

Shape letters: B batch, C channels, H W height and width, L tokens, K concepts, N boxes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import DataError

Example = dict[str, Any]
Batch = dict[str, Any]

# The box axis is padded to a multiple of this, so that few different shapes occur.
_BOX_COUNT_STEP = 4
_IMAGES = {"image": "image_BCHW", "second_image": "second_image_BCHW"}
_LISTED = {"key", "boxes", "box_labels", "box_attributes"}
_STACKED = {
    "source": ("source_B", np.int64),
    "label": ("label_B", np.int64),
    "tokens": ("tokens_BL", np.int64),
    "second_tokens": ("second_tokens_BL", np.int64),
    "masked_tokens": ("masked_tokens_BL", np.int64),
    "token_targets": ("token_targets_BL", np.int64),
    "affine": ("affine_B23", np.float32),
    "second_affine": ("second_affine_B23", np.float32),
    "concepts": ("concepts_BK", np.float32),
    "mask": ("mask_BHW", np.uint8),
    "depth": ("depth_BHW", np.float32),
    "original_size_px": ("original_size_px_B2", np.int64),
}


def collate(examples: Iterable[Example], num_examples: int = 0) -> Batch:
    """Stacks examples; a key is in the batch when the first example has it, and then all must.

    Each example is copied into the batch before the next is asked for: where an iterator makes them,
    the memory of one serves all, and memory that is fresh costs more than the copying.

    ==========================  =========  ====================================================
    key                         dtype      meaning
    ==========================  =========  ====================================================
    ``image_BCHW``              uint8      RGB, 0..255
    ``second_image_BCHW``       uint8      the second view, where there are two
    ``tokens_BL``               int64      caption; ``second_tokens_BL`` the augmented caption
    ``masked_tokens_BL``        int64      caption with hidden tokens
    ``token_targets_BL``        int64      the hidden tokens, -100 elsewhere
    ``affine_B23``              float32    map of source pixels to the view's; ``second_affine_B23``
    ``source_B``                int64      number of the sample's dataset, where several are mixed
    ``label_B``                 int64      class index, -1 unknown
    ``concepts_BK``             float32    1 where concept k is present
    ``boxes_BN4``               float32    x0 y0 x1 y1 in pixels, padded with zeros
    ``box_labels_BN``           int64      class indices, padded with -1
    ``box_attributes``          dict       name to ``(B, N)`` float32, padded with NaN, as where a sample has none
    ``mask_BHW``                uint8      class indices, 255 ignore
    ``depth_BHW``               float32    metres, 0 unknown
    ``original_size_px_B2``     int64      height and width before an evaluation resize
    ``keys``                    list[str]  sample keys
    any other name              as given   arrays of equal shape, such as cached features
    ==========================  =========  ====================================================

    Args:
        examples: at least one.
        num_examples: how many; needed where ``examples`` has no length.

    Raises:
        DataError: examples differ in the fields they have or in the shape of one.
    """
    import torch

    arrays: dict[str, NDArray[Any]] = {}
    rest: list[Example] = []
    for row, example in enumerate(examples):
        if not row:
            names = example.keys()
            large = [name for name in names - _LISTED if np.ndim(example[name]) > 1]
            small = names - large
            arrays = {name: _empty(name, example[name], num_examples or len(examples)) for name in large}  # type: ignore[arg-type]
        elif example.keys() != names:
            odd = ", ".join(sorted(example.keys() ^ names))
            raise DataError(
                f"samples {rest[0]['key']} and {example['key']} differ in {odd}; "
                "ask only for fields that every sample has"
            )
        for name in large:
            _copy(example, name, arrays[name][row])
        rest.append({name: example[name] for name in small})
    for name in small - _LISTED:
        arrays[name] = np.array([example[name] for example in rest], _STACKED[name][1] if name in _STACKED else None)
    batch: Batch = {_batch_name(name): torch.from_numpy(array) for name, array in arrays.items()}
    if "boxes" in names:
        batch |= _padded_boxes(rest)
    return batch | {"keys": [example["key"] for example in rest]}


def _batch_name(name: str) -> str:
    return _IMAGES.get(name) or _STACKED.get(name, (name,))[0]


def _empty(name: str, value: NDArray[Any], num_examples: int) -> NDArray[Any]:
    if name in _IMAGES:
        height, width, num_channels = value.shape
        return np.empty((num_examples, num_channels, height, width), np.uint8)
    return np.empty((num_examples, *value.shape), _STACKED[name][1] if name in _STACKED else value.dtype)


def _copy(example: Example, name: str, row: NDArray[Any]) -> None:
    """Writes a field into its row; an image with its channels first."""
    value = example[name]
    shape = (value.shape[2], *value.shape[:2]) if name in _IMAGES else value.shape
    if shape != row.shape:
        raise DataError(
            f"sample {example['key']}: {name} has shape {value.shape}, which differs from the batch's first; "
            "use a transform that gives every sample one size"
        )
    if name in _IMAGES:
        import cv2

        # OpenCV's split is several times as fast as a strided numpy copy.
        cv2.split(value, list(row))
    else:
        row[...] = value


def _padded_boxes(examples: Sequence[Example]) -> Batch:
    import torch

    most = max(len(example["boxes"]) for example in examples)
    num_boxes = max(1, -(-most // _BOX_COUNT_STEP)) * _BOX_COUNT_STEP
    boxes = np.zeros((len(examples), num_boxes, 4), np.float32)
    labels = np.full((len(examples), num_boxes), -1, np.int64)
    names = sorted({name for example in examples for name in example.get("box_attributes", ())})
    attributes = {name: np.full((len(examples), num_boxes), np.nan, np.float32) for name in names}
    for row, example in enumerate(examples):
        count = len(example["boxes"])
        boxes[row, :count] = example["boxes"]
        labels[row, :count] = example["box_labels"]
        for name, values in example.get("box_attributes", {}).items():
            attributes[name][row, :count] = values
    batch: Batch = {"boxes_BN4": torch.from_numpy(boxes), "box_labels_BN": torch.from_numpy(labels)}
    if attributes:
        batch["box_attributes"] = {name: torch.from_numpy(values) for name, values in attributes.items()}
    return batch
