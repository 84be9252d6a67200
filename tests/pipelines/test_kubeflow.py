import json
import shutil
from pathlib import Path

import pytest
from cluster_servers import KubeflowServer, serving

from intern_pipelines import kubeflow
from intern_pipelines.kubeflow import Kubeflow, Registered
from intern_vision.errors import AccessError, ConfigError, RetryableError, TrainingError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DATA = GOLDEN / "data.yaml"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kubeflow, "POLL_S", 0.01)
    return KubeflowServer()


def test_register_uploads_the_file_once(server):
    with serving(server) as url:
        first = Kubeflow(url).register(DATA, "1.2")
        again = Kubeflow(url).register(DATA, "1.2")
    assert first == Registered("intern-data", first.version, is_new=True)
    assert again == Registered("intern-data", first.version, is_new=False)
    assert first.version.startswith("1.2-") and len(first.version) == len("1.2-") + 8
    assert [each["display_name"] for each in server.pipelines.values()] == ["intern-data"]
    assert server.files == {first.version: DATA.read_bytes()}


def test_another_text_is_another_version_of_the_same_pipeline(server, tmp_path):
    changed = tmp_path / "data.yaml"
    changed.write_text(DATA.read_text().replace("intern-vision:", "registry.example.org/intern-vision:"))
    with serving(server) as url:
        versions = {Kubeflow(url).register(path, "1.2").version for path in (DATA, changed)}
    assert len(versions) == 2 and len(server.pipelines) == 1 and len(server.files) == 2


def test_a_file_that_is_no_pipeline_is_refused(server, tmp_path):
    path = tmp_path / "notes.yaml"
    path.write_text("a: 1\n")
    with serving(server) as url, pytest.raises(ConfigError, match=r"notes.yaml: not a compiled pipeline"):
        Kubeflow(url).register(path, "1")


def test_a_run_is_waited_for(server):
    with serving(server) as url:
        found = Kubeflow(url)
        run_id = found.start(DATA, {"preset": "smoke"}, "smoke-1")
        assert found.wait(run_id, 10.0) == "SUCCEEDED"
    (run,) = server.runs.values()
    assert run["display_name"] == "smoke-1" and run["runtime_config"]["parameters"] == {"preset": "smoke"}
    assert [each["display_name"] for each in server.experiments.values()] == ["intern"]


@pytest.mark.parametrize(
    ("states", "error", "match"),
    [
        (
            ["RUNNING", "FAILED"],
            TrainingError,
            r"ended as FAILED; see http.*/runs/details/run-1",
        ),
        (["CANCELED"], TrainingError, r"ended as CANCELED"),
        (["RUNNING"], RetryableError, r"still RUNNING after 0 s"),
    ],
)
def test_a_run_that_does_not_succeed(server, states, error, match):
    server.states = states
    with serving(server) as url:
        found = Kubeflow(url)
        run_id = found.start(DATA, {}, "smoke-1")
        with pytest.raises(error, match=match):
            found.wait(run_id, 0.1)


def test_a_multi_user_installation_wants_a_namespace_and_a_token(server, monkeypatch, tmp_path):
    server.multi_user = True
    with serving(server) as url:
        with pytest.raises(ConfigError, match=r"--kfp-namespace: .* is a multi-user installation"):
            Kubeflow(url)
        assert Kubeflow(url, "team-a").register(DATA, "1").is_new
        assert [each["namespace"] for each in server.pipelines.values()] == ["team-a"]
        server.token = "of the service account"
        with pytest.raises(AccessError, match=r"answers 401: it refuses a login"):
            Kubeflow(url, "team-a")
        monkeypatch.setattr(kubeflow, "TOKEN_PATH", tmp_path / "token")
        kubeflow.TOKEN_PATH.write_text(server.token + "\n")
        assert not Kubeflow(url, "team-a").register(DATA, "1").is_new


def test_faults_are_one_line_each(server):
    with pytest.raises(RetryableError, match=r"--kfp-url: no answer from http://127.0.0.1:9 "):
        Kubeflow("http://127.0.0.1:9")
    with serving(server) as url:
        found = Kubeflow(url)
        for status, error in ((400, ConfigError), (403, AccessError), (503, RetryableError)):
            server.refused = status
            with pytest.raises(error, match=f"answers {status}") as caught:
                found.register(DATA, "1")
            assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match=r"is not Kubeflow Pipelines 2"):
            server.refused = 404
            kubeflow.health(url)


def test_the_command_registers_a_folder(server, tmp_path):
    from typer.testing import CliRunner

    from intern_vision.cli import app

    folder = tmp_path / "pipelines"
    shutil.copytree(GOLDEN, folder)
    with serving(server) as url:
        shown = CliRunner().invoke(app, ["cluster", "register", str(folder), f"--kfp-url={url}", "--version=7"])
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.output.splitlines()]
    lines = [words for words in lines if words and words[0] == "new"]
    assert len(lines) == len(list(GOLDEN.iterdir())) and all(words[2].startswith("7-") for words in lines)
    settings = tmp_path / "platform.json"
    settings.write_text('{"gpus": 4}')
    command = ["cluster", "register", str(folder), "--version=7", f"--platform={settings}"]
    with serving(server) as url:
        again = CliRunner().invoke(app, [*command, f"--kfp-url={url}", "--json"])
    found = {each["pipeline"]: each for each in json.loads(again.stdout)["pipelines"]}
    changed = {name for name, each in found.items() if each["is_new"]}
    assert again.exit_code == 0 and changed == found.keys() - {"intern-data"}, "all whose steps train"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert CliRunner().invoke(app, ["cluster", "register", str(empty), "--kfp-url=http://127.0.0.1:9"]).exit_code == 2
