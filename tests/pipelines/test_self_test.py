import json
from pathlib import Path

import pytest
from cluster_servers import KubeflowServer, serving
from mlflow import MlflowClient
from typer.testing import CliRunner

from intern_pipelines import kubeflow, self_test
from intern_vision.cli import app
from intern_vision.errors import ConfigError, InternError, RetryableError


def test_round_trip_leaves_nothing_behind(services):
    lines = self_test.mlflow_round_trip()
    assert len(lines) == 5 and all(line.endswith("came back") for line in lines)
    client = MlflowClient(services.mlflow_uri)
    experiment = client.get_experiment_by_name(self_test.EXPERIMENT)
    assert client.search_runs([experiment.experiment_id]) == []
    assert client.search_logged_models([experiment.experiment_id]) == []
    names = [model.name for model in client.search_registered_models()]
    assert not [name for name in names if name.startswith(self_test.EXPERIMENT)]


def test_another_answer_is_an_error_and_cleans_up(services, monkeypatch):
    monkeypatch.setattr(MlflowClient, "download_artifacts", lambda self, run_id, path, folder: __file__)
    with pytest.raises(InternError, match=r"the run's file: MLflow gave back something else"):
        self_test.mlflow_round_trip()
    experiment = MlflowClient().get_experiment_by_name(self_test.EXPERIMENT)
    assert MlflowClient().search_runs([experiment.experiment_id]) == []


def test_a_server_that_is_away_is_told_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RetryableError, match=r"MLflow at http://127.0.0.1:9 is away"):
        self_test.mlflow_round_trip()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI: expected the address"):
        self_test.mlflow_round_trip()


def test_the_command_also_runs_the_smoke_pipeline(services, monkeypatch, tmp_path):
    monkeypatch.setattr(kubeflow, "POLL_S", 0.01)
    monkeypatch.setenv("HOME", str(tmp_path))
    server, pipeline = KubeflowServer(), Path(__file__).resolve().parents[1] / "golden/intern.yaml"
    arguments = ["cluster", "test", f"--smoke={pipeline}", "--json"]
    with serving(server) as url:
        done = CliRunner().invoke(app, [*arguments, f"--kfp-url={url}"])
        server.states = ["FAILED"]
        failed = CliRunner().invoke(app, [*arguments, f"--kfp-url={url}"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["done"][-1] == "run run-1 succeeded"
    assert [run["runtime_config"]["parameters"] for run in server.runs.values()] == [{"preset": "smoke"}] * 2
    assert failed.exit_code == 1 and "run run-2: ended as FAILED" in failed.stderr
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2 and "--kfp-url: --smoke needs the address" in refused.stderr
