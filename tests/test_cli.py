import json
import re

import pytest
from running import strict_json
from typer.testing import CliRunner

import intern_vision
from intern_vision.cli import app
from intern_vision.console import StageProgress, reporting_errors, show
from intern_vision.errors import ConfigError, RetryableError

COMMANDS = {"up", "down", "doctor", "models", "lineage", "predict", "run", "adapt", "compile", "plan", "table"}
COMMANDS |= {"serve", "export", "promote", "submit"}


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_version_and_help():
    assert invoke("--version").output == f"{intern_vision.__version__}\n"
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == COMMANDS
    # Without arguments it explains itself.
    assert "Usage" in invoke().output


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_explained(command):
    import typer.main

    found = typer.main.get_command(app).commands[command]
    assert found.help.splitlines()[0].endswith(".")
    # Every command serves machines and shows a traceback on request.
    options = {option for parameter in found.params for option in parameter.opts}
    assert {"--json", "--debug"} <= options
    assert [parameter.name for parameter in found.params if not getattr(parameter, "help", None)] == []


def test_models_of_an_empty_registry(services):
    done = invoke("models", "--json")
    assert done.exit_code == 0 and isinstance(strict_json(done.stdout)["models"], list)


@pytest.mark.parametrize("arguments", [("lineage", "intern-none"), ("predict", "intern-none", __file__)])
def test_unknown_model_is_one_line(services, arguments, tmp_path):
    if arguments[0] == "predict":
        picture = tmp_path / "x.png"
        picture.write_bytes(PNG)
        arguments = (*arguments[:2], picture, "--out", tmp_path / "out")
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert re.fullmatch(r"error: model intern-none@candidate: not registered; registered are .*\n", done.stderr)
    done = invoke(*arguments, "--json")
    assert strict_json(done.stdout)["exit_code"] == 2 and "intern-none" in strict_json(done.stdout)["error"]
    done = invoke(*arguments, "--debug")
    assert type(done.exception).__name__ == "MissingObjectError"


def test_doctor_as_json(services, tmp_path):
    done = invoke("doctor", "--json", "--state-dir", tmp_path)
    checks = {check["name"]: check for check in strict_json(done.stdout)["checks"]}
    assert {"python", "torch", "disk", "s3", "mlflow server"} <= checks.keys()
    assert done.exit_code == (0 if all(check["ok"] for check in checks.values()) else 2)


def test_doctor_says_what_to_mend_and_fails(services, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERN_MLFLOW_PORT", "x")
    done = invoke("doctor", "--state-dir", tmp_path)
    assert done.exit_code == 2
    assert re.search(r"^FAIL mlflow port: .*\n +fix: ", done.stdout, re.MULTILINE)


def test_down_where_nothing_runs(tmp_path):
    done = invoke("down", "--json", "--state-dir", tmp_path / "none")
    assert done.exit_code == 0 and strict_json(done.stdout) == {"stopped": False}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "code"), [(ConfigError("a: wrong"), 2), (RetryableError("away"), 75)])
def test_error_is_one_line_and_its_code(capsys, error, code):
    with pytest.raises(SystemExit) as caught, reporting_errors(False, as_json=True):
        raise error
    assert caught.value.code == code
    told = capsys.readouterr()
    assert told.err == f"error: {error}\n"
    assert json.loads(told.out) == {"error": str(error), "exit_code": code}
    with pytest.raises(type(error)), reporting_errors(True):
        raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device", "x/y"), 75, "x/y: the disk is full; make room"),
        (OSError(28, "No space left on device"), 75, "the disk is full; make room"),
        (PermissionError(13, "Permission denied", "x/y"), 2, "x/y: permission denied; name a place"),
    ],
)
def test_file_that_cannot_be_used_is_one_line(capsys, error, code, line):
    with pytest.raises(SystemExit) as caught, reporting_errors(False):
        raise error
    assert caught.value.code == code
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_faults_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError), reporting_errors(False):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="no name"), reporting_errors(False):
        raise OSError("no name")


def test_progress_is_plain_lines_off_a_terminal(capsys):
    events = [
        {"at": 0.0, "stage": "amateur", "event": "started"},
        {"at": 1.0, "stage": "amateur", "event": "step", "done": 1, "total": 2},
        {"at": 2.0, "stage": "amateur", "event": "note", "note": "resumed at step 1 of 2"},
        {"at": 3.0, "stage": "amateur", "event": "done", "wall_s": 1.25, "cpu_s": 2.0},
        {"at": 3.0, "stage": "clip", "event": "cached", "wall_s": 7.0},
        {"at": 3.0, "stage": "expert", "event": "failed", "note": "row 3", "exit_code": 2},
    ]
    for quiet in (False, True):
        with StageProgress(quiet) as progress:
            for event in events:
                progress(event)
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.split(" ", 1)[1] for line in told.err.splitlines()] == [
        "amateur: started",
        "amateur: note resumed at step 1 of 2",
        "amateur: done 1.2 s",
        "clip: cached 7.0 s",
        "expert: failed row 3",
    ]


def test_progress_bars_on_a_terminal(monkeypatch):
    from rich.console import Console

    progress = StageProgress()
    progress._console, progress._live = Console(force_terminal=True, record=True, width=120), True
    with progress:
        progress({"at": 0.0, "stage": "amateur", "event": "step", "done": 1, "total": 4})
        progress({"at": 0.0, "stage": "expert", "event": "failed", "note": "row 3", "exit_code": 2})
        progress({"at": 0.0, "stage": "clip", "event": "cached", "wall_s": 1.0})
        progress({"at": 0.0, "stage": "clip", "event": "note", "note": "said once"})
    text = progress._console.export_text()
    assert "amateur" in text and "25%" in text and "row 3" in text and "said once" in text


def test_results_for_people_or_for_machines(capsys):
    show({"a": 1}, ["line 1", "line 2"], as_json=False)
    show({"a": 1}, ["line 1"], as_json=True)
    out = capsys.readouterr().out
    assert out.startswith("line 1\nline 2\n") and json.loads(out.split("line 2\n")[1]) == {"a": 1}


# A picture of one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)
