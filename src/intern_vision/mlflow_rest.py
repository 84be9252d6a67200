"""MLflow's REST API 2.0, as much of it as tracking a run takes (mlflow.org/docs/latest/rest-api.html)."""

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from intern_vision.errors import AccessError, ConfigError, InternError, RetryableError
from intern_vision.spool import Spool

_MAX_PER_CALL = {"metrics": 1000, "params": 100, "tags": 100}
_MAX_ENTITIES_PER_CALL = 1000
_MAX_EVENTS_PER_CALL = 500
_CONNECT_TIMEOUT_S = 3.05
_MAX_REFUSAL_WARNINGS = 5
_MAX_KEY_CHARS = 250


class RefusedError(InternError):
    """The server answered that a request is invalid; sending it again would not help.

    Attributes:
        code: MLflow's error code, for example ``RESOURCE_DOES_NOT_EXIST``.
    """

    exit_code = 2

    def __init__(self, code: str, message: str) -> None:
        """Keeps the code beside the message."""
        super().__init__(message)
        self.code = code


class Server:
    """An MLflow server's address with the credentials that MLflow's own client would use.

    Credentials and options come from ``MLFLOW_TRACKING_USERNAME``/``PASSWORD`` or
    ``MLFLOW_TRACKING_TOKEN``, ``MLFLOW_TRACKING_SERVER_CERT_PATH``,
    ``MLFLOW_TRACKING_INSECURE_TLS`` and ``MLFLOW_WORKSPACE``.

    Args:
        uri: an ``http://`` or ``https://`` address.

    Raises:
        ConfigError: the address has another scheme.
    """

    def __init__(self, uri: str) -> None:
        """Keeps the address; nothing is sent yet."""
        if not uri.startswith(("http://", "https://")):
            raise ConfigError(f"MLFLOW_TRACKING_URI: expected http://HOST:PORT or https://HOST, got {uri!r}")
        self.base = uri.rstrip("/")
        self.read_timeout_s = 10.0
        self._session: Any = None

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """A GET below ``/api/2.0/``; raises as ``post``."""
        return self._call("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A POST of JSON below ``/api/2.0/``.

        Raises:
            AccessError: credentials are refused.
            RetryableError: no answer, or one that only a later try can mend.
            RefusedError: the request is invalid.
        """
        return self._call("POST", path, json=body)

    def put_file(self, path: str, file: Any) -> None:
        """A PUT of an open binary file below ``/api/2.0/``; raises as ``post``."""
        self._call("PUT", path, data=file)

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        import requests

        if self._session is None:
            self._session = _session()
        timeout = (min(_CONNECT_TIMEOUT_S, self.read_timeout_s), self.read_timeout_s)
        try:
            response = self._session.request(method, f"{self.base}/api/2.0/{path}", timeout=timeout, **arguments)
        except requests.RequestException as error:
            raise RetryableError(f"MLflow at {self.base} is away: {type(error).__name__}") from None
        if response.ok:
            try:
                return response.json() if method != "PUT" else {}
            except ValueError:
                raise RetryableError(
                    f"MLFLOW_TRACKING_URI {self.base}: answered 200 without JSON; is it MLflow?"
                ) from None
        text = " ".join(response.text.split())[:200]
        if response.status_code in (401, 403):
            raise AccessError(
                f"MLflow at {self.base} refused access ({response.status_code}: {text}); "
                "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        code, message = _error_of(response)
        if response.status_code == 413 or (code and response.status_code < 500 and response.status_code != 429):
            raise RefusedError(code, message or text)
        raise RetryableError(f"MLflow at {self.base} answered {response.status_code}: {text}")


class Sender:
    """Sends a spool file's events in order; a RetryableError or AccessError leaves the place where it was.

    Args:
        spool: the events.
        server: where to.
        warn: called with one line for each thing that the server refuses for good.
        is_new: False where an earlier try may have created the run already.

    Attributes:
        run_id: the run's id once it is open.
        num_sent: number of lines of the spool that are sent.
    """

    def __init__(self, spool: Spool, server: Server, *, warn: Callable[[str], None], is_new: bool) -> None:
        """Starts at the spool's first line; nothing is sent yet."""
        self.server = server
        self.run_id: str | None = None
        self.num_sent = 0
        self._spool = spool
        self._warn = warn
        self._is_new = is_new
        self._is_ended = bool(spool.opening["join"])
        self._offset = 0
        self._artifact_root = ""
        self._num_refused = 0

    def send_next(self) -> int:
        """Sends the next events in one call; returns how many, 0 at the end of the file.

        Raises:
            AccessError: credentials are refused.
            RetryableError: the server is away.
            RefusedError: the run to write to is not there or may not be created.
        """
        lines = self._spool.read(self._offset, _MAX_EVENTS_PER_CALL)
        if not lines:
            return 0
        num_events = 1
        event = lines[0][0]
        if event["op"] == "open":
            self._open(event)
        elif self.run_id is None:
            raise RetryableError(f"{self._spool.path}: expected the run to be opened first")
        elif event["op"] == "log":
            batch = _Batch()
            num_events = batch.fill([line[0] for line in lines])
            self._log(batch)
        else:
            self._send_one(event)
        self._offset = lines[num_events - 1][1]
        self.num_sent += num_events
        return num_events

    def end_if_open(self, end_ms: int) -> None:
        """Ends the run as FAILED where it is ours and no event ended it: its process died."""
        if not self._is_ended:
            self._end("FAILED", end_ms)

    def _open(self, event: dict[str, Any]) -> None:
        try:
            if event["join"]:
                run = self.server.get("mlflow/runs/get", run_id=event["join"])["run"]
            else:
                run = self._found_or_created(event)
        except RefusedError as error:
            what = f"MLFLOW_RUN_ID {event['join']}" if event["join"] else f"experiment {event['experiment']}"
            raise RefusedError(error.code, f"{what}: refused by MLflow at {self.server.base}: {error}") from None
        self.run_id = run["info"]["run_id"]
        self._artifact_root = run["info"]["artifact_uri"]

    def _found_or_created(self, event: dict[str, Any]) -> dict[str, Any]:
        experiment_id = event["experiment_id"] or self._experiment_id(event["experiment"])
        if not self._is_new:
            query = {"experiment_ids": [experiment_id], "filter": f"tags.`intern.spool` = '{event['spool']}'"}
            runs = self.server.post("mlflow/runs/search", query | {"max_results": 1}).get("runs", [])
            if runs:
                return runs[0]
        self._is_new = False
        tags = event["tags"] | {"intern.spool": event["spool"], "mlflow.user": event["user"]}
        body = {
            "experiment_id": experiment_id,
            "run_name": event["name"],
            "start_time": event["ms"],
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        return self.server.post("mlflow/runs/create", body)["run"]

    def _experiment_id(self, name: str) -> str:
        for create_first in (False, True):
            try:
                if create_first:
                    return self.server.post("mlflow/experiments/create", {"name": name})["experiment_id"]
                return self._experiment_by_name(name)
            except RefusedError as error:
                if error.code == "RESOURCE_ALREADY_EXISTS":
                    break
                if error.code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        # Another process created it between the two calls.
        return self._experiment_by_name(name)

    def _experiment_by_name(self, name: str) -> str:
        answer = self.server.get("mlflow/experiments/get-by-name", experiment_name=name)
        return answer["experiment"]["experiment_id"]

    def _log(self, batch: "_Batch") -> None:
        try:
            self.server.post("mlflow/runs/log-batch", {"run_id": self.run_id, **batch.items})
        except RefusedError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                raise RefusedError(error.code, f"run {self.run_id} is not at MLflow at {self.server.base}") from None
            halves = batch.halves()
            if not halves:
                self._refused(batch.name(), error)
            # One refused value must not cost the values sent along with it.
            for half in halves:
                self._log(half)

    def _send_one(self, event: dict[str, Any]) -> None:
        try:
            if event["op"] == "inputs":
                self.server.post("mlflow/runs/log-inputs", {"run_id": self.run_id, "datasets": event["datasets"]})
            elif event["op"] == "artifact":
                self._put_artifact(event)
            elif event["op"] == "finish" and not self._is_ended:
                self._end(event["status"], event["ms"])
        except RefusedError as error:
            self._refused(event["op"], error)

    def _put_artifact(self, event: dict[str, Any]) -> None:
        scheme, _, root = self._artifact_root.partition(":")
        path = self._spool.files_dir / event["file"]
        if scheme != "mlflow-artifacts":
            raise RefusedError(
                "", f"{event['to']}: the run's artifacts lie at {self._artifact_root}, not at the server"
            )
        if not path.exists():
            raise RefusedError("", f"{event['to']}: {path} is gone")
        with path.open("rb") as file:
            target = quote(f"{_without_host(root)}/{event['to']}")
            self.server.put_file(f"mlflow-artifacts/artifacts/{target}", file)

    def _end(self, status: str, end_ms: int) -> None:
        self.server.post("mlflow/runs/update", {"run_id": self.run_id, "status": status, "end_time": end_ms})
        self._is_ended = True

    def _refused(self, what: str, error: RefusedError) -> None:
        self._num_refused += 1
        if self._num_refused <= _MAX_REFUSAL_WARNINGS:
            self._warn(f"{what} left out: {error}")


class _Batch:
    """The metrics, params and tags of one ``runs/log-batch`` call, in their REST form."""

    def __init__(self) -> None:
        self.items: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _MAX_PER_CALL}

    def fill(self, events: list[dict[str, Any]]) -> int:
        """Takes leading ``log`` events while they fit, at least one; returns how many."""
        for index, event in enumerate(events):
            if index and (event["op"] != "log" or not self._fits(event)):
                return index
            for kind, items in self.items.items():
                items += event.get(kind, [])
        return len(events)

    def halves(self) -> list["_Batch"]:
        """Two batches with half of the entries each; none where there is only one entry."""
        entries = [(kind, item) for kind, items in self.items.items() for item in items]
        if len(entries) < 2:
            return []
        batches = [_Batch(), _Batch()]
        for index, (kind, item) in enumerate(entries):
            batches[2 * index // len(entries)].items[kind].append(item)
        return batches

    def name(self) -> str:
        """What the only entry is, for a warning."""
        return " ".join(f"{kind[:-1]} {item['key']}" for kind, items in self.items.items() for item in items)

    def _fits(self, event: dict[str, Any]) -> bool:
        sizes = {kind: len(items) + len(event.get(kind, [])) for kind, items in self.items.items()}
        fit_alone = all(size <= _MAX_PER_CALL[kind] for kind, size in sizes.items())
        return fit_alone and sum(sizes.values()) <= _MAX_ENTITIES_PER_CALL


def clean_key(name: str) -> str:
    """A name as MLflow takes it: at most 250 characters, each a word character, a space or one of ``/ . - : _``."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:_MAX_KEY_CHARS]


def metric_items(values: Mapping[str, float], step: int, time_ms: int) -> list[dict[str, Any]]:
    """Metrics of one step in REST form; numbers that JSON lacks become ``NaN``, ``Infinity`` and ``-Infinity``."""
    return [
        {"key": clean_key(name), "value": _json_number(value), "timestamp": time_ms, "step": int(step)}
        for name, value in values.items()
    ]


def _json_number(value: float) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _session() -> Any:
    import requests

    session = requests.Session()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        session.auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    elif token:
        session.auth = _bearer(token)
    if os.environ.get("MLFLOW_WORKSPACE"):
        session.headers["X-MLFLOW-WORKSPACE"] = os.environ["MLFLOW_WORKSPACE"]
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        session.verify = False
    elif os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        session.verify = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
    return session


def _bearer(token: str) -> Callable[[Any], Any]:
    # Given as ``auth`` and not as a header: otherwise an entry in ~/.netrc would replace it.
    def add_header(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return add_header


def _error_of(response: Any) -> tuple[str, str]:
    """MLflow's error code and message; empty where the answer is not MLflow's."""
    try:
        error = response.json()
        return str(error["error_code"]), " ".join(str(error["message"]).split())[:300]
    except (ValueError, KeyError, TypeError):
        return "", ""


def _without_host(root: str) -> str:
    """The path of ``mlflow-artifacts:`` addresses, which may name a host: ``//host/path`` or ``/path``."""
    return root[2:].partition("/")[2] if root.startswith("//") else root.strip("/")
