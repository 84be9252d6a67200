import pytest
from typer.testing import CliRunner

from intern_pipelines import commands
from intern_vision.cli import app


@pytest.fixture
def executed(monkeypatch):
    """What the commands would run, in place of running it."""
    calls = []
    monkeypatch.setattr("intern_pipelines.runner.run_pipeline", lambda *args, **options: calls.append((args, options)))
    monkeypatch.setattr(commands, "_summary", lambda local_run, keep: ({}, []))
    return calls


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_run_gives_the_pipeline_what_the_preset_says(executed, tmp_path):
    done = invoke("run", "--preset", "smoke", "--num-ranks", "1", "--state-dir", tmp_path, "--override", "{}")
    assert done.exit_code == 0, done.output
    (((pipeline, name, arguments, identity), options),) = executed
    assert (pipeline, name) == ("intern", "smoke")
    assert options.pop("where") == "process"
    assert options == {"state_dir": tmp_path, "num_ranks": 1, "resume": True, "keep": False, "quiet": False}
    assert arguments == {"preset": "smoke", "overrides": "{}"}
    assert identity["preset"] == "smoke"


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "x" * 64])
def test_name_of_a_run_is_the_name_of_its_folder(executed, name):
    done = invoke("run", "--preset", "smoke", "--name", name)
    assert done.exit_code == 2 and not executed
    assert "--name: expected up to 63 letters, digits, dots, dashes or underscores" in done.stderr
