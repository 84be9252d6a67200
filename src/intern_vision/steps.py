"""Pipeline steps: files that hold Refs in, a stage run, a file that holds a Ref out; knows no pipeline library.

Artifacts are taken by their ``path`` attribute alone, so components stay thin.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from intern_vision.console import file_error
from intern_vision.errors import InternError, RetryableError
from intern_vision.events import Progress
from intern_vision.ref import Ref

STOP_FILE = "stop"
STAGE_OF_USE = {"clip": "amateur"}
"""Uses of a stage that have a name of their own."""


def paths(artifacts: Any) -> list[str]:
    """Local paths of one artifact, of several, or of none."""
    if artifacts is None:
        return []
    if isinstance(artifacts, list | tuple):
        return [artifact.path for artifact in artifacts]
    return [artifacts.path]


def run_step(
    use: str,
    preset: str,
    overrides: str,
    *,
    output: str,
    item: str = "",
    model: str = "",
    inputs: Mapping[str, Sequence[str]] | None = None,
) -> Ref:
    """Runs one use of a stage as a pipeline step; exits with the error's code where it fails.

    Args:
        use: a stage's name, or ``clip``.
        preset: name of the run's preset.
        overrides: JSON object of changes to it.
        output: file for the result's Ref.
        item: the expert's family or the dataset.
        model: the arm, for adapt and evaluate.
        inputs: for each input name the files that hold its Refs.
    """
    name = "-".join(part for part in (use, model, item) if part)

    def work() -> Ref:
        from intern_vision.presets import resolve, stage_config
        from intern_vision.stages.base import Inputs, read_ref, run_stage

        config = stage_config(resolve(preset, overrides), use, item, model)
        refs = Inputs({k: tuple(read_ref(path) for path in files) for k, files in (inputs or {}).items() if files})
        return run_stage(STAGE_OF_USE.get(use, use), config, refs, name=name)

    ref = guarded(name, work)
    _write_ref(ref, output, name)
    return ref


def adapt_and_evaluate(
    preset: str, overrides: str, dataset: str, arm: str, model: str, data: str, result: str, scores: str
) -> None:
    """Adapts and scores in one process, which pays the start-up once; arguments after ``arm`` are files of Refs."""
    run_step(
        "adapt", preset, overrides, item=dataset, model=arm, inputs={"model": [model], "data": [data]}, output=result
    )
    run_step(
        "evaluate",
        preset,
        overrides,
        item=dataset,
        model=arm,
        inputs={"model": [result], "data": [data]},
        output=scores,
    )


def write_report(preset: str, overrides: str, inputs: Mapping[str, Sequence[str]], output: str, page: str) -> None:
    """Runs the report stage and copies its page to the file ``page``."""
    ref = run_step("report", preset, overrides, inputs=inputs, output=output)
    from intern_vision.stages.report import REPORT_FILE
    from intern_vision.store import join_uri, open_store

    Path(page).parent.mkdir(parents=True, exist_ok=True)
    open_store(ref.uri).get(join_uri(ref.uri, REPORT_FILE), Path(page))


def find_weights(model: str, output: str) -> None:
    """Writes the Ref of the weights that a registered model (or an address on the store) stands for."""

    def work() -> Ref:
        from intern_vision.registry import weights_uri
        from intern_vision.stages.base import read_record
        from intern_vision.store import open_store

        uri = weights_uri(model)
        return read_record(open_store(uri), uri).ref

    _write_ref(guarded("find", work), output, "find")


def guarded(name: str, work: Callable[[], Ref]) -> Ref:
    """Runs ``work``; turns an error into one line, an event and the exit code that says whether a retry helps.

    In a run of this machine (``INTERN_RUN_DIR``) the first failure also keeps later steps from
    starting, and the step ends when the process that started the run is gone.
    """
    signal.signal(signal.SIGTERM, _stop)
    run_dir = os.environ.get("INTERN_RUN_DIR", "")
    if run_dir:
        _end_with_owner()
        if (Path(run_dir) / STOP_FILE).exists():
            print(f"[{name}] not started: the run is stopping", flush=True)
            sys.exit(RetryableError.exit_code)
    try:
        return work()
    except InternError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _fail(name, str(error), error.exit_code, run_dir)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, OSError) and (fault := file_error(error)):
            _fail(name, str(fault), fault.exit_code, run_dir)
        _fail(name, f"{type(error).__name__}: {error}", InternError.exit_code, run_dir)
    raise AssertionError("unreachable")


def _fail(name: str, message: str, exit_code: int, run_dir: str) -> NoReturn:
    Progress(name).failed(message, exit_code)
    if run_dir:
        (Path(run_dir) / STOP_FILE).touch()
    sys.exit(exit_code)


def _stop(number: int, frame: Any) -> None:
    raise RetryableError("asked to stop; the same command resumes")


def _end_with_owner() -> None:
    """Ends this process (and so its ranks) soon after the run's owner dies, however that died."""
    owner = int(os.environ["INTERN_OWNER_PID"])

    def watch() -> None:
        while _is_alive(owner):
            time.sleep(0.5)
        os._exit(RetryableError.exit_code)

    threading.Thread(target=watch, name="owner-watch", daemon=True).start()


def _is_alive(pid: int) -> bool:
    try:
        # A dead process that nobody has waited for yet still has a directory; its state is Z.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _write_ref(ref: Ref, output: str, name: str) -> None:
    targets = [Path(output)]
    if run_dir := os.environ.get("INTERN_RUN_DIR"):
        targets.append(Path(run_dir) / "refs" / f"{name}.json")
    for path in targets:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ref.to_json())
