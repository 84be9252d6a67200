"""A run on this machine: its folder, its servers, its process, what it says and how it ends."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intern_pipelines import docker_runner
from intern_vision import containers, errors, services, track
from intern_vision.config import changed_fields
from intern_vision.console import StageProgress
from intern_vision.errors import ConfigError, InternError, RetryableError
from intern_vision.ref import Ref
from intern_vision.service_state import make_private_folder, write_private
from intern_vision.stages.base import read_record, read_ref
from intern_vision.steps import STOP_FILE
from intern_vision.store import join_uri, open_store
from intern_vision.train.local_ranks import die_with_parent

RESULT_FILES = {
    "report": ("report.html", "table.json", "table.txt"),
    "export": ("registered.json",),
    "data_report": ("report.html", "summary.json"),
    "annotate": ("tasks.json", "labelling.xml"),
}
KFP_FOLDER = "kfp"
STOP_AFTER_S = 60.0
POLL_S = 0.2


@dataclass(slots=True, kw_only=True)
class LocalRun:
    """One named run of a pipeline below the state folder.

    Attributes:
        name: the run's name; a second run of the same name resumes.
        pipeline: name of the pipeline.
        arguments: the pipeline's parameters.
        identity: plain values that a resumed run must agree with (the resolved config).
        state_dir: folder for everything local.
        num_ranks: processes of a training stage.
        where: ``process`` runs steps and servers as processes, ``docker`` both in containers.
    """

    name: str
    pipeline: str
    arguments: dict[str, Any]
    identity: dict[str, Any]
    state_dir: Path
    num_ranks: int
    where: str = "process"
    servers: services.Services | None = field(default=None, init=False)

    @property
    def run_dir(self) -> Path:
        """The run's own folder."""
        return self.state_dir / "runs" / self.name

    @property
    def log_path(self) -> Path:
        """Where everything the steps print is kept."""
        return self.run_dir / "log.txt"

    def execute(self, on_event: Callable[[dict[str, Any]], None], *, resume: bool = True, keep: bool = False) -> None:
        """Runs the pipeline to its end; committed stages are taken from the store.

        Args:
            on_event: called with each event of each stage, see ``intern_vision.events``.
            resume: False takes a changed config as a new run under this name.
            keep: leave the embedded servers running.

        Raises:
            ConfigError: the run exists with another config and ``resume`` is set; names the fields.
            InternError: of the class that the first failing stage raised.
        """
        make_private_folder(self.state_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._check_config(resume)
            self._check_image()
            servers = containers.running if self.where == "docker" else services.running
            with servers(self.state_dir, keep=keep) as running, running.named():
                self.servers = running
                track.replay(self.state_dir / "spool")
                with track.Tracker.for_pipeline(self.name, self.state_dir / "spool") as tracker:
                    tracker.set_tags(
                        {"intern.pipeline": self.pipeline, "intern.preset": self.arguments.get("preset", "")}
                    )
                    with self._temporary_folder() as temporary:
                        self._follow(self._spawn(tracker.run_id or "", temporary), on_event)
                self._copy_results()

    def _check_image(self) -> None:
        """Says before anything is started where the steps' image is missing."""
        if self.where == "docker":
            from intern_components.base import IMAGE  # with kfp, which takes a second

            containers.check_image(containers.connect(), IMAGE)

    def ref(self, step: str) -> Ref:
        """The result of a step, by the step's name; ConfigError where the run has none."""
        path = self.run_dir / "refs" / f"{step}.json"
        if not path.exists():
            raise ConfigError(f"run {self.name}: no result of step {step}; known: {', '.join(self.steps())}")
        return read_ref(path)

    def results(self, names: Sequence[str], step: str) -> list[Path]:
        """Files of a step's result, copied into the run's folder while the store could be reached."""
        return [self.run_dir / step / name for name in names]

    def _copy_results(self) -> None:
        """Keeps what people look at in the run's folder: the servers may be gone afterwards."""
        for step, names in RESULT_FILES.items():
            if step not in self.steps():  # the benchmark registers nothing
                continue
            uri = self.ref(step).uri
            store = open_store(uri)
            # A step that was asked for nothing passes its input on, which has none of them.
            for name in read_record(store, uri).files.keys() & set(names):
                target = self.run_dir / step / name
                target.parent.mkdir(exist_ok=True)
                store.get(join_uri(uri, name), target)

    def steps(self) -> list[str]:
        """Names of the steps that ended well."""
        return sorted(path.stem for path in (self.run_dir / "refs").glob("*.json"))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.run_dir / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RetryableError(
                    f"run {self.name} in {self.state_dir} is going on in another process; wait for it or choose --name"
                ) from None
            yield

    def _check_config(self, resume: bool) -> None:
        path = self.run_dir / "config.json"
        if path.exists() and resume:
            changes = changed_fields(json.loads(path.read_text()), self.identity)
            if changes:
                raise ConfigError(
                    f"run {self.name} was started with another config: {'; '.join(changes)}; "
                    "give the same values, choose another --name, or pass --no-resume to go on with the new ones"
                )
        write_private(path, json.dumps(self.identity))
        for name in ("refs", KFP_FOLDER):
            shutil.rmtree(self.run_dir / name, ignore_errors=True)
        for name in (STOP_FILE, "events.jsonl"):
            (self.run_dir / name).unlink(missing_ok=True)

    @contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        """Where steps put temporary files, of which the local runner leaves some for each step."""
        folder = self.run_dir / "tmp"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _spawn(self, parent_run_id: str, temporary: Path) -> "subprocess.Popen[bytes]":
        environment = os.environ | {
            "INTERN_STATE": str(self.state_dir.absolute()),
            "INTERN_RUN_DIR": str(self.run_dir.absolute()),
            "INTERN_EVENTS": str((self.run_dir / "events.jsonl").absolute()),
            "INTERN_OWNER_PID": str(os.getpid()),
            "INTERN_NUM_RANKS": str(self.num_ranks),
            "INTERN_PARENT_RUN_ID": parent_run_id,
            "INTERN_WHERE": self.where,
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(temporary.absolute()),
        }
        environment.pop("MLFLOW_RUN_ID", None)
        command = [sys.executable, "-m", "intern_pipelines.local", self.pipeline, json.dumps(self.arguments)]
        with open(self.log_path, "ab") as log:
            return subprocess.Popen(
                [*command, str((self.run_dir / KFP_FOLDER).absolute())],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _follow(self, process: "subprocess.Popen[bytes]", on_event: Callable[[dict[str, Any]], None]) -> None:
        asked: list[int] = []

        def ask(number: int, frame: Any) -> None:
            asked.append(number)
            (self.run_dir / STOP_FILE).touch()
            _signal_group(process, signal.SIGTERM)

        old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        events = _Events(self.run_dir / "events.jsonl")
        try:
            deadline = None
            while process.poll() is None:
                for event in events.read():
                    on_event(event)
                if asked and deadline is None:
                    deadline = time.monotonic() + STOP_AFTER_S
                if deadline is not None and time.monotonic() > deadline:
                    break
                time.sleep(POLL_S)
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            if self.where == "docker":
                docker_runner.remove_steps(self.run_dir)
            for number, handler in old.items():
                signal.signal(number, handler)
        for event in events.read():
            on_event(event)
        self._raise_failure(process.returncode, events.failures, asked)

    def _raise_failure(self, code: int, failures: list[dict[str, Any]], asked: list[int]) -> None:
        if asked:
            raise RetryableError("asked to stop; the same command resumes")
        if failures:
            first = failures[0]
            # What was finished is worth looking at: a report's model may have missed its gate.
            with suppress(InternError):
                self._copy_results()
            report = self.run_dir / "report" / "report.html"
            kept = f", report: {report}" if "report" in self.steps() and report.exists() else ""
            raise _error_of(first["exit_code"])(f"{first['stage']}: {first['note']} (log: {self.log_path}{kept})")
        if code:
            raise InternError(f"run {self.name} ended with code {code}; see {self.log_path}")


def check_run_name(name: str) -> None:
    """Raises ConfigError where a run's name cannot be the name of its folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise ConfigError(f"--name: expected up to 63 letters, digits, dots, dashes or underscores, got {name!r}")


def run_pipeline(
    pipeline: str,
    name: str,
    arguments: dict[str, Any],
    identity: dict[str, Any],
    *,
    state_dir: Path,
    num_ranks: int,
    resume: bool,
    keep: bool,
    quiet: bool,
    where: str = "process",
) -> LocalRun:
    """Runs a pipeline to its end with its progress on the terminal; see ``LocalRun`` for all but the last.

    Args:
        pipeline: name of the pipeline.
        name: the run's name.
        arguments: the pipeline's parameters.
        identity: what a resumed run must agree with.
        state_dir: folder for everything local.
        num_ranks: processes of a training stage.
        resume: False takes a changed config as a new run.
        keep: leave the embedded servers running.
        quiet: without progress lines.
        where: ``process`` or ``docker``.
    """
    run = LocalRun(
        name=name,
        pipeline=pipeline,
        arguments=arguments,
        identity=identity,
        state_dir=state_dir,
        num_ranks=num_ranks,
        where=where,
    )
    with StageProgress(quiet=quiet) as progress:
        run.execute(progress, resume=resume, keep=keep)
    return run


class _Events:
    """Reads the lines added to the event file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.failures: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = [json.loads(line) for line in whole.splitlines()]
        self.failures += [event for event in events if event["event"] == "failed"]
        return events


def _error_of(exit_code: int) -> type[InternError]:
    kinds = {ConfigError.exit_code: ConfigError, RetryableError.exit_code: RetryableError}
    return kinds.get(exit_code, errors.InternError)


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
