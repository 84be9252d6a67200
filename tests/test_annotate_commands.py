import json

import pytest
from annotators import export, label_result, make_shop
from helpers import set_environment
from running import strict_json
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data.annotation.files import SELECTION_FILE
from intern_vision.data.tables import iter_rows
from intern_vision.stages.base import fetch, read_ref
from intern_vision.store import open_store


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


def invoke(shop, *arguments, exit_code=0):
    state = shop.environment["INTERN_STATE"]
    done = CliRunner().invoke(app, ["data", "annotate", *map(str, arguments), "--state-dir", state])
    assert done.exit_code == exit_code, done.output
    return done


def ref_file(folder, name, ref):
    (folder / name).write_text(ref.to_json())
    return folder / name


def test_ask_and_take_answers_up(shop, tmp_path, monkeypatch):
    set_environment(monkeypatch, shop.environment)
    manifest, model = ref_file(tmp_path, "pool.json", shop.manifest), ref_file(tmp_path, "model.json", shop.model)
    out = tmp_path / "asked.json"
    few = ("--num-tasks", 6, "--override", '{"selection": {"audit_share": 0.5}}')
    shown = invoke(shop, manifest, "--model", model, "--out", out, *few).stdout
    assert "6 of 46 pool images to ask about; taken out: " in shown and f"tasks.json {tmp_path}/asked-tasks/" in shown
    tasks = json.loads((tmp_path / "asked-tasks" / "tasks.json").read_text())
    assert len(tasks) == 6 + 3 and "<Choices" in (tmp_path / "asked-tasks" / "labelling.xml").read_text()
    folder = fetch(open_store(shop.environment["INTERN_STORE"]), read_ref(out), tmp_path / "fetched")
    chosen = {row["item"]: row for row in iter_rows(folder / SELECTION_FILE)}
    votes = []
    for task in tasks:
        row = chosen[task["data"]["item"]]
        votes += [(task, name, label_result(row["proposed"], shop.truth[row["key"]])) for name in (1, 2)]
    (tmp_path / "export.json").write_text(json.dumps(export(votes)))
    answered = ("--answers", tmp_path / "export.json", "--out", tmp_path / "answered.json")
    said = strict_json(invoke(shop, out, *answered, "--json").stdout)
    assert said["num_labelled"] == 6 and said["fleiss_kappa"] == 1 and said["ref"]["kind"] == "manifest"
    assert json.loads((tmp_path / "answered-tasks" / "tasks.json").read_text()) == []


def test_wrong_use_is_one_line(shop, tmp_path, monkeypatch):
    set_environment(monkeypatch, shop.environment)
    manifest = ref_file(tmp_path, "pool.json", shop.manifest)
    for arguments, said in [
        ((), "annotate: give --model to ask, or --answers to take answers up, and not both"),
        (("--answers", tmp_path / "none.json"), "none.json is no file; give a JSON export of Label Studio"),
        (("--model", tmp_path / "none.json"), "none.json is no file; give the one that --out of an earlier step wrote"),
        (("--model", manifest, "--question", "mask"), "annotate.question: expected 'label' or 'box', got \"mask\""),
    ]:
        done = invoke(shop, manifest, "--out", tmp_path / "out.json", *arguments, exit_code=2)
        assert said in done.stderr.splitlines()[-1] and done.stderr.startswith("error: ")
