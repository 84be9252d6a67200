"""Brings predictions from the size a model saw to the sizes of the images. H W height and width."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from intern_vision.heads.base import Prediction, TaskHead

Size = tuple[int, int]
# Families whose outputs are a map, which is resized before it becomes a prediction.
MAP_FAMILIES = ("segment", "depth")


def predict_at(
    head: TaskHead, outputs: dict[str, Tensor], size_px: Size, target_sizes_px: Sequence[Size]
) -> list[Prediction]:
    """A head's predictions, each in the pixels of its own image.

    Logits and depths are resized linearly before anything is decided a pixel, so borders are as fine as the image
    allows. Images of another size than the model's are taken one by one: the memory is that of one image's logits.

    Args:
        head: what made the outputs.
        outputs: of a batch; every tensor has the batch as its first axis.
        size_px: ``(height, width)`` that the model saw, to which each image was stretched.
        target_sizes_px: ``(height, width)`` of each image.

    Returns:
        A prediction an image.
    """
    if all(tuple(target_px) == size_px for target_px in target_sizes_px):
        return head.predict(outputs, size_px)
    if head.task.family in MAP_FAMILIES:
        return [
            head.predict({name: tensor[row : row + 1] for name, tensor in outputs.items()}, tuple(target_px))[0]
            for row, target_px in enumerate(target_sizes_px)
        ]
    found = head.predict(outputs, size_px)
    return [
        _moved(prediction, size_px, target_px) for prediction, target_px in zip(found, target_sizes_px, strict=True)
    ]


def _moved(prediction: Prediction, size_px: Size, target_px: Size) -> Prediction:
    """The same boxes in an image of another size; everything else does not depend on it."""
    if prediction.boxes is None:
        return prediction
    factor_4 = np.array([target_px[1] / size_px[1], target_px[0] / size_px[0]] * 2)
    return dataclasses.replace(prediction, boxes=(prediction.boxes * factor_4).astype(np.float32))
