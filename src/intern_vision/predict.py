"""Predictions of a registered model on pictures, drawn on them."""

import itertools
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.errors import ConfigError
from intern_vision.pictures import Sources, list_pictures, read_picture

if TYPE_CHECKING:
    from intern_vision.heads.base import Prediction
    from intern_vision.models.vision import VisionModel
    from intern_vision.task import Task

MIN_SHOWN_SCORE = 0.3
# Pictures decoded at once.
_CHUNK_PICTURES = 16


def load_weights(model: str) -> "VisionModel":
    """The model behind ``NAME@ALIAS``, ``NAME`` or the address of weights on the store, in eval mode.

    Raises:
        ConfigError: the name is malformed.
        MissingObjectError: there is no such model.
    """
    from intern_vision.models.vision import VisionModel, best_labelled_dir
    from intern_vision.registry import weights_uri
    from intern_vision.stages.base import fetch, read_record
    from intern_vision.store import open_store

    uri = weights_uri(model)
    store = open_store(uri)
    with tempfile.TemporaryDirectory() as folder:
        return VisionModel.load(best_labelled_dir(fetch(store, read_record(store, uri).ref, Path(folder))))


def predict_files(model: str, images: Iterable[str | Path], out: Path, head: str | None) -> list[dict[str, Any]]:
    """Asks a model about pictures and writes each answer as a picture.

    Args:
        model: ``NAME@ALIAS`` of a registered model or the address of weights on the store.
        images: picture files, folders of them, ``http(s)://`` and ``s3://`` addresses.
        out: folder for ``<name>-<head>.png``; of pictures with equal names the later ones get a number.
        head: one head's name; None asks all.

    Returns:
        For each image and head: ``image``, ``head``, ``text`` (the answer in words), ``drawn`` (the
        picture's path) and ``answer`` (JSON values, see ``intern_vision.answers``).

    Raises:
        DataError: one of them is not a picture, is too large or cannot be reached; of local ones nothing is written
            then, as all are looked at before the model is asked.
        ConfigError: the model has no such head, or none at all.
        MissingObjectError: there is no such model.
    """
    import cv2

    from intern_vision.answers import to_json
    from intern_vision.bench.draw import draw_prediction

    sources = Sources()
    listed = list_pictures([str(image) for image in images])
    for image in listed:
        if "://" not in image:
            read_picture(image, sources)
    vision = load_weights(model)
    if not vision.heads:
        raise ConfigError(f"model {model}: has no head that could answer; adapt it to a task first: intern adapt")
    out.mkdir(parents=True, exist_ok=True)
    names = _unique_names(listed)
    rows = []
    for start in range(0, len(listed), _CHUNK_PICTURES):
        chunk = listed[start : start + _CHUNK_PICTURES]
        pictures = [read_picture(image, sources) for image in chunk]
        for head_name, predictions in vision.predict(pictures, head).items():
            task = vision.spec.heads[head_name].task
            own_names = names[start : start + _CHUNK_PICTURES]
            for image, own_name, picture, prediction in zip(chunk, own_names, pictures, predictions, strict=True):
                target = out / f"{own_name}-{head_name}.png"
                cv2.imwrite(str(target), cv2.cvtColor(draw_prediction(picture, prediction, task), cv2.COLOR_RGB2BGR))
                rows.append(
                    {
                        "image": image,
                        "head": head_name,
                        "text": in_words(prediction, task),
                        "drawn": str(target),
                        "answer": to_json(prediction, task, MIN_SHOWN_SCORE),
                    }
                )
    return rows


def _unique_names(images: Sequence[str]) -> list[str]:
    """A file name for each picture, from its own; an address's last segment may hold anything."""
    names: list[str] = []
    for image in images:
        last = image.partition("?")[0].rstrip("/").rpartition("/")[2] if "://" in image else Path(image).name
        stem = re.sub(r"[^\w.-]", "_", Path(last).stem).strip(".") or "picture"
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([stem], numbered) if name not in names))
    return names


def in_words(prediction: "Prediction", task: "Task") -> str:
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
