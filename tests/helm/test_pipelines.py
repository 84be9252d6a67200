"""Compiled pipelines in the chart are the current ones, and carry the release's image and Secrets."""

import re

import yaml
from helm_chart import CHART, ROOT, one, render

from intern_pipelines.local import PIPELINES
from intern_pipelines.platform import Platform

GOLDEN = ROOT / "tests/golden"
MAX_CONFIG_MAP_BYTES = 1_000_000


def test_the_charts_pipelines_are_the_golden_ones():
    found = {path.name: path.read_bytes() for path in (CHART / "pipelines").iterdir()}
    wanted = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    assert set(found) == {f"{name}.yaml" for name in PIPELINES}
    assert found == wanted, "make golden copies them"


def test_pipelines_reach_the_job_as_they_are_compiled():
    mounted = one(render(), "ConfigMap", "-pipelines")["data"]
    assert {name: text.rstrip("\n") for name, text in mounted.items()} == {
        path.name: path.read_text().rstrip("\n") for path in GOLDEN.iterdir()
    }
    assert sum(map(len, mounted.values())) < MAX_CONFIG_MAP_BYTES
    job = one(render(), "Job", "-register")["spec"]["template"]["spec"]
    (mount,) = [m for m in job["containers"][0]["volumeMounts"] if m["name"] == "pipelines"]
    assert mount["mountPath"] == job["containers"][0]["args"][2]


def test_a_clusters_settings_reach_the_job():
    manifests = render("gpu")
    job = one(manifests, "Job", "-register")["spec"]["template"]["spec"]["containers"][0]
    (option,) = [word for word in job["args"] if word.startswith("--platform=")]
    folder, _, name = option.removeprefix("--platform=").rpartition("/")
    assert folder == job["args"][2]
    settings = Platform.from_json(one(manifests, "ConfigMap", "-pipelines")["data"][name], at=name)
    assert (settings.gpus, settings.node_selector) == (8, {"nvidia.com/gpu.product": "NVIDIA-H200"})
    assert [toleration.key for toleration in settings.tolerations] == ["nvidia.com/gpu"]


def test_a_release_puts_its_own_names_into_them():
    changes = ("mlflow.auth.existingSecret=login", "mlflow.auth.usernameKey=user", "mlflow.auth.passwordKey=word")
    mounted = one(
        render("minio", "1.34", "image.repository=reg.example.org/iv", "image.tag=v9", *changes),
        "ConfigMap",
        "-pipelines",
    )
    for name, text in mounted["data"].items():
        spec, platform = yaml.safe_load_all(text)
        image = spec["root"]["inputDefinitions"]["parameters"]["step_image"]
        assert image["defaultValue"] == "reg.example.org/iv:v9", name
        for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            secrets = {each["secretName"]: each for each in executor["secretAsEnv"]}
            assert set(secrets) == {"minio-keys", "login"}
            keys = {item["secretKey"] for each in secrets.values() for item in each["keyToEnv"]}
            assert keys == {"rootUser", "rootPassword", "user", "word"}
            constants = {each["secretNameParameter"]["runtimeValue"]["constant"] for each in executor["secretAsEnv"]}
            assert constants == set(secrets)
            assert [each["configMapName"] for each in executor["configMapAsVolume"]] == ["company-ca"]
        assert not re.search(r"intern-s3|intern-ca|intern-mlflow|(image|defaultValue): intern-vision:", text)


def test_pipeline_objects_hold_the_compiled_pipelines():
    manifests = render("gitops")
    versions = [m for m in manifests if m["kind"] == "PipelineVersion"]
    pipelines = {m["metadata"]["name"] for m in manifests if m["kind"] == "Pipeline"}
    assert len(versions) == len(PIPELINES) and pipelines == {m["spec"]["pipelineName"] for m in versions}
    for manifest in versions:
        spec = manifest["spec"]
        (path,) = [p for p in GOLDEN.iterdir() if spec["pipelineName"] in (p.stem, f"intern-{p.stem}")]
        wanted, platform = yaml.safe_load_all(
            path.read_text().replace("intern-s3", "intern-s3-sealed").replace("intern-mlflow", "intern-mlflow-sealed")
        )
        assert spec["pipelineSpec"] == wanted and spec["platformSpec"] == platform
        assert re.fullmatch(r"intern[a-z-]*-0-1-0-[0-9a-f]{8}", manifest["metadata"]["name"])
        assert manifest["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_another_image_is_another_version():
    def names(*changes):
        return {m["metadata"]["name"] for m in render("gitops", "1.34", *changes) if m["kind"] == "PipelineVersion"}

    assert not names() & names("image.tag=v2")
    assert names() == names("jobResources.limits.memory=3Gi"), "what a pipeline does not contain changes no version"
