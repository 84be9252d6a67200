"""A model folder as an MLflow model: files, signature, label names, input example. MLflow imports slowly."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import AccessError, RetryableError

CARD_FILE = "README.md"


def log_model(
    client: Any,
    model_dir: Path,
    *,
    name: str,
    card: str,
    input_example: NDArray[np.uint8],
    tags: dict[str, str],
    run_id: str,
    folder: Path,
) -> str:
    """Writes an MLflow model, uploads it and returns its id; a model that could not be uploaded is marked FAILED.

    Args:
        client: MLflow's.
        model_dir: folder with ``weights.safetensors`` and ``model.json``.
        name: what to call it.
        card: the model card, stored with the files.
        input_example: one RGB image ``(H, W, 3)`` uint8.
        tags: of the model.
        run_id: the run that made it; empty for none.
        folder: where to write it first; must not exist.
    """
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    from intern_vision import serving
    from intern_vision.data.codec import encode_png
    from intern_vision.models.vision import read_spec

    # Family and label names by head, which MLflow shows beside the signature and `Model.load` gives without weights.
    heads = {head: spec.task.to_dict() for head, spec in read_spec(model_dir).heads.items()}
    logged = client.create_logged_model(_experiment_id(client, run_id), name, run_id or None, tags=tags)
    try:
        pyfunc.save_model(
            str(folder),
            python_model=str(Path(serving.__file__)),
            artifacts={serving.MODEL_ARTIFACT: str(model_dir)},
            signature=_signature(serving),
            input_example=pd.DataFrame({serving.IMAGE_COLUMN: [encode_png(input_example)]}),
            pip_requirements=[f"intern-vision=={package_version('intern-vision')}"],
            mlflow_model=Model(model_id=logged.model_id, run_id=run_id or None, metadata={"heads": heads}),
        )
        (folder / CARD_FILE).write_text(card)
        client.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return logged.model_id


def _signature(serving: Any) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    types = {str: "string", float: "double", int: "long"}
    params = [ParamSpec(name, types[type(default)], default) for name, default in serving.DEFAULT_PARAMS.items()]
    # The column may hold bytes, base64 text, a path or an array, which no single column type allows.
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), serving.IMAGE_COLUMN)]),
        outputs=Schema([ColSpec(AnyType())]),
        params=ParamSchema(params),
    )


def _experiment_id(client: Any, run_id: str) -> str:
    if run_id:
        return client.get_run(run_id).info.experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "intern"
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Keeps MLflow's progress bars, notes and warnings off the terminal."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logger = logging.getLogger("mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401 - its import sets up the logger that is silenced here

        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def mlflow_faults() -> Iterator[None]:
    """Turns MLflow's exceptions about access and absence into this package's."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        uri, text = os.environ["MLFLOW_TRACKING_URI"], " ".join(str(error).split())[:200]
        if re.search(r"\b(401|403)\b|PERMISSION_DENIED|UNAUTHENTICATED", text):
            raise AccessError(
                f"MLflow at {uri} refused access ({text}); check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from None
        if re.search(r"Max retries exceeded|Connection|error code 5\d\d|timed out", text):
            raise RetryableError(f"MLflow at {uri} is away: {text}") from None
        raise
