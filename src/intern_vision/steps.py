"""Pipeline steps: files that hold Refs in, a stage run, a file that holds a Ref out; knows no pipeline library.

Artifacts are taken by their ``path`` attribute alone, so components stay thin.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from intern_vision.console import file_error
from intern_vision.errors import ConfigError, InternError, RetryableError
from intern_vision.events import Progress
from intern_vision.ref import Ref

if TYPE_CHECKING:
    from intern_vision.stages.base import Inputs

STOP_FILE = "stop"
EXIT_TIMEOUT_S = 5.0
OTHER = "other"
"""Use of a stage whose result is known by its item alone, such as the baseline ``clip``."""
ARM_OF_EXPERTS = "expert"
"""The arm that stands, on each dataset, for the expert of the dataset's own family."""
_asked_to_stop = threading.Event()
Result = TypeVar("Result")


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
        use: a stage's name, or ``other``.
        preset: name of the run's preset.
        overrides: JSON object of changes to it.
        output: file for the result's Ref.
        item: the expert's family, the dataset, or the name of a generalist or other model.
        model: the arm, for adapt, evaluate and export.
        inputs: for each input name the files that hold its Refs.
    """
    return _run(use, preset, overrides, output, item, model, lambda _: read_inputs(inputs or {}))


def train_step(use: str, preset: str, overrides: str, item: str, inputs: Mapping[str, Any], output: str) -> None:
    """Runs a training step from the amateur that its use starts from.

    The classification expert starts from Up-A-G, dense experts and generalists from Up-A-L (see
    ``run_config.STARTS_FROM_GLOBAL``). A generalist gets both, Up-A-L first: task vectors are taken from the amateur
    that an expert started from.

    Args:
        use: a stage's name, or ``other``.
        preset: name of the run's preset.
        overrides: JSON object of changes to it.
        item: the expert's family, or the name of a generalist or other model.
        inputs: one artifact, several, or none, by input name.
        output: file for the result's Ref.
    """

    def read(config: Any) -> "Inputs":
        from intern_vision.run_config import STARTS_FROM_GLOBAL
        from intern_vision.stages import import_weights
        from intern_vision.stages.base import Inputs

        if isinstance(config, import_weights.Config):
            return Inputs()  # the file is all that it is made from
        refs = read_inputs({name: paths(artifacts) for name, artifacts in inputs.items()})
        if use == "generalist" and not config.needs_experts:
            refs.pop("experts", None)  # lineage and cost name only what it was made from
        local = refs.pop("amateur_local", ())
        if local and item not in STARTS_FROM_GLOBAL:
            refs["amateur"] = local + refs["amateur"] if use == "generalist" else local
        return refs

    _run(use, preset, overrides, output, item, "", read)


def adapt_and_evaluate(
    preset: str, overrides: str, case: str, models: str, datasets: str, result: str, scores: str
) -> None:
    """Adapts and scores in one process, which pays the start-up once.

    Args:
        preset: name of the run's preset.
        overrides: JSON object of changes to it.
        case: ``DATASET/ARM``.
        models: file with the Ref or Refs of the upstream models; a single one serves every arm.
        datasets: file with the Ref or Refs of the datasets; a single one serves every case.
        result: file for the adapted model's Ref.
        scores: file for the scores' Ref.
    """
    dataset, _, arm = case.partition("/")

    def upstream_and_data(config: Any) -> "Inputs":
        from intern_vision.run_config import CODEBOOK
        from intern_vision.stages.base import Inputs, read_refs

        data = _named(read_refs(datasets), dataset)
        upstream = read_refs(models)
        name = _expert_for(data) if arm == ARM_OF_EXPERTS and len(upstream) > 1 else arm
        codebook = tuple(ref for ref in upstream if "multi_stage" in config.recipes and ref.name == CODEBOOK)
        given = {"model": (_named(upstream, name),), "data": (data,), CODEBOOK: codebook}
        return Inputs({key: refs for key, refs in given.items() if refs})

    def adapted_and_data(_: Any) -> "Inputs":
        from intern_vision.stages.base import Inputs, read_ref, read_refs

        return Inputs({"model": (read_ref(result),), "data": (_named(read_refs(datasets), dataset),)})

    _run("adapt", preset, overrides, result, dataset, arm, upstream_and_data)
    _run("evaluate", preset, overrides, scores, dataset, arm, adapted_and_data)


def list_choices(preset: str, overrides: str, what: str) -> list[str]:
    """A list of the run that a pipeline loops over, see ``RunConfig.choices``."""
    from intern_vision.presets import resolve

    try:
        return resolve(preset, overrides).choices(what)
    except InternError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _fail(what, str(error), error.exit_code, os.environ.get("INTERN_RUN_DIR", ""))


def gather_refs(files: Sequence[str], output: str) -> None:
    """Writes the Refs of several files as one list."""
    from intern_vision.stages.base import read_refs

    write_json([ref.to_dict() for file in files for ref in read_refs(file)], output)


def _run(
    use: str, preset: str, overrides: str, output: str, item: str, model: str, read: Callable[[Any], "Inputs"]
) -> Ref:
    name = "-".join(part for part in (use if use != OTHER else "", model if item else "", item) if part)

    def work() -> Ref:
        from intern_vision.presets import resolve
        from intern_vision.run_config import stage_config
        from intern_vision.stages.base import run_stage

        stage, config = stage_config(resolve(preset, overrides), use, item, model)
        return run_stage(stage, config, read(config), name=name)

    ref = guarded(name, work)
    write_ref(ref, output, name)
    return ref


def read_inputs(files: Mapping[str, Sequence[str]]) -> "Inputs":
    """The Refs of files by input name; names without any are left out."""
    from intern_vision.stages.base import Inputs, read_refs

    found = {name: tuple(ref for path in paths for ref in read_refs(path)) for name, paths in files.items()}
    return Inputs({name: refs for name, refs in found.items() if refs})


def _named(refs: Sequence[Ref], name: str) -> Ref:
    """The Ref of this name, or the only one."""
    if len(refs) == 1:
        return refs[0]
    for ref in refs:
        if ref.name == name:
            return ref
    raise ConfigError(f"arms: expected one of {', '.join(ref.name for ref in refs)}, got {name!r}")


def _expert_for(data: Ref) -> str:
    from intern_vision.data.loader import load_info
    from intern_vision.store import open_store

    family = next(iter(load_info(open_store(data.uri), data.uri).tasks))
    return f"expert-{'multilabel' if family == 'classify' else family}"


def write_report(preset: str, overrides: str, inputs: Mapping[str, Sequence[str]], output: str, page: str) -> None:
    """Runs the report stage and copies its page to the file ``page``."""
    copy_page(run_step("report", preset, overrides, inputs=inputs, output=output), page)


def copy_page(ref: Ref, page: str) -> None:
    """Copies a report's page to the file ``page``."""
    from intern_vision.stages.report import REPORT_FILE
    from intern_vision.store import join_uri, open_store

    Path(page).parent.mkdir(parents=True, exist_ok=True)
    open_store(ref.uri).get(join_uri(ref.uri, REPORT_FILE), Path(page))


def find_weights(model: str, output: str) -> None:
    """Writes the Ref of the weights that a registered model (or an address on the store) stands for.

    They are to be adapted: what is no model, or is one of a single task already, is refused (ConfigError).
    """

    def work() -> Ref:
        from intern_vision.registry import weights_uri
        from intern_vision.stages.base import read_record
        from intern_vision.store import open_store

        uri = weights_uri(model)
        ref = read_record(open_store(uri), uri).ref
        if ref.kind != "weights":
            found = f"a model of one task ({ref.name})" if ref.kind == "model" else f"a {ref.kind}"
            raise ConfigError(
                f"--model {model}: expected a generalist, an expert or an amateur to start from, got {found}; "
                "models:/intern-generalist@candidate is the default"
            )
        return ref

    write_ref(guarded("find", work), output, "find")


def guarded(name: str, work: Callable[[], Result]) -> Result:
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
    if _asked_to_stop.is_set():
        # The signal reached the processes of this step's pools too: one that died with a lock of a pool's queue in
        # hand would keep the interpreter waiting at its end, when everything is saved and told already.
        timer = threading.Timer(EXIT_TIMEOUT_S, os._exit, (exit_code,))
        timer.daemon = True
        timer.start()
    sys.exit(exit_code)


def _stop(number: int, frame: Any) -> None:
    _asked_to_stop.set()
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


def write_ref(ref: Ref | Sequence[Ref], output: str, name: str) -> None:
    """Writes a Ref, or several, to a step's output file and, under the step's name, into the folder of a local run."""
    text = ref.to_json() if isinstance(ref, Ref) else json.dumps([each.to_dict() for each in ref])
    targets = [Path(output)]
    if run_dir := os.environ.get("INTERN_RUN_DIR"):
        targets.append(Path(run_dir) / "refs" / f"{name}.json")
    for path in targets:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_json(rows: Sequence[Any], output: str) -> None:
    """Writes plain values to a step's output file."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(rows))
