import json

import pytest
from typer.testing import CliRunner

from intern_pipelines import benchmark_commands
from intern_vision.bench import splits
from intern_vision.bench.suite import SUITE
from intern_vision.cli import app

GAP = {"dataset": "svhn", "status": "failed", "text": "svhn/test_32x32.mat: missing", "exit_code": 2}
ABSENT = {"dataset": "dtd", "status": "absent", "text": "get it from https://example.org", "exit_code": 0}


@pytest.fixture
def executed(monkeypatch):
    """What the command would run, in place of running it; ``gaps`` are what the run would leave."""
    calls, gaps = [], []

    def run(pipeline, *arguments, **options):
        calls.append(arguments)

    def summary(local_run):
        return {"report": "report.html", "table": {"gaps": gaps}}, ["the table"]

    monkeypatch.setattr("intern_pipelines.runner.run_pipeline", run)
    monkeypatch.setattr(benchmark_commands, "_summary", summary)
    return calls, gaps


def invoke(*arguments):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


def test_everything_asked_for_reaches_the_pipeline(executed, tmp_path):
    calls, _ = executed
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    file = tmp_path / "clip.safetensors"
    file.write_bytes(b"")
    done = invoke(
        *("--model", "models:/intern-generalist@champion", "--data-root", tmp_path / "data"),
        *("--datasets", "cifar10,dtd", "--protocol", "10%,knn", "--baseline", file),
        *("--baseline-architecture", "clip_rn50x16", "--preset", "smoke", "--name", "mine"),
        *("--gate", '{"tolerance": 0.02}'),
    )
    assert done.exit_code == 0, done.output
    ((name, arguments, identity, *_),) = calls
    assert name == "mine"
    assert arguments == {
        "model": "models:/intern-generalist@champion",
        "baseline": str(file),
        "architecture": "clip_rn50x16",
        "data_root": str(tmp_path / "data"),
        "datasets": "cifar10,dtd",
        "protocols": "10,100+knn",
        "preset": "smoke",
        "overrides": "",
        "gate": '{"tolerance": 0.02}',
    }
    # A run may get further datasets and protocols.
    assert not {"datasets", "protocols", "data_root"} & identity.keys()


def test_without_a_data_root_the_made_worlds_sets_are_scored(executed):
    calls, _ = executed
    assert invoke("--preset", "smoke").exit_code == 0
    assert calls[0][1]["datasets"] == "flower,det_novel,seg_night,depth_room"
    assert calls[0][1]["protocols"] == "10,100"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--data-root", "ROOT", "--datasets", "cifar"), "--datasets: expected names among cifar10, "),
        (("--data-root", "ROOT/nowhere"), "--data-root: ROOT/nowhere is no folder"),
        (("--data-root", "ROOT"), "--data-root: ROOT holds none of cifar10/, "),
        (("--datasets", "cifar10"), "--datasets: cifar10 is read from a folder"),
        (("--protocol", "10%,half"), "--protocol: expected 10%, 100%, knn"),
        (("--baseline", "ROOT/gone.pt"), "--baseline: ROOT/gone.pt is no file"),
        (
            ("--baseline", "models:/x@y", "--baseline-architecture", "resnet50"),
            "--baseline-architecture: is for a file",
        ),
        (("--name", "../x"), "--name: expected up to 63 letters"),
        (("--preset", "huge"), "preset: expected one of smoke"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(executed, tmp_path, arguments, line):
    done = invoke(*(argument.replace("ROOT", str(tmp_path)) for argument in arguments))
    assert done.exit_code == 2 and not executed[0]
    assert done.stderr.startswith(f"error: {line.replace('ROOT', str(tmp_path))}")
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_set_is_told_after_the_table_and_by_the_exit_code(executed):
    _, gaps = executed
    gaps += [ABSENT]
    assert invoke("--preset", "smoke").exit_code == 0
    gaps += [GAP, GAP | {"dataset": "dtd"}]
    done = invoke("--preset", "smoke")
    assert done.exit_code == 2 and "the table" in done.stdout
    assert done.stderr.startswith("error: svhn: svhn/test_32x32.mat: missing (and 1 more); the other datasets are in")
    machine = invoke("--preset", "smoke", "--json")
    assert machine.exit_code == 2 and len(json.loads(machine.stdout)["table"]["gaps"]) == 3
    gaps[1] = GAP | {"exit_code": 1}
    assert invoke("--preset", "smoke").exit_code == 1


def test_splits_are_shown_verified_and_filled_in(tmp_path):
    shown = invoke("splits", "--datasets", "cifar10,digits", "--json")
    rows = {row["dataset"]: row for row in json.loads(shown.stdout)["splits"]}
    assert rows["cifar10"]["lists"]["10"] == {"digest": None, "num_images": 5_000}
    assert invoke("splits", "--verify", "--datasets", "digits").exit_code == 0
    out = tmp_path / "splits.json"
    assert invoke("splits", "--write", "--datasets", "digits", "--out", out).exit_code == 0
    assert out.read_text() == splits.SPLITS_PATH.read_text()


def test_a_list_that_differs_ends_with_two_and_names_itself(monkeypatch, tmp_path):
    published = json.loads(splits.SPLITS_PATH.read_text())
    (row,) = [row for row in published["rows"] if row["dataset"] == "digits"]
    row["lists"]["10"]["digest"] = "0" * 64
    changed = tmp_path / "splits.json"
    changed.write_text(json.dumps(published))
    rows = splits.read_splits(changed)
    monkeypatch.setattr(splits, "read_splits", lambda: rows)
    done = invoke("splits", "--verify", "--datasets", "digits")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: splits: digits (1,197 images) @10: published")
    unknown = invoke("splits", "--datasets", "cifar")
    assert unknown.exit_code == 2 and f"cifar10, {SUITE[1].name}" in unknown.stderr
