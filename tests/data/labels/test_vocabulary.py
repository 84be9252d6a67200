import json

import pytest

from intern_vision.data.labels.vocabulary import (
    dataset_vocabularies,
    read_vocabulary,
    shipped_names,
    shipped_synonyms,
    shipped_vocabulary,
)
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Task

# Counts as the datasets' papers and pages state them.
NUM_CLASSES = {
    "ade20k": 150,
    "caltech101": 102,
    "cifar10": 10,
    "cifar100": 100,
    "citypersons": 1,
    "cityscapes": 19,
    "cityscapes_full": 35,
    "coco": 80,
    "dtd": 47,
    "eurosat": 10,
    "fer2013": 7,
    "fgvc_aircraft": 100,
    "flowers102": 102,
    "food101": 101,
    "gtsrb": 43,
    "imagenet1k": 1000,
    "pcam": 2,
    "pets": 37,
    "resisc45": 45,
    "retinopathy": 5,
    "stanford_cars": 196,
    "sun397": 397,
    "svhn": 10,
    "ucf101": 101,
    "voc": 20,
    "widerface": 1,
}


def test_every_list_is_counted():
    assert shipped_names() == tuple(NUM_CLASSES)


@pytest.mark.parametrize("name", NUM_CLASSES)
def test_shipped_list(name):
    vocabulary = shipped_vocabulary(name)
    assert vocabulary.name == name
    assert len(vocabulary.classes) == vocabulary.num_classes == NUM_CLASSES[name]
    assert vocabulary.source and vocabulary.licence and vocabulary.title
    assert vocabulary.certainty in ("official", "usual")
    # A name twice is two synsets: ImageNet's two cranes and its two maillots.
    keys = [(item.name, item.concept) for item in vocabulary.classes]
    assert len(set(keys)) == len(keys)
    assert all(item.name == item.name.strip() and "  " not in item.name for item in vocabulary.classes)


def test_known_places_in_the_lists():
    def names(name):
        return [item.name for item in shipped_vocabulary(name).classes]

    assert (names("coco")[0], names("coco")[16], names("coco")[79]) == ("person", "dog", "toothbrush")
    assert [item.number for item in shipped_vocabulary("coco").classes][79] == 90
    assert names("voc") == sorted(names("voc")) and names("cifar100") == sorted(names("cifar100"))
    assert (names("ade20k")[0], names("ade20k")[12], names("ade20k")[149]) == ("wall", "person", "flag")
    assert [item.number for item in shipped_vocabulary("cityscapes_full").classes] == [*range(34), -1]
    assert names("cityscapes") == [n for n in names("cityscapes_full") if n in names("cityscapes")]
    imagenet = shipped_vocabulary("imagenet1k").classes
    assert (imagenet[0].name, imagenet[0].concept) == ("tench", "n01440764")
    assert (imagenet[207].concept, imagenet[999].concept) == ("n02099601", "n15075141")
    assert [item.concept for item in imagenet] == sorted(item.concept for item in imagenet)
    assert names("fer2013").index("Neutral") == 6 and names("gtsrb")[14] == "stop"


def test_synonyms_are_groups_without_overlap():
    names = [name for group in shipped_synonyms() for name in group]
    assert len(names) == len(set(names)) and all(len(group) > 1 for group in shipped_synonyms())


def test_own_lists(tmp_path):
    text = tmp_path / "birds.txt"
    text.write_text("robin\n barn owl \n", encoding="utf-8")
    birds = read_vocabulary(str(text))
    assert (birds.name, [item.name for item in birds.classes]) == ("birds", ["robin", "barn owl"])
    full = tmp_path / "own.json"
    full.write_text(json.dumps({"name": "own", "family": "detect", "classes": ["a", {"name": "b", "synonyms": ["c"]}]}))
    own = read_vocabulary(str(full))
    assert own.family == "detect" and own.classes[1].synonyms == ("c",)


@pytest.mark.parametrize(
    ("name", "content", "error", "line"),
    [
        ("x.txt", "a\n\nb\n", DataError, "x.txt:2: expected a class name, got an empty line"),
        ("x.txt", "", DataError, "x.txt.classes: expected"),
        ("x.txt", b"\xff\xfe", DataError, "x.txt: not UTF-8 text"),
        ("x.json", "{", DataError, "x.json: expected a JSON object"),
        ("x.json", '{"name": "x", "classes": ["a"], "num_classes": 2}', DataError, "num_classes: expected 1 as there"),
        ("x.json", '{"name": "x", "classes": [{"nam": "a"}]}', DataError, "classes.0.nam: unknown key"),
        ("x.json", '{"name": "x", "classes": [""]}', DataError, r"x.json.classes.0.name: "),
    ],
)
def test_faults_of_a_file(tmp_path, name, content, error, line):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=line):
        read_vocabulary(str(path))


def test_an_unknown_list_names_the_known_ones():
    with pytest.raises(ConfigError, match="expected a file or one of ade20k, caltech101, .* got 'cocoo'"):
        read_vocabulary("cocoo")


def test_a_dataset_has_a_vocabulary_a_family():
    tasks = {
        "classify": Task(family="classify", class_names=("a", "b")),
        "depth": Task(family="depth", max_depth_m=10.0),
        "detect": Task(family="detect", class_names=("c",)),
    }
    found = dataset_vocabularies(DatasetInfo(name="my set", tasks=tasks, licence="CC0"))
    assert [(v.name, v.family, len(v.classes), v.licence) for v in found] == [
        ("my set", "classify", 2, "CC0"),
        ("my set", "detect", 1, "CC0"),
    ]
