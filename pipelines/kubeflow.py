"""Kubeflow Pipelines' API server: registers compiled pipelines, starts a run and waits for it.

Errors are this package's; kfp's own client waits half a minute and prints tracebacks where the server is away, so
the server is asked with a plain request first.
"""

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from intern_vision.errors import AccessError, ConfigError, InternError, RetryableError, TrainingError

HEALTH_PATH = "/apis/v2beta1/healthz"
TIMEOUT_S = 10.0
POLL_S = 10.0
TOKEN_PATH = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Token for Kubeflow Pipelines in pods that a multi-user installation knows."""

_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


@dataclass(frozen=True)
class Registered:
    """A version of a pipeline in Kubeflow Pipelines.

    Attributes:
        pipeline: the pipeline's name.
        version: ``<version>-<first 8 digits of the file's SHA-256>``: another text is another version.
        is_new: False where it was there before.
    """

    pipeline: str
    version: str
    is_new: bool


def health(url: str) -> dict[str, Any]:
    """What the server says about itself: ``multi_user`` and more.

    Raises:
        ConfigError: something else answers there.
        AccessError: it wants a login.
        RetryableError: no answer.
    """
    import requests

    try:
        answer = requests.get(url.rstrip("/") + HEALTH_PATH, timeout=TIMEOUT_S, headers=_token_header())
    except requests.RequestException as error:
        raise RetryableError(
            f"--kfp-url: no answer from {url} ({type(error).__name__}); install Kubeflow or correct it"
        ) from None
    if answer.status_code in (401, 403):
        raise _refused(url, answer.status_code)
    try:
        found = answer.json()
    except ValueError:
        found = None
    if answer.status_code != 200 or not isinstance(found, dict):
        raise ConfigError(
            f"--kfp-url: {url} answers {answer.status_code} to {HEALTH_PATH}, so it is not Kubeflow Pipelines 2; "
            "name its API server (service ml-pipeline, port 8888)"
        )
    return found


class Kubeflow:
    """A Kubeflow Pipelines server.

    Args:
        url: address of its API server.
        namespace: the profile's namespace in a multi-user installation; empty in others.

    Raises:
        InternError: as ``health``.
        ConfigError: a multi-user installation, and no namespace.
    """

    def __init__(self, url: str, namespace: str = "") -> None:
        """Asks whether the server is there."""
        if health(url).get("multi_user") and not namespace:
            raise ConfigError(f"--kfp-namespace: {url} is a multi-user installation; name the profile's namespace")
        from kfp import client

        token = client.ServiceAccountTokenVolumeCredentials(str(TOKEN_PATH)) if TOKEN_PATH.exists() else None
        self.url, self.namespace = url.rstrip("/"), namespace
        with warnings.catch_warnings(), self._faults():
            warnings.simplefilter("ignore")
            # The namespace stops kfp from asking for one by itself.
            self._client = client.Client(host=self.url, namespace=namespace or "kubeflow", credentials=token)

    def register(self, path: Path, version: str) -> Registered:
        """Uploads a compiled pipeline unless the same text is there already.

        Args:
            path: file of ``intern compile``.
            version: of the release.

        Raises:
            ConfigError: the file is no compiled pipeline, or the server does not take it.
            AccessError, RetryableError: as ``health``.
        """
        text = path.read_bytes()
        name = _pipeline_name(path, text)
        label = f"{version}-{hashlib.sha256(text).hexdigest()[:8]}"
        with self._faults():
            pipeline_id = self._pipeline_id(name) or self._create(name)
            wanted = json.dumps({"predicates": [_equals("display_name", label)]})
            if self._client.list_pipeline_versions(pipeline_id, filter=wanted).pipeline_versions:
                return Registered(name, label, is_new=False)
            self._client.upload_pipeline_version(str(path), label, pipeline_id=pipeline_id)
        return Registered(name, label, is_new=True)

    def start(self, path: Path, arguments: dict[str, Any], name: str) -> str:
        """Starts a run of a compiled pipeline and returns its id; raises as ``register``."""
        with self._faults():
            experiment = self._client.create_experiment("intern", namespace=self.namespace or None)
            started = self._client.run_pipeline(experiment.experiment_id, name, str(path), params=arguments)
        return started.run_id

    def wait(self, run_id: str, timeout_s: float) -> str:
        """Waits until a run has ended and returns its state.

        Raises:
            RetryableError: it runs for longer than ``timeout_s``.
            TrainingError: it failed or was stopped.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._faults():
                run = self._client.get_run(run_id)
            if run.state in _ENDED:
                break
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"run {run_id}: still {run.state} after {timeout_s:.0f} s; look at {self._page(run_id)}"
                )
            time.sleep(min(POLL_S, timeout_s))
        if run.state != "SUCCEEDED":
            raise TrainingError(
                f"run {run_id}: ended as {run.state}; the failed step and its log: {self._page(run_id)}"
            )
        return run.state

    def _page(self, run_id: str) -> str:
        return f"{self.url}/#/runs/details/{run_id}"

    def _pipeline_id(self, name: str) -> str:
        wanted = json.dumps({"predicates": [_equals("display_name", name)]})
        found = self._client.list_pipelines(filter=wanted, namespace=self.namespace or None).pipelines
        return found[0].pipeline_id if found else ""

    def _create(self, name: str) -> str:
        # kfp's own way to make a pipeline makes a version of the same name with it.
        pipeline = _api().V2beta1Pipeline(display_name=name, namespace=self.namespace or None)
        return self._client._pipelines_api.pipeline_service_create_pipeline(pipeline=pipeline).pipeline_id

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """The client's exceptions as errors for people, and the links that it prints on standard error."""
        import urllib3

        try:
            with redirect_stdout(sys.stderr):
                yield
        except _api().ApiException as error:
            if error.status in (401, 403):
                raise _refused(self.url, error.status) from None
            text = f"Kubeflow Pipelines at {self.url} answers {error.status}: {_message(error)}"
            raise (RetryableError if error.status == 0 or error.status >= 500 else ConfigError)(text) from None
        except urllib3.exceptions.HTTPError as error:
            raise RetryableError(f"no answer from Kubeflow Pipelines at {self.url} ({type(error).__name__})") from None


def _api() -> Any:
    import kfp_server_api

    return kfp_server_api


def _equals(key: str, value: str) -> dict[str, str]:
    return {"operation": "EQUALS", "key": key, "stringValue": value}


def _pipeline_name(path: Path, text: bytes) -> str:
    try:
        return str(next(yaml.safe_load_all(text))["pipelineInfo"]["name"])
    except (yaml.YAMLError, StopIteration, KeyError, TypeError):
        raise ConfigError(f"{path}: not a compiled pipeline; make it with intern compile") from None


def _message(error: Any) -> str:
    try:
        text = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        text = str(error.body or error.reason)
    return " ".join(text.split())[:300]


def _token_header() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN_PATH.read_text().strip()}"} if TOKEN_PATH.exists() else {}


def _refused(url: str, status: int) -> InternError:
    what = (
        "the token of the service account"
        if TOKEN_PATH.exists()
        else "a login; in multi-user Kubeflow set kfp.multiUser"
    )
    return AccessError(f"Kubeflow Pipelines at {url} answers {status}: it refuses {what}, or wants its rights")
