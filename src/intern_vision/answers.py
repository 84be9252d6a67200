"""Predictions as JSON values."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.codec import encode_png
from intern_vision.heads.base import Prediction
from intern_vision.task import Task

_MULTILABEL_MIN_SCORE = 0.5
_MAX_DEPTH_UNITS = 65_535


def to_json(
    prediction: Prediction, task: Task, min_score: float = 0.0, *, top_k: int = 5, mask: str = "coco_rle"
) -> dict[str, Any]:
    """A prediction as JSON values, by family.

    ``classify``: ``label``, ``score``, and ``top``, the best labels with their scores. ``multilabel``: ``labels``
    with a score of at least 0.5, and ``top``. ``detect``: ``boxes`` (``x0 y0 x1 y1`` in pixels), ``labels``,
    ``scores``, best first. ``segment``: ``size_px`` (height, width) and by form either ``segments``, for each class
    that is there its ``label``, ``area_px`` and ``segmentation`` (COCO's compressed run lengths, which pycocotools
    reads), or ``png``, a base64 8-bit PNG of class indices, and ``class_names``. ``depth``: ``size_px`` and
    ``png16``, a base64 16-bit PNG whose pixels times ``scale_m`` are metres.

    Args:
        prediction: what the head said about one image.
        task: the head's family and label names.
        min_score: weaker boxes are left out (detect).
        top_k: length of ``top``.
        mask: one of ``MASK_FORMS`` (segment).
    """
    if task.family == "detect":
        return _boxes_json(prediction, task, min_score)
    if task.family == "segment":
        size_px = list(prediction.mask.shape)
        return {"size_px": size_px} | MASK_FORMS[mask](prediction.mask, task)
    if task.family == "depth":
        return _depth_json(prediction.depth, task)
    best = np.argsort(-prediction.scores, kind="stable")
    top = [{"label": task.class_names[i], "score": float(prediction.scores[i])} for i in best[:top_k]]
    if task.family == "multilabel":
        present = [task.class_names[i] for i in best if prediction.scores[i] >= _MULTILABEL_MIN_SCORE]
        return {"labels": present, "top": top}
    label = prediction.label
    return {"label": task.class_names[label], "score": float(prediction.scores[label]), "top": top}


def _boxes_json(prediction: Prediction, task: Task, min_score: float) -> dict[str, Any]:
    kept = prediction.scores >= min_score
    return {
        "boxes": [[float(value) for value in box] for box in prediction.boxes[kept]],
        "labels": [task.class_names[label] for label in prediction.labels[kept]],
        "scores": [float(score) for score in prediction.scores[kept]],
    }


def _mask_rle(mask: NDArray[np.uint8], task: Task) -> dict[str, Any]:
    from faster_coco_eval.core.mask import encode

    segments = []
    for label in np.unique(mask):
        runs = encode(np.asfortranarray(mask == label, np.uint8))
        segments.append(
            {
                "label": task.class_names[label],
                "area_px": int((mask == label).sum()),
                "segmentation": {"size": list(mask.shape), "counts": runs["counts"].decode()},
            }
        )
    return {"segments": segments}


def _mask_png(mask: NDArray[np.uint8], task: Task) -> dict[str, Any]:
    return {"png": base64.b64encode(encode_png(mask)).decode(), "class_names": list(task.class_names)}


MASK_FORMS = {"coco_rle": _mask_rle, "png": _mask_png}
"""Forms of a segmentation mask in an answer."""


def _depth_json(depth: NDArray[np.float32], task: Task) -> dict[str, Any]:
    scale_m = task.max_depth_m / _MAX_DEPTH_UNITS
    units = np.clip(np.rint(depth / scale_m), 0, _MAX_DEPTH_UNITS).astype(np.uint16)
    return {"size_px": list(depth.shape), "scale_m": scale_m, "png16": base64.b64encode(encode_png(units)).decode()}
