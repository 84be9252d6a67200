"""The model registry: makes a model folder an MLflow model with card, signature, scores and parents.

Registering imports MLflow (about 2 s); looking models up speaks REST and does not.
"""

import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.errors import ConfigError, MissingObjectError
from intern_vision.mlflow_model import log_model, mlflow_faults, quiet_mlflow
from intern_vision.mlflow_rest import RefusedError, Server, clean_key
from intern_vision.ref import Ref

GENERALIST_NAME = "intern-generalist"
NAME_PREFIX = "intern-"
CANDIDATE_ALIAS = "candidate"
CHAMPION_ALIAS = "champion"
METRIC_PREFIX = "intern.metric."
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

    @property
    def scores(self) -> dict[str, float]:
        """The scores among the tags, by name."""
        return {k.removeprefix(METRIC_PREFIX): float(v) for k, v in self.tags.items() if k.startswith(METRIC_PREFIX)}


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
        alias: what to call this version; ``champion`` only ``promotion.promote`` gives.
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
    all_tags = dict(tags) | _parent_tags(parents) | score_tags(metrics)
    all_tags = {clean_key(key): str(value)[:_MAX_TAG_CHARS] for key, value in all_tags.items()}
    with tempfile.TemporaryDirectory(prefix="intern-model-") as folder, quiet_mlflow(), mlflow_faults():
        from mlflow import MlflowClient

        client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        model_id = log_model(
            client,
            model_dir,
            name=name,
            card=card,
            input_example=input_example,
            tags=all_tags,
            run_id=run_id,
            folder=Path(folder) / "model",
        )
        if run_id and metrics:
            _log_model_metrics(client, run_id, model_id, metrics)
        version = _new_version(
            client, name, card, source=f"models:/{model_id}", tags=all_tags, description=description, run_id=run_id
        )
        client.set_registered_model_alias(name, alias, version)
    return version


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


def find_version(name: str, version: str) -> RegisteredModel:
    """A version by its number; raises as ``find_model``."""
    try:
        found = _address().get("mlflow/model-versions/get", name=name, version=version)["model_version"]
    except RefusedError:
        raise MissingObjectError(f"model {name} version {version}: not registered") from None
    return _registered(found, found.get("aliases", ()))


def split_name(model: str) -> tuple[str, str]:
    """Name and alias of ``models:/NAME@ALIAS``, ``NAME@ALIAS`` or ``NAME``, which means ``candidate``.

    Raises:
        ConfigError: it is none of these.
    """
    name, _, alias = model.removeprefix("models:/").partition("@")
    if not name or "/" in name:
        raise ConfigError(f"model: expected NAME@ALIAS of a registered model, got {model!r}")
    return name, alias or CANDIDATE_ALIAS


def set_champion(model: RegisteredModel, *, replaced: str) -> None:
    """Points the alias ``champion`` at a version and notes on it when, and instead of which version.

    Only ``promotion.promote`` calls this, once the gate is passed.

    Args:
        model: the new champion.
        replaced: version of the champion so far; empty for none.
    """
    server = _address()
    version = {"name": model.name, "version": model.version}
    # Noted first: an alias keeps no history, and a note about a move that failed is mended by the next try.
    for key, value in {"promoted_unix_s": f"{time.time():.0f}", "promoted_over": replaced or "none"}.items():
        server.post("mlflow/model-versions/set-tag", version | {"key": f"intern.{key}", "value": value})
    server.post("mlflow/registered-models/alias", version | {"alias": CHAMPION_ALIAS})


def log_scores(model: RegisteredModel, metrics: Mapping[str, float]) -> None:
    """Adds scores that were measured after a version was registered, such as a generalist's on a benchmark.

    Args:
        model: the version.
        metrics: scores by name, for example ``10/error``; they become the tags ``intern.metric.<name>``.

    Raises:
        AccessError: credentials are refused.
        RetryableError: the server is away.
    """
    server = _address()
    for key, value in score_tags(metrics).items():
        tag = {"name": model.name, "version": model.version, "key": key, "value": value}
        server.post("mlflow/model-versions/set-tag", tag)


def score_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    """Scores as the tags of a version."""
    return {clean_key(f"{METRIC_PREFIX}{name}"): f"{value:.6g}" for name, value in metrics.items()}


def load_model(model: RegisteredModel) -> Any:
    """A registered model as MLflow's ``PyFuncModel``; raises as ``register_model``."""
    _address().get("mlflow/experiments/search", max_results="1")
    with quiet_mlflow(), mlflow_faults():
        from mlflow import pyfunc

        return pyfunc.load_model(model.uri)


def weights_uri(model: str) -> str:
    """The store address of the weights behind ``models:/NAME@ALIAS``; a store address is returned as it is.

    Raises:
        ConfigError: neither form.
        MissingObjectError: not registered, or registered from elsewhere.
    """
    if model.startswith(("s3://", "file://")):
        return model.rstrip("/")
    found = find_model(*split_name(model))
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
        raise ConfigError(f"alias: {CHAMPION_ALIAS} is given by `intern promote` alone; use {CANDIDATE_ALIAS}")


def _address() -> Server:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ConfigError("MLFLOW_TRACKING_URI: expected the address of an MLflow server, got none")
    return Server(uri)


def _log_model_metrics(client: Any, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    client.log_batch(
        run_id, [Metric(clean_key(key), value, now_ms, 0, model_id=model_id) for key, value in metrics.items()]
    )


def _new_version(client: Any, name: str, card: str, *, source: str, run_id: str, **fields: Any) -> str:
    is_new = _ensure_registered(client, name, card)
    try:
        made = client.create_model_version(
            name, source, run_id or None, model_id=source.removeprefix("models:/"), **fields
        )
    except BaseException:
        if is_new:  # a name without a version would be half a model
            client.delete_registered_model(name)
        raise
    return str(made.version)


def _ensure_registered(client: Any, name: str, card: str) -> bool:
    """Makes the name or shows the new card under it; True where the name is new."""
    from mlflow.exceptions import MlflowException

    description = card[:_MAX_DESCRIPTION_CHARS]
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_registered_model(name, description=description)
        return False
    return True


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
