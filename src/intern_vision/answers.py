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


def to_json(prediction: Prediction, task: Task, min_score: float = 0.0) -> dict[str, Any]:
    """A prediction as JSON values, by family.

    ``classify``: ``label``, ``score``, ``top5`` (label and score, best first). ``multilabel``:
    ``labels`` with a score of at least 0.5, ``top5``. ``detect``: ``boxes`` (``x0 y0 x1 y1``
    in pixels), ``labels``, ``scores``. ``segment``: ``size_px`` (height, width) and the mask's
    runs in row order: ``numpy.repeat(values, lengths).reshape(size_px)`` gives class indices,
    ``class_names`` their names. ``depth``: ``size_px`` and ``png16``, a base64 16-bit PNG
    whose pixels times ``scale_m`` are metres.

    Args:
        prediction: what the head said about one image.
        task: the head's family and label names.
        min_score: weaker boxes are left out (detect).
    """
    if task.family == "detect":
        return _boxes_json(prediction, task, min_score)
    if task.family == "segment":
        return _mask_json(prediction.mask, task)
    if task.family == "depth":
        return _depth_json(prediction.depth, task)
    best = np.argsort(-prediction.scores, kind="stable")
    top5 = [{"label": task.class_names[i], "score": float(prediction.scores[i])} for i in best[:5]]
    if task.family == "multilabel":
        present = [task.class_names[i] for i in best if prediction.scores[i] >= _MULTILABEL_MIN_SCORE]
        return {"labels": present, "top5": top5}
    label = prediction.label
    return {"label": task.class_names[label], "score": float(prediction.scores[label]), "top5": top5}


def _boxes_json(prediction: Prediction, task: Task, min_score: float) -> dict[str, Any]:
    kept = prediction.scores >= min_score
    return {
        "boxes": [[float(value) for value in box] for box in prediction.boxes[kept]],
        "labels": [task.class_names[label] for label in prediction.labels[kept]],
        "scores": [float(score) for score in prediction.scores[kept]],
    }


def _mask_json(mask: NDArray[np.uint8], task: Task) -> dict[str, Any]:
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    return {
        "size_px": list(mask.shape),
        "values": flat[starts].tolist(),
        "lengths": np.diff(np.append(starts, flat.size)).tolist(),
        "class_names": list(task.class_names),
    }


def _depth_json(depth: NDArray[np.float32], task: Task) -> dict[str, Any]:
    scale_m = task.max_depth_m / _MAX_DEPTH_UNITS
    units = np.clip(np.rint(depth / scale_m), 0, _MAX_DEPTH_UNITS).astype(np.uint16)
    return {"size_px": list(depth.shape), "scale_m": scale_m, "png16": base64.b64encode(encode_png(units)).decode()}
