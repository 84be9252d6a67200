"""Every value set on every Kubernetes version: lint, render, strict schemas."""

import json

import pytest
from helm_chart import CHART, EXAMPLES, KUBERNETES, VALUE_SETS, Schemas, pod_specs, render, run_helm

pytest.importorskip("kubernetes_validate", reason="pip install 'intern-vision[helm]'")

# Without CRDs of others: their schemas are not Kubernetes' own.
NUM_OBJECTS = {
    "default": 27,
    "air-gapped": 27,
    "aws": 23,
    "gitops": 20,
    "gpu": 27,
    "kubeflow-profile": 13,
    "kubeflow-seaweedfs": 22,
    "laptop": 25,
    "minio": 23,
    "open": 13,
    "smoke-test": 27,
}
FOREIGN_GROUPS = ("pipelines.kubeflow.org", "trainer.kubeflow.org", "monitoring.coreos.com")


@pytest.fixture(scope="module", params=KUBERNETES)
def schemas(request):
    return request.param, Schemas(request.param)


def test_ten_value_sets_and_more_are_looked_at():
    assert len(EXAMPLES) >= 10 and set(NUM_OBJECTS) == set(VALUE_SETS)


@pytest.mark.parametrize("values", VALUE_SETS)
def test_lint_is_silent(values):
    arguments = [] if values == "default" else ["--values", CHART / f"examples/{values}.yaml"]
    # lint knows no --api-versions: objects of other APIs are left out, or asked for by the value set itself.
    changes = ["--set", "registration.mode=none"] if values == "gitops" else []
    done = run_helm("lint", "--strict", CHART, *arguments, *changes)
    assert done.returncode == 0 and "[WARNING]" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("values", VALUE_SETS)
def test_objects_satisfy_the_strict_schemas(schemas, values):
    version, validators = schemas
    manifests = render(values, version)
    own = [m for m in manifests if m["apiVersion"].split("/")[0] not in FOREIGN_GROUPS]
    assert len(own) == NUM_OBJECTS[values], [f"{m['kind']}/{m['metadata']['name']}" for m in own]
    faults = [fault for manifest in own for fault in validators.faults(manifest)]
    # The runtime's schema is Trainer's, but its pods are pods.
    for where, spec in pod_specs(m for m in manifests if m["kind"].endswith("TrainingRuntime")):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": spec}
        faults += [f"{where}: {fault}" for fault in validators.faults(pod)]
    assert faults == []


def test_the_schemas_are_strict(schemas):
    _, validators = schemas
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    container = {"name": "a", "image": "b", "readynessProbe": {}}
    (fault,) = validators.faults(pod | {"spec": {"containers": [container]}})
    assert "readynessProbe" in fault


def test_a_kubernetes_that_is_too_old_is_refused():
    done = run_helm("template", "r", CHART, "--kube-version", "1.27")
    assert done.returncode == 1 and "requires kubeVersion: >=1.28" in done.stderr


def test_names_are_unique_and_objects_are_in_the_namespace():
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "ClusterTrainingRuntime"}
    for values in VALUE_SETS:
        manifests = render(values)
        names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
        assert len(set(names)) == len(names), values
        for manifest in manifests:
            expected = None if manifest["kind"] in cluster_wide else "kubeflow"
            assert manifest["metadata"].get("namespace") == expected, f"{values}: {manifest['kind']}"


def test_a_long_release_name_leaves_room_for_suffixes():
    done = run_helm("template", "r" * 53, CHART, "--kube-version", "1.34", "--namespace", "n")
    assert done.returncode == 0, done.stderr
    names = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  name: ")]
    assert len(names) > 15 and max(map(len, names)) <= 63


def test_packaged_chart_fits_a_release_secret(tmp_path):
    done = run_helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.iterdir()
    assert package.name == "intern-vision-0.1.0.tgz"
    assert package.stat().st_size < 200_000, "Helm keeps it in a Secret of at most 1 MiB, next to the rendered objects"
    assert len(json.dumps(render("gitops"))) < 5_000_000
