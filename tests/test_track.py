import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from intern_vision.errors import AccessError, ConfigError, RetryableError
from intern_vision.ref import Ref
from intern_vision.services import Services
from intern_vision.track import Tracker, replay

DIGEST = "0123456789abcdef" * 4


class Wire:
    """A TCP relay to the server that can be cut and mended, as a network is."""

    def __init__(self, target_uri: str) -> None:
        target = urlsplit(target_uri)
        self._target = (target.hostname, target.port)
        self._port = 0
        self.mend()
        self.uri = f"http://127.0.0.1:{self._port}"

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                threading.Thread(target=self._relay, args=(client, server), daemon=True).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with suppress(OSError, ValueError):
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    # MLflow answers only to its own name.
                    data = data.replace(self._host_header(self._port), self._host_header(self._target[1]))
                    other[ready].sendall(data)

    def _host_header(self, port: int) -> bytes:
        return f"Host: 127.0.0.1:{port}\r\n".encode()


@pytest.fixture
def experiment(services: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    monkeypatch.setenv("INTERN_TRACK_TIMEOUT_S", "20")
    return name


@pytest.fixture
def client(experiment: str):
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def silent_uri() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def unused_uri() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def runs_of(client, experiment: str) -> list:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def ref(kind: str = "dataset") -> Ref:
    return Ref(kind=kind, name="shapes", uri="s3://bucket/shapes-1", digest=DIGEST, num_bytes=7, parents=())


def steps_of(client, run_id: str, key: str) -> list[int]:
    return sorted(metric.step for metric in client.get_metric_history(run_id, key))


def test_a_run_shows_everything_that_was_logged(client, experiment, tmp_path, monkeypatch):
    with Tracker.for_pipeline("pipeline", tmp_path / "spool") as parent:
        monkeypatch.setenv("INTERN_PARENT_RUN_ID", parent.run_id)
        with Tracker.for_stage("stage", tmp_path / "spool") as tracker:
            tracker.log_params({"config/lr": 0.1, "config/sizes": [1, 2], "config/long": "x" * 7000})
            tracker.log_params({f"config/many/{i}": i for i in range(150)})
            for step in range(3):
                tracker.log_metrics({"loss": 1.0 / (step + 1), "map@50": 0.5}, step=step)
            tracker.log_metrics({"nan": math.nan, "inf": -math.inf}, step=0)
            tracker.set_tags({"intern.stage": "expert"})
            tracker.log_input(ref(), context="train")
            tracker.log_input(ref("weights"), context="init")
            tracker.log_input(ref("weights"), context="init")
            tracker.log_output(ref("model"))
            note = tmp_path / "note.txt"
            note.write_text("hello")
            tracker.log_artifact(note, "notes")
            note.unlink()
            run_id = tracker.run_id
    assert list((tmp_path / "spool").iterdir()) == []

    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "stage")
    assert client.get_run(parent.run_id).info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.params["config/lr"] == "0.1"
    assert run.data.params["config/sizes"] == "[1,2]"
    assert len(run.data.params["config/long"]) == 6000
    assert len(run.data.params) == 153
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
    assert steps_of(client, run_id, "map_50") == [0, 1, 2]
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.metrics["inf"] < -1e300
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("intern.")}
    del tags["intern.spool"]
    assert tags == {
        "intern.stage": "expert",
        "intern.input.train.0": "s3://bucket/shapes-1",
        "intern.input.init.0": "s3://bucket/shapes-1",
        "intern.input.init.1": "s3://bucket/shapes-1",
        "intern.output.uri": "s3://bucket/shapes-1",
        "intern.output.digest": DIGEST,
        "intern.output.kind": "model",
        "intern.output.name": "shapes",
    }
    (dataset_input,) = run.inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("shapes", DIGEST[:16])
    assert json.loads(dataset_input.dataset.source) == {"uri": "s3://bucket/shapes-1"}
    assert dataset_input.dataset.source_type == "s3"
    assert dataset_input.tags[0].value == "train"
    assert Path(client.download_artifacts(run_id, "notes/note.txt", str(tmp_path))).read_text() == "hello"


def test_a_joined_run_is_written_to_but_not_ended(client, experiment, tmp_path, monkeypatch):
    outer = client.create_run(client.create_experiment(experiment))
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.info.run_id)
    with pytest.raises(ValueError, match="boom"), Tracker.for_stage("stage", tmp_path) as tracker:
        assert tracker.run_id == outer.info.run_id
        tracker.log_metrics({"loss": 1.0}, step=0)
        raise ValueError("boom")
    (run,) = runs_of(client, experiment)
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"loss": 1.0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (RetryableError("stopped"), "KILLED")],
)
def test_an_exception_decides_the_status(client, experiment, tmp_path, error, status):
    with pytest.raises(type(error)), Tracker.for_stage("stage", tmp_path):
        raise error
    assert [run.info.status for run in runs_of(client, experiment)] == [status]


def test_without_an_address_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with Tracker.for_stage("stage", tmp_path / "spool") as tracker:
        tracker.log_params({"a": 1})
        tracker.log_metrics({"b": 1.0}, step=0)
        tracker.log_input(ref(), context="train")
        tracker.log_artifact(tmp_path / "none.txt")
        assert tracker.run_id is None
    assert not (tmp_path / "spool").exists()
    assert replay(tmp_path) == 0


def test_a_server_away_from_the_start_loses_nothing(client, experiment, tmp_path, monkeypatch, capsys):
    server_uri = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_uri())
    monkeypatch.setenv("INTERN_TRACK_TIMEOUT_S", "0.3")
    started_ms = time.time() * 1000
    with Tracker.for_stage("stage", tmp_path) as tracker:
        assert tracker.run_id is None
        for step in range(20):
            tracker.log_metrics({"loss": float(step)}, step=step)
        (tmp_path / "note.txt").write_text("hello")
        tracker.log_artifact(tmp_path / "note.txt")
    ended_ms = time.time() * 1000
    (spool,) = tmp_path.glob("*.jsonl")
    (line,) = capsys.readouterr().err.splitlines()
    assert str(spool) in line
    assert "23 events not sent" in line
    with pytest.raises(RetryableError):
        replay(tmp_path)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server_uri)
    assert replay(tmp_path) == 1
    assert replay(tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    (run,) = runs_of(client, experiment)
    assert run.info.status == "FINISHED"
    assert started_ms - 1 <= run.info.start_time <= run.info.end_time <= ended_ms
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == list(range(20))
    assert all(started_ms - 1 <= metric.timestamp <= ended_ms for metric in history)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]


@pytest.mark.parametrize("is_back_in_time", [True, False])
def test_a_server_lost_midway_loses_nothing(client, experiment, tmp_path, monkeypatch, is_back_in_time):
    wire = Wire(os.environ["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wire.uri)
    monkeypatch.setenv("INTERN_TRACK_TIMEOUT_S", "20" if is_back_in_time else "0.3")
    tracker = Tracker.for_stage("stage", tmp_path)
    assert tracker.run_id
    for step in range(100):
        if step == 50:
            time.sleep(0.4)
            wire.cut()
        tracker.log_metrics({"loss": float(step)}, step=step)
    time.sleep(0.4)
    if is_back_in_time:
        wire.mend()
    tracker.finish()
    if not is_back_in_time:
        assert len(list(tmp_path.glob("*.jsonl"))) == 1
        wire.mend()
        assert replay(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    (run,) = runs_of(client, experiment)
    assert run.info.status == "FINISHED"
    assert steps_of(client, run.info.run_id, "loss") == list(range(100))
    wire.cut()


def test_a_killed_process_loses_only_its_queue_and_its_run_is_ended(client, experiment, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from intern_vision.track import Tracker\n"
        "tracker = Tracker.for_stage('stage', Path(sys.argv[1])); tracker.run_id\n"
        "[tracker.log_metrics({'loss': 1.0}, step=step) for step in range(30)]\n"
        "time.sleep(1); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert replay(tmp_path) == 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert replay(tmp_path) == 1
    (run,) = runs_of(client, experiment)
    assert run.info.status == "FAILED"
    assert steps_of(client, run.info.run_id, "loss") == list(range(30))


def test_a_silent_server_never_holds_the_caller_up(silent_uri, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_uri)
    monkeypatch.setenv("INTERN_TRACK_TIMEOUT_S", "0.5")
    values = {f"metric_{i}": float(i) for i in range(10)}
    tracker = Tracker("stage", tmp_path, max_queued_events=200)
    time.sleep(0.3)
    times_s = []
    for step in range(2000):
        started = time.perf_counter()
        tracker.log_metrics(values, step=step)
        times_s.append(time.perf_counter() - started)
    tracker.set_tags({"kept": "yes"})
    assert sorted(times_s)[1980] < 0.005
    started = time.perf_counter()
    tracker.finish()
    assert time.perf_counter() - started < 3
    assert tracker.num_dropped_values == (2000 - 198) * 10
    events = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    assert [event["op"] for event in (events[0], events[-1])] == ["open", "finish"]
    assert [event["tags"] for event in events if event.get("tags") and event["op"] == "log"] == [
        [{"key": "kept", "value": "yes"}]
    ]
    steps = [event["metrics"][0]["step"] for event in events if event.get("metrics")]
    assert steps == list(range(2000 - 198, 2000))
    dropped, left = capsys.readouterr().err.splitlines()
    assert "18020 metric values dropped" in dropped
    assert "201 events not sent" in left


def test_a_changed_param_is_a_warning_and_costs_no_other(client, experiment, tmp_path, capsys):
    with Tracker.for_stage("stage", tmp_path) as tracker:
        tracker.log_params({"a": 1})
        tracker.log_params({"b": 2, "a": 3, "c": 4})
        tracker.log_metrics({"loss": 1.0}, step=0)
    (run,) = runs_of(client, experiment)
    assert run.data.params == {"a": "1", "b": "2", "c": "4"}
    assert run.data.metrics == {"loss": 1.0}
    assert "param a left out" in capsys.readouterr().err


def test_refused_credentials_are_said_once_and_stop_nothing(tmp_path, monkeypatch, capsys):
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"You are not authenticated.")

        def log_message(self, *arguments):
            pass

    seen: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with Tracker.for_stage("stage", tmp_path) as tracker:
        assert tracker.run_id is None
        tracker.log_metrics({"loss": 1.0}, step=0)
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert set(seen) == {"Bearer secret"}
    errors = capsys.readouterr().err
    assert errors.count("MLFLOW_TRACKING_USERNAME") == 1
    assert "secret" not in errors
    monkeypatch.setenv("INTERN_TRACKING_REQUIRED", "1")
    with pytest.raises(AccessError, match="401"):
        Tracker.for_stage("stage", tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    server.shutdown()


def test_required_tracking_needs_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERN_TRACKING_REQUIRED", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unused_uri())
    with pytest.raises(RetryableError, match="away"):
        Tracker.for_stage("stage", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        Tracker.for_stage("stage", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(ConfigError, match="expected http"):
        Tracker.for_stage("stage", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_replays_share_the_files_between_them(client, experiment, tmp_path, monkeypatch):
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", unused_uri())
        away.setenv("INTERN_TRACK_TIMEOUT_S", "0.1")
        for number in range(4):
            with Tracker.for_stage(f"stage-{number}", tmp_path) as tracker:
                tracker.log_metrics({"loss": 1.0}, step=0)
    with next(iter(tmp_path.glob("*.jsonl"))).open("ab") as file:
        file.write(b'{"op": "log", "metr')
    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(replay, [tmp_path, tmp_path])) == 4
    assert sorted(run.info.run_name for run in runs_of(client, experiment)) == [f"stage-{n}" for n in range(4)]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_a_run_that_is_gone_stays_and_blocks_no_other(client, experiment, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", unused_uri())
        away.setenv("INTERN_TRACK_TIMEOUT_S", "0.1")
        Tracker.for_stage("b", tmp_path).finish()
        away.setenv("MLFLOW_RUN_ID", "0" * 32)
        Tracker.for_stage("a", tmp_path).finish()
    capsys.readouterr()
    assert replay(tmp_path) == 1
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("a-")
    assert "MLFLOW_RUN_ID" in capsys.readouterr().err
