"""Brings a prediction from the size a model saw to the size of a person's image."""

import dataclasses

import numpy as np

from intern_vision.heads.base import Prediction


def resize_prediction(prediction: Prediction, size_px: tuple[int, int], target_px: tuple[int, int]) -> Prediction:
    """The same prediction in another image size.

    Args:
        prediction: in pixels of an image of ``size_px``.
        size_px: ``(height, width)`` the prediction was made at.
        target_px: ``(height, width)`` wanted.

    Returns:
        Boxes scaled; the mask by nearest and depth by linear interpolation; scores unchanged.
    """
    if size_px == tuple(target_px):
        return prediction
    import cv2

    (height, width), (target_height, target_width) = size_px, target_px
    changes = {}
    if prediction.boxes is not None:
        scale = (target_width / width, target_height / height)
        changes["boxes"] = (prediction.boxes * np.array(scale * 2)).astype(np.float32)
    if prediction.mask is not None:
        changes["mask"] = cv2.resize(prediction.mask, (target_width, target_height), interpolation=cv2.INTER_NEAREST)
    if prediction.depth is not None:
        changes["depth"] = cv2.resize(prediction.depth, (target_width, target_height), interpolation=cv2.INTER_LINEAR)
    return dataclasses.replace(prediction, **changes)
