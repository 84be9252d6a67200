import copy

import pytest
from google.protobuf.json_format import MessageToDict
from kfp import dsl

from intern_components.prepare import prepare
from intern_pipelines.platform import finish, step
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
        "comp-loop": {"dag": {"tasks": {"inner": {"componentRef": {"name": "comp-leaf"}}}}},
        "comp-leaf": {"executorLabel": "exec-leaf"},
    },
}


def test_finish_adds_retries_to_steps_at_any_depth_and_choices_to_the_preset():
    spec = finish(copy.deepcopy(SPEC))
    leaf = spec["root"]["dag"]["tasks"]["leaf"]
    inner = spec["components"]["comp-loop"]["dag"]["tasks"]["inner"]
    assert leaf["retryPolicy"]["maxRetryCount"] == 3 and leaf["retryPolicy"] == inner["retryPolicy"]
    assert leaf["retryPolicy"] is not inner["retryPolicy"], "YAML would write an alias"
    assert "retryPolicy" not in spec["root"]["dag"]["tasks"]["loop"]
    assert spec["root"]["inputDefinitions"]["parameters"] == {
        "preset": {"parameterType": "STRING", "literals": list(PRESETS)},
        "other": {},
    }
    assert finish(copy.deepcopy(spec)) == spec


def test_pipeline_without_parameters_is_left_alone():
    spec = {"root": {"dag": {"tasks": {}}}, "components": {}}
    assert finish(copy.deepcopy(spec)) == spec


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
