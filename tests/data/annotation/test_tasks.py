import base64
import json
import re
from dataclasses import asdict, replace
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from annotators import choice, export, label_result, rectangle

from intern_vision.data.annotation.answers import Asked, latest, read_votes
from intern_vision.data.annotation.settings import PictureConfig
from intern_vision.data.annotation.tasks import Item, Pictures, audit_items, item_name, labelling_config, task
from intern_vision.data.codec import decode_image
from intern_vision.data.manifest import ManifestBox
from intern_vision.errors import ConfigError, DataError

BOX = ManifestBox(label="cat", x0=10.0, y0=20.0, x1=60.0, y1=40.0)
ITEM = Item(item="0123456789abcdef", key="k", uri="file:///k.png", width_px=200, height_px=80, proposed="cat")
ASKED = {ITEM.item: Asked(key="k", role="question", proposed="cat", known="", width_px=200, height_px=80)}
NAMES = ("cat", 'a "b" <c>', "dog & co")


@pytest.mark.parametrize("question", ["label", "box"])
def test_the_labelling_configuration_names_what_tasks_use(question):
    view = ElementTree.fromstring(labelling_config(question, NAMES))
    names = {element.get("name") for element in view.iter() if element.get("name")}
    boxes = (BOX,) if question == "box" else ()
    item = replace(ITEM, boxes=boxes, scores=(0.7,) * max(1, len(boxes)))
    made = task(item, question, "picture")
    for result in made["predictions"][0]["result"]:
        assert {result["from_name"], result["to_name"]} <= names
    assert set(re.findall(r"\$(\w+)", labelling_config(question, NAMES))) <= set(made["data"])
    shown = [e.get("value") for e in view.iter() if e.tag in ("Choice", "Label")]
    assert set(NAMES) <= set(shown)
    assert (
        len(list(ElementTree.fromstring(labelling_config("label", [str(n) for n in range(300)])).iter("Choice"))) == 3
    )


def test_boxes_survive_the_way_through_per_cent():
    item = replace(ITEM, boxes=(BOX,), scores=(0.7,))
    made = task(item, "box", "picture")
    (prediction,) = made["predictions"]
    (region,) = prediction["result"]
    place = {name: region["value"][name] for name in ("x", "y", "width", "height")}
    assert place == {"x": 5, "y": 25, "width": 25, "height": 25}
    assert (region["original_width"], region["original_height"], region["score"]) == (200, 80, 0.7)
    text = json.dumps(export([(made, 7, prediction["result"]), (made, 8, [choice("verdict", "unsure")])]))
    first, second = read_votes(text, "e.json", ASKED, "box")
    assert first.boxes == (BOX,) and first.annotator == "7" and second.verdict == "unsure" and second.boxes == ()


def test_labels_of_votes():
    made = task(ITEM, "label", "picture")
    answers = [label_result("cat", shown) for shown in ("cat", "dog & co", "")] + [[choice("verdict", "unsure")]]
    text = json.dumps(export([(made, n, result) for n, result in enumerate(answers)]))
    votes = list(read_votes(text, "e.json", ASKED, "label"))
    assert [(vote.verdict, vote.label) for vote in votes] == [
        ("right", "cat"),
        ("wrong", "dog & co"),
        ("wrong", ""),
        ("unsure", ""),
    ]


def test_the_last_word_of_an_annotator_counts_and_skipped_tasks_do_not():
    made = task(ITEM, "label", "picture")
    document = export([(made, 1, label_result("cat", "cat")), (made, 1, label_result("cat", "")), (made, 2, [])])
    document[0]["annotations"][2]["was_cancelled"] = True
    document[0]["annotations"][1]["completed_by"] = {"id": 1, "email": "a@example.com"}
    document.append({"id": 9, "data": {"image": "x"}, "annotations": [{"completed_by": 1, "result": []}]})
    by_item = latest(list(read_votes(json.dumps(document), "e.json", ASKED, "label")))
    assert [(vote.annotator, vote.verdict) for vote in by_item[ITEM.item]] == [("1", "wrong")]


@pytest.mark.parametrize(
    ("question", "result", "said"),
    [
        ("label", [], "expected the verdict right, wrong, unsure, got ''; answer the task again"),
        ("label", [choice("verdict", "wrong"), choice("correction", "cat")], "calls 'cat' wrong and right"),
        ("label", [{"type": "choices"}], "not as Label Studio exports it: KeyError"),
        ("box", [rectangle("cat", 10, 10, 10, 20, 200, 80)], "lies outside its image or has no area"),
        ("box", [rectangle("cat", 250, 10, 280, 20, 200, 80)], "lies outside its image or has no area"),
        ("box", [rectangle("cat", float("nan"), 10, 20, 20, 200, 80)], "lies outside its image or has no area"),
    ],
)
def test_answers_that_cannot_be_understood_name_their_task(question, result, said):
    text = json.dumps(export([(task(ITEM, "label", "picture"), 1, result)]))
    with pytest.raises(DataError, match="e.json: task 1, annotation 0") as caught:
        list(read_votes(text, "e.json", ASKED, question))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_turned_boxes_and_other_files_are_refused():
    region = rectangle("cat", 10, 10, 50, 20, 200, 80)
    region["value"]["rotation"] = 30
    with pytest.raises(DataError, match="is turned by 30 degrees; draw it upright"):
        list(read_votes(json.dumps(export([(task(ITEM, "label", ""), 1, [region])])), "e.json", ASKED, "box"))
    for text in ("{", "{}", '[{"image": "x"}]'):
        with pytest.raises(DataError, match="^e.json: expected a "):
            list(read_votes(text, "e.json", ASKED, "label"))


def test_embedded_pictures_are_made_smaller():
    image = np.random.default_rng(0).integers(0, 256, (60, 200, 3), np.uint8)
    text = Pictures(PictureConfig(max_side_px=100)).address("file:///x.png", image)
    kind, data = text.split(",")
    assert kind == "data:image/jpeg;base64" and decode_image(base64.b64decode(data)).shape == (30, 100, 3)


def test_local_files_stay_below_their_root(tmp_path):
    pictures = Pictures(PictureConfig(kind="local_files", root=str(tmp_path / "root")))
    (tmp_path / "root").mkdir()
    none = np.zeros((1, 1, 3), np.uint8)
    assert pictures.address(f"file://{tmp_path}/root/a b/1.png", none) == "/data/local-files/?d=a%20b/1.png"
    for outside in (f"file://{tmp_path}/root/../secret.png", "s3://bucket/x.png"):
        with pytest.raises(ConfigError, match="does not lie below .*; move it, or take kind embedded"):
            pictures.address(outside, none)
    with pytest.raises(ConfigError, match="is not on S3 and cannot be presigned"):
        Pictures(PictureConfig(kind="presigned")).address("file:///x.png", none)


def test_presigned_addresses_expire(monkeypatch):
    settings = {
        "INTERN_S3_ENDPOINT": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "hidden",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    address = Pictures(PictureConfig(kind="presigned", expires_s=600)).address("s3://raw/a/b.png", np.zeros((1, 1, 3)))
    parts = urlsplit(address)
    assert parts.netloc == "127.0.0.1:9" and parts.path == "/raw/a/b.png" and "hidden" not in address
    assert parse_qs(parts.query)["X-Amz-Expires"] == ["600"] and "X-Amz-Signature" in parse_qs(parts.query)


def test_audits_propose_something_wrong_every_other_time():
    row = {"uri": "file:///x", "width_px": 9, "height_px": 9, "labels": ["cat"], "boxes": [asdict(BOX)] * 2}
    rows = [row | {"key": f"k{n}"} for n in range(6)]
    labels = audit_items(rows, "label", ("cat", "dog"), 0)
    assert [(item.proposed, item.known) for item in labels] == [("cat", "right"), ("dog", "wrong")] * 3
    assert [len(item.boxes) for item in audit_items(rows, "box", ("cat",), 0)] == [2, 1] * 3
    assert {item.item for item in labels} == {item_name(f"k{n}", 0) for n in range(6)}
