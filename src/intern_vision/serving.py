"""The code of a registered model: an MLflow pyfunc model around ``VisionModel``, logged as code, not as a pickle.

MLflow runs this file when it loads the model; the weights come from the artifact ``model``.
H and W are an image's height and width in pixels.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel

from intern_vision.answers import MASK_FORMS, to_json
from intern_vision.errors import ConfigError, DataError, InternError
from intern_vision.models.vision import VisionModel
from intern_vision.pictures import ALLOW_VARIABLE, Sources, read_picture

MODEL_ARTIFACT = "model"
IMAGE_COLUMN = "image"
DEFAULT_PARAMS: dict[str, str | float | int] = {"head": "", "min_score": 0.05, "top_k": 5, "mask": "coco_rle"}
# Rows decoded at once: bounds the memory of a request to so many pictures.
CHUNK_ROWS = 16
# Set by MLflow's scoring server, which any client may reach.
_SERVING_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


class InternModel(PythonModel):
    """Answers images with labels, boxes, masks and depth as plain JSON values."""

    def load_context(self, context: Any) -> None:
        """Loads the weights from the artifact ``model``."""
        self.model = VisionModel.load(Path(context.artifacts[MODEL_ARTIFACT]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Predicts a batch of images of any sizes.

        Args:
            context: MLflow's; not used.
            model_input: a table with a column ``image``, as a DataFrame, as rows ``[{"image": cell}]`` or as
                ``{"image": [cell, ...]}``. A cell is what ``read_picture`` takes: encoded bytes, base64 text, a
                local path, an ``http(s)://`` or ``s3://`` address, or a uint8 array ``(H, W, 3)``, RGB. A served
                model reads no paths and no private addresses unless ``INTERN_SERVE_ALLOW`` says so.
            params: ``head`` names one head (default all), ``min_score`` in [0, 1] leaves out weaker boxes (default
                0.05), ``top_k`` is the number of best labels (default 5), ``mask`` the form of masks, ``coco_rle``
                or ``png``.

        Returns:
            One dict an image: for each head name the values of ``to_json``.

        Raises:
            MlflowException: a row is no image, or the head or a parameter is wrong; the model server passes only this
                kind's message on. The cause is a DataError that names the row, or a ConfigError.
        """
        try:
            return self._answers(list(_cells(model_input)), _checked(params))
        except InternError as error:
            raise MlflowException(str(error), error_code=BAD_REQUEST) from error

    def _answers(self, cells: list[Any], params: dict[str, Any]) -> list[dict[str, Any]]:
        if not self.model.heads:
            raise ConfigError("model: has no head that could answer; adapt it to a task first: intern adapt")
        sources = _sources()
        form = {name: params[name] for name in ("min_score", "top_k", "mask")}
        answers: list[dict[str, Any]] = []
        for start in range(0, len(cells), CHUNK_ROWS):
            chunk = cells[start : start + CHUNK_ROWS]
            images = [_image(cell, start + row, sources) for row, cell in enumerate(chunk)]
            found = self.model.predict(images, params["head"] or None)
            tasks = {name: self.model.spec.heads[name].task for name in found}
            answers += [
                {name: to_json(found[name][row], task, **form) for name, task in tasks.items()}
                for row in range(len(images))
            ]
        return answers


def _sources() -> Sources:
    is_served = ALLOW_VARIABLE in os.environ or os.environ.get(_SERVING_VARIABLE, "").lower() == "true"
    return Sources.served() if is_served else Sources()


def _checked(params: Mapping[str, Any] | None) -> dict[str, Any]:
    checked = DEFAULT_PARAMS | dict(params or {})
    unknown = sorted(set(checked) - set(DEFAULT_PARAMS))
    if unknown:
        raise ConfigError(f"params.{unknown[0]}: unknown; known are {', '.join(DEFAULT_PARAMS)}")
    if checked["mask"] not in MASK_FORMS:
        raise ConfigError(f"params.mask: expected one of {', '.join(MASK_FORMS)}, got {checked['mask']!r}")
    if not checked["top_k"] >= 1:
        raise ConfigError(f"params.top_k: expected a number >= 1, got {checked['top_k']}")
    return checked


def _cells(model_input: Any) -> Iterator[Any]:
    """The rows' cells; a list of texts or bytes in one cell, as JSON's ``{"image": [...]}`` arrives, is several."""
    for cell in _column(model_input):
        if isinstance(cell, (list, np.ndarray)) and len(cell) and isinstance(cell[0], (str, bytes)):
            yield from cell
        else:
            yield cell


def _column(model_input: Any) -> list[Any]:
    if isinstance(model_input, pd.DataFrame):
        if IMAGE_COLUMN not in model_input.columns:
            raise DataError(
                f"input: expected a column {IMAGE_COLUMN!r}, got {', '.join(map(str, model_input.columns))}"
            )
        return list(model_input[IMAGE_COLUMN])
    return [cell.get(IMAGE_COLUMN) if isinstance(cell, Mapping) else cell for cell in model_input]


def _image(cell: Any, row: int, sources: Sources) -> Any:
    try:
        return read_picture(cell, sources)
    except InternError as error:
        raise type(error)(f"row {row}: {error}") from None


mlflow.models.set_model(InternModel())
