"""Tracking: what a stage logs reaches MLflow without ever holding the stage up.

``import mlflow`` costs about 2 s and hundreds of modules, and its client blocks for minutes
when the server is away, so this module speaks MLflow's documented REST API 2.0 through
``requests`` (imported at the first call, on the sending thread). A call here puts an event
into a bounded queue; one daemon thread appends events to a file in the spool folder and
sends them from there. The file is deleted once everything is sent and the run is closed, so
neither a server that is away nor a killed process loses what was logged: ``replay`` sends
what is left. A file in use is held by ``flock``, which the kernel lifts when its process
dies, so a claim can never go stale.

Sending again is harmless: MLflow ignores equal metric points, params and tags, and a run is
found again by its tag ``intern.spool`` instead of being created twice.
"""

import collections
import getpass
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from intern_vision.config import canonical_json
from intern_vision.errors import AccessError, ConfigError, InternError, RetryableError
from intern_vision.mlflow_rest import RefusedError, Sender, Server, clean_key, metric_items
from intern_vision.ref import Ref
from intern_vision.spool import Spool

Status = Literal["FINISHED", "FAILED", "KILLED"]

KFP_RUN_TAG = "intern.kfp_run"
"""Tag of a run with the id of the run of Kubeflow Pipelines that it is a step of."""

MAX_QUEUED_EVENTS = 10_000
# MLflow's limits of params and tags in one call, and of their values.
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
_SEND_INTERVAL_S = 0.25
_CLOSING_INTERVAL_S = 0.05
_FIRST_BACK_OFF_S = 0.5
_MAX_BACK_OFF_S = 30.0
_FIRST_TRY_S = 5.0


class Tracker:
    """One MLflow run, written asynchronously; without ``MLFLOW_TRACKING_URI`` every call does nothing.

    Environment: ``MLFLOW_TRACKING_URI``, ``MLFLOW_TRACKING_USERNAME``/``PASSWORD``/``TOKEN``,
    ``MLFLOW_RUN_ID`` (a run to join: it is written to but not ended), ``MLFLOW_EXPERIMENT_ID``
    or ``MLFLOW_EXPERIMENT_NAME`` (default ``intern``), ``INTERN_PARENT_RUN_ID``, ``INTERN_KFP_RUN_ID``,
    ``INTERN_TRACK_TIMEOUT_S`` (how long ``finish`` may take, default 10) and
    ``INTERN_TRACKING_REQUIRED`` (``1``: no server at the start is an error).

    Use ``for_stage`` or ``for_pipeline``, as a context manager: the run ends as FINISHED, as
    KILLED after KeyboardInterrupt or RetryableError (the same command resumes), else as FAILED.
    """

    def __init__(
        self,
        name: str,
        spool_dir: Path,
        *,
        parent_run_id: str = "",
        max_queued_events: int = MAX_QUEUED_EVENTS,
    ) -> None:
        """Starts the sending thread; see ``for_stage``."""
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        required = os.environ.get("INTERN_TRACKING_REQUIRED", "") == "1"
        self.num_dropped_values = 0
        self._events: collections.deque[dict[str, Any]] = collections.deque()
        self._max_queued_events = max_queued_events
        self._lock = threading.Lock()
        self._num_inputs: collections.Counter[str] = collections.Counter()
        self._num_files = 0
        self._spool: Spool | None = None
        if not uri:
            if required:
                raise ConfigError(
                    "MLFLOW_TRACKING_URI: expected an address because INTERN_TRACKING_REQUIRED=1, got none"
                )
            return
        server = Server(uri)
        self._timeout_s = _timeout_s()
        self._deadline = math.inf
        self._error: InternError | None = None
        self._abandoned = False
        self._file_lock = threading.Lock()
        self._kick = threading.Event()
        self._first_try = threading.Event()
        self._spool = Spool.create(spool_dir, name, self._opening(name, parent_run_id))
        self._sender = Sender(self._spool, server, warn=_warn, is_new=True)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()
        if required:
            self._require()

    @classmethod
    def for_stage(cls, name: str, spool_dir: Path) -> Self:
        """The run of a stage: joins ``MLFLOW_RUN_ID``, else is nested under ``INTERN_PARENT_RUN_ID``.

        Args:
            name: run name.
            spool_dir: local folder for what is not sent yet.

        Raises:
            ConfigError: the address is not http(s), or it is required and missing.
            AccessError: credentials are refused and tracking is required.
            RetryableError: the server is away and tracking is required.
        """
        return cls(name, spool_dir, parent_run_id=os.environ.get("INTERN_PARENT_RUN_ID", ""))

    @classmethod
    def for_pipeline(cls, name: str, spool_dir: Path) -> Self:
        """The run above the stages' runs; its ``run_id`` is what ``INTERN_PARENT_RUN_ID`` is set to."""
        return cls(name, spool_dir)

    @property
    def run_id(self) -> str | None:
        """The run's id; waits for the first try to open the run, and is None while that has not worked."""
        if self._spool is None:
            return None
        self._first_try.wait(_FIRST_TRY_S)
        return self._sender.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs settings; values become text, cut at 6000 characters. A changed value is refused with a warning."""
        items = [{"key": clean_key(k), "value": _text(v)[:MAX_PARAM_CHARS]} for k, v in params.items()]
        for start in range(0, len(items), MAX_PARAMS_PER_CALL):
            self._put({"op": "log", "params": items[start : start + MAX_PARAMS_PER_CALL]})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers at a step; when the queue is full the oldest queued metrics make room."""
        self._put({"op": "metrics", "values": dict(metrics), "step": step, "ms": _now_ms()})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags; values become text, cut at 8000 characters. A later value replaces an earlier one."""
        items = [{"key": clean_key(k), "value": _text(v)[:MAX_TAG_CHARS]} for k, v in tags.items()]
        for start in range(0, len(items), MAX_PARAMS_PER_CALL):
            self._put({"op": "log", "tags": items[start : start + MAX_PARAMS_PER_CALL]})

    def log_input(self, ref: Ref, context: str) -> None:
        """Records an input: a tag ``intern.input.<context>.<n>``, and an MLflow dataset where it is one."""
        self.set_tags({f"intern.input.{context}.{self._num_inputs[context]}": ref.uri})
        self._num_inputs[context] += 1
        if ref.kind != "dataset":
            return
        scheme = ref.uri.partition("://")[0]
        dataset = {
            "name": ref.name[:500],
            "digest": ref.digest[:16],
            # The form that ``mlflow.data.get_source`` reads back.
            "source_type": "local" if scheme == "file" else scheme,
            "source": json.dumps({"uri": ref.uri}),
            "profile": json.dumps({"num_bytes": ref.num_bytes}),
        }
        tags = [{"key": "mlflow.data.context", "value": context}]
        self._put({"op": "inputs", "datasets": [{"dataset": dataset, "tags": tags}]})

    def log_output(self, ref: Ref) -> None:
        """Records what the run made, as tags ``intern.output.uri``, ``digest``, ``kind`` and ``name``."""
        self.set_tags({f"intern.output.{field}": getattr(ref, field) for field in ("uri", "digest", "kind", "name")})

    def log_artifact(self, path: Path, artifact_path: str = "") -> None:
        """Uploads a small file through the server, below ``artifact_path`` in the run's artifacts.

        The file is copied into the spool folder first, so it may be changed or deleted at once.
        """
        if self._spool is None:
            return
        name = f"{self._num_files}-{path.name}"
        self._num_files += 1
        self._spool.files_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self._spool.files_dir / name)
        self._put({"op": "artifact", "file": name, "to": f"{artifact_path}/{path.name}".strip("/")})

    def finish(self, status: Status = "FINISHED") -> None:
        """Ends the run (a joined run stays open) and waits at most ``INTERN_TRACK_TIMEOUT_S`` for the sending.

        What could not be sent stays in the spool folder, and one line on standard error says so.
        """
        if self._spool is None or self._abandoned:
            return
        self._put({"op": "finish", "status": status, "ms": _now_ms()})
        self._deadline = time.monotonic() + self._timeout_s
        self._kick.set()
        self._thread.join(self._timeout_s + 0.2)
        self._settle()

    def __enter__(self) -> Self:
        """The tracker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the run with the status that the exception calls for."""
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, (KeyboardInterrupt, RetryableError)) else "FAILED")

    def _put(self, event: dict[str, Any]) -> None:
        if self._spool is None:
            return
        with self._lock:
            if len(self._events) >= self._max_queued_events:
                self._drop_oldest_metrics()
            self._events.append(event)

    def _drop_oldest_metrics(self) -> None:
        for index, event in enumerate(self._events):
            if event["op"] == "metrics":
                self.num_dropped_values += len(event["values"])
                del self._events[index]
                return

    def _opening(self, name: str, parent_run_id: str) -> dict[str, Any]:
        tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
        if parent_run_id:
            tags["mlflow.parentRunId"] = parent_run_id
        if kfp_run_id := os.environ.get("INTERN_KFP_RUN_ID"):
            tags[KFP_RUN_TAG] = kfp_run_id
        return {
            "op": "open",
            "name": name,
            "experiment_id": os.environ.get("MLFLOW_EXPERIMENT_ID", ""),
            "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME") or "intern",
            "join": os.environ.get("MLFLOW_RUN_ID", ""),
            "user": _user(),
            "tags": tags,
            "ms": _now_ms(),
        }

    def _require(self) -> None:
        self._first_try.wait(self._timeout_s)
        if self._sender.run_id is None:
            error = self._error or RetryableError(f"MLFLOW_TRACKING_URI: no answer within {self._timeout_s:g} s")
            with self._file_lock:
                self._abandoned = True
                self._spool.delete()
            raise error

    def _work(self) -> None:
        """The sending thread: queue to file, file to server, until all is sent or the time is up."""
        back_off_s, next_try = _FIRST_BACK_OFF_S, 0.0
        while not self._abandoned:
            is_closing = self._deadline < math.inf
            num_sent = 0
            try:
                num_left = self._write_queued()
                if num_left and time.monotonic() >= next_try:
                    self._sender.server.read_timeout_s = min(10.0, max(1.0, self._deadline - time.monotonic()))
                    num_sent = self._sender.send_next()
                    back_off_s, self._error = _FIRST_BACK_OFF_S, None
                is_done = not self._num_left()
            except InternError as error:
                self._note(error)
                next_try = time.monotonic() + (min(back_off_s, 1.0) if is_closing else back_off_s)
                back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)
                is_done = isinstance(error, AccessError)
            except OSError as error:
                # The file keeps what it could not write in its buffer and tries again at the next write.
                self._note(RetryableError(f"{self._spool.path}: cannot write ({error.strerror})"))
                is_done = False
            finally:
                self._first_try.set()
            if is_closing and (is_done or time.monotonic() >= self._deadline):
                return
            if not num_sent:
                # Once closing, ``_kick`` stays set: then sleep instead, so that retries keep their distance.
                time.sleep(_CLOSING_INTERVAL_S) if is_closing else self._kick.wait(_SEND_INTERVAL_S)

    def _write_queued(self) -> int:
        """Moves the queue into the file; returns the number of events in the file that are not sent."""
        with self._file_lock:
            if not self._abandoned:
                self._spool.append(self._taken())
        return self._num_left()

    def _taken(self) -> list[dict[str, Any]]:
        with self._lock:
            events, self._events = self._events, collections.deque()
        return [_encoded(event) for event in events]

    def _num_left(self) -> int:
        return self._spool.num_events - self._sender.num_sent

    def _note(self, error: InternError) -> None:
        if isinstance(error, AccessError) and not isinstance(self._error, AccessError):
            _warn(f"{error}; the run goes on and its events are kept in {self._spool.path}")
        self._error = error

    def _settle(self) -> None:
        """Writes what is still queued, after which the sending thread touches nothing, and says what is left."""
        with self._file_lock:
            self._abandoned = True
            try:
                self._spool.append(self._taken())
            except OSError as error:
                _warn(f"the last events are lost: {self._spool.path}: cannot write ({error.strerror})")
        if self.num_dropped_values:
            _warn(f"{self.num_dropped_values} metric values dropped: more than {self._max_queued_events} calls queued")
        num_left = self._num_left()
        if not num_left:
            self._spool.delete()
            return
        self._spool.release()
        reason = self._error or f"no time left after {self._timeout_s:g} s"
        if isinstance(reason, AccessError):
            reason = "access refused"  # Said in full when it happened.
        _warn(f"{num_left} events not sent ({reason}); kept in {self._spool.path} for the next replay of that folder")


def replay(spool_dir: Path) -> int:
    """Sends what earlier processes left in a spool folder, with the original times, and deletes it.

    A run that was never created is created now; a run whose process died before ending it is
    ended as FAILED at the time of its last event. Files that a live process (or another
    replay) holds are passed over, and so, with a warning, is one whose run the server does not take.

    Args:
        spool_dir: the folder given to ``Tracker.for_stage``.

    Returns:
        Number of files sent and deleted; 0 where ``MLFLOW_TRACKING_URI`` is not set.

    Raises:
        RetryableError: the server is away; the files stay.
        AccessError: credentials are refused; the files stay.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    num_sent = 0
    for path in sorted(spool_dir.glob("*.jsonl")) if uri else ():
        spool = Spool.claim(path)
        if spool is None:
            continue
        try:
            sender = Sender(spool, Server(uri), warn=_warn, is_new=False)
            while sender.send_next():
                pass
            sender.end_if_open(int(path.stat().st_mtime * 1000))
        except RefusedError as error:
            spool.release()
            _warn(f"{path} is not sent: {error}")
            continue
        except BaseException:
            spool.release()
            raise
        spool.delete()
        num_sent += 1
    return num_sent


def _encoded(event: dict[str, Any]) -> dict[str, Any]:
    """The event as it is spooled; metrics take their REST form here, off the stage's thread."""
    if event["op"] != "metrics":
        return event
    return {"op": "log", "metrics": metric_items(event["values"], event["step"], event["ms"])}


def _text(value: Any) -> str:
    return canonical_json(value) if isinstance(value, (dict, list, tuple)) else str(value)


def _timeout_s() -> float:
    text = os.environ.get("INTERN_TRACK_TIMEOUT_S") or "10"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"INTERN_TRACK_TIMEOUT_S: expected seconds, got {text!r}") from None


def _user() -> str:
    # A container may run under a user id that has no name.
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _warn(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)
