import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp import components
from running import INTERN, clean_environment, error_line, intern

from intern_components.base import IMAGE
from intern_pipelines import ir
from intern_pipelines.compiled import compile_pipeline, rewrite_all, write_objects
from intern_pipelines.local import PIPELINES
from intern_pipelines.platform import MLFLOW_SECRET, S3_SECRET, SETTINGS, Platform
from intern_vision.errors import ConfigError
from intern_vision.presets import PRESETS

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
ADDRESSES = {"INTERN_S3_ENDPOINT", "AWS_DEFAULT_REGION", "INTERN_STORE", "MLFLOW_TRACKING_URI"}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
}
OPTIONAL_SETTINGS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_CA_BUNDLE",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "INTERN_TRAINING_RUNTIME",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Every pipeline's two documents by name, as the command wrote them twice with other hash seeds."""
    folders = []
    for seed in ("0", "1"):
        folders.append(tmp_path_factory.mktemp(f"seed{seed}"))
        environment = clean_environment(PYTHONHASHSEED=seed, AWS_SECRET_ACCESS_KEY="not-for-a-file")
        done = subprocess.run(
            [INTERN, "compile", "--out", folders[-1], "--json"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["files"] == [str(folders[-1] / f"{name}.yaml") for name in PIPELINES]
    return folders


def documents(folders, name):
    return list(yaml.safe_load_all((folders[0] / f"{name}.yaml").read_text()))


def test_files_are_equal_for_equal_sources(compiled):
    assert [path.name for path in sorted(compiled[0].iterdir())] == sorted(f"{name}.yaml" for name in PIPELINES)
    for name in PIPELINES:
        assert (compiled[0] / f"{name}.yaml").read_bytes() == (compiled[1] / f"{name}.yaml").read_bytes()


@pytest.mark.parametrize("name", PIPELINES)
def test_file_is_the_golden_one(compiled, name):
    found, golden = (folder / f"{name}.yaml" for folder in (compiled[0], GOLDEN))
    assert found.read_text() == golden.read_text(), "where the change is wanted: make golden"
    assert {path.stem for path in GOLDEN.iterdir()} == set(PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_dag_declares_what_its_tasks_use(compiled, name):
    spec, _ = documents(compiled, name)
    assert ir.faults(spec) == []
    references = [task["inputs"]["parameters"] for _, tasks, _ in ir.dags(spec) for task in tasks.values()]
    assert sum(map(len, references)) > 5


@pytest.mark.parametrize("name", PIPELINES)
def test_steps_retry_run_the_image_as_it_is_and_are_not_cached(compiled, name):
    spec, _ = documents(compiled, name)
    num_steps = 0
    for where, tasks, _ in ir.dags(spec):
        for task_name, task in tasks.items():
            component = spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                assert "retryPolicy" not in task, "a sub-pipeline does not retry: its steps do"
                continue
            num_steps += 1
            policy = task["retryPolicy"]
            assert policy["maxRetryCount"] >= 1 and policy["backoffDuration"].endswith("s"), f"{where}: {task_name}"
            assert task["cachingOptions"] == {}, f"{where}: {task_name}: Kubeflow's cache is on"
            assert task["taskInfo"]["name"]
            container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
            assert container["image"] == "{{$.inputs.parameters['pipelinechannel--step_image']}}"
            command = " ".join(container["command"])
            assert not re.search(r"\bpip\b|ensurepip|apt-get|packages_to_install", command)
            assert re.search(r"from intern_vision\.(benchmark_|data_)?steps import", command)
            assert "resources" not in container and "env" not in container
    assert num_steps >= 2


def variables(blocks):
    """Environment variables that blocks of a Secret or ConfigMap set, each once."""
    names = [item["envVar"] for block in blocks for item in block["keyToEnv"]]
    assert len(names) == len(set(names))
    return set(names)


@pytest.mark.parametrize("name", PIPELINES)
def test_pods_get_addresses_and_credentials_by_reference_only(compiled, name):
    spec, platform = documents(compiled, name)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    for executor in executors.values():
        secrets, settings = executor["secretAsEnv"], executor["configMapAsEnv"]
        assert {item["secretName"] for item in secrets} == {S3_SECRET, MLFLOW_SECRET}
        assert {item["configMapName"] for item in settings} == {SETTINGS}
        assert variables(secrets) == CREDENTIALS
        assert variables(item for item in settings if not item["optional"]) == ADDRESSES
        assert variables(item for item in settings if item["optional"]) == OPTIONAL_SETTINGS
    ours = ("exec-train", "exec-adapt", "exec-search", "exec-benchmark-dataset")
    trains = {label for label in executors if label.startswith(ours)}
    trains -= {label for label in executors if label.startswith("exec-search-round")}
    for label, executor in executors.items():
        mounts = [mount["mountPath"] for mount in executor.get("emptyDirMounts", ())]
        assert mounts == (["/dev/shm"] if label in trains else []), label
    text = (compiled[0] / f"{name}.yaml").read_text()
    assert "not-for-a-file" not in text
    # The names of the credentials' variables occur in the references alone.
    assert len(re.findall("AWS_SECRET_ACCESS_KEY", text)) == len(executors)
    assert not re.search(r"(?i)(password|token|secret[_-]?key)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/]{12,}", text)


@pytest.mark.parametrize("name", PIPELINES)
def test_names_and_sizes_fit_a_cluster(compiled, name):
    spec, platform = documents(compiled, name)
    names = [spec["pipelineInfo"]["name"], *spec["components"], *spec["deploymentSpec"]["executors"]]
    names += [task for _, tasks, _ in ir.dags(spec) for task in tasks]
    assert [each for each in names if not DNS_1123.fullmatch(each)] == []
    assert spec["pipelineInfo"]["name"] in ("intern", f"intern-{name}")
    assert (compiled[0] / f"{name}.yaml").stat().st_size < 1_000_000
    assert spec["pipelineInfo"]["description"] and spec["pipelineInfo"]["displayName"]
    assert list(platform) == ["platforms"]


@pytest.mark.parametrize("name", PIPELINES)
def test_parameters_are_described_and_presets_can_be_chosen(compiled, name):
    spec, _ = documents(compiled, name)
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    if name != "data":  # whose stages no preset knows
        assert parameters["preset"]["literals"] == list(PRESETS)
        assert parameters["preset"]["defaultValue"] in PRESETS
    assert [key for key, value in parameters.items() if not value.get("description")] == []
    # Numbers inside lists and dicts arrive as floats: there is no such parameter.
    assert {value["parameterType"] for value in parameters.values()} <= {"STRING", "LIST"}
    image = parameters["step_image"]
    assert image["defaultValue"] == IMAGE and not IMAGE.endswith(":latest") and max(parameters) == "step_image"
    lists = [value["defaultValue"] for value in parameters.values() if isinstance(value.get("defaultValue"), list)]
    assert all(isinstance(item, str) for values in lists for item in values)


@pytest.mark.parametrize("name", PIPELINES)
def test_compiled_file_loads_as_a_component(compiled, name):
    loaded = components.load_component_from_file(str(compiled[0] / f"{name}.yaml"))
    spec = loaded.pipeline_spec
    assert spec.pipeline_info.name == documents(compiled, name)[0]["pipelineInfo"]["name"]
    assert list(loaded.component_spec.inputs) == sorted(loaded.component_spec.inputs)


def test_image_comes_from_the_environment():
    code = "from intern_pipelines.compiled import compile_pipeline; print(compile_pipeline('data'))"
    environment = os.environ | {"INTERN_IMAGE": "registry.example/intern@sha256:0123"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "'defaultValue': 'registry.example/intern@sha256:0123'" in done.stdout


def test_compiling_twice_in_one_process_gives_the_same():
    assert compile_pipeline("adapt") == compile_pipeline("adapt")


SETTINGS_OF_A_CLUSTER = {
    "gpus": 2,
    "memory": "64Gi",
    "shared_memory": "8Gi",
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu"}],
    "pull_secrets": ["mirror"],
    "labels": {"team": "vision"},
    "deadline_s": 60,
    "num_retries": 1,
}


def test_settings_are_put_into_what_is_compiled_as_while_compiling(compiled, tmp_path):
    platform = Platform.from_dict(SETTINGS_OF_A_CLUSTER)
    assert [path.stem for path in rewrite_all(compiled[0], tmp_path, platform)] == sorted(PIPELINES)
    for name in PIPELINES:
        assert documents([tmp_path], name) == compile_pipeline(name, platform)
    (tmp_path / "again").mkdir()
    rewrite_all(tmp_path, tmp_path / "again", platform)
    for name in PIPELINES:
        assert documents([tmp_path / "again"], name) == documents([tmp_path], name), "no variable is there twice"
    own = (compiled[0] / "data.yaml").read_text().replace(IMAGE, "registry.example.org/intern:2")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/data.yaml").write_text(own)
    rewrite_all(tmp_path / "own", tmp_path, Platform())
    assert (tmp_path / "data.yaml").read_text() == own, "a file's image stays, and defaults change nothing"
    for text in ("a: 1", "root: x\ncomponents: {}\n---\na: 1", "- 1\n---\n- 2", "{"):
        (tmp_path / "own/data.yaml").write_text(text)
        with pytest.raises(
            ConfigError, match=r"own/data.yaml: expected a compiled pipeline; write it with intern comp"
        ):
            rewrite_all(tmp_path / "own", tmp_path, platform)


def test_objects_hold_the_compiled_pipelines_and_schemas_of_the_server_take_them(compiled, tmp_path):
    settings = tmp_path / "platform.json"
    settings.write_text(json.dumps({"gpus": 2, "deadline_s": 60}))
    answer = intern("compile", "--out", tmp_path / "out", "--platform", settings, "--objects", "--json")
    files = json.loads(answer.stdout)["files"]
    assert len(files) == 2 * len(PIPELINES)
    versions = set()
    for name in PIPELINES:
        spec, platform = yaml.safe_load_all((tmp_path / f"out/{name}.yaml").read_text())
        pipeline, version = yaml.safe_load_all((tmp_path / f"out/kubernetes/{name}.yaml").read_text())
        named = spec["pipelineInfo"]
        assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
        assert pipeline["apiVersion"] == version["apiVersion"] == "pipelines.kubeflow.org/v2beta1"
        assert pipeline["metadata"]["name"] == version["spec"]["pipelineName"] == named["name"]
        assert pipeline["spec"] == {"displayName": named["displayName"], "description": named["description"]}
        assert DNS_1123.fullmatch(version["metadata"]["name"])
        assert version["spec"]["pipelineSpec"] == spec and version["spec"]["platformSpec"] == platform
        assert platform["platforms"]["kubernetes"]["pipelineConfig"] == {"activeDeadlineSeconds": 60}
        versions.add(version["metadata"]["name"])
    plain = write_objects(documents(compiled, "data"), tmp_path / "data.yaml")
    assert list(yaml.safe_load_all(plain.read_text()))[1]["metadata"]["name"] not in versions, "another text"


def test_wrong_settings_are_refused_by_name(tmp_path):
    settings = tmp_path / "platform.json"
    settings.write_text('{"gpu": 2}')
    done = intern("compile", "--out", tmp_path / "out", "--platform", settings, exit_code=2)
    assert error_line(done).startswith("error: platform.json.gpu: unknown key; known keys here: cpu, deadline_s")
    assert not (tmp_path / "out").exists()
