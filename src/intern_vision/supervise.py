"""The process that holds the embedded servers: none of them outlives whoever asked for it.

``python -m intern_vision.supervise`` reads one JSON line from its standard input, starts the
commands in it and watches. Standard input is a pipe whose other end the asking process holds: when
that process ends, however it ends, the pipe closes and the servers are stopped. Should this process
itself be killed, the kernel kills the servers (PR_SET_PDEATHSIG). Standard library only: it
must start fast and stay small.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

POLL_S = 0.2
STOP_TIMEOUT_S = 4.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Supervisor:
    """Starts commands, each in a process group of its own, and stops them together.

    Args:
        spec: ``commands`` (name -> ``argv``, ``environment``, ``folder``, ``log``), ``keep`` (true:
            stay when the asking process ends) and ``leftovers`` (paths to remove at the end).
    """

    def __init__(self, spec: dict[str, Any]):
        """Keeps the settings; ``run`` starts the commands."""
        self.spec = spec
        self.parent_pid = os.getppid()
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.asked_to_stop = False

    def run(self) -> int:
        """Starts all commands, prints their pids as one JSON line, and returns the exit code at the end."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        try:
            for name, command in self.spec["commands"].items():
                self.children[name] = _start(command)
            _tell({"pids": {name: child.pid for name, child in self.children.items()}})
            failed = self._watch()
            if failed:
                _tell({"failed": failed, "code": self.children[failed].returncode})
            return 1 if failed else 0
        finally:
            self._stop()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True

    def _watch(self) -> str:
        """Waits for a reason to stop; returns the name of a command that ended by itself, or ''."""
        while not self.asked_to_stop:
            for name, child in self.children.items():
                if child.poll() is not None:
                    return name
            if self.spec["keep"]:
                time.sleep(POLL_S)
                continue
            # A process forked from the asking one may hold the pipe's other end open as well, so
            # a change of parent counts like a closed pipe.
            readable, _, _ = select.select([0], [], [], POLL_S)
            if (readable and not os.read(0, 4096)) or os.getppid() != self.parent_pid:
                return ""
        return ""

    def _stop(self) -> None:
        for child in self.children.values():
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in self.children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(child, signal.SIGKILL)
            child.wait()
        for path in self.spec["leftovers"]:
            Path(path).unlink(missing_ok=True)


def _start(command: dict[str, Any]) -> subprocess.Popen[bytes]:
    supervisor_pid = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def die_with_supervisor() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor_pid:  # it died before the call above
            os._exit(1)

    Path(command["folder"]).mkdir(parents=True, exist_ok=True)
    log = Path(command["log"])
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    with open(log, "wb") as output:
        return subprocess.Popen(
            command["argv"],
            env=command["environment"],
            cwd=command["folder"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_supervisor,
        )


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    # The group keeps the leader's pid as its id, also when the leader is gone and others live on.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _tell(message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError, ValueError):
        print(json.dumps(message), flush=True)


def serve_mlflow(port: int, database: str, artifacts: str) -> None:
    """Runs the MLflow tracking server in this process, on loopback.

    ``mlflow server`` does the same through a second Python process, which doubles the start-up time and
    leaves a grandchild that no death signal reaches.

    Args:
        port: TCP port.
        database: SQLAlchemy address of the tracking and registry database.
        artifacts: address that proxied artifacts are written to.
    """
    import uvicorn
    from mlflow.server import constants

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = database
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = database
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = artifacts
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    uvicorn.run(
        "mlflow.server.fastapi_app:app",
        host="127.0.0.1",
        port=port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=3,
    )


def main() -> int:
    """Entry point: supervises by default, serves MLflow with ``--mlflow``."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="python -m intern_vision.supervise")
    parser.add_argument("--mlflow", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--database")
    parser.add_argument("--artifacts")
    arguments = parser.parse_args()
    if arguments.mlflow:
        serve_mlflow(arguments.port, arguments.database, arguments.artifacts)
        return 0
    line = sys.stdin.readline()
    return Supervisor(json.loads(line)).run() if line else 0


if __name__ == "__main__":
    sys.exit(main())
