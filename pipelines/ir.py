"""The compiled form of a pipeline (KFP's intermediate representation): what is checked in it and passed down in it.

A *DAG* is the root, or a component with tasks: a sub-pipeline, a loop or a branch. A task inside sees nothing but
what its own DAG declares as inputs.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

Spec = dict[str, Any]

_KINDS = (("parameters", "componentInputParameter"), ("artifacts", "componentInputArtifact"))
_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]")


def dags(spec: Spec) -> Iterator[tuple[str, Spec, Spec]]:
    """(name, tasks by name, component) of the root and of every DAG below it."""
    for name, component in (("root", spec["root"]), *spec["components"].items()):
        if "dag" in component:
            yield name, component["dag"]["tasks"], component


def faults(spec: Spec) -> list[str]:
    """What a server would find out only in the midst of a run, a line each.

    kfp 2.17 compiles a resource limit that is a pipeline parameter, inside a loop or branch, to a task that reads an
    input its DAG does not declare: such a file uploads, starts, and fails at that step.

    Args:
        spec: a compiled pipeline, the first document of its file.
    """
    found = []
    for where, tasks, dag in dags(spec):
        for name, task in tasks.items():
            found += [f"{where}: {name}: {text}" for text in _task_faults(spec, tasks, dag, task)]
    return found


def pass_down(spec: Spec, name: str, definition: Spec) -> str:
    """Declares a run parameter and passes it through every DAG to every step, named as kfp names such inputs.

    Args:
        spec: a compiled pipeline; it is changed.
        name: of the parameter in the run's form.
        definition: its ``parameterType``, ``description`` and more.

    Returns:
        The placeholder that stands for its value in a step's container.
    """
    inner = f"pipelinechannel--{name}"
    for where, tasks, dag in dags(spec):
        mine = name if where == "root" else inner
        declared = definition if where == "root" else {"parameterType": definition["parameterType"]}
        dag.setdefault("inputDefinitions", {}).setdefault("parameters", {})[mine] = dict(declared)
        for task in tasks.values():
            task.setdefault("inputs", {}).setdefault("parameters", {})[inner] = {"componentInputParameter": mine}
    return f"{{{{$.inputs.parameters['{inner}']}}}}"


def _task_faults(spec: Spec, tasks: Spec, dag: Spec, task: Spec) -> Iterator[str]:
    component = spec["components"][task["componentRef"]["name"]]
    looped = {task.get("parameterIterator", {}).get("itemInput")}
    for kind, reference in _KINDS:
        given = task.get("inputs", {}).get(kind, {})
        declared = dag.get("inputDefinitions", {}).get(kind, {})
        for value in given.values():
            if reference in value and value[reference] not in declared:
                yield f"reads {value[reference]}, which is no input of its DAG"
            for producer in _producers(value):
                if producer not in tasks:
                    yield f"reads an output of {producer}, which is not in its DAG"
        wanted = component.get("inputDefinitions", {}).get(kind, {})
        needed = {key for key, value in wanted.items() if not value.get("isOptional")}
        for key in sorted(needed - given.keys() - looped):
            yield f"gives no {key}"
    for other in sorted(set(task.get("dependentTasks", ())) - tasks.keys()):
        yield f"waits for {other}, which is not in its DAG"
    yield from _placeholder_faults(spec, component, task)


def _placeholder_faults(spec: Spec, component: Spec, task: Spec) -> Iterator[str]:
    """Placeholders of a step's image, resources and arguments that nothing gives a value."""
    if "executorLabel" not in component:
        return
    executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
    known = task.get("inputs", {}).get("parameters", {}).keys()
    known |= component.get("inputDefinitions", {}).get("parameters", {}).keys()
    for name in sorted(set(_PLACEHOLDER.findall(json.dumps(executor))) - known):
        yield f"its container reads {name}, which it is not given"


def _producers(value: Spec) -> list[str]:
    return [item["producerTask"] for item in value.values() if isinstance(item, dict) and "producerTask" in item]
