"""The state folder of the embedded servers: its lock, credentials and record of what runs."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from intern_vision.config import Config
from intern_vision.errors import AccessError, ConfigError, RetryableError
from intern_vision.servers import new_credentials

LOCK_POLL_S = 0.05


class ProcessId(Config):
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    created_s: float

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """The living process with this pid."""
        return cls(pid=pid, created_s=psutil.Process(pid).create_time())

    def lives(self) -> bool:
        """Whether that very process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_s) < 2.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class Record(Config):
    """What ``services.json`` holds; no secrets."""

    supervisor: ProcessId
    servers: dict[str, ProcessId]
    owner: ProcessId | None
    ports: dict[str, int]
    started_s: float

    @property
    def s3_endpoint(self) -> str:
        """Address of the embedded object store, or empty."""
        return f"http://127.0.0.1:{self.ports['s3']}" if "seaweedfs" in self.servers else ""

    @property
    def mlflow_uri(self) -> str:
        """Address of the embedded tracker, or empty."""
        return f"http://127.0.0.1:{self.ports['mlflow']}" if "mlflow" in self.servers else ""

    def lives(self) -> bool:
        """Whether the supervisor and every server of it run."""
        return self.supervisor.lives() and all(server.lives() for server in self.servers.values())


def make_private_folder(folder: Path) -> None:
    """Makes a folder that only this user can enter (mode 0700)."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except PermissionError as error:
        raise AccessError(f"{folder}: {error.strerror.lower()}; name a state folder that this user owns") from None
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder}: expected a folder for the servers' state, got a file; name another") from None


@contextmanager
def locked(state_dir: Path, wait_s: float) -> Iterator[None]:
    """Holds the folder's lock; raises RetryableError where another process holds it for longer than ``wait_s``."""
    deadline = time.monotonic() + wait_s
    descriptor = os.open(state_dir / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RetryableError(
                        f"{state_dir}: another process is starting or stopping its servers; "
                        "wait a moment, then run the same command again"
                    ) from None
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str) -> None:
    """Writes a small file in one step, readable by this user only (mode 0600)."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none or it was cut short by a crash."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def credentials_path(state_dir: Path) -> Path:
    """Where the embedded servers' credentials lie."""
    return state_dir / "credentials.json"


def credentials_of(state_dir: Path) -> dict[str, str]:
    """The folder's credentials, made at first use; a damaged file is replaced: servers take them anew at each start."""
    path = credentials_path(state_dir)
    found, fresh = read_json(path), new_credentials()
    if fresh.keys() <= found.keys() and all(isinstance(value, str) and value for value in found.values()):
        path.chmod(0o600)
        return found
    write_private(path, json.dumps(fresh, indent=1))
    return fresh


def record_path(state_dir: Path) -> Path:
    """Where the record of running servers lies."""
    return state_dir / "services.json"


def read_record(state_dir: Path) -> Record | None:
    """The record of what was started last, or None; what it names may be gone since."""
    values = read_json(record_path(state_dir))
    with suppress(ConfigError):
        return Record.from_dict(values) if values else None
    return None
