import json

import pytest
from typer.testing import CliRunner

from intern_pipelines import commands
from intern_vision.cli import app
from intern_vision.errors import ConfigError


@pytest.fixture
def executed(monkeypatch):
    """What the commands would run, in place of running it."""
    calls = []
    monkeypatch.setattr(commands, "_execute", lambda *args: calls.append(args))
    return calls


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_run_gives_the_pipeline_what_the_preset_says(executed, tmp_path):
    done = invoke("run", "--preset", "smoke", "--num-ranks", "1", "--state-dir", tmp_path, "--override", "{}")
    assert done.exit_code == 0, done.output
    ((pipeline, name, arguments, identity, state_dir, num_ranks, resume, keep, as_json),) = executed
    assert (pipeline, name, num_ranks, resume, keep, as_json) == ("intern", "smoke", 1, True, False, False)
    assert arguments == {"preset": "smoke", "overrides": "{}"}
    assert identity["preset"] == "smoke" and state_dir == tmp_path


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "x" * 64])
def test_name_of_a_run_is_the_name_of_its_folder(executed, name):
    done = invoke("run", "--preset", "smoke", "--name", name)
    assert done.exit_code == 2 and not executed
    assert "--name: expected up to 63 letters, digits, dots, dashes or underscores" in done.stderr


def test_adapt_sets_path_digest_and_all_labels_but_for_what_is_given(executed, tmp_path):
    data = tmp_path / "My Flowers"
    data.mkdir()
    (data / "x.png").write_bytes(b"1")
    override = {"adapt": {"seed": 1}, "downstream": {"seed": 2}}
    done = invoke("adapt", "--data", data, "--preset", "smoke", "--override", json.dumps(override))
    assert done.exit_code == 0, done.output
    ((pipeline, name, arguments, identity, *_),) = executed
    assert (pipeline, name) == ("adapt", "adapt-my-flowers")
    assert arguments["datasets"] == ["my-flowers"] and arguments["model"] == "models:/intern-generalist@candidate"
    overrides = json.loads(arguments["overrides"])
    assert overrides["adapt"] == {"shares": [1.0], "seed": 1}
    assert overrides["downstream"]["path"] == str(data) and overrides["downstream"]["seed"] == 2
    assert identity["data"]["content_digest"] == overrides["downstream"]["content_digest"]


def test_digest_tells_changed_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"1")
    first = commands._content_digest(tmp_path)
    assert commands._content_digest(tmp_path) == first
    (tmp_path / "a" / "x.png").write_bytes(b"12")
    second = commands._content_digest(tmp_path)
    (tmp_path / "y.png").write_bytes(b"")
    assert len({first, second, commands._content_digest(tmp_path)}) == 3
    assert commands._content_digest(tmp_path / "y.png") != second


@pytest.mark.parametrize(
    ("text", "name"), [("Flowers 102", "flowers-102"), ("--a__b--", "a-b"), ("x", "x"), ("Äpfel", "pfel")]
)
def test_dataset_name_is_plain(text, name):
    assert commands._dataset_name(text) == name


@pytest.mark.parametrize("text", ["花", "---", "", "upstream", "Generalist"])
def test_dataset_name_that_says_nothing_or_belongs_to_intern_is_refused(text):
    with pytest.raises(ConfigError, match="--name: "):
        commands._dataset_name(text)


def test_section_that_is_no_object_is_named(executed, tmp_path):
    done = invoke("adapt", "--data", tmp_path, "--preset", "smoke", "--override", '{"adapt": 3}')
    assert done.exit_code == 2 and "adapt: expected an object, got 3" in done.stderr and not executed
