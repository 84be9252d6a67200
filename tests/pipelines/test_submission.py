from types import SimpleNamespace

import pytest

from intern_pipelines.submission import Followed, failed_steps, last_error, mlflow_page, parse_parameters
from intern_vision.errors import ConfigError, DataError


def definition(kind, **more):
    return {"parameterType": kind, **more}


SPEC = {
    "root": {
        "inputDefinitions": {
            "parameters": {
                "preset": definition("STRING", literals=["smoke", "nano"], defaultValue="nano", isOptional=True),
                "sources": definition("STRING"),
                "sizes": definition("LIST", isOptional=True),
                "epochs": definition("NUMBER_INTEGER", isOptional=True),
                "rate": definition("NUMBER_DOUBLE", isOptional=True),
                "fast": definition("BOOLEAN", isOptional=True),
                "where": definition("STRUCT", isOptional=True),
            }
        }
    }
}


def test_values_get_their_parameters_types():
    texts = ["sources=a=b", "sizes=[1]", "epochs=3", "rate=2", "fast=true", 'where={"a": 1}', "preset=smoke"]
    assert parse_parameters(SPEC, texts) == {
        "sources": "a=b",
        "sizes": [1],
        "epochs": 3,
        "rate": 2,
        "fast": True,
        "where": {"a": 1},
        "preset": "smoke",
    }


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ([], r"sources has no default; give sources=VALUE"),
        (["sources"], r"expected NAME=VALUE, got 'sources'"),
        (["sources=x", "presets=nano"], r"has no 'presets'; known parameters: preset, sources, sizes"),
        (["sources=x", "preset=huge"], r"preset: expected one of smoke, nano, got 'huge'"),
        (["sources=x", "epochs=true"], r"epochs: expected JSON of type number integer, got 'true'"),
        (["sources=x", "epochs=1.5"], r"epochs: expected JSON of type number integer, got '1.5'"),
        (["sources=x", "sizes={}"], r"sizes: expected JSON of type list, got '{}'"),
        (["sources=x", "sizes=a"], r"sizes: expected JSON of type list, got 'a'"),
        ([f"sources={'x' * 20_000}"], r"all values together are 20\d+ bytes, Kubeflow Pipelines takes 10000"),
    ],
)
def test_wrong_values_are_told_by_name(texts, match):
    with pytest.raises(ConfigError, match=match):
        parse_parameters(SPEC, texts)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_parameters(SPEC, ["presets=a", "epochs=b"])
    assert len(str(caught.value).splitlines()) == 3


def task(name, state, pod="", children=(), message=""):
    return SimpleNamespace(
        display_name=name,
        task_id=f"id-{pod}",
        state=state,
        pod_name=pod,
        child_tasks=[SimpleNamespace(pod_name=child, task_id=None) for child in children],
        error=SimpleNamespace(message=message) if message else None,
        state_history=None,
    )


def run(*tasks, spec=None, plugins=None):
    details = SimpleNamespace(task_details=list(tasks))
    return SimpleNamespace(run_id="run-1", run_details=details, pipeline_spec=spec, plugins_output=plugins)


def test_the_step_that_failed_is_named_as_the_page_names_it():
    tasks = [
        task("intern-x", "FAILED", "intern-x", ["intern-x-1", "intern-x-2"]),
        task("prepare", "SUCCEEDED", "intern-x-system-1"),
        task("train", "FAILED", "intern-x-dag-2", ["intern-x-3"]),
        task("executor", "FAILED", "intern-x-retry-3", ["intern-x-4", "intern-x-5"]),
        task("executor(0)", "FAILED", "intern-x-impl-4", message="exit code 75"),
        task("executor(1)", "FAILED", "intern-x-impl-5", message="exit  code\n1"),
    ]
    spec = {"root": {"dag": {"tasks": {"train": {"taskInfo": {"name": "amateur"}}}}}}
    first, second = failed_steps(run(*tasks, spec=spec))
    assert (first.name, first.pod, first.message) == ("amateur", "intern-x-impl-4", "exit code 75")
    assert (second.name, second.message) == ("amateur", "exit code 1")
    assert failed_steps(run(task("a", "SUCCEEDED", "a-1"))) == []
    assert failed_steps(SimpleNamespace(run_details=None, pipeline_spec=None)) == []


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("one\nerror: images: no such folder\nexit 2\n", "error: images: no such folder"),
        ("one\nTraceback\n\n", "Traceback"),
        ("", ""),
    ],
)
def test_the_log_line_that_says_it(log, expected):
    assert last_error(log) == expected


def test_logs_are_shown_once_and_whole_lines_only():
    logs, shown = {"p-1": b"one\ntw"}, []

    def read(pod, start):
        if pod not in logs:
            raise DataError("none yet")
        return logs[pod][start:]

    followed = Followed(read, shown.append)
    waiting = [task("root", "RUNNING", "p", ["p-1"]), task("train-driver", "RUNNING", "p-9")]
    followed.look(run(*waiting, task("train", "RUNNING", "p-1"), task("later", "PENDING", "p-2")))
    logs["p-1"] += b"o\nthree"
    followed.look(run(*waiting, task("train", "RUNNING", "p-1")))
    followed.look(run(*waiting, task("train", "SUCCEEDED", "p-1")))
    followed.look(run(*waiting, task("train", "SUCCEEDED", "p-1")))
    assert shown == [
        "[p-1] running",
        "[p-1] one",
        "[p-2] pending",
        "[p-1] two",
        "[p-1] succeeded",
        "[p-1] three",
    ]


def entries(**values):
    return {"mlflow": SimpleNamespace(entries={name: SimpleNamespace(value=value) for name, value in values.items()})}


def test_the_page_in_mlflow(services):
    from mlflow import MlflowClient

    assert mlflow_page(run(plugins=entries(url="https://mlflow/run/1")), "") == "https://mlflow/run/1"
    plugin = entries(experiment_id="3", root_run_id="abc")
    assert mlflow_page(run(plugins=plugin), "http://here:5000/") == "http://here:5000/#/experiments/3/runs/abc"
    assert mlflow_page(run(), "") == ""
    assert mlflow_page(run(), "http://127.0.0.1:9") == "http://127.0.0.1:9"
    client = MlflowClient(services.mlflow_uri)
    known = client.get_experiment_by_name("intern")
    identity = known.experiment_id if known else client.create_experiment("intern")
    page = mlflow_page(run(), services.mlflow_uri)
    assert (
        page
        == f"{services.mlflow_uri}/#/experiments/{identity}?searchFilter=tags.%60intern.kfp_run%60%20%3D%20%27run-1%27"
    )


def test_a_stages_run_carries_the_tag_that_the_page_asks_for(services, monkeypatch, tmp_path):
    from mlflow import MlflowClient

    from intern_vision.track import Tracker

    monkeypatch.setenv("INTERN_KFP_RUN_ID", "run-77")
    with Tracker.for_stage("amateur", tmp_path):
        pass
    client = MlflowClient(services.mlflow_uri)
    experiment = client.get_experiment_by_name("intern").experiment_id
    (found,) = client.search_runs([experiment], filter_string="tags.`intern.kfp_run` = 'run-77'")
    assert found.info.run_name == "amateur"
