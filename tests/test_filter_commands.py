import json

import pytest
from made_manifests import commit_rows, image_row, picture
from running import strict_json
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data.manifest import SourceInfo


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """A file with the Ref of ten captioned images, two of them small."""
    monkeypatch.setenv("INTERN_STORE", f"file://{tmp_path}/store")
    # The commands set it.
    monkeypatch.setenv("INTERN_STATE", str(tmp_path / "state"))
    rows = [
        image_row(
            tmp_path / "raw",
            f"w-{index}",
            picture(index, 10 if index < 2 else 24),
            source="web",
            caption="" if index == 5 else f"a thing in colour number {'abcdefghij'[index]}",
        )
        for index in range(10)
    ]
    ref = commit_rows(f"file://{tmp_path}/store", tmp_path / "m", rows, [SourceInfo(name="web", uri="s3://web")])
    path = tmp_path / "manifest.json"
    path.write_text(ref.to_json())
    return path


def invoke(*arguments, exit_code=0):
    done = CliRunner().invoke(app, ["data", "filter", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done


def test_rules_in_short_form(manifest, tmp_path):
    out = tmp_path / "filtered.json"
    options = ("--rule", "text", "--rule", "size:min_px=20", "--out", out, "--state-dir", tmp_path / "state")
    shown = invoke(manifest, *options).stdout.splitlines()
    assert shown[1].split() == ["text", "10", "9", "w-5"] and shown[2].split() == ["size", "9", "7", "w-0,", "w-1"]
    ref = json.loads(out.read_text())
    assert ref["kind"] == "manifest" and ref["name"] == "filtered"
    found = strict_json(invoke(manifest, *options, "--json").stdout)
    assert found["ref"] == ref and [rule["num_out"] for rule in found["rules"]] == [9, 7]


def test_wrong_use_is_one_line(manifest, tmp_path):
    state = ("--out", tmp_path / "out.json", "--state-dir", tmp_path / "state")
    for arguments, message in (
        ((manifest, "--rule", "texts"), "rule: expected one of text, size, score, cap, share, cluster, got 'texts'"),
        ((tmp_path / "none", "--rule", "text"), f"manifest: {tmp_path}/none is no file; give the one that --out"),
        ((manifest, "--rule", "cluster"), "rule cluster: needs a model; give the Ref of its weights (--model)"),
        ((manifest, "--rule", "size:min_px=99"), "filter: no row is left of 10 (size took 10); give milder rules"),
    ):
        done = invoke(*arguments, *state, exit_code=2)
        assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
        assert not (tmp_path / "out.json").exists()
