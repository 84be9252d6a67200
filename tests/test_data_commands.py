import csv
import json
import re

import pytest
import typer.main
from running import strict_json
from typer.testing import CliRunner
from wordnet_files import write_wordnet

from intern_vision.cli import app
from intern_vision.data_commands import data_app


def invoke(*arguments, exit_code=0):
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done


def fault(*arguments):
    """The one line of a refused command."""
    done = invoke(*arguments, exit_code=2)
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", ["label", "show"])
def test_every_option_is_explained(command):
    found = typer.main.get_command(data_app).commands[command]
    assert found.help.endswith(".")
    assert {"--json", "--debug"} <= {option for parameter in found.params for option in parameter.opts}
    assert [parameter.name for parameter in found.params if not getattr(parameter, "help", None)] == []


def test_label_review_apply_and_show(tmp_path):
    classes = ["dogs", "sofa", "robot", "dog", {"name": "settee", "synonyms": ["bench"]}]
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"name": "own", "classes": classes}))
    out = tmp_path / "labels"
    shown = invoke("label", "coco", "voc", own, "--out", out).stdout
    # A sofa, the dogs, a robot that nothing else has; the dog beside the dogs and the settee are left to a person.
    assert re.search(r"^own +0 +1 +1 +0 +0 +0 +1 +2$", shown, re.MULTILINE)
    review = out / "review.csv"
    assert f"next       intern data label apply {review}" in shown
    before = strict_json(invoke("label", "coco", "voc", own, "--out", out, "--json").stdout)
    assert before["num_classes"] == 80 + 20 + 5 and before["num_uncertain"] == 2
    with open(review, newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["decision"] = "same"
    with open(review, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    after = strict_json(invoke("label", "apply", review, "--json").stdout)
    assert after["num_uncertain"] == before["num_uncertain"] - 1 and after["num_concepts"] == before["num_concepts"] - 1
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    invoke("label", "apply", review)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    facts = strict_json(invoke("show", "DOG", "--labels", out, "--json").stdout)["concepts"]
    assert [fact["sources"] for fact in facts] == [["coco", "voc", "own"]]
    lines = invoke("show", facts[0]["id"], "--labels", out / "labels.json").stdout
    assert lines.startswith(f"{facts[0]['id']}  dog < animal\n") and "datasets   coco, voc, own" in lines


def test_label_into_wordnet(tmp_path):
    ids = write_wordnet(tmp_path)
    own = tmp_path / "own.txt"
    own.write_text("dog\n")
    invoke("label", own, "--taxonomy", tmp_path, "--out", tmp_path / "labels")
    shown = invoke("show", "dog", "--labels", tmp_path / "labels").stdout
    assert f"{ids['dog']}  dog < animal < entity" in shown and "meaning    en: a member of the genus Canis" in shown


def test_wrong_input_is_one_line(tmp_path):
    assert fault("label", "cocoo").startswith("error: vocabulary: expected a file or one of ade20k, ")
    line = fault("label", "apply", tmp_path / "review.csv")
    assert line.startswith(f"error: {tmp_path}/inputs.json: no such file; apply needs it beside the review.csv")
    assert "apply: expected one review.csv and no option but --out, got none" in fault("label", "apply")
    assert "none: no such file; give the label system's JSON" in fault("show", "dog", "--labels", tmp_path / "none")
    circle = {"name": "circle", "classes": [{"name": "a1", "parent": "b1"}, {"name": "b1", "parent": "a1"}]}
    (tmp_path / "circle.json").write_text(json.dumps(circle))
    line = fault("label", tmp_path / "circle.json", "--out", tmp_path / "out")
    step = r"c\d+ \(.1\)"
    assert re.fullmatch(rf"error: taxonomy: cycle {step} -> {step} -> {step}; remove one of these edges", line)
    assert list((tmp_path / "out").iterdir()) == []
    invoke("label", "voc", "--out", tmp_path / "voc")
    assert "no concept 'unicorn' among" in fault("show", "unicorn", "--labels", tmp_path / "voc")
