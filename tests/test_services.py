import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import boto3
import psutil
import pytest
import requests

from intern_vision import services as embedded
from intern_vision.errors import AccessError, ConfigError, InternError, RetryableError
from intern_vision.s3 import S3Access, S3Store
from intern_vision.servers import unix_sockets
from intern_vision.service_state import read_record

HOLDER = """
import os, pathlib, signal, sys, time
from intern_vision import services
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with services.running(pathlib.Path(sys.argv[1]), with_mlflow=sys.argv[2] == "mlflow"):
    if os.fork() == 0:
        time.sleep(10)  # holds the same pipes, as a data loader's worker does
        os._exit(0)
    print("up", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def alone(monkeypatch):
    for name in ("INTERN_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "INTERN_STORE"):
        monkeypatch.delenv(name, raising=False)


def put_and_read(services: embedded.Services, name: str, content: bytes) -> bytes:
    store = S3Store("s3://intern/store", services.access)
    store.put(content, f"s3://intern/store/{name}")
    return store.read(f"s3://intern/store/{name}")


def living(pids) -> list[int]:
    alive = [pid for pid in pids if psutil.pid_exists(pid)]
    return [pid for pid in alive if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(pids, timeout_s=8.0) -> float:
    started = time.monotonic()
    while living(pids) and time.monotonic() - started < timeout_s:
        time.sleep(0.02)
    assert living(pids) == []
    return time.monotonic() - started


def test_environment_is_all_that_a_child_process_needs(services):
    code = """
import boto3, json, os, requests
boto3.client("s3").put_object(Bucket="intern", Key="child", Body=b"from the child")
uri = os.environ["MLFLOW_TRACKING_URI"]
api = uri + "/api/2.0/mlflow"
run = requests.post(api + "/runs/create", json={"experiment_id": "0"}).json()["run"]["info"]["run_id"]
requests.put(uri + "/api/2.0/mlflow-artifacts/artifacts/some/file", data=b"artifact").raise_for_status()
print(run)
"""
    environment = {"PATH": os.environ["PATH"], **services.environment()}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert len(child.stdout.strip()) == 32, child.stderr
    store = S3Store("s3://intern/store", services.access)
    assert store.read("s3://intern/child") == b"from the child"
    assert store.read("s3://intern/mlflow/some/file") == b"artifact"
    assert boto3.client("s3").head_bucket(Bucket="intern")["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert environment["INTERN_STORE"] == "s3://intern/store"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == environment["DO_NOT_TRACK"] == "true"


def test_mlflow_refuses_foreign_host_names(services):
    url = f"{services.mlflow_uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert requests.get(url).status_code == 200
    assert requests.get(url, headers={"Host": "evil.example"}).status_code == 403


def test_given_addresses_are_used_and_nothing_is_started(services, tmp_path):
    with embedded.running(tmp_path / "state") as found:
        assert found.embedded == ()
        assert (found.s3_endpoint, found.mlflow_uri) == (services.s3_endpoint, services.mlflow_uri)
    assert not (tmp_path / "state").exists()


def test_given_address_that_does_not_answer(services, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RetryableError, match="MLFLOW_TRACKING_URI: no answer from http://127.0.0.1:9"):
        embedded.up(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessError, match="AWS_SECRET_ACCESS_KEY"):
        embedded.up(tmp_path)


def test_files_are_private_and_hold_no_secret_but_one(alone, tmp_path):
    state = tmp_path / "state"
    with embedded.running(state, with_mlflow=False) as services:
        credentials = json.loads((state / "credentials.json").read_text())
        assert put_and_read(services, "x", b"y") == b"y"
        record = read_record(state)
        lines = [" ".join(psutil.Process(pid).cmdline()) for pid in embedded.status(state).pids.values()]
        # The object lies on the filer's port as well, which knows no S3 credentials.
        filer = f"http://127.0.0.1:{record.ports['filer']}/buckets/intern/store/x"
        assert requests.get(filer).status_code == 401
        assert requests.put(filer, data=b"z").status_code == 401
        listening = psutil.Process(record.servers["seaweedfs"].pid).net_connections("tcp")
        served = {item.laddr for item in listening if item.status == psutil.CONN_LISTEN}
        assert {address.ip for address in served} == {"127.0.0.1"}
        assert {address.port for address in served} <= set(record.ports.values())
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "credentials.json").stat().st_mode) == 0o600
    texts = {path.name: path.read_text(errors="replace") for path in (state / "logs").iterdir()}
    texts |= {"record": record.to_json(), "repr": repr(services), "process list": "\n".join(lines)}
    del credentials["access_key"]  # a name, which SeaweedFS logs
    assert [(name, where) for name in credentials for where in texts if credentials[name] in texts[where]] == []


@pytest.mark.parametrize(
    ("number", "with_mlflow"), [(signal.SIGKILL, True), (signal.SIGTERM, False), (signal.SIGINT, False)]
)
def test_nothing_outlives_the_process_that_asked(alone, tmp_path, number, with_mlflow):
    state = tmp_path / "state"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(state), "mlflow" if with_mlflow else "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout.readline() == "up\n"
    status, ports = embedded.status(state), read_record(state).ports
    assert status.running and status.s3_answers and len(living(status.pids.values())) == 2 + with_mlflow
    with pytest.raises(RetryableError, match=f"process {holder.pid} uses its servers"):
        embedded.up(state, with_mlflow=with_mlflow)
    holder.send_signal(number)
    holder.wait()
    wait_until_gone(status.pids.values())
    assert not any(Path(path).exists() for path in unix_sockets(ports))
    assert not embedded.status(state).running
    holder.stdout.close()


def test_kept_servers_stay_are_shared_and_keep_their_data(alone, tmp_path):
    code = (
        "import pathlib, sys; from intern_vision.services import up; up(pathlib.Path(sys.argv[1]), with_mlflow=False)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    status = embedded.status(tmp_path)
    assert status.running and status.owner_pid is None
    with embedded.running(tmp_path, with_mlflow=False) as services:
        assert put_and_read(services, "kept", b"data") == b"data"
    assert embedded.up(tmp_path, with_mlflow=False) == services
    assert embedded.status(tmp_path).pids == status.pids
    with pytest.raises(ConfigError, match="run without mlflow"):
        embedded.up(tmp_path)
    assert embedded.down(tmp_path) is True
    assert living(status.pids.values()) == []
    assert embedded.down(tmp_path) is False
    with embedded.running(tmp_path, with_mlflow=False) as again:
        assert again.access == services.access
        assert S3Store("s3://intern", again.access).read("s3://intern/store/kept") == b"data"


def test_servers_die_with_a_killed_supervisor_and_start_anew(alone, tmp_path):
    embedded.up(tmp_path, with_mlflow=False)
    status = embedded.status(tmp_path)
    os.kill(status.pids["supervisor"], signal.SIGKILL)
    wait_until_gone(status.pids.values())
    assert not embedded.status(tmp_path).running
    (tmp_path / "credentials.json").write_text('{"access_key": "cut sho')
    with embedded.running(tmp_path, with_mlflow=False) as services:
        assert put_and_read(services, "x", b"y") == b"y"
        assert set(embedded.status(tmp_path).pids.values()).isdisjoint(status.pids.values())
    # A record cut short by a crash, and one whose pids are other processes' now.
    for text in ("{not json", '{"supervisor": {"pid": 1, "created_s": 1.0}}'):
        (tmp_path / "services.json").write_text(text)
        assert not embedded.status(tmp_path).running
        assert embedded.down(tmp_path) is False


def test_two_folders_side_by_side(alone, tmp_path):
    with embedded.running(tmp_path / "a", with_mlflow=False) as a:
        with embedded.running(tmp_path / "b", with_mlflow=False) as b:
            assert put_and_read(a, "who", b"a") == b"a"
            assert put_and_read(b, "who", b"b") == b"b"
            mixed = S3Access(a.access.endpoint, "us-east-1", b.access.access_key, b.access.secret_key)
            with pytest.raises(AccessError, match=a.access.endpoint):
                S3Store("s3://intern", mixed).read("s3://intern/store/who")
        assert S3Store("s3://intern", a.access).read("s3://intern/store/who") == b"a"


def test_folder_locked_by_another_process(alone, tmp_path):
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RetryableError, match="another process is starting or stopping"):
            embedded.up(tmp_path)


def test_fixed_ports(alone, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("INTERN_S3_PORT", str(port))
        with pytest.raises(ConfigError, match=rf"INTERN_S3_PORT: port {port} is taken by process {os.getpid()} "):
            embedded.up(tmp_path)
    monkeypatch.setenv("INTERN_MLFLOW_PORT", "http")
    with pytest.raises(ConfigError, match="INTERN_MLFLOW_PORT: expected a port number"):
        embedded.up(tmp_path)
    monkeypatch.setenv("INTERN_S3_PORT", str(port))
    with embedded.running(tmp_path, with_mlflow=False) as services:
        assert services.s3_endpoint == f"http://127.0.0.1:{port}"


def test_failed_start_quotes_the_log_and_leaves_nothing(alone, tmp_path):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"no database" * 1000)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(InternError, match=r"mlflow answers 500: .*not a database.*\(log: .*mlflow\.log\)"):
        embedded.up(tmp_path)
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not embedded.status(tmp_path).running
    (tmp_path / "s3" / "filerldb2").rename(tmp_path / "s3" / "old")
    (tmp_path / "s3" / "filerldb2").write_text("in the way")
    with pytest.raises(InternError, match=r"seaweedfs ended while starting \(exit code \d+\): .*seaweedfs\.log\)"):
        embedded.up(tmp_path, with_mlflow=False)


def test_doctor(services, tmp_path, monkeypatch):
    checks = {check.name: check for check in embedded.doctor(tmp_path)}
    for name in (
        "python",
        "torch",
        "deepspeed",
        "disk",
        "memory",
        "cores",
        "seaweedfs",
        "mlflow",
        "s3",
        "mlflow server",
    ):
        assert checks[name].ok and checks[name].detail and not checks[name].fix, checks[name]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in repr(checks)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    monkeypatch.setenv("INTERN_MLFLOW_PORT", "x")
    (tmp_path / "credentials.json").write_text("{}")
    (tmp_path / "credentials.json").chmod(0o644)
    faults = {check.name: check for check in embedded.doctor(tmp_path) if not check.ok}
    assert faults.keys() == {"servers", "mlflow port", "credentials"}
    assert all(check.fix for check in faults.values())
    assert "chmod 600" in faults["credentials"].fix and "wrong-secret" not in repr(faults)
