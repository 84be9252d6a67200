"""What a person hands in with a run, checked against the pipeline, and what they see while it goes on.

The server checks types and choices only when a run is made, and says so in its own words; a wrong name it ignores.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intern_pipelines import ir
from intern_vision.errors import ConfigError, InternError

MAX_PARAMETER_BYTES = 10_000
"""Kubeflow Pipelines' own limit for all values of a run together."""

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
FAILED = ("FAILED", "SYSTEM_ERROR", "ERROR")

_KINDS: dict[str, tuple[type, ...]] = {
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
_WRAPPERS = re.compile(r"executor(\(\d+\))?|iteration-item-\d+|\d+")
"""Nodes that the server puts between a step and its pod."""


@dataclass(frozen=True)
class FailedStep:
    """A step that failed.

    Attributes:
        name: as the web page shows it.
        pod: where its log is; empty where it had none.
        message: what the server says about it; often empty.
    """

    name: str
    pod: str
    message: str


def parse_parameters(spec: ir.Spec, texts: Sequence[str]) -> dict[str, Any]:
    """Values of a run from ``name=value``, checked against the pipeline's inputs.

    Texts are taken as they are; numbers, lists and objects are JSON.

    Args:
        spec: the compiled pipeline.
        texts: each ``name=value``.

    Raises:
        ConfigError: an unknown name, a value of another type or none of the choices, one that is missing, or more
            bytes than the server takes; one line a fault.
    """
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    found: dict[str, Any] = {}
    faults = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            faults.append(f"--parameter: expected NAME=VALUE, got {text!r}")
        elif name not in inputs:
            known = ", ".join(inputs) or "none"
            faults.append(f"--parameter: the pipeline has no {name!r}; known parameters: {known}")
        else:
            try:
                found[name] = _value(name, inputs[name], value)
            except ConfigError as error:
                faults.append(str(error))
    missing = [name for name, each in inputs.items() if name not in found and not each.get("isOptional")]
    missing = [name for name in missing if "defaultValue" not in inputs[name]]
    faults += [f"--parameter: {name} has no default; give {name}=VALUE" for name in missing if not _named(name, texts)]
    num_bytes = len(json.dumps(found).encode())
    if num_bytes > MAX_PARAMETER_BYTES:
        faults.append(
            f"--parameter: all values together are {num_bytes} bytes, Kubeflow Pipelines takes {MAX_PARAMETER_BYTES}; "
            "shorten the overrides, or make them a preset"
        )
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def failed_steps(run: Any) -> list[FailedStep]:
    """The steps of a run that failed by themselves, not because of one below them; in the server's order."""
    tasks = (run.run_details.task_details if run.run_details else None) or []
    names = _step_names(run)
    parents = {_number(child.pod_name or child.task_id): task for task in tasks for child in task.child_tasks or ()}
    found = []
    for task in tasks:
        if task.state not in FAILED or any(_is(child, tasks, FAILED) for child in task.child_tasks or ()):
            continue
        above = task
        while _WRAPPERS.fullmatch(above.display_name or "") and _number(above.pod_name or above.task_id) in parents:
            above = parents[_number(above.pod_name or above.task_id)]
        name = above.display_name or task.task_id or "a step"
        found.append(FailedStep(names.get(name, name), task.pod_name or "", _error(task)))
    return found


def last_error(log: str) -> str:
    """The last line of a step's log that says what went wrong; its last line where none does; empty for no log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:500]


class Followed:
    """Logs of a run's steps, printed as they grow.

    The server's log address knows no streaming (its ``follow`` is never read), so each look asks for the whole log
    and shows what is new.

    Args:
        read: gives a pod's log from a byte on; an error means that there is none yet.
        show: takes a line.
    """

    def __init__(self, read: Callable[[str, int], bytes], show: Callable[[str], None]) -> None:
        """Nothing is shown yet."""
        self._read, self._show = read, show
        self._shown: dict[str, int] = {}
        self._states: dict[str, str] = {}

    def look(self, run: Any) -> None:
        """Shows what changed since the last look."""
        for task in (run.run_details.task_details if run.run_details else None) or ():
            name = task.display_name or task.task_id
            if task.child_tasks or not task.pod_name or (name or "").endswith("-driver"):
                continue
            if task.state != self._states.get(task.pod_name) and task.state:
                self._states[task.pod_name] = task.state
                self._show(f"[{task.pod_name}] {task.state.lower()}")
            self._new_lines(task.pod_name, whole=task.state in ENDED)

    def _new_lines(self, pod: str, *, whole: bool) -> None:
        try:
            new = self._read(pod, self._shown.get(pod, 0))
        except InternError:
            return  # a pod that waits has no log; one that went away without an archive never will
        end = len(new) if whole else new.rfind(b"\n") + 1
        self._shown[pod] = self._shown.get(pod, 0) + end
        for line in new[:end].decode(errors="replace").splitlines():
            self._show(f"[{pod}] {line}")


def mlflow_page(run: Any, mlflow_uri: str) -> str:
    """Address of the run in MLflow: what Kubeflow's own plugin says, else a search for the runs of its steps.

    Args:
        run: of Kubeflow Pipelines.
        mlflow_uri: address of MLflow as a browser reaches it; empty for none.
    """
    plugin = (run.plugins_output or {}).get("mlflow")
    entries = {name: entry.value for name, entry in ((plugin.entries if plugin else None) or {}).items()}
    for value in entries.values():
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            return value
    if not mlflow_uri:
        return ""
    base = mlflow_uri.rstrip("/")
    if "root_run_id" in entries and "experiment_id" in entries:
        return f"{base}/#/experiments/{entries['experiment_id']}/runs/{entries['root_run_id']}"
    from urllib.parse import quote

    from intern_vision.mlflow_rest import Server
    from intern_vision.track import KFP_RUN_TAG

    try:
        answer = Server(base).get("mlflow/experiments/get-by-name", experiment_name="intern")
    except InternError:
        return base  # no such experiment yet, or nobody may ask
    search = quote(f"tags.`{KFP_RUN_TAG}` = '{run.run_id}'")
    return f"{base}/#/experiments/{answer['experiment']['experiment_id']}?searchFilter={search}"


def default_name(pipeline: str) -> str:
    """A run's name where none is given: the pipeline's, and when."""
    return f"{Path(pipeline).stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def _value(name: str, definition: ir.Spec, text: str) -> Any:
    kinds = _KINDS.get(definition["parameterType"])
    value: Any = text
    if kinds:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = definition["parameterType"].lower().replace("_", " ")
            raise ConfigError(f"--parameter: {name}: expected JSON of type {wanted}, got {text[:60]!r}")
    choices = definition.get("literals")
    if choices and value not in choices:
        raise ConfigError(f"--parameter: {name}: expected one of {', '.join(map(str, choices))}, got {text[:60]!r}")
    return value


def _named(name: str, texts: Sequence[str]) -> bool:
    return any(text.startswith(f"{name}=") for text in texts)


def _step_names(run: Any) -> dict[str, str]:
    """What the web page calls a task, where one name is meant for all tasks of that key."""
    spec = run.pipeline_spec if isinstance(run.pipeline_spec, dict) else {}
    spec = spec.get("pipeline_spec", spec)
    named: dict[str, set[str]] = {}
    if "root" in spec:
        for _, tasks, _ in ir.dags({"components": {}} | spec):
            for key, task in tasks.items():
                named.setdefault(key, set()).add(task.get("taskInfo", {}).get("name", key))
    return {key: names.pop() for key, names in named.items() if len(names) == 1}


def _is(child: Any, tasks: Sequence[Any], states: Sequence[str]) -> bool:
    number = _number(child.pod_name or child.task_id)
    return any(task.state in states and _number(task.pod_name or task.task_id) == number for task in tasks)


def _number(identity: str | None) -> str:
    """A node's number: pods and nodes of one step differ in all but that."""
    return (identity or "").rpartition("-")[2]


def _error(task: Any) -> str:
    statuses = [task.error, *(each.error for each in task.state_history or ())]
    messages = [status.message for status in statuses if status and status.message]
    return " ".join(messages[-1].split())[:500] if messages else ""
