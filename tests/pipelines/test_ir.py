import copy

import pytest
import yaml
from kfp import compiler, dsl

from intern_pipelines import ir
from intern_pipelines.compiled import compile_pipeline

IMAGE = {"parameterType": "STRING", "defaultValue": "image:1", "isOptional": True}


@dsl.component(base_image="image:1", install_kfp_package=False)
def leaf(x: str) -> str:
    return x


def compiled(pipeline, folder):
    compiler.Compiler().compile(pipeline, str(folder / "pipeline.yaml"))
    return next(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))


def test_a_limit_from_a_parameter_inside_a_loop_is_caught(tmp_path):
    @dsl.pipeline(name="broken")
    def broken(gpus: str = "1"):
        with dsl.ParallelFor(["a", "b"]) as item:
            leaf(x=item).set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)

    @dsl.pipeline(name="whole")
    def whole(gpus: str = "1"):
        leaf(x="a").set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)

    (fault,) = ir.faults(compiled(broken, tmp_path))
    assert fault == "comp-for-loop-2: leaf: reads pipelinechannel--gpus, which is no input of its DAG"
    assert ir.faults(compiled(whole, tmp_path)) == []


def test_the_same_inside_a_branch(tmp_path):
    @dsl.pipeline(name="broken")
    def broken(gpus: str = "1", go: str = "yes"):
        with dsl.If(go == "yes"):
            leaf(x="a").set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)

    assert any("reads pipelinechannel--gpus" in fault for fault in ir.faults(compiled(broken, tmp_path)))


@pytest.fixture(scope="module")
def pretrain():
    return compile_pipeline("pretrain")[0]


def mutated(spec, change):
    changed = copy.deepcopy(spec)
    change(changed)
    return ir.faults(changed)


def drop_inputs(spec):
    (name,) = [name for name, _, _ in ir.dags(spec) if "upstream" in name]
    del spec["components"][name]["inputDefinitions"]["parameters"]["preset"]


def drop_argument(spec):
    del spec["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]["dataset"]


def drop_producer(spec):
    del spec["root"]["dag"]["tasks"]["prepare"]


def drop_image(spec):
    del spec["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]["pipelinechannel--step_image"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (drop_inputs, "reads preset, which is no input of its DAG"),
        (drop_argument, "root: prepare: gives no dataset"),
        (drop_producer, "reads an output of prepare, which is not in its DAG"),
        (drop_producer, "waits for prepare, which is not in its DAG"),
        (drop_image, "root: prepare: its container reads pipelinechannel--step_image, which it is not given"),
    ],
)
def test_every_kind_of_fault_is_told(pretrain, change, expected):
    assert ir.faults(pretrain) == []
    assert any(fault.endswith(expected) for fault in mutated(pretrain, change)), mutated(pretrain, change)


def test_a_parameter_is_passed_down_as_kfp_does_it(tmp_path):
    def build(image):
        @dsl.pipeline(name="one")
        def plain():
            with dsl.ParallelFor(["a"]) as item, dsl.If(item == "a"):
                leaf(x=item)

        @dsl.pipeline(name="one")
        def dynamic(step_image: str = "image:1"):
            with dsl.ParallelFor(["a"]) as item, dsl.If(item == "a"):
                leaf(x=item).set_container_image(step_image)

        return compiled(dynamic if image else plain, tmp_path)

    expected, found = build(image=True), build(image=False)
    found["deploymentSpec"]["executors"]["exec-leaf"]["container"]["image"] = ir.pass_down(found, "step_image", IMAGE)
    for _, tasks, _ in ir.dags(expected):
        for task in tasks.values():  # a copy of the placeholder that the server does not read
            task.get("inputs", {}).get("parameters", {}).pop("base_image", None)
    assert found == expected and ir.faults(found) == []
