"""The embedded servers of one machine: SeaweedFS (S3) and MLflow, on loopback with random credentials.

Everything lives under one state folder. A server whose address the environment already names
(``INTERN_S3_ENDPOINT``, ``MLFLOW_TRACKING_URI``) is not started. Unless kept on purpose, the servers end with
the process that asked for them, however it ends; ``intern_vision.supervise`` sees to that.

SeaweedFS's inner ports know no S3 credentials and are closed with signed tokens instead; MLflow has
no login: whoever can log in to this machine can reach it.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.address import split_uri
from intern_vision.errors import ConfigError, InternError, RetryableError
from intern_vision.s3 import S3Access, configured_endpoint, ensure_bucket
from intern_vision.servers import (
    BUCKET,
    POLL_S,
    REGION,
    SEAWEEDFS_PORTS,
    PortTakenError,
    choose_ports,
    end_supervisor,
    first_message,
    fixed_port,
    http_status,
    mlflow_command,
    mlflow_is_ready,
    own_supervisor,
    s3_is_ready,
    seaweedfs_command,
    spawn_supervisor,
    unix_sockets,
    wait_until_ready,
)
from intern_vision.service_state import (
    ProcessId,
    Record,
    credentials_of,
    locked,
    make_private_folder,
    read_json,
    read_record,
    record_path,
    write_private,
)
from intern_vision.supervise import STOP_TIMEOUT_S

if TYPE_CHECKING:
    from intern_vision.doctor import Check

LOCK_TIMEOUT_S = 30.0
NUM_START_ATTEMPTS = 3
_AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_CA_BUNDLE",
)
_NO_TELEMETRY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "SCARF_NO_ANALYTICS": "true",
    "DAFT_ANALYTICS_ENABLED": "0",
}


@dataclass(frozen=True)
class Services:
    """Addresses of the object store and the tracker, embedded or given.

    Attributes:
        access: the S3 server; holds the credentials when it is embedded.
        store_uri: address below which outputs are stored.
        mlflow_uri: tracking address, empty where no tracker was asked for.
        embedded: names of the servers that run from the state folder: ``seaweedfs``, ``mlflow``.
    """

    access: S3Access = field(repr=False)
    store_uri: str
    mlflow_uri: str
    embedded: tuple[str, ...]

    @property
    def s3_endpoint(self) -> str:
        """S3 address, or ``aws`` for Amazon's own service."""
        return self.access.endpoint or "aws"

    def environment(self) -> dict[str, str]:
        """Variables that let another process use the same servers; they include the S3 credentials."""
        environment = {**_NO_TELEMETRY, **_s3_environment(self.access), "INTERN_STORE": self.store_uri}
        if self.mlflow_uri:
            environment["MLFLOW_TRACKING_URI"] = self.mlflow_uri
        if self.embedded:
            for name in ("NO_PROXY", "no_proxy"):
                hosts = [host for host in os.environ.get(name, "").split(",") if host]
                environment[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))
        return environment

    def named(self) -> AbstractContextManager[None]:
        """Variables of this process that name the servers, for the length of a block."""
        return variables(self.environment())


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process for the length of a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Status:
    """What runs from a state folder.

    Attributes:
        running: whether the supervisor and every server of it live.
        s3_endpoint, mlflow_uri: addresses, empty where that server is not embedded.
        s3_answers, mlflow_answers: whether they answered just now.
        pids: process ids by name, the supervisor's included.
        owner_pid: the process with which the servers end; None when they were started to stay.
        started_s: when they were started, seconds since 1970.
    """

    running: bool
    s3_endpoint: str = ""
    mlflow_uri: str = ""
    s3_answers: bool = False
    mlflow_answers: bool = False
    pids: dict[str, int] = field(default_factory=dict)
    owner_pid: int | None = None
    started_s: float = 0.0


def up(state_dir: Path, *, keep: bool = True, with_mlflow: bool = True) -> Services:
    """Starts the servers that the environment does not name, or finds them running; both answer on return.

    Args:
        state_dir: state folder, made with mode 0700 where missing.
        keep: True: they run until ``down``. False: they end with this process.
        with_mlflow: False starts the object store only.

    Raises:
        ConfigError: a binary is missing, a fixed port is taken, or other servers run from the folder.
        RetryableError: a server did not start, or another process is busy with the folder.
    """
    return _up(Path(state_dir), keep, with_mlflow)[0]


@contextmanager
def running(state_dir: Path, *, keep: bool = False, with_mlflow: bool = True) -> Iterator[Services]:
    """``up`` for the length of a block; servers started here are stopped at its end unless ``keep``."""
    services, started = _up(Path(state_dir), keep, with_mlflow)
    try:
        yield services
    finally:
        if started and not keep:
            down(state_dir)


def down(state_dir: Path) -> bool:
    """Stops the servers of a state folder; True where any ran. Data, logs and credentials stay.

    Raises:
        RetryableError: another process is busy with the folder, or a server could not be stopped.
    """
    state_dir = Path(state_dir).absolute()
    if not state_dir.is_dir():
        return False
    with locked(state_dir, LOCK_TIMEOUT_S):
        record = read_record(state_dir)
        return _stop(state_dir, record) if record else False


def status(state_dir: Path) -> Status:
    """What runs from a state folder; changes nothing."""
    record = read_record(Path(state_dir).absolute())
    if record is None or not record.lives():
        return Status(running=False)
    return Status(
        running=True,
        s3_endpoint=record.s3_endpoint,
        mlflow_uri=record.mlflow_uri,
        s3_answers=bool(record.s3_endpoint) and http_status(f"{record.s3_endpoint}/healthz") == 200,
        mlflow_answers=bool(record.mlflow_uri) and http_status(f"{record.mlflow_uri}/health") == 200,
        pids={"supervisor": record.supervisor.pid, **{name: item.pid for name, item in record.servers.items()}},
        owner_pid=record.owner.pid if record.owner else None,
        started_s=record.started_s,
    )


def doctor(state_dir: Path) -> "list[Check]":
    """Checks this machine and the servers; see ``intern_vision.doctor.checks``."""
    from intern_vision.doctor import checks

    return checks(Path(state_dir))


def _up(state_dir: Path, keep: bool, with_mlflow: bool) -> tuple[Services, bool]:
    if (in_containers := _in_containers(state_dir)) and not configured_endpoint():
        return in_containers, False
    wanted = [] if configured_endpoint() else ["seaweedfs"]
    if with_mlflow and not os.environ.get("MLFLOW_TRACKING_URI"):
        wanted.append("mlflow")
    if not wanted:
        return _services(None, {}, with_mlflow), False
    state_dir = state_dir.absolute()
    make_private_folder(state_dir)
    with locked(state_dir, 0.0):
        credentials = credentials_of(state_dir)
        record = read_record(state_dir)
        if record and record.lives():
            _check_reusable(state_dir, record, wanted)
            return _services(record, credentials, with_mlflow), False
        if record:
            _stop(state_dir, record)
        for attempt in range(NUM_START_ATTEMPTS):
            try:
                record = _start(state_dir, wanted, credentials, keep)
                break
            except PortTakenError:
                if attempt == NUM_START_ATTEMPTS - 1:
                    raise
        try:
            return _services(record, credentials, with_mlflow), True
        except BaseException:
            _stop(state_dir, record)
            raise


def _in_containers(state_dir: Path) -> Services | None:
    """The servers of this folder that ``up --where docker`` left running, or None."""
    from intern_vision import containers

    if not containers.settings_path(state_dir).exists():
        return None
    with suppress(InternError):  # without Docker none of them runs
        return containers.services_of(state_dir) if containers.is_up(state_dir) else None
    return None


def _check_reusable(state_dir: Path, record: Record, wanted: list[str]) -> None:
    if record.owner and record.owner.pid != os.getpid():
        raise RetryableError(
            f"{state_dir}: process {record.owner.pid} uses its servers and ends them when it ends; "
            "wait for it or name another state folder"
        )
    missing = [name for name in wanted if name not in record.servers]
    if missing:
        raise ConfigError(f"{state_dir}: its servers run without {' and '.join(missing)}; stop them: intern down")
    for name, server in (("s3", "seaweedfs"), ("mlflow", "mlflow")):
        port = fixed_port(name)
        if server in wanted and port not in (None, record.ports[name]):
            raise ConfigError(
                f"{state_dir}: {server} runs on port {record.ports[name]}, not {port}; stop it first: intern down"
            )


def _services(record: Record | None, credentials: dict[str, str], with_mlflow: bool) -> Services:
    """The addresses to use, with buckets that exist."""
    if record and record.s3_endpoint and not configured_endpoint():
        access = S3Access(record.s3_endpoint, REGION, credentials["access_key"], credentials["secret_key"])
    else:
        access = S3Access.from_environment()
    store_uri = _store_uri()
    bucket = _bucket(store_uri)
    if configured_endpoint() or bucket != BUCKET:
        ensure_bucket(bucket, access)
    mlflow_uri = os.environ.get("MLFLOW_TRACKING_URI") or (record.mlflow_uri if record else "")
    mlflow_uri = mlflow_uri.rstrip("/") if with_mlflow else ""
    if mlflow_uri.startswith("http") and http_status(f"{mlflow_uri}/health") == 0:
        raise RetryableError(f"MLFLOW_TRACKING_URI: no answer from {mlflow_uri}; start it or correct the address")
    return Services(access, store_uri, mlflow_uri, tuple(record.servers) if record else ())


def _store_uri() -> str:
    return os.environ.get("INTERN_STORE") or f"s3://{BUCKET}/store"


def _bucket(store_uri: str) -> str:
    return split_uri(store_uri)[1] or BUCKET


def _s3_environment(access: S3Access) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _AWS_VARIABLES if name in os.environ}
    environment["INTERN_S3_ENDPOINT"] = access.endpoint or "aws"
    if access.endpoint:
        environment |= {"AWS_ENDPOINT_URL_S3": access.endpoint, "MLFLOW_S3_ENDPOINT_URL": access.endpoint}
    if access.region:
        environment["AWS_DEFAULT_REGION"] = access.region
    if access.access_key:
        environment |= {"AWS_ACCESS_KEY_ID": access.access_key, "AWS_SECRET_ACCESS_KEY": access.secret_key}
        if "AWS_SESSION_TOKEN" in environment:  # of another account's temporary key
            environment["AWS_SESSION_TOKEN"] = ""
    return environment


def _start(state_dir: Path, names: list[str], credentials: dict[str, str], keep: bool) -> Record:
    remembered = read_json(state_dir / "ports.json")
    ports = choose_ports(
        [*(SEAWEEDFS_PORTS if "seaweedfs" in names else ()), *(["mlflow"] if "mlflow" in names else [])],
        {name: port for name, port in remembered.items() if isinstance(port, int)},
    )
    access = None
    commands: dict[str, Any] = {}
    if "seaweedfs" in names:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        access = S3Access(endpoint, REGION, credentials["access_key"], credentials["secret_key"])
        commands["seaweedfs"] = seaweedfs_command(state_dir, ports, credentials)
    if "mlflow" in names:
        s3_environment = _s3_environment(access or S3Access.from_environment())
        artifacts_uri = f"s3://{_bucket(_store_uri())}/mlflow"
        commands["mlflow"] = mlflow_command(state_dir, ports["mlflow"], credentials, s3_environment, artifacts_uri)
    make_private_folder(state_dir / "logs")
    write_private(state_dir / "ports.json", json.dumps(ports | {k: v for k, v in remembered.items() if k not in ports}))
    sockets = unix_sockets(ports) if access else []
    supervisor = spawn_supervisor(state_dir, {"commands": commands, "keep": keep, "leftovers": sockets})
    try:
        pids = first_message(supervisor, state_dir)["pids"]
        record = Record(
            supervisor=ProcessId.of(supervisor.pid),
            servers={name: ProcessId.of(pid) for name, pid in pids.items()},
            owner=None if keep else ProcessId.of(os.getpid()),
            ports=ports,
            started_s=time.time(),
        )
        write_private(record_path(state_dir), record.to_json())
        waiting: dict[str, Callable[[], bool]] = {}
        if access:
            access.client()  # importing boto3 takes as long as the first server needs to start
            waiting["seaweedfs"] = lambda: s3_is_ready(access, ports["master"])
        if "mlflow" in names:
            waiting["mlflow"] = lambda: mlflow_is_ready(record.mlflow_uri)
        wait_until_ready(supervisor, state_dir, waiting)
    except BaseException:
        end_supervisor(supervisor)
        (record_path(state_dir)).unlink(missing_ok=True)
        raise
    return record


def _stop(state_dir: Path, record: Record) -> bool:
    """Ends what a record names and still lives; True where anything did."""
    members = [record.supervisor, *record.servers.values()]
    lived = any(member.lives() for member in members)
    own = own_supervisor(record.supervisor.pid)
    if own is not None:
        end_supervisor(own)
    elif record.supervisor.lives():
        os.kill(record.supervisor.pid, signal.SIGTERM)
        _wait_for_end([record.supervisor], STOP_TIMEOUT_S + 4.0)
    for member in members:
        if member.lives():
            with suppress(ProcessLookupError):
                os.killpg(member.pid, signal.SIGKILL)
    left = _wait_for_end(members, 5.0)
    if left:
        pids = " ".join(str(member.pid) for member in left)
        raise RetryableError(f"{state_dir}: these processes could not be stopped; stop them by hand: kill -9 {pids}")
    if "seaweedfs" in record.servers:
        for socket_path in unix_sockets(record.ports):
            Path(socket_path).unlink(missing_ok=True)
    record_path(state_dir).unlink(missing_ok=True)
    return lived


def _wait_for_end(members: list[ProcessId], timeout_s: float) -> list[ProcessId]:
    """Waits until the processes are gone; returns those that are not."""
    deadline = time.monotonic() + timeout_s
    left = members
    while left and time.monotonic() < deadline:
        left = [member for member in left if member.lives()]
        time.sleep(POLL_S if left else 0.0)
    return left
