"""What the command line shows: progress of the stages, errors as one line, results for people or as JSON."""

import errno
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from intern_vision.errors import AccessError, InternError, RetryableError

if TYPE_CHECKING:
    from intern_vision.doctor import Check


class StageProgress:
    """A live table of stages on a terminal; plain lines elsewhere; nothing under ``--json``.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._quiet = quiet
        self._live = not quiet and self._console.is_terminal
        self._tasks: dict[str, Any] = {}
        self._progress: Any = None

    def __enter__(self) -> "StageProgress":
        if self._live:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.fields[mark]} {task.description:<28}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                console=self._console,
            )
            self._progress.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Takes one event of ``intern_vision.events``."""
        if self._progress is not None:
            self._update(event)
        elif not self._quiet and event["event"] in ("started", "cached", "done", "failed", "note"):
            note = event.get("note") or (f"{event['wall_s']:.1f} s" if "wall_s" in event else "")
            at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
            print(f"{at} {event['stage']}: {event['event']} {note}".rstrip(), file=sys.stderr, flush=True)

    def _update(self, event: dict[str, Any]) -> None:
        name, kind = event["stage"], event["event"]
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, mark="[cyan]>", note="")
        task = self._tasks[name]
        if kind == "step":
            self._progress.update(task, total=event["total"], completed=event["done"])
        elif kind in ("done", "cached"):
            note = "" if kind == "done" else "committed before"
            self._progress.update(task, total=1, completed=1, mark="[green]✓", note=note)
        elif kind == "failed":
            self._progress.update(task, mark="[red]✗", note=event["note"][:100])
        elif kind == "note":
            self._progress.update(task, note=event["note"])


def show(value: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Prints a result: its lines for people, or one JSON object for machines."""
    print(json.dumps(value, indent=1, default=str) if as_json else "\n".join(lines))


def show_checks(checks: "list[Check]", as_json: bool) -> None:
    """Prints checks, each fault with its fix, and ends with code 2 where there is one."""
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
        if not check.ok and check.fix:
            lines.append(f"     fix: {check.fix}")
    results = [{"name": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix} for c in checks]
    show({"checks": results}, lines, as_json)
    if not all(check.ok for check in checks):
        raise SystemExit(2)


@contextmanager
def reporting_errors(debug: bool, as_json: bool = False) -> Iterator[None]:
    """Turns an ``InternError`` into one line on standard error and its exit code; a traceback only with ``debug``.

    A file that cannot be used (no room, no right) is reported the same way.
    """
    try:
        try:
            yield
        except OSError as error:
            fault = file_error(error)
            if debug or fault is None:
                raise
            raise fault from None
    except InternError as error:
        if debug:
            raise
        if as_json:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def file_error(error: OSError) -> InternError | None:
    """A full disk or a file that cannot be used as an error for people; None for any other fault."""
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RetryableError(f"{place}the disk is full; make room, then run the same command again")
    if isinstance(error, PermissionError) and place:
        return AccessError(f"{place}{error.strerror.lower()}; name a place that this user can use")
    return None
