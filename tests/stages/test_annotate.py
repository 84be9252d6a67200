import json
from collections import Counter

import pytest
import torch
from annotators import COLOURS, SHOP, answered, ask, fruit, label_result, make_shop, rectangle, take
from helpers import GENOTYPE, HEAD, SIZE_PX, commit_folder, set_environment
from made_manifests import commit_rows, image_row, rows_by_key

from intern_vision.data.annotation.files import AGREEMENT_FILE, SELECTION_FILE, TASKS_FILE
from intern_vision.data.annotation.rectify import KINDS
from intern_vision.data.manifest import ManifestBox
from intern_vision.data.manifest_store import load_manifest
from intern_vision.data.tables import iter_rows
from intern_vision.errors import ConfigError, DataError
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.stages import annotate
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store
from intern_vision.task import Task


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def store(shop, monkeypatch):
    set_environment(monkeypatch, shop.environment)
    return open_store(shop.environment["INTERN_STORE"])


def test_a_round_of_questions_and_its_answers(shop, store, tmp_path):
    asked, truth = shop.asked, shop.truth
    facts = read_record(store, asked.uri).facts
    folder = fetch(store, asked, tmp_path / "out")
    tasks = json.loads((folder / TASKS_FILE).read_text())
    chosen = {row["item"]: row for row in iter_rows(folder / SELECTION_FILE)}
    assert facts["num_pool"] == 36 + 9 + 1 and facts["num_unreadable"] == 1
    assert len(tasks) == len(chosen) == 18 + 13 and {row["role"] for row in chosen.values()} == {"question", "audit"}
    assert {task["data"]["item"] for task in tasks} == set(chosen)
    assert all(task["data"]["image"].startswith("data:image/jpeg;base64,") for task in tasks)
    # What is asked shows a fruit: the noise was taken out.
    assert all(row["key"] in truth for row in chosen.values())
    _, path = load_manifest(store, asked, tmp_path / "out")
    rows = rows_by_key(path)
    removed = Counter(row["reason"].partition(":")[0] for row in rows.values() if row["status"] == "removed")
    assert all(rows[f"none-{number}"]["status"] == "removed" for number in range(9)) and set(removed) <= set(KINDS)
    assert rows["broken"]["status"] == "quarantined" and rows["broken"]["reason"].startswith("image: ")

    # Anna and Ben answer rightly but for three tasks of Ben's, Carl agrees to everything.
    questions = sorted(item for item, row in chosen.items() if row["role"] == "question")
    doubted = set(questions[:3])
    votes = []
    for task in tasks:
        row = chosen[task["data"]["item"]]
        votes.append((task, 1, label_result(row["proposed"], truth[row["key"]])))
        wrong = row["item"] in doubted
        votes.append((task, 2, label_result(row["proposed"], "" if wrong else truth[row["key"]])))
        votes.append((task, 3, label_result(row["proposed"], row["proposed"])))
    ref = answered(asked, tmp_path, votes)
    facts = read_record(store, ref.uri).facts
    assert facts["num_labelled"] == 15 and facts["num_open"] == 3
    folder = fetch(store, ref, tmp_path / "answered")
    agreement = json.loads((folder / AGREEMENT_FILE).read_text())
    left_out = {name: each["is_left_out"] for name, each in agreement["annotators"].items()}
    assert left_out == {"1": False, "2": False, "3": True}
    assert agreement["annotators"]["3"]["audit_accuracy"] == round(7 / 13, 4)
    assert agreement["agreed_share"] == 15 / 18 and agreement["num_rated_twice"] == 18
    again = json.loads((folder / TASKS_FILE).read_text())
    assert {task["data"]["item"] for task in again} == doubted
    info, path = load_manifest(store, ref, tmp_path / "answered")
    rows = rows_by_key(path)
    for item in set(questions) - doubted:
        assert rows[chosen[item]["key"]]["labels"] == [truth[chosen[item]["key"]]]
    assert info.sources[0].tasks["classify"].class_names == tuple(sorted(COLOURS))
    assert [step.name for step in info.steps] == ["annotate", "annotate"]

    # Dora settles what was open, from the second output alone.
    third = []
    for task in again:
        row = chosen[task["data"]["item"]]
        third.append((task, 4, label_result(row["proposed"], truth[row["key"]])))
    ref = answered(ref, tmp_path, third)
    assert read_record(store, ref.uri).facts["num_labelled"] == 18
    _, path = load_manifest(store, ref, tmp_path / "settled")
    rows = rows_by_key(path)
    assert all(rows[chosen[item]["key"]]["labels"] == [truth[chosen[item]["key"]]] for item in questions)


def test_a_round_is_the_same_every_time(shop, store, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERN_STORE", f"file://{tmp_path}/other")
    again = ask(shop.manifest, shop.model)
    assert again.digest == shop.asked.digest and again.uri != shop.asked.uri


def test_what_cannot_be_done_is_one_line(shop, store, tmp_path):
    with pytest.raises(ConfigError, match="head: expected a head of family classify .none., got 'birds'"):
        ask(shop.manifest, shop.model, head="birds")
    with pytest.raises(DataError, match="no row without an annotation is left in the pool"):
        ask(shop.manifest, shop.model, sources=["nowhere"])
    path = tmp_path / "answers.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match="give the output of annotate"):
        take(shop.manifest, path)
    with pytest.raises(DataError, match="holds no answer to this round's tasks"):
        take(shop.asked, path)
    with pytest.raises(ConfigError, match="has the digest"):
        take(shop.asked, path, sha256="0" * 64)
    with pytest.raises(ConfigError, match="root must be an absolute folder for local_files"):
        annotate.Config.from_dict({"pictures": {"kind": "local_files"}})


def test_boxes_are_proposed_by_a_detector(shop, store, tmp_path):
    names = tuple(COLOURS)
    torch.manual_seed(1)
    heads = {"detect": HeadSpec(task=Task(family="detect", class_names=names), config=HEAD)}
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=heads)).save(tmp_path / "detector")
    root = shop.environment["INTERN_STORE"]
    model = commit_folder(root, "expert", "weights", "detector", tmp_path / "detector")
    rows = []
    for number in range(30):
        name = names[number % 3]
        boxes = (ManifestBox(label=name, x0=6, y0=6, x1=26, y1=26),) if number < 12 else None
        rows.append(image_row(tmp_path / "raw", f"b{number:02d}", fruit(name, number), source="shop", boxes=boxes))
    ref = commit_rows(root, tmp_path / "m", rows, [SHOP], "boxed")
    selection = {"num_tasks": 4, "audit_share": 1.0, "min_score": 0.0}
    config = annotate.Config.from_dict({"question": "box", "selection": selection})
    asked = run_stage("annotate", config, Inputs(manifest=(ref,), model=(model,)))
    folder = fetch(store, asked, tmp_path / "out")
    tasks = json.loads((folder / TASKS_FILE).read_text())
    chosen = {row["item"]: row for row in iter_rows(folder / SELECTION_FILE)}
    questions = [task for task in tasks if chosen[task["data"]["item"]]["role"] == "question"]
    assert len(tasks) == 8 and len(questions) == 4
    for task in questions:
        assert len(task["predictions"][0]["result"]) > 0 and "proposed" not in task["data"]
        for region in task["predictions"][0]["result"]:
            place = region["value"]
            assert 0 <= place["x"] <= place["x"] + place["width"] <= 100.001 and place["rectanglelabels"][0] in names
    drawn = [rectangle("lime", 4, 6, 20, 30, SIZE_PX, SIZE_PX)]
    ref = answered(asked, tmp_path, [(task, name, drawn) for task in questions for name in (1, 2)])
    assert read_record(store, ref.uri).facts["num_labelled"] == 4
    info, path = load_manifest(store, ref, tmp_path / "boxed")
    rows = rows_by_key(path)
    for task in questions:
        (box,) = rows[chosen[task["data"]["item"]]["key"]]["boxes"]
        assert [round(box[name], 3) for name in ("x0", "y0", "x1", "y1")] == [4, 6, 20, 30] and box["label"] == "lime"
    assert info.sources[0].tasks["detect"].class_names == names
    with pytest.raises(ConfigError, match="boxes are proposed by a head of family detect; give a model with one"):
        run_stage("annotate", config, Inputs(manifest=(ref,), model=(shop.model,)))
