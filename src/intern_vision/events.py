"""Progress: what a stage says while it works, for people (one line) and for the CLI (JSON lines)."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_listeners: list[Callable[[dict[str, Any]], None]] = []


@contextmanager
def listening(take: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Within the block, this process's events go to ``take`` in place of standard output."""
    _listeners.append(take)
    try:
        yield
    finally:
        _listeners.remove(take)


class Progress:
    """Reports a stage's steps on standard output and in the file named by ``INTERN_EVENTS``.

    The file is opened for appending at each report, so many processes may share it: one
    JSON object a line, short enough that the kernel writes it whole.

    Args:
        name: the stage's name in this run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = os.environ.get("INTERN_EVENTS", "")
        self.restart_clock()

    def step(self, done: int, total: int, note: str = "") -> None:
        """Reports ``done`` of ``total`` units with an estimate of the time left."""
        elapsed_s = time.monotonic() - self._started
        done_here = done - self._done_before
        left_s = elapsed_s / done_here * (total - done) if done_here > 0 else float("nan")
        share = 100 * done // total if total else 100
        self._emit(f"{done}/{total} {share}% {left_s:.0f} s left {note}".rstrip(), "step", done=done, total=total)

    def restart_clock(self, done: int = 0) -> None:
        """Starts the estimate anew, once slow set-up is over or with ``done`` units from an earlier attempt."""
        self._started = time.monotonic()
        self._done_before = done

    def say(self, note: str) -> None:
        """Reports something worth reading once."""
        self._emit(note, "note", note=note)

    def cached(self, wall_s: float) -> None:
        """Reports that the output was there already; ``wall_s`` is what it once took."""
        self._emit(f"already committed (took {wall_s:.1f} s then)", "cached", wall_s=wall_s)

    def started(self) -> None:
        """Reports the start."""
        self._emit("started", "started")

    def done(self, wall_s: float, cpu_s: float) -> None:
        """Reports the end."""
        self._emit(f"done in {wall_s:.1f} s ({cpu_s:.1f} CPU-s)", "done", wall_s=wall_s, cpu_s=cpu_s)

    def failed(self, message: str, exit_code: int) -> None:
        """Reports that the stage stopped with an error."""
        self._emit(f"failed: {message}", "failed", note=message, exit_code=exit_code)

    def _emit(self, text: str, event: str, **values: Any) -> None:
        said = {"at": time.time(), "stage": self.name, "event": event, **values}
        for take in _listeners:
            take(said)
        if not _listeners:
            print(f"[{self.name}] {text}", file=sys.stdout, flush=True)
        if self._path:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(said) + "\n")
