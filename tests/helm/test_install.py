"""Helm's own install, upgrade and uninstall against an API that keeps objects; hooks and controllers do not run."""

import base64
import json

import pytest
from cluster_servers import ObjectServer, serving
from helm_chart import CHART, NAMESPACE, RELEASE, helm, run_helm

FOLDER = f"/api/v1/namespaces/{NAMESPACE}"
SECRETS = (f"{FOLDER}/secrets/intern-s3", f"{FOLDER}/secrets/intern-mlflow")
OPTIONS = ("--namespace", NAMESPACE, "--no-hooks")


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    helm()  # found in the home folder, before that is another one
    server = ObjectServer()
    with serving(server) as url:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
            "clusters": [{"name": "here", "cluster": {"server": url}}],
            "users": [{"name": "here", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        (tmp_path / "kubeconfig").chmod(0o600)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("HOME", str(tmp_path))  # Helm keeps what it discovered there
        yield server


def install(release=RELEASE, *arguments):
    return run_helm("install", release, CHART, *OPTIONS, "--disable-openapi-validation", *arguments)


def upgrade(*arguments):
    return run_helm("upgrade", RELEASE, CHART, *OPTIONS, "--disable-openapi-validation", *arguments)


def test_secrets_are_made_once_and_outlive_upgrade_and_uninstall(cluster):
    done = install()
    assert done.returncode == 0, done.stderr
    made = {path: dict(cluster.objects[path]["data"]) for path in SECRETS}
    assert len(base64.b64decode(made[SECRETS[1]]["password"])) == 40
    done = upgrade("--set", "mlflow.workers=2")
    assert done.returncode == 0, done.stderr
    assert [path.rpartition("/")[2] for path in cluster.patched] == ["intern-intern-vision-mlflow"], (
        "the deployment alone"
    )
    done = run_helm("uninstall", RELEASE, *OPTIONS)
    assert done.returncode == 0, done.stderr
    left = {path for path in cluster.objects if "sh.helm.release" not in path}
    assert left == {*SECRETS, f"{FOLDER}/persistentvolumeclaims/intern-intern-vision-mlflow"}
    done = install()
    assert done.returncode == 0, done.stderr
    assert {path: cluster.objects[path]["data"] for path in SECRETS} == made, "the database knows the old password"


def test_a_second_release_in_the_namespace_is_refused_and_leaves_nothing(cluster):
    assert install().returncode == 0
    before = set(cluster.objects)
    done = install("second")
    assert done.returncode == 1
    expected = 'release "intern" is in namespace kubeflow already, and steps find their settings by one name'
    assert expected in done.stderr
    left = {path for path in set(cluster.objects) - before if "sh.helm.release" not in path}
    assert left == set() and not cluster.patched


def test_notes_tell_what_a_person_does_next(cluster):
    done = install()
    text = done.stdout.partition("NOTES:")[2]
    assert f"helm test {RELEASE} -n {NAMESPACE} --logs" in text
    assert "port-forward svc/intern-intern-vision-mlflow 5000:5000" in text
    assert "get secret intern-mlflow -o jsonpath='{.data.password}' | base64 -d" in text
    assert "Kept on uninstall" in text and "without replication" in text
    for path in SECRETS:
        for value in cluster.objects[path]["data"].values():
            assert base64.b64decode(value).decode() == "admin" or value not in done.stdout
