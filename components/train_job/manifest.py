"""The TrainJob of a training: what it takes from the step's own pod, and the form that each Trainer version reads."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from intern_components.train_job.cluster import GROUP, RUNTIME_PLURALS, VERSION
from intern_vision.errors import ConfigError
from intern_vision.train.several_nodes import NodesRequest

COMMAND = ("python", "-m", "intern_vision.train.node")
OUTPUT, PAYLOAD, NAME = "intern-vision/output", "intern-vision/payload", "intern-vision/name"
"""Annotations: where the output will lie, the payload's address, and what the use of the stage is called."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "intern-vision"}
DEFAULT_RUNTIME = "ClusterTrainingRuntime/intern-torch"
STEP_CONTAINER = "main"
"""Where Kubeflow Pipelines runs a step's own command."""
REPLICATED_JOB = "node"

_PASSED_LABELS = ("pipeline/runid", "kueue.x-k8s.io/queue-name")
_PASSED_POD_FIELDS = ("nodeSelector", "affinity", "tolerations", "imagePullSecrets")
_PASSED_VARIABLES = ("NCCL_", "GLOO_", "TORCH_", "INTERN_NUM_RANKS", "OMP_NUM_THREADS")
"""Beginnings of the variables that a step hands to its nodes; none that may hold a secret."""


def job_name(request: NodesRequest) -> str:
    """The same for the same output, so that a restarted step finds the job it started; at most 45 letters."""
    digest = hashlib.sha256(request.output_uri.encode()).hexdigest()[:16]
    return f"intern-{request.stage.replace('_', '-')}-{digest}"


def runtime_of(environment: Mapping[str, str]) -> tuple[str, str]:
    """(kind, name) of the training runtime that ``INTERN_TRAINING_RUNTIME`` names.

    Raises:
        ConfigError: it is not ``ClusterTrainingRuntime/NAME`` or ``TrainingRuntime/NAME``.
    """
    text = environment.get("INTERN_TRAINING_RUNTIME") or DEFAULT_RUNTIME
    kind, _, name = text.partition("/")
    if kind not in RUNTIME_PLURALS or not name:
        raise ConfigError(f"INTERN_TRAINING_RUNTIME: expected {DEFAULT_RUNTIME} or the like, got {text!r}")
    return kind, name


def train_job(
    request: NodesRequest,
    namespace: str,
    runtime: tuple[str, str],
    patch_field: str,
    pod: Mapping[str, Any] | None,
    image: str,
) -> dict[str, Any]:
    """The TrainJob's manifest.

    Args:
        request: what to start.
        namespace: where.
        runtime: kind and name of the training runtime; it brings addresses and secrets.
        patch_field: as ``Cluster.patch_field`` says.
        pod: the step's own pod, whose image, resources, placement and owner the nodes share; None: the runtime's.
        image: of the nodes where there is no pod.
    """
    pod = pod or {}
    kind, runtime_name = runtime
    container = _step_container(pod)
    trainer: dict[str, Any] = {
        "image": container.get("image") or image,
        "command": list(COMMAND),
        "args": [request.payload_uri],
        "numNodes": request.num_nodes,
        "env": _passed_variables(),
    }
    if os.environ.get("INTERN_NUM_RANKS"):
        trainer["numProcPerNode"] = int(os.environ["INTERN_NUM_RANKS"])
    if resources := _own_resources(pod, container):
        trainer["resourcesPerNode"] = resources
    labels = pod.get("metadata", {}).get("labels", {})
    passed = {key: labels[key] for key in _PASSED_LABELS if key in labels}
    spec = {"runtimeRef": {"apiGroup": GROUP, "kind": kind, "name": runtime_name}, "trainer": trainer}
    if placement := _placement(pod):
        spec[patch_field] = [_PATCHES[patch_field](placement)]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(request),
            "namespace": namespace,
            "labels": {
                **MANAGED_BY,
                "app.kubernetes.io/part-of": "intern-vision",
                "app.kubernetes.io/component": request.stage,
                **passed,
            },
            "annotations": {OUTPUT: request.output_uri, PAYLOAD: request.payload_uri, NAME: request.name},
            "ownerReferences": _owners(pod),
        },
        "spec": spec,
    }


def _passed_variables() -> list[dict[str, str]]:
    return [
        {"name": name, "value": value}
        for name, value in sorted(os.environ.items())
        if name.startswith(_PASSED_VARIABLES)
    ]


def _step_container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    containers = pod.get("spec", {}).get("containers", [])
    return next((each for each in containers if each["name"] == STEP_CONTAINER), {})


def _own_resources(pod: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """Requests and limits that somebody set for the step; a namespace's defaults do not stand for a node's."""
    if "kubernetes.io/limit-ranger" in pod.get("metadata", {}).get("annotations", {}):
        return {}
    resources = container.get("resources", {})
    return {part: resources[part] for part in ("requests", "limits") if resources.get(part)}


def _placement(pod: Mapping[str, Any]) -> dict[str, Any]:
    spec = pod.get("spec", {})
    found = {field: spec[field] for field in _PASSED_POD_FIELDS if spec.get(field)}
    # Every pod gets tolerations of the node's own conditions by itself.
    own = [each for each in found.get("tolerations", ()) if not each.get("key", "").startswith("node.kubernetes.io/")]
    return {field: value for field, value in (found | {"tolerations": own}).items() if value}


def _owners(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The workflow that the step belongs to, or the step's pod: with it the job goes, whatever else fails.

    The workflow rather than the pod, because a step is restarted as another pod, which takes the job over.
    """
    if not pod:
        return []
    metadata = pod["metadata"]
    owner = next((each for each in metadata.get("ownerReferences", ()) if each.get("controller")), None)
    owner = owner or {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    kept = {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    return [{**kept, "controller": False, "blockOwnerDeletion": False}]


def _runtime_patch(placement: dict[str, Any]) -> dict[str, Any]:
    job = {"name": REPLICATED_JOB, "template": {"spec": {"template": {"spec": placement}}}}
    template = {"spec": {"replicatedJobs": [job]}}
    return {"manager": "intern-vision/step", "trainingRuntimeSpec": {"template": template}}


_PATCHES = {
    "runtimePatches": _runtime_patch,
    "podTemplateOverrides": lambda placement: {"targetJobs": [{"name": REPLICATED_JOB}], "spec": placement},
    "podSpecOverrides": lambda placement: {"targetJobs": [{"name": REPLICATED_JOB}], **placement},
}
