"""The real command line: short commands, long runs, and what is left of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

INTERN = Path(sys.executable).with_name("intern")


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without addresses, credentials and state of other runs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("INTERN_", "MLFLOW_", "AWS_", "PYTEST_"))}
    return kept | changes


def intern(*arguments: str | Path, exit_code: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs ``intern`` to its end; ``changes`` are environment variables."""
    done = subprocess.run(
        [INTERN, *map(str, arguments)], env=clean_environment(**changes), capture_output=True, text=True, check=False
    )
    assert done.returncode == exit_code, f"intern {' '.join(map(str, arguments))}: {done.returncode}\n{done.stderr}"
    return done


def answer(*arguments: str | Path, **changes: str) -> dict[str, Any]:
    """What ``intern ... --json`` prints: strict JSON."""
    return strict_json(intern(*arguments, "--json", **changes).stdout)


def strict_json(text: str) -> Any:
    """JSON without ``NaN`` and ``Infinity``."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command says; progress may come before it, a traceback may not."""
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0], done.stderr
    return lines[0]


class LongRun:
    """An ``intern`` command that goes on while the test looks.

    Args:
        state_dir: its state folder.
        name: the run's name.
        arguments: of the command, without the state folder.
        changes: environment variables.
    """

    def __init__(
        self, state_dir: Path, name: str, arguments: list[str | Path], changes: Mapping[str, str] | None = None
    ):
        self.run_dir = state_dir / "runs" / name
        self.events_path = self.run_dir / "events.jsonl"
        self.events_path.unlink(missing_ok=True)  # of an earlier try
        self.stdout_path, self.stderr_path = (state_dir.with_name(f"{state_dir.name}-{n}.txt") for n in ("out", "err"))
        with open(self.stdout_path, "wb") as stdout, open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                [INTERN, *map(str, arguments), "--state-dir", state_dir],
                env=clean_environment(**changes or {}),
                stdout=stdout,
                stderr=stderr,
            )
        self.state_dir = state_dir

    def stderr(self) -> str:
        """What it said so far."""
        return self.stderr_path.read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Whole events of a kind so far."""
        return [event for event in read_events(self.events_path) if event["event"] == kind]

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 240.0) -> None:
        """Polls a condition; fails with what the run said where it ends first."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.stderr()
            time.sleep(0.02)

    def finish(self, timeout_s: float = 600.0) -> int:
        """Waits for the end and gives the exit code."""
        return self.process.wait(timeout_s)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an event file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def processes_of(state_dir: Path) -> list[psutil.Process]:
    """Every living process, other than this one, whose command, folder or environment names the state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            texts = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(state_dir) in text for text in texts):
            found.append(process)
    return found


def seconds_until_gone(state_dir: Path, timeout_s: float) -> float:
    """How long the processes of a state folder go on from now; fails after the time with their commands."""
    started = time.monotonic()
    while left := processes_of(state_dir):
        elapsed = time.monotonic() - started
        assert elapsed < timeout_s, [" ".join(process.cmdline())[:200] for process in left if process.is_running()]
        time.sleep(0.05)
    return time.monotonic() - started
