import importlib
import inspect
import pkgutil
import re

import pytest
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

import intern_components
from intern_components.base import IMAGE

NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(intern_components.__path__)
    if module.name not in ("base", "train_job")
)


def load(name) -> BaseComponent:
    return getattr(importlib.import_module(f"intern_components.{name}"), name)


def documented(text: str) -> dict[str, str]:
    """Parameter names and what a Google docstring says about them."""
    section = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    assert section, text
    return dict(re.findall(r"^\s*(\w+): (.+)$", section.group(1), re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_documented(name):
    function = load(name).python_func
    assert inspect.getdoc(function).splitlines()[0].endswith(".")
    assert list(documented(inspect.getdoc(function))) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_component_uses_the_image_and_installs_nothing(name):
    spec = load(name).component_spec
    container = spec.implementation.container
    assert container.image == IMAGE
    assert "pip" not in " ".join(map(str, container.command))
    # Configs travel as JSON text: numbers inside structures arrive as floats.
    assert {item.type for item in spec.inputs.values() if not item.type.startswith("system.")} <= {"String"}
    outputs = {output.type for output in spec.outputs.values() if not output.type.startswith("system.")}
    assert outputs <= {"typing.List[str]"}, "what a pipeline loops over"


@pytest.mark.parametrize("name", NAMES)
def test_body_only_imports_steps_and_calls(name):
    source = inspect.getsource(load(name).python_func)
    body = source.split('"""')[2].strip().splitlines()
    imports = [line.strip() for line in body if "import " in line]
    assert len(imports) == 1 and re.match(r"from intern_vision\.(benchmark_|data_)?steps import ", imports[0])
    # Names of the module itself do not exist in the step's own process.
    module = importlib.import_module(f"intern_components.{name}")
    own = {key for key in vars(module) if not key.startswith("_")} - {name} - set(dir(dsl))
    used = set(re.findall(r"[A-Za-z_]\w*", "\n".join(body)))
    assert used & (own - set(inspect.signature(load(name).python_func).parameters)) == set()


def test_components_are_those_that_the_pipelines_need():
    assert NAMES == [
        "adapt",
        "annotate",
        "benchmark_arms",
        "benchmark_dataset",
        "benchmark_report",
        "benchmark_sets",
        "choices",
        "data_report",
        "dedup",
        "export",
        "filter",
        "find",
        "gather",
        "ingest",
        "label",
        "prepare",
        "promote",
        "report",
        "search",
        "search_round",
        "search_trial",
        "select",
        "shard",
        "train",
    ]
