"""The code of a registered model: an MLflow pyfunc model around ``VisionModel``, logged as code, not as a pickle.

MLflow runs this file when it loads the model; the weights come from the artifact ``model``.
H and W are an image's height and width in pixels.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from intern_vision.answers import to_json
from intern_vision.data.codec import decode_image
from intern_vision.errors import ConfigError, DataError, InternError
from intern_vision.models.vision import VisionModel

MODEL_ARTIFACT = "model"
IMAGE_COLUMN = "image"
DEFAULT_PARAMS: dict[str, str | float] = {"head": "", "min_score": 0.05}


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
            model_input: a DataFrame with a column ``image``, a list of such cells or of
                ``{"image": cell}``, or a uint8 array ``(N, H, W, 3)``. A cell is encoded
                bytes, base64 text, a local path or a uint8 array ``(H, W, 3)``, RGB.
            params: ``head`` names one head (default all), ``min_score`` in [0, 1] leaves
                out weaker boxes (default 0.05).

        Returns:
            One dict an image: for each head name the values of ``to_json``.

        Raises:
            MlflowException: a row is no image, the head or a parameter is unknown; the model
                server passes only this kind's message on. The cause is a DataError that names
                the row, or a ConfigError.
        """
        try:
            return self._answers(model_input, _checked(params))
        except InternError as error:
            raise MlflowException(str(error), error_code=BAD_REQUEST) from error

    def _answers(self, model_input: Any, params: dict[str, Any]) -> list[dict[str, Any]]:
        images = [_image(cell, row) for row, cell in enumerate(_cells(model_input))]
        found = self.model.predict(images, params["head"] or None) if images else {}
        tasks = {name: self.model.spec.heads[name].task for name in found}
        return [
            {name: to_json(found[name][row], task, params["min_score"]) for name, task in tasks.items()}
            for row in range(len(images))
        ]


def _checked(params: Mapping[str, Any] | None) -> dict[str, Any]:
    unknown = sorted(set(params or {}) - set(DEFAULT_PARAMS))
    if unknown:
        raise ConfigError(f"params.{unknown[0]}: unknown; known are {', '.join(DEFAULT_PARAMS)}")
    return DEFAULT_PARAMS | dict(params or {})


def _cells(model_input: Any) -> Sequence[Any]:
    if isinstance(model_input, pd.DataFrame):
        if IMAGE_COLUMN not in model_input.columns:
            raise DataError(
                f"input: expected a column {IMAGE_COLUMN!r}, got {', '.join(map(str, model_input.columns))}"
            )
        return list(model_input[IMAGE_COLUMN])
    if isinstance(model_input, np.ndarray) and model_input.ndim == 3:
        return [model_input]
    if isinstance(model_input, (list, tuple, np.ndarray)):
        return [cell.get(IMAGE_COLUMN) if isinstance(cell, Mapping) else cell for cell in model_input]
    return [model_input]


def _image(cell: Any, row: int) -> NDArray[np.uint8]:
    if isinstance(cell, np.ndarray):
        if cell.dtype != np.uint8 or cell.ndim != 3 or cell.shape[2] != 3:
            raise DataError(f"row {row}: expected a uint8 array (H, W, 3), got {cell.dtype} {cell.shape}")
        return cell
    data = _from_text(cell, row) if isinstance(cell, (str, Path)) else cell
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise DataError(f"row {row}: expected bytes, base64 text, a path or an array, got {type(cell).__name__}")
    try:
        return decode_image(bytes(data))
    except ValueError as error:
        raise DataError(f"row {row}: cannot be decoded as an image ({error}); send JPEG, PNG or WebP") from None


def _from_text(text: str | Path, row: int) -> bytes:
    # Paths are short and base64 of an image is not, but a long text must not become a file name error.
    if len(str(text)) < 1024 and Path(text).is_file():
        return Path(text).read_bytes()
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"row {row}: {str(text)[:60]!r} is neither a file here nor base64 text") from None


mlflow.models.set_model(InternModel())
