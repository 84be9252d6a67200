"""Rendered objects are those that were looked at last; a wanted change: python tests/helm_chart.py."""

import pytest
from helm_chart import GOLDEN, GOLDEN_SETS, golden_text, one, pod_specs, render


@pytest.mark.parametrize("values", GOLDEN_SETS)
def test_objects_are_the_golden_ones(values):
    wanted = (GOLDEN / f"{values}.yaml").read_text()
    assert golden_text(values) == wanted, "where the change is wanted: python tests/helm_chart.py"
    assert {path.stem for path in GOLDEN.iterdir()} == set(GOLDEN_SETS)


def test_mlflow_lets_every_name_of_its_service_in_with_and_without_a_port():
    container = one(render("aws"), "Deployment", "-mlflow")["spec"]["template"]["spec"]["containers"][0]
    (hosts,) = [v["value"].split(",") for v in container["env"] if v["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS"]
    service = "intern-intern-vision-mlflow"
    names = [service, f"{service}.kubeflow", f"{service}.kubeflow.svc", f"{service}.kubeflow.svc.cluster.local"]
    for name in [*names, "mlflow.example.org", "localhost"]:
        assert name in hosts and f"{name}:*" in hosts
    assert "*" not in hosts


def test_one_block_of_values_feeds_steps_mlflow_and_kubeflows_launcher():
    manifests = render("minio")
    settings = one(manifests, "ConfigMap", "intern-settings")["data"]
    assert settings["s3-endpoint"] == "https://minio.storage.svc:9000"
    assert settings["store"] == "s3://intern/store" and settings["ca-bundle"] == "/etc/intern/ca/ca.crt"
    mlflow = one(manifests, "Deployment", "-mlflow")["spec"]["template"]["spec"]["containers"][0]
    env = {variable["name"]: variable for variable in mlflow["env"]}
    assert env["MLFLOW_S3_ENDPOINT_URL"]["value"] == "https://minio.storage.svc:9000"
    assert env["MLFLOW_ARTIFACTS_DESTINATION"]["value"] == "s3://intern/mlflow"
    key = env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]
    assert (key["name"], key["key"]) == ("minio-keys", "rootPassword")
    launcher = one(manifests, "ConfigMap", "kfp-launcher")["data"]
    assert launcher["defaultPipelineRoot"] == "s3://intern/kfp"
    for expected in ("endpoint: minio.storage.svc:9000", "disableSSL: false", "secretKeyKey: rootPassword"):
        assert expected in launcher["providers"]


def test_a_cloud_role_takes_the_place_of_keys():
    manifests = render("aws")
    text = str([pod for _, pod in pod_specs(manifests)])
    assert "AWS_SECRET_ACCESS_KEY" not in text
    accounts = [m for m in manifests if m["kind"] == "ServiceAccount"]
    assert len(accounts) == 4 and all("eks.amazonaws.com/role-arn" in m["metadata"]["annotations"] for m in accounts)
    assert "MLFLOW_S3_ENDPOINT_URL" not in text, "Amazon's own service has no endpoint"


def test_optional_apis_are_used_only_where_they_are():
    kinds = {m["kind"] for m in render(apis=())}
    assert not kinds & {"ClusterTrainingRuntime", "ServiceMonitor", "Pipeline", "Role", "ClusterRole"}
    with_apis = {m["kind"] for m in render()}
    assert {"ClusterTrainingRuntime", "ServiceMonitor", "Role", "ClusterRole"} <= with_apis
    assert "ClusterTrainingRuntime" in {m["kind"] for m in render("gpu", apis=())}, "forced"


def test_gitops_has_neither_hooks_but_tests_nor_random_values():
    first, second = render("gitops"), render("gitops", "1.34", "doctor.beforeInstall=false")
    hooks = {m["metadata"].get("annotations", {}).get("helm.sh/hook") for m in first} - {None}
    assert hooks == {"test"}
    assert first == second and not [m for m in first if m["kind"] == "Secret"]
