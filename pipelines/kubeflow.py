"""Kubeflow Pipelines' API server: registers compiled pipelines, finds them, starts a run and waits for it.

Errors are this package's; kfp's own client waits half a minute and prints tracebacks where the server is away, so
the server is asked with a plain request first.
"""

import hashlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from intern_pipelines.submission import ENDED, failed_steps, last_error
from intern_vision.errors import AccessError, ConfigError, DataError, InternError, RetryableError, TrainingError

HEALTH_PATH = "/apis/v2beta1/healthz"
TIMEOUT_S = 10.0
POLL_S = 10.0
TOKEN_PATH = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Token for Kubeflow Pipelines in pods that a multi-user installation knows."""
TOKEN_VARIABLE = "INTERN_KFP_TOKEN"
"""Variable with such a token for people outside the cluster."""

MIN_VERSION = (2, 17)
"""The first server that knows the choices of a parameter, which the compiled pipelines have."""

MAX_ERROR_LOG_BYTES = 1 << 20


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


@dataclass(frozen=True)
class Version:
    """A registered version of a pipeline.

    Attributes:
        pipeline_id, version_id: of the server.
        name: the version's name.
        spec: its first document.
    """

    pipeline_id: str
    version_id: str
    name: str
    spec: dict[str, Any]


def check_version(found: dict[str, Any], url: str) -> str:
    """The server's version as it states it; ``unknown version`` where it was built without one.

    Args:
        found: what ``health`` gave.
        url: of the server.

    Raises:
        ConfigError: it is older than the compiled pipelines need.
    """
    tag = str(found.get("tag_name") or "")
    numbers = re.match(r"v?(\d+)\.(\d+)", tag)
    if numbers and tuple(map(int, numbers.groups())) < MIN_VERSION:
        wanted = ".".join(map(str, MIN_VERSION))
        raise ConfigError(f"Kubeflow Pipelines at {url} is {tag}; {wanted} or newer is needed, so upgrade it")
    return tag if numbers else "unknown version"


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
        ui_url: address of its web page; the API server's where empty, as one address often serves both.

    Raises:
        InternError: as ``health``.
        ConfigError: a multi-user installation, and no namespace.
    """

    def __init__(self, url: str, namespace: str = "", ui_url: str = "") -> None:
        """Asks whether the server is there."""
        found = health(url)
        check_version(found, url)
        if found.get("multi_user") and not namespace:
            raise ConfigError(f"--kfp-namespace: {url} is a multi-user installation; name the profile's namespace")
        from kfp import client

        token = client.ServiceAccountTokenVolumeCredentials(str(TOKEN_PATH)) if TOKEN_PATH.exists() else None
        given = os.environ.get(TOKEN_VARIABLE)
        self.url, self.namespace = url.rstrip("/"), namespace
        self.ui_url = (ui_url or url).rstrip("/")
        with warnings.catch_warnings(), self._faults():
            warnings.simplefilter("ignore")
            # The namespace stops kfp from asking for one by itself.
            self._client = client.Client(
                host=self.url,
                namespace=namespace or "kubeflow",
                existing_token=given,
                credentials=None if given else token,
            )

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
        name = str(read_spec(path)["pipelineInfo"]["name"])
        label = f"{version}-{hashlib.sha256(text).hexdigest()[:8]}"
        with self._faults():
            pipeline_id = self._pipeline_id(name) or self._create(name)
            wanted = json.dumps({"predicates": [_equals("display_name", label)]})
            if self._client.list_pipeline_versions(pipeline_id, filter=wanted).pipeline_versions:
                return Registered(name, label, is_new=False)
            self._client.upload_pipeline_version(str(path), label, pipeline_id=pipeline_id)
        return Registered(name, label, is_new=True)

    def find(self, name: str, version: str = "") -> Version:
        """A registered version of a pipeline: the one of that name, else the newest.

        Args:
            name: of the pipeline; ``intern-`` before it may be left out.
            version: its name.

        Raises:
            ConfigError: no such pipeline or version.
            AccessError, RetryableError: as ``health``.
        """
        with self._faults():
            known = (name, f"intern-{name}")
            pipeline_id = next((found for each in known if (found := self._pipeline_id(each))), "")
            if not pipeline_id:
                raise ConfigError(f"{self.url} has no pipeline {name!r}; register it with intern cluster register")
            wanted = json.dumps({"predicates": [_equals("display_name", version)]}) if version else None
            answer = self._client.list_pipeline_versions(
                pipeline_id, page_size=1, sort_by="created_at desc", filter=wanted
            )
        if not answer.pipeline_versions:
            raise ConfigError(
                f"pipeline {name!r} has no version {version!r}; its page {self.url}/#/pipelines lists them"
            )
        (found,) = answer.pipeline_versions
        spec = found.pipeline_spec or {}
        return Version(pipeline_id, found.pipeline_version_id, found.display_name, spec.get("pipeline_spec", spec))

    def start(
        self,
        source: Path | Version,
        arguments: dict[str, Any],
        name: str,
        *,
        experiment: str = "intern",
        service_account: str = "",
    ) -> str:
        """Starts a run and returns its id; raises as ``register``.

        Args:
            source: a compiled pipeline, or one that is registered.
            arguments: the run's parameters.
            name: the run's.
            experiment: of Kubeflow Pipelines; it is made where missing.
            service_account: of the steps; the server's own where empty.
        """
        what: dict[str, Any] = {"pipeline_package_path": str(source)}
        if isinstance(source, Version):
            what = {"pipeline_id": source.pipeline_id, "version_id": source.version_id}
        with self._faults():
            found = self._client.create_experiment(experiment, namespace=self.namespace or None)
            account = service_account or None
            started = self._client.run_pipeline(
                found.experiment_id, name, params=arguments, service_account=account, **what
            )
        return started.run_id

    def run(self, run_id: str) -> Any:
        """A run as the server knows it; raises as ``register``."""
        with self._faults():
            return self._client.get_run(run_id)

    def wait(self, run_id: str, timeout_s: float, look: Callable[[Any], None] = lambda run: None) -> str:
        """Waits until a run has ended and returns its state.

        Args:
            run_id: of the run.
            timeout_s: how long.
            look: called with the run each time it is looked at.

        Raises:
            RetryableError: it runs for longer than ``timeout_s``.
            TrainingError: it failed or was stopped; the message names the failed steps.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            run = self.run(run_id)
            look(run)
            if run.state in ENDED:
                break
            if time.monotonic() > deadline:
                raise RetryableError(
                    f"run {run_id}: still {run.state} after {timeout_s:.0f} s; look at {self.page(run_id)}"
                )
            time.sleep(min(POLL_S, timeout_s))
        if run.state != "SUCCEEDED":
            raise TrainingError(f"run {run_id}: ended as {run.state}{self._failure(run)}; see {self.page(run_id)}")
        return run.state

    def log(self, run_id: str, pod: str, start: int = 0) -> bytes:
        """The log of a step's pod from byte ``start`` on; the server sends the whole of it each time.

        Raises:
            AccessError: the server refuses it.
            DataError: it has none, or not yet.
            RetryableError: the server is away.
        """
        import requests

        kept, skipped = [], 0
        try:
            with requests.get(
                f"{self.url}/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log",
                timeout=TIMEOUT_S,
                headers=_token_header(),
                stream=True,
            ) as answer:
                if answer.status_code in (401, 403):
                    raise _refused(self.url, answer.status_code)
                if answer.status_code != 200:
                    raise DataError(f"{pod}: the server has no log of it ({answer.status_code})")
                for chunk in answer.iter_content(1 << 16):
                    kept.append(chunk[max(0, start - skipped) :])
                    skipped += len(chunk)
        except requests.RequestException as error:
            raise RetryableError(f"no answer from {self.url} ({type(error).__name__})") from None
        return b"".join(kept)

    def page(self, run_id: str) -> str:
        """Address of the run's web page."""
        return f"{self.ui_url}/#/runs/details/{run_id}"

    def _failure(self, run: Any) -> str:
        """The failed steps and what each says, as part of a line."""
        found = []
        for step in failed_steps(run):
            log = b""
            if step.pod:
                with suppress(InternError):
                    log = self.log(run.run_id, step.pod)[-MAX_ERROR_LOG_BYTES:]
            text = last_error(log.decode(errors="replace")) or step.message or "the server says no more"
            found.append(f"step {step.name}: {text.removeprefix('error: ')}")
        return f": {', '.join(found)}" if found else ""

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
        """The client's exceptions as errors for people, without the links that it prints."""
        import urllib3

        try:
            with redirect_stdout(io.StringIO()):
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


def read_spec(path: Path) -> dict[str, Any]:
    """The first document of a compiled pipeline; ConfigError where the file is none."""
    try:
        spec = next(yaml.safe_load_all(path.read_bytes()))
        spec["pipelineInfo"]["name"], spec["root"]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); name a file of intern compile") from None
    except (yaml.YAMLError, StopIteration, KeyError, TypeError):
        raise ConfigError(f"{path}: not a compiled pipeline; make it with intern compile") from None
    return spec


def _message(error: Any) -> str:
    try:
        text = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        text = str(error.body or error.reason)
    return " ".join(text.split())[:300]


def _token_header() -> dict[str, str]:
    token = os.environ.get(TOKEN_VARIABLE) or (TOKEN_PATH.read_text().strip() if TOKEN_PATH.exists() else "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _refused(url: str, status: int) -> InternError:
    what = (
        "the token of the service account"
        if TOKEN_PATH.exists()
        else f"a login; in multi-user Kubeflow set kfp.multiUser, outside the cluster {TOKEN_VARIABLE}"
    )
    return AccessError(f"Kubeflow Pipelines at {url} answers {status}: it refuses {what}, or wants its rights")
