import json

import pytest
from helpers import HEAD, World
from made_manifests import commit_rows, image_row, picture
from running import strict_json
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data.loader import load_info
from intern_vision.data.manifest import SourceInfo
from intern_vision.ref import Ref
from intern_vision.store import open_store
from intern_vision.task import Task
from intern_vision.train.label_space import LabelSpace
from intern_vision.train.upstream import head_specs, upstream_infos


def invoke(*arguments, exit_code=0):
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """A file with the Ref of a manifest of two sources in different words."""
    monkeypatch.setenv("INTERN_STORE", f"file://{tmp_path}/store")
    # The commands set it.
    monkeypatch.setenv("INTERN_STATE", str(tmp_path / "state"))
    classes = {"pets": ("dog", "cat"), "farm": ("cows", "dogs")}
    sources = [
        SourceInfo(
            name=name,
            uri=f"file:///{name}",
            licence=licence,
            tasks={"classify": Task(family="classify", class_names=classes[name])},
        )
        for name, licence in (("pets", "MIT"), ("farm", "CC0-1.0"))
    ]
    rows = [
        image_row(tmp_path / "raw", f"{name}-{index}", picture(index), source=name, labels=(classes[name][index % 2],))
        for name in classes
        for index in range(20)
    ]
    ref = commit_rows(f"file://{tmp_path}/store", tmp_path / "m", rows, sources)
    path = tmp_path / "manifest.json"
    path.write_text(ref.to_json())
    return path


def test_a_dataset_a_source_trains_with_the_labelling_of_the_manifest(manifest, tmp_path):
    state = ("--state-dir", tmp_path / "state")
    labelled = tmp_path / "labelled.json"
    shown = invoke("label", manifest, "--out", labelled, *state).stdout
    assert "4 classes, 3 concepts; 40 rows with concepts" in shown
    out = tmp_path / "data.json"
    weights = ("--weight", "pets=1", "--weight", "farm=2")
    shown = invoke("shard", labelled, "--by-source", *weights, "--out", out, *state).stdout.splitlines()
    assert shown[1].split() == ["pets", "14", "2", "4", "1", "MIT"]
    assert shown[2].split() == ["farm", "14", "2", "4", "1", "CC0-1.0"]
    refs = [Ref.from_dict(value) for value in json.loads(out.read_text())]
    assert Ref.from_json((tmp_path / "data-pets.json").read_text()) == refs[0]
    store = open_store(refs[0].uri)
    assert [load_info(store, ref.uri).weight for ref in refs] == [1.0, 2.0]
    # What a training makes of the two and of the labelling: one head that knows what each annotates.
    world = World(f"file://{tmp_path}/store", {"INTERN_STATE": str(tmp_path / "state")}, refs[0], refs[0], refs[0])
    workspace = world.workspace(tmp_path / "work", data=tuple(refs), labels=Ref.from_json(labelled.read_text()))
    infos = upstream_infos(workspace, ("label",))
    assert [info.tasks["classify"].class_names for info in infos] == [("dog", "cat"), ("cows", "dog")]
    (head,) = head_specs(infos, ("classify",), HEAD, "unified").values()
    assert head.task.class_names == ("dog", "cat", "cows")
    space = LabelSpace("classify", head, infos)
    assert space.known_SK.tolist() == [[True, True, False], [True, False, True]]


def test_one_source_and_its_figures(manifest, tmp_path):
    options = ("--source", "pets", "--weight", "3", "--test-share", "0", "--out", tmp_path / "one.json")
    found = strict_json(invoke("shard", manifest, *options, "--state-dir", tmp_path / "state", "--json").stdout)
    (data,) = found["datasets"]
    assert (data["name"], data["num_train"], data["num_val"], data["num_test"]) == ("pets", 18, 2, 0)
    assert data["ref"] == json.loads((tmp_path / "one.json").read_text()) and data["licence"] == "MIT"


def test_wrong_use_is_one_line(manifest, tmp_path):
    options = ("--out", tmp_path / "out.json", "--state-dir", tmp_path / "state")
    for arguments, message in (
        ((manifest,), "sources pets and farm do not both annotate the classify classes cat, cows, dog, dogs: "),
        ((manifest, "--source", "zoo"), "source: the manifest has pets, farm, not 'zoo'"),
        ((manifest, "--by-source", "--name", "x"), "--by-source: every dataset has its source's name and classes; "),
        (
            (manifest, "--by-source", "--weight", "zoo=1"),
            "--weight: expected one of pets, farm, = and a number above 0",
        ),
        ((manifest, "--weight", "-1"), "--weight: expected a number above 0, got '-1'"),
        ((tmp_path / "none", "--by-source"), f"manifest: {tmp_path}/none is no file; give the one that --out"),
        (
            (manifest, "--source", "pets", "--val-share", "0.9"),
            "shard.split.val_share: expected less than 0.5, got 0.9",
        ),
    ):
        done = invoke("shard", *arguments, *options, exit_code=2)
        assert done.stderr.splitlines()[-1].startswith(f"error: {message}"), done.stderr
        assert not (tmp_path / "out.json").exists()


def test_a_review_of_a_manifest_is_applied(manifest, tmp_path):
    state = ("--state-dir", tmp_path / "state")
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"name": "own", "classes": [{"name": "hound", "synonyms": ["cat"]}]}))
    out = tmp_path / "labelled.json"
    shown = invoke("label", manifest, own, "--out", out, *state).stdout
    assert "1 to decide; 0 labels and boxes wait for it" in shown
    ref = Ref.from_json(out.read_text())
    review = tmp_path / "review.csv"
    text = open_store(ref.uri).read(f"{ref.uri}/review.csv").decode()
    assert "own,classify,0,hound" in text
    head, row = text.splitlines()
    place = head.split(",").index("decision")
    cells = row.split(",")
    cells[place] = "new"
    review.write_text("\n".join([head, ",".join(cells)]) + "\n")
    shown = invoke("label", manifest, own, "--review", review, "--out", out, *state).stdout
    assert "to decide" not in shown
    done = invoke("label", manifest, own, *state, exit_code=2)
    assert done.stderr.splitlines()[-1] == "error: --out: give a file for the labelled manifest's Ref"
    done = invoke("label", "coco", "--review", review, exit_code=2)
    assert done.stderr.startswith("error: --review: goes with a manifest; without one, the words are apply ")
