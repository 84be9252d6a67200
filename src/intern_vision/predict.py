"""Predictions of a registered model on files, drawn on the pictures."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intern_vision.errors import DataError
from intern_vision.heads.base import Prediction
from intern_vision.task import Task

MIN_SHOWN_SCORE = 0.3


def predict_files(model: str, images: Sequence[Path], out: Path, head: str | None) -> list[dict[str, Any]]:
    """Asks a model about pictures and writes each answer as a picture.

    Args:
        model: ``models:/NAME@ALIAS`` or the address of weights on the store.
        images: JPEG, PNG or other picture files.
        out: folder for ``<name>-<head>.png``; of pictures with equal names the later ones get a number.
        head: one head's name; None asks all.

    Returns:
        For each image and head: ``image``, ``head``, ``text`` (the answer in words), ``drawn`` (the
        picture's path) and ``answer`` (JSON values, see ``intern_vision.serving``).

    Raises:
        DataError: a file is not a picture.
        MissingObjectError: there is no such model.
    """
    import cv2

    from intern_vision.answers import to_json
    from intern_vision.bench.draw import draw_prediction
    from intern_vision.data.codec import decode_image
    from intern_vision.models.vision import VisionModel, best_labelled_dir
    from intern_vision.registry import weights_uri
    from intern_vision.stages.base import fetch, read_record
    from intern_vision.store import open_store

    pictures = []
    for path in images:
        try:
            pictures.append(decode_image(path.read_bytes()))
        except ValueError as error:
            raise DataError(f"{path}: not a picture that can be read ({error})") from None
    uri = weights_uri(model)
    store = open_store(uri)
    with tempfile.TemporaryDirectory() as folder:
        vision = VisionModel.load(best_labelled_dir(fetch(store, read_record(store, uri).ref, Path(folder))))
    out.mkdir(parents=True, exist_ok=True)
    names = _unique_names(images)
    rows = []
    for name, predictions in vision.predict(pictures, head).items():
        task = vision.spec.heads[name].task
        for path, own_name, picture, prediction in zip(images, names, pictures, predictions, strict=True):
            target = out / f"{own_name}-{name}.png"
            cv2.imwrite(str(target), cv2.cvtColor(draw_prediction(picture, prediction, task), cv2.COLOR_RGB2BGR))
            rows.append(
                {
                    "image": str(path),
                    "head": name,
                    "text": in_words(prediction, task),
                    "drawn": str(target),
                    "answer": to_json(prediction, task, MIN_SHOWN_SCORE),
                }
            )
    return rows


def _unique_names(images: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for path in images:
        numbered = (f"{path.stem}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([path.stem], numbered) if name not in names))
    return names


def in_words(prediction: Prediction, task: Task) -> str:
    """One short line about a prediction."""
    names = task.class_names
    if task.family == "classify":
        return f"{names[prediction.label]} ({prediction.scores[prediction.label]:.2f})"
    if task.family == "multilabel":
        best = (-prediction.scores).argsort()[:5]
        return ", ".join(f"{names[i]} ({prediction.scores[i]:.2f})" for i in best)
    if task.family == "detect":
        shown = prediction.scores >= MIN_SHOWN_SCORE
        found = [
            f"{names[i]} ({s:.2f})" for i, s in zip(prediction.labels[shown], prediction.scores[shown], strict=True)
        ]
        return ", ".join(found) or f"nothing above {MIN_SHOWN_SCORE}"
    if task.family == "segment":
        present = {names[i]: int((prediction.mask == i).sum()) for i in set(prediction.mask.ravel().tolist())}
        total = prediction.mask.size
        ranked = sorted(present.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in ranked)
    return f"{prediction.depth.min():.2f} m to {prediction.depth.max():.2f} m"
