import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
from cluster_servers import KubeflowServer, serving
from running import INTERN, clean_environment
from typer.testing import CliRunner

from intern_pipelines import kubeflow
from intern_vision.cli import app

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
INTERN_FILE = str(GOLDEN / "intern.yaml")


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(kubeflow, "POLL_S", 0.01)
    found = KubeflowServer()
    with serving(found) as url:
        monkeypatch.setenv("INTERN_KFP_URL", url)
        yield found


def submit(*arguments, exit_code=0):
    done = CliRunner().invoke(app, ["submit", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    assert "Traceback" not in done.output
    return done


def test_a_file_is_started_with_checked_parameters(server):
    done = submit(
        INTERN_FILE, "-p", "preset=smoke", "--experiment", "team", "--name", "first", "--ui-url", "https://kfp"
    )
    (run,) = server.runs.values()
    assert run["display_name"] == "first" and run["runtime_config"]["parameters"] == {"preset": "smoke"}
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "intern"
    assert [each["display_name"] for each in server.experiments.values()] == ["team"]
    assert "page       https://kfp/#/runs/details/run-1" in done.stderr
    assert done.stdout.strip() == f"wait       intern submit {INTERN_FILE} --attach run-1"


def test_the_newest_registered_version_is_started_or_the_one_named(server, tmp_path):
    registered = kubeflow.Kubeflow(os.environ["INTERN_KFP_URL"])
    changed = tmp_path / "adapt.yaml"
    changed.write_text((GOLDEN / "adapt.yaml").read_text().replace("intern-vision:", "registry/intern-vision:"))
    old = registered.register(GOLDEN / "adapt.yaml", "1").version
    new = registered.register(changed, "1").version
    for name, version in (("intern-adapt", ""), ("adapt", old)):
        submit(name, "-p", 'datasets=["flower"]', *(["--version", version] if version else []))
    ids = [run["pipeline_version_reference"]["pipeline_version_id"] for run in server.runs.values()]
    assert [server.versions[each]["display_name"] for each in ids] == [new, old]
    assert [run["display_name"].rpartition("-")[0].rpartition("-")[0] for run in server.runs.values()] == [
        "intern-adapt",
        "adapt",
    ]
    unknown = submit("adapt", "--version", "0", exit_code=2)
    assert "pipeline 'adapt' has no version '0'" in unknown.stderr
    assert "has no pipeline 'pretrain'; register it" in submit("pretrain", exit_code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([INTERN_FILE, "-p", "preset=huge"], "error: --parameter: preset: expected one of smoke, nano"),
        ([INTERN_FILE, "-p", "presets=nano"], "known parameters: overrides, preset, step_image"),
        ([INTERN_FILE, "--version", "1"], "error: --version: a file has none"),
        (["absent.yaml"], "error: absent.yaml: cannot be read (FileNotFoundError)"),
        ([__file__ + "/x"], "cannot be read (NotADirectoryError)"),
        ([INTERN_FILE, "--kfp-url", "http://127.0.0.1:9"], "error: --kfp-url: no answer from http://127.0.0.1:9"),
    ],
)
def test_nothing_is_started_where_something_is_wrong(server, arguments, expected):
    done = CliRunner().invoke(app, ["submit", *arguments])
    assert done.exit_code in (2, 75) and expected in done.stderr and "Traceback" not in done.output
    assert not server.runs


def test_an_older_server_is_refused(server):
    server.version = "2.16.1"
    expected = "is 2.16.1; 2.17 or newer is needed, so upgrade it"
    assert expected in submit(INTERN_FILE, exit_code=2).stderr
    server.version = "dev"
    submit(INTERN_FILE)


def test_waiting_shows_logs_and_links(server):
    server.states = ["PENDING", "RUNNING", "SUCCEEDED"]
    server.tasks = [{"display_name": "prepare", "pod_name": "p-1", "state": "RUNNING"}]
    server.logs = {"p-1": b"images 3\nimages 6\n"}
    server.plugins = {"mlflow": {"entries": {"url": {"value": "https://mlflow.example.org/1"}}}}
    done = submit(INTERN_FILE, "--follow", "--json")
    value = json.loads(done.stdout)
    assert value["state"] == "SUCCEEDED" and value["mlflow"] == "https://mlflow.example.org/1"
    assert done.stderr.count("[p-1] images 3\n") == 1 and "[p-1] running" in done.stderr


def test_a_failed_run_names_the_step_and_what_its_log_says(server):
    server.states = ["RUNNING", "FAILED"]
    server.tasks = [
        {"display_name": "export", "pod_name": "p-2", "state": "FAILED", "error": {"message": "exit code 2"}},
        {"display_name": "executor", "pod_name": "p-3", "state": "FAILED", "error": {"message": "OOMKilled"}},
    ]
    server.logs = {"p-2": b"start\nerror: s3://b/x: no object lies there\nexit\n"}
    done = submit(INTERN_FILE, "--wait", exit_code=1)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: run run-1: ended as FAILED: step register: s3://b/x: no object lies there, ")
    assert "step executor: OOMKilled; see http" in line


def test_a_run_can_be_waited_for_later(server):
    submit(INTERN_FILE)
    assert submit(INTERN_FILE, "--attach", "run-1").stdout.strip() == "ended      succeeded"
    assert len(server.runs) == 1
    server.states = ["RUNNING"]
    late = submit(INTERN_FILE, "--attach", "run-1", "--timeout-s", "0.05", exit_code=75)
    assert "still RUNNING after 0 s; look at http" in late.stderr
    assert "answers 404" in submit(INTERN_FILE, "--attach", "run-9", exit_code=2).stderr


def test_interrupt_leaves_the_run_alone(server, tmp_path):
    server.states = ["RUNNING"]
    environment = clean_environment(INTERN_KFP_URL=os.environ["INTERN_KFP_URL"], HOME=str(tmp_path))
    process = subprocess.Popen(
        [INTERN, "submit", INTERN_FILE, "--wait"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    lines = [process.stderr.readline(), process.stderr.readline()]
    while "state" not in server.runs["run-1"]:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and lines[0].startswith("run        run-1"), rest
    assert "run run-1 goes on without this terminal; stop it at http" in rest and "Traceback" not in rest
    assert len(server.runs) == 1


def test_a_token_from_outside_is_sent(server, monkeypatch):
    server.token = "given"
    assert "outside the cluster INTERN_KFP_TOKEN" in submit(INTERN_FILE, exit_code=2).stderr
    monkeypatch.setenv("INTERN_KFP_TOKEN", "given")
    server.tasks = [{"display_name": "prepare", "pod_name": "p-1", "state": "SUCCEEDED"}]
    server.logs = {"p-1": b"one\n"}
    assert "[p-1] one" in submit(INTERN_FILE, "--follow").stderr
