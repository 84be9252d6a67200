"""The model registry: makes a model folder an MLflow model with card, signature, scores and parents.

Registering imports MLflow (about 2 s); looking models up speaks REST and does not.
"""

import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import AccessError, ConfigError, MissingObjectError, RetryableError
from intern_vision.mlflow_rest import RefusedError, Server, clean_key
from intern_vision.ref import Ref

GENERALIST_NAME = "intern-generalist"
NAME_PREFIX = "intern-"
CANDIDATE_ALIAS = "candidate"
CHAMPION_ALIAS = "champion"
CARD_FILE = "README.md"
# Column widths of MLflow's registry tables.
_MAX_DESCRIPTION_CHARS = 5000
_MAX_TAG_CHARS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """A version of a registered model.

    Attributes:
        name: registered name, for example ``intern-generalist``.
        version: version number as text.
        aliases: aliases that point at this version, sorted.
        source: MLflow's address of the files, ``models:/m-...``.
        run_id: the run it was made in, empty where there was none.
        description: one line.
        tags: digests, parents and scores (``intern.metric.<name>``).
        created_unix_s: when it was registered, seconds since 1970.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    source: str
    run_id: str
    description: str
    tags: dict[str, str]
    created_unix_s: float

    @property
    def uri(self) -> str:
        """The address that ``mlflow.pyfunc.load_model`` takes."""
        return f"models:/{self.name}/{self.version}"


def register_model(
    model_dir: Path,
    *,
    name: str,
    description: str,
    card: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    parents: Sequence[Ref],
    input_example: NDArray[np.uint8],
    alias: str = CANDIDATE_ALIAS,
    run_id: str = "",
) -> str:
    """Logs a model folder as an MLflow model, registers a new version of it and points the alias at it.

    The server's address and credentials are MLflow's own environment variables.

    Args:
        model_dir: folder with ``weights.safetensors`` and ``model.json``.
        name: ``intern-generalist`` or ``intern-<dataset>``.
        description: one line about this version.
        card: the model card in Markdown; stored with the files and shown as the registered model's description.
        tags: more facts by name.
        metrics: scores by name; kept as tags, and as the model's metrics where there is a run.
        parents: what the model was made from.
        input_example: one RGB image ``(H, W, 3)`` uint8.
        alias: what to call this version; ``champion`` is for people to give.
        run_id: the run that made the model; empty for none.

    Returns:
        The version.

    Raises:
        ConfigError: the name or alias is not allowed, or there is no server address.
        AccessError: credentials are refused.
        RetryableError: the server is away.
    """
    _check(name, alias)
    # MLflow's own client would try an absent server for minutes.
    _address().get("mlflow/experiments/search", max_results="1")
    all_tags = dict(tags) | _parent_tags(parents) | {f"intern.metric.{k}": f"{v:.6g}" for k, v in metrics.items()}
    all_tags = {clean_key(key): str(value)[:_MAX_TAG_CHARS] for key, value in all_tags.items()}
    with tempfile.TemporaryDirectory(prefix="intern-model-") as folder, _quiet_mlflow(), _mlflow_faults():
        from mlflow import MlflowClient

        client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        model_id = _logged_model(client, Path(folder) / "model", model_dir, name, card, input_example, all_tags, run_id)
        if run_id and metrics:
            _log_model_metrics(client, run_id, model_id, metrics)
        _ensure_registered(client, name, card)
        source = f"models:/{model_id}"
        made = client.create_model_version(
            name, source, run_id or None, tags=all_tags, description=description, model_id=model_id
        )
        client.set_registered_model_alias(name, alias, made.version)
    return str(made.version)


def find_model(name: str, alias: str = CANDIDATE_ALIAS) -> RegisteredModel:
    """The version that an alias points at.

    Raises:
        MissingObjectError: there is no such model or alias; names the models there are.
        AccessError: credentials are refused.
        RetryableError: the server is away.
    """
    try:
        found = _address().get("mlflow/registered-models/alias", name=name, alias=alias)["model_version"]
    except RefusedError:
        known = ", ".join(f"{m.name}@{a}" for m in list_models() for a in m.aliases) or "none"
        raise MissingObjectError(f"model {name}@{alias}: not registered; registered are {known}") from None
    return _registered(found, (alias, *found.get("aliases", ())))


def weights_uri(model: str) -> str:
    """The store address of the weights behind ``models:/NAME@ALIAS``; a store address is returned as it is.

    Raises:
        ConfigError: neither form.
        MissingObjectError: not registered, or registered from elsewhere.
    """
    if model.startswith(("s3://", "file://")):
        return model.rstrip("/")
    name, _, alias = model.removeprefix("models:/").partition("@")
    if not name or "/" in name:
        raise ConfigError(f"model: expected models:/NAME@ALIAS or an address on the store, got {model!r}")
    found = find_model(name, alias or CANDIDATE_ALIAS)
    if "intern.uri" not in found.tags:
        raise MissingObjectError(f"model {model}: its version has no tag intern.uri; export it with this package")
    return found.tags["intern.uri"]


def list_models() -> tuple[RegisteredModel, ...]:
    """All versions of INTERN's registered models, newest first; raises AccessError and RetryableError."""
    server, query, found = _address(), {"filter": f"name LIKE '{NAME_PREFIX}%'", "max_results": "200"}, []
    aliases = _aliases(server)
    while True:
        answer = server.get("mlflow/model-versions/search", **query)
        found += answer.get("model_versions", [])
        if not answer.get("next_page_token"):
            break
        query["page_token"] = answer["next_page_token"]
    models = [_registered(each, aliases.get((each["name"], str(each["version"])), ())) for each in found]
    return tuple(sorted(models, key=lambda model: (-model.created_unix_s, model.name, -int(model.version))))


def _check(name: str, alias: str) -> None:
    if not re.fullmatch(rf"{NAME_PREFIX}[A-Za-z0-9._-]+", name):
        raise ConfigError(f"name: expected {GENERALIST_NAME} or {NAME_PREFIX}<dataset>, got {name!r}")
    if alias == CHAMPION_ALIAS:
        raise ConfigError(f"alias: {CHAMPION_ALIAS} is given by a person after review; use {CANDIDATE_ALIAS}")


def _address() -> Server:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ConfigError("MLFLOW_TRACKING_URI: expected the address of an MLflow server, got none")
    return Server(uri)


def _logged_model(
    client: Any,
    folder: Path,
    model_dir: Path,
    name: str,
    card: str,
    input_example: NDArray[np.uint8],
    tags: dict[str, str],
    run_id: str,
) -> str:
    """Writes the MLflow model to ``folder``, uploads it and returns its id."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import Model

    from intern_vision import serving
    from intern_vision.data.codec import encode_png

    logged = client.create_logged_model(_experiment_id(client, run_id), name, run_id or None, tags=tags)
    try:
        pyfunc.save_model(
            str(folder),
            python_model=str(Path(serving.__file__)),
            artifacts={serving.MODEL_ARTIFACT: str(model_dir)},
            signature=_signature(serving),
            input_example=pd.DataFrame({serving.IMAGE_COLUMN: [encode_png(input_example)]}),
            pip_requirements=[f"intern-vision=={package_version('intern-vision')}"],
            mlflow_model=Model(model_id=logged.model_id, run_id=run_id or None),
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

    params = [
        ParamSpec(name, "string" if isinstance(default, str) else "double", default)
        for name, default in serving.DEFAULT_PARAMS.items()
    ]
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


def _log_model_metrics(client: Any, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    client.log_batch(
        run_id, [Metric(clean_key(key), value, now_ms, 0, model_id=model_id) for key, value in metrics.items()]
    )


def _ensure_registered(client: Any, name: str, card: str) -> None:
    from mlflow.exceptions import MlflowException

    description = card[:_MAX_DESCRIPTION_CHARS]
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_registered_model(name, description=description)


def _parent_tags(parents: Sequence[Ref]) -> dict[str, str]:
    return {
        f"intern.parent.{number}.{field}": getattr(ref, field)
        for number, ref in enumerate(parents)
        for field in ("uri", "digest", "kind", "name")
    }


def _aliases(server: Server) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    query = {"filter": f"name LIKE '{NAME_PREFIX}%'", "max_results": "100"}
    while True:
        answer = server.get("mlflow/registered-models/search", **query)
        for model in answer.get("registered_models", []):
            for each in model.get("aliases", []):
                key = (model["name"], str(each["version"]))
                found[key] = (*found.get(key, ()), each["alias"])
        if not answer.get("next_page_token"):
            return found
        query["page_token"] = answer["next_page_token"]


def _registered(found: Mapping[str, Any], aliases: Sequence[str]) -> RegisteredModel:
    return RegisteredModel(
        name=found["name"],
        version=str(found["version"]),
        aliases=tuple(sorted(set(aliases))),
        source=found.get("source", ""),
        run_id=found.get("run_id", ""),
        description=found.get("description", ""),
        tags={tag["key"]: tag["value"] for tag in found.get("tags", [])},
        created_unix_s=int(found.get("creation_timestamp", 0)) / 1000,
    )


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
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
def _mlflow_faults() -> Iterator[None]:
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
