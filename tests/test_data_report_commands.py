import json
from pathlib import Path

import pytest
import typer.main
from helpers import set_environment
from made_manifests import commit_rows, image_row, picture
from running import strict_json
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data.filters.rules import parse_rule
from intern_vision.data.labels.public import read_label_system
from intern_vision.data.manifest import ManifestBox, SourceInfo
from intern_vision.data_commands import data_app
from intern_vision.stages import filter as filter_stage
from intern_vision.stages import label
from intern_vision.stages.base import Inputs, run_stage
from intern_vision.task import Task


@pytest.fixture
def ref(tmp_path, monkeypatch):
    """File with the Ref of a small manifest."""
    store_root = f"file://{tmp_path}/store"
    set_environment(monkeypatch, {"INTERN_STORE": store_root, "INTERN_STATE": str(tmp_path / "state")})
    box = ManifestBox(label="cat", x0=1, y0=2, x1=9.5, y1=8)
    rows = [image_row(tmp_path / "made", f"own-{n}", picture(n), source="own", labels=("cat",)) for n in range(3)]
    rows.append(image_row(tmp_path / "made", "own-9", picture(9), source="own", labels=(), boxes=(box,)))
    removed = {"status": "removed", "reason": "text: too short", "source": "web"}
    rows.append(image_row(tmp_path / "made", "web-1", picture(4), **removed))
    found = commit_rows(store_root, tmp_path / "made", rows, (SourceInfo(name="own", uri="file:///own"),))
    path = tmp_path / "raw.json"
    path.write_text(found.to_json())
    return path


def invoke(*arguments, exit_code=0):
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done


@pytest.mark.parametrize("command", ["report", "stats", "run"])
def test_every_option_is_explained(command):
    found = typer.main.get_command(data_app).commands[command]
    assert found.help.endswith(".")
    assert {"--json", "--debug", "--state-dir"} <= {option for parameter in found.params for option in parameter.opts}
    assert [parameter.name for parameter in found.params if not getattr(parameter, "help", None)] == []


def test_stats_count_the_rows(ref):
    lines = invoke("stats", ref).stdout.splitlines()
    assert lines[1].split()[:5] == ["own", "4", "4", "0", "0"] and lines[2].split()[:5] == ["web", "1", "0", "1", "0"]
    assert "labels     cat 3" in lines and "boxes      cat 1" in lines
    assert "reasons    text (removed) 1" in lines and "made: 4 of 5 rows are usable" in lines
    value = strict_json(invoke("stats", ref, "--json").stdout)
    assert value["manifest"]["num_ok"] == 4 and len(value["summary"]["sources"]) == 2


def test_rows_are_listed_and_one_is_shown_whole(ref):
    lines = invoke("show", ref, "--source", "own", "--num-rows", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["own-0", "own-1", "2"]
    assert "web-1" in invoke("show", ref, "--reason", "text").stdout
    shown = invoke("show", ref, "own-9").stdout
    assert "boxes        cat 1 2 9.5 8\n" in shown and "labels       none\n" in shown and "caption      -\n" in shown
    (row,) = json.loads(invoke("show", ref, "own-9", "--json").stdout)["rows"]
    assert row["boxes"][0]["label"] == "cat"
    line = invoke("show", ref, "own-7", exit_code=2).stderr
    assert line == f"error: {ref}: no row with key own-7 among 5; intern data stats {ref} counts them\n"


def test_concepts_have_the_names_of_the_label_system(tmp_path, monkeypatch):
    store_root = f"file://{tmp_path}/store"
    set_environment(monkeypatch, {"INTERN_STORE": store_root, "INTERN_STATE": str(tmp_path / "state")})
    source = SourceInfo(
        name="own", uri="file:///own", tasks={"classify": Task(family="classify", class_names=("cat", "dog"))}
    )
    rows = [image_row(tmp_path / "made", f"own-{n}", picture(n), source="own", labels=("cat",)) for n in range(3)]
    raw = commit_rows(store_root, tmp_path / "made", rows, [source])
    labelled = run_stage("label", label.Config(), Inputs(manifest=(raw,)))
    rules = (parse_rule("size:min_px=1"),)
    filtered = run_stage("filter", filter_stage.Config(rules=rules), Inputs(manifest=(labelled,)))
    (cat,) = system_of(labelled).find("cat")
    # The label system lies beside the label step's own output; a later manifest has it from there.
    for ref in (labelled, filtered):
        path = tmp_path / f"{ref.name}.json"
        path.write_text(ref.to_json())
        assert f"concepts   cat ({cat}) 3" in invoke("stats", path).stdout.splitlines()
        assert f"concepts     cat ({cat})" in invoke("show", path, "own-0").stdout.splitlines()
        assert strict_json(invoke("stats", path, "--json").stdout)["concept_names"] == {cat: "cat"}


def system_of(ref):
    return read_label_system(Path(ref.uri.removeprefix("file://")) / "labels.json")


def test_the_page_is_written_into_a_folder(ref, tmp_path):
    value = strict_json(invoke("report", ref, "--out", tmp_path / "page", "--title", "Mine", "--json").stdout)
    assert "<h1>Mine</h1>" in (tmp_path / "page" / "report.html").read_text()
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"report.html", "summary.json", "ref.json"}
    assert value["ref"]["kind"] == "report"
    line = invoke("report", tmp_path / "none.json", "--out", tmp_path / "page", exit_code=2).stderr.splitlines()[-1]
    assert line.startswith(f"error: manifest: {tmp_path}/none.json is no file; give the one that --out")
