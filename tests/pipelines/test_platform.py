import copy
import json

import pytest
from google.protobuf.json_format import MessageToDict
from kfp import dsl, kubernetes

from intern_components.prepare import prepare
from intern_pipelines.platform import Platform, finish, read_platform, step
from intern_vision.errors import ConfigError
from intern_vision.presets import PRESETS

SPEC = {
    "root": {
        "dag": {
            "tasks": {
                "loop": {"componentRef": {"name": "comp-loop"}},
                "leaf": {"componentRef": {"name": "comp-leaf"}},
            }
        },
        "inputDefinitions": {"parameters": {"preset": {"parameterType": "STRING"}, "other": {}}},
    },
    "components": {
        "comp-loop": {"dag": {"tasks": {"inner": {"componentRef": {"name": "comp-train-2"}}}}},
        "comp-leaf": {"executorLabel": "exec-leaf"},
        "comp-train-2": {"executorLabel": "exec-train-2"},
    },
    "deploymentSpec": {
        "executors": {"exec-leaf": {"container": {"image": "i"}}, "exec-train-2": {"container": {"image": "i"}}}
    },
}
SHM = {"emptyDirMounts": [{"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "1Gi"}]}
KUBERNETES = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-leaf": {}, "exec-train-2": SHM}}}}}


def finished(**settings):
    """(spec, executors' pods, pipeline config) with these settings."""
    spec, platform = copy.deepcopy(SPEC), copy.deepcopy(KUBERNETES)
    finish(spec, platform, Platform.from_dict(settings))
    single = platform["platforms"]["kubernetes"]
    return spec, single["deploymentSpec"]["executors"], single.get("pipelineConfig", {})


def test_retries_at_any_depth_and_choices_of_the_preset():
    spec, _, config = finished()
    leaf = spec["root"]["dag"]["tasks"]["leaf"]
    inner = spec["components"]["comp-loop"]["dag"]["tasks"]["inner"]
    assert leaf["retryPolicy"]["maxRetryCount"] == 3 and leaf["retryPolicy"] == inner["retryPolicy"]
    assert leaf["retryPolicy"] is not inner["retryPolicy"], "YAML would write an alias"
    assert "retryPolicy" not in spec["root"]["dag"]["tasks"]["loop"]
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["preset"]["literals"] == list(PRESETS) and "literals" not in parameters["other"]
    assert config == {}


def test_the_image_is_a_run_parameter_of_every_step():
    spec, _, _ = finished(image="registry.example.org/intern@sha256:12")
    parameter = spec["root"]["inputDefinitions"]["parameters"]["step_image"]
    assert parameter["defaultValue"] == "registry.example.org/intern@sha256:12" and parameter["isOptional"]
    images = {each["container"]["image"] for each in spec["deploymentSpec"]["executors"].values()}
    assert images == {"{{$.inputs.parameters['pipelinechannel--step_image']}}"}


def test_resources_and_nodes_are_for_training_steps_alone():
    toleration = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    spec, pods, _ = finished(
        gpus=4, cpu="16", memory="64Gi", shared_memory="8Gi", node_selector={"gpu": "h100"}, tolerations=[toleration]
    )
    small, trains = (each["container"] for each in spec["deploymentSpec"]["executors"].values())
    assert small.keys() == {"image"}
    assert trains["resources"] == {
        "accelerator": {"resourceType": "nvidia.com/gpu", "resourceCount": "4"},
        "resourceCpuRequest": "16",
        "resourceMemoryRequest": "64Gi",
        "resourceMemoryLimit": "64Gi",
    }
    assert trains["env"] == [{"name": "INTERN_NUM_RANKS", "value": "4"}]
    assert pods["exec-train-2"]["nodeSelector"] == {"labels": {"gpu": "h100"}}
    assert pods["exec-train-2"]["tolerations"] == [toleration | {"operator": "Exists"}]
    assert pods["exec-train-2"]["emptyDirMounts"] == [SHM["emptyDirMounts"][0] | {"sizeLimit": "8Gi"}]
    assert pods["exec-leaf"].keys() == {"podMetadata", "securityContext"}


def test_every_pod_has_labels_pull_secrets_and_refuses_root():
    _, pods, _ = finished(labels={"team": "vision"}, pull_secrets=["mirror", "other"])
    for label, pod in pods.items():
        labels = pod["podMetadata"]["labels"]
        assert labels["team"] == "vision" and labels["app.kubernetes.io/part-of"] == "intern-vision"
        assert labels["app.kubernetes.io/component"] == {"exec-leaf": "leaf", "exec-train-2": "train"}[label]
        assert [each["secretName"] for each in pod["imagePullSecret"]] == ["mirror", "other"]
        assert pod["securityContext"] == {"runAsNonRoot": True}
    assert all("securityContext" not in pod for pod in finished(run_as_non_root=False)[1].values())


def test_a_run_ends_and_is_cleaned_up():
    _, _, config = finished(deadline_s=86_400, time_to_live_s=3_600, num_retries=0, retry_wait_s=900)
    assert config == {"activeDeadlineSeconds": 86_400, "resourceTtlOnCompletion": 3_600}
    spec, _, _ = finished(num_retries=5, retry_wait_s=900)
    policy = spec["root"]["dag"]["tasks"]["leaf"]["retryPolicy"]
    assert (policy["maxRetryCount"], policy["backoffDuration"], policy["backoffMaxDuration"]) == (5, "900s", "900s")


def test_the_compiled_fields_are_those_that_the_sdk_writes():
    settings = {"gpus": 2, "cpu": "4", "memory": "8Gi", "node_selector": {"a": "b"}, "pull_secrets": ["mirror"]}

    @dsl.pipeline(
        name="one", pipeline_config=dsl.PipelineConfig(active_deadline_seconds=5, ttl_seconds_after_finished=7)
    )
    def one():
        task = step(prepare(preset="smoke", overrides="", dataset="flower"), "name", trains=True)
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit("2")
        task.set_cpu_request("4").set_memory_request("8Gi").set_memory_limit("8Gi")
        task.set_env_variable("INTERN_NUM_RANKS", "2")
        kubernetes.add_node_selector(task, "a", "b")
        kubernetes.set_image_pull_secrets(task, ["mirror"])
        kubernetes.add_toleration(task, key="k", operator="Exists", effect="NoSchedule")
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.add_pod_label(task, "team", "vision")

    expected = MessageToDict(one.platform_spec)["platforms"]["kubernetes"]
    container = MessageToDict(one.pipeline_spec)["deploymentSpec"]["executors"]["exec-prepare"]["container"]
    toleration = {"key": "k", "effect": "NoSchedule"}
    spec, pods, config = finished(
        **settings, tolerations=[toleration], labels={"team": "vision"}, deadline_s=5, time_to_live_s=7
    )
    wanted = expected["deploymentSpec"]["executors"]["exec-prepare"]
    for field in ("nodeSelector", "imagePullSecret", "tolerations", "securityContext"):
        assert pods["exec-train-2"][field] == wanted[field], field
    assert wanted["podMetadata"]["labels"].items() <= pods["exec-train-2"]["podMetadata"]["labels"].items()
    assert config == expected["pipelineConfig"]
    found = spec["deploymentSpec"]["executors"]["exec-train-2"]["container"]
    assert found["env"] == container["env"]
    accelerator = found["resources"].pop("accelerator")
    assert accelerator.items() <= container["resources"].pop("accelerator").items()
    assert found["resources"].items() <= container["resources"].items()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gpus": -1}, "gpus: expected a number >= 0, got -1"),
        ({"memory": "64 GB"}, "memory: expected a Kubernetes quantity such as 8 or 32Gi, got '64 GB'"),
        ({"shared_memory": ""}, "shared_memory: expected a quantity such as 2Gi, got none"),
        ({"labels": {"team": "a b"}}, "labels: team=a b is no label that Kubernetes takes"),
        ({"node_selector": {"-": "b"}}, "node_selector: -=b is no label"),
        ({"tolerations": [{"operator": "exists"}]}, r"tolerations.0.operator: expected 'Exists' or 'Equal'"),
        ({"secrets": []}, "secrets: unknown key"),
    ],
)
def test_wrong_settings_are_told_by_name(settings, match, tmp_path):
    path = tmp_path / "platform.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=match):
        read_platform(path)
    with pytest.raises(ConfigError, match=r"--platform: .*absent.json cannot be read \(FileNotFoundError\)"):
        read_platform(tmp_path / "absent.json")


@pytest.mark.parametrize("trains", [False, True])
def test_step_names_a_task_and_only_a_training_gets_shared_memory(trains):
    @dsl.pipeline(name="one")
    def one():
        step(prepare(preset="smoke", overrides="", dataset="flower"), "the name", trains=trains)

    task = one.pipeline_spec.root.dag.tasks["prepare"]
    assert task.task_info.name == "the name"
    assert not task.caching_options.enable_cache
    platform = MessageToDict(one.platform_spec)["platforms"]["kubernetes"]
    executor = platform["deploymentSpec"]["executors"]["exec-prepare"]
    assert ("emptyDirMounts" in executor) is trains
    assert "retryPolicy" not in str(one.pipeline_spec), "the local runner would honour it and sleep"
