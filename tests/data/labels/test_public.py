import json

import pytest

from intern_vision.data.labels.concept import Concept, LabelSystem
from intern_vision.data.labels.public import label_system_json, read_label_system
from intern_vision.errors import DataError

# The form of the public label system, cut down.
PUBLIC = {
    "father2child": {"n00015388": ["n02084071", "n02121620"]},
    "child2father": {"n02084071": ["n00015388"], "n02121620": ["n00015388"]},
    "id2name": {"n00015388": ["animal"], "n02084071": ["dog", "domestic dog"], "n02121620": ["cat"]},
    "id2name_zh": {"n02084071": "狗"},
    "id2desc": {"n02084071": "a member of the genus Canis"},
    "id2desc_zh": {"n02084071": "犬"},
    "id2state": {
        "n02084071": {"academic": ["ImageNet21K", "COCO"], "visual": 1, "common": 1},
        "n00015388": {"academic": [], "visual": 2, "common": 0},
    },
}


def written(folder, tables):
    path = folder / "labels.json"
    path.write_text(json.dumps(tables, ensure_ascii=False), encoding="utf-8")
    return path


def test_the_public_form_is_read(tmp_path):
    system = read_label_system(written(tmp_path, PUBLIC | {"other": 3}))
    dog = system["n02084071"]
    assert (dog.name, dog.names["zh"], dog.descriptions["zh"]) == ("dog", ("狗",), "犬")
    assert (dog.visual, dog.common, dog.sources) == (True, True, ("ImageNet21K", "COCO"))
    animal = system["n00015388"]
    assert (animal.visual, animal.common, system["n02121620"].common) == (None, False, None)
    assert system.children("n00015388") == ("n02084071", "n02121620") and system.is_a("n02084071", "n00015388")


@pytest.mark.parametrize("left_out", ["father2child", "child2father", "id2name"])
def test_a_table_may_be_left_out(tmp_path, left_out):
    system = read_label_system(written(tmp_path, {k: v for k, v in PUBLIC.items() if k != left_out}))
    assert set(system.ids) == set(PUBLIC["id2name"]) and system.is_a("n02121620", "n00015388")


def test_writing_and_reading_give_the_same_text(tmp_path):
    concepts = [
        Concept(id="c1", names={"en": ("a", "b"), "de": ("ä",)}, visual=False, sources=("s",), same_as=("n1",)),
        Concept(id="c0", names={"en": ("top",)}, descriptions={"en": "all", "de": "alles"}, common=True),
    ]
    text = label_system_json(LabelSystem(concepts, {"c1": ["c0"]}))
    path = tmp_path / "labels.json"
    path.write_text(text, encoding="utf-8")
    again = read_label_system(path)
    assert label_system_json(again) == text
    assert list(again.concepts.values()) == concepts and again.parents("c1") == ("c0",)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"child2father": {"n02084071": ["n00015388"]}}, "taxonomy: edge n02121620 -> n00015388 is in father2"),
        ({"id2name": ["dog"]}, "id2name: expected an object by id, got list"),
        ({"id2name": {**PUBLIC["id2name"], "n02121620": 3}}, "id2name: n02121620: expected a text or a list of texts"),
        ({"id2state": {"n02084071": {"visual": 3}}}, r"id2state: n02084071: visual: expected 0 \(no\), 1 \(yes\) or 2"),
        ({"id2state": {"n02084071": 1}}, "id2state: n02084071: expected an object, got 1"),
        (
            {
                "father2child": {"n02084071": ["n02121620"], "n02121620": ["n02084071"]},
                "child2father": {"n02084071": ["n02121620"], "n02121620": ["n02084071"]},
            },
            r"taxonomy: cycle n0\d+ \((dog|cat)\) -> n0\d+ \((dog|cat)\) -> n0\d+ \((dog|cat)\); remove one",
        ),
        (
            {"id2name": {"n02084071": ["dog"], "n02121620": ["cat"]}},
            r"taxonomy: orphan n02084071 \(dog\) -> n00015388: no such parent",
        ),
    ],
)
def test_faults_name_the_file_and_the_place(tmp_path, change, line):
    path = written(tmp_path, PUBLIC | change)
    with pytest.raises(DataError, match=rf"^{path}: {line}") as caught:
        read_label_system(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not a JSON file"),
        ("[]", "expected an object with"),
        ('{"a": 1}', "it is another file"),
        (b"\xff", "not a JSON"),
    ],
)
def test_other_files(tmp_path, text, line):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=line):
        read_label_system(path)
    with pytest.raises(DataError, match="no such file"):
        read_label_system(tmp_path / "none.json")
