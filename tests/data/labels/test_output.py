import csv
import json

import pytest
from wordnet_files import write_wordnet

from intern_vision.data.labels.output import (
    INPUTS_FILE,
    LABELS_FILE,
    MAPPINGS_FILE,
    REVIEW_FILE,
    TREE_FILE,
    UNIONS_FILE,
    LabelInputs,
    LocalInputs,
    rolled_up_classes,
    summary_lines,
    write_labels,
)
from intern_vision.data.labels.public import read_label_system
from intern_vision.data.labels.union import LabelUnion
from intern_vision.data.labels.vocabulary import Vocabulary, shipped_vocabulary
from intern_vision.errors import ConfigError, DataError

FILES = {LABELS_FILE, MAPPINGS_FILE, REVIEW_FILE, UNIONS_FILE, TREE_FILE, INPUTS_FILE}
OWN = LocalInputs(vocabularies=tuple(shipped_vocabulary(name) for name in ("coco", "imagenet1k", "caltech101")))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decide(path, *decisions):
    """Fills in the column ``decision`` of the first rows, as a person would."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, decision in zip(rows, decisions, strict=False):
        row["decision"] = decision
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_the_files_say_the_same(tmp_path):
    merged = write_labels(OWN, tmp_path)
    assert set(contents(tmp_path)) == FILES
    assert list(read_label_system(tmp_path / LABELS_FILE).concepts.values()) == list(merged.system.concepts.values())
    unions = json.loads((tmp_path / UNIONS_FILE).read_text())
    assert set(unions) == {"detect", "classify"}
    assert LabelUnion.from_dict(unions["classify"]).sources.keys() == {"imagenet1k", "caltech101"}
    with open(tmp_path / MAPPINGS_FILE, encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 80 + 1000 + 102
    assert LocalInputs.from_json((tmp_path / INPUTS_FILE).read_text()) == OWN


def test_applying_a_review_twice_changes_nothing(tmp_path):
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
    write_labels(OWN, tmp_path / "first")
    rows = decide(tmp_path / "first" / REVIEW_FILE, "same", "new", "same")
    assert len(rows) > 3
    once = write_labels(OWN.with_review(tmp_path / "first" / REVIEW_FILE), tmp_path / "first")
    assert sum(m.is_uncertain for m in once.mappings) == len(rows) - 3
    inputs = LocalInputs.from_json((tmp_path / "first" / INPUTS_FILE).read_text())
    write_labels(inputs.with_review(tmp_path / "first" / REVIEW_FILE), tmp_path / "again")
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    # A decision that is taken back is gone.
    decide(tmp_path / "again" / REVIEW_FILE, "", "", "")
    write_labels(inputs.with_review(tmp_path / "again" / REVIEW_FILE), tmp_path / "again")
    (tmp_path / "fresh").mkdir()
    write_labels(OWN, tmp_path / "fresh")
    assert contents(tmp_path / "again") == contents(tmp_path / "fresh")


def test_into_wordnet_and_into_an_earlier_result(tmp_path):
    ids = write_wordnet(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    mine = Vocabulary.from_dict({"name": "mine", "classes": ["Dogs", "hot dog", "corpora"]})
    merged = write_labels(LabelInputs(vocabularies=(mine,), taxonomy=str(tmp_path)), out)
    assert [(m.kind, m.concept) for m in merged.mappings[:2]] == [("lemma", ids["dog"]), ("synonym", ids["frank"])]
    more = Vocabulary.from_dict({"name": "more", "classes": ["dog"]})
    for taxonomy in (out / LABELS_FILE, out):
        inputs = LabelInputs(vocabularies=(more,), taxonomy=str(taxonomy))
        merged = write_labels(inputs, tmp_path)
        assert merged.mappings[0].concept == ids["dog"] and merged.system[ids["dog"]].sources == ("mine", "more")
        with pytest.raises(ConfigError, match="is in the output folder; name another output folder"):
            write_labels(inputs, out)


def test_images_are_rolled_up(tmp_path):
    classes = [{"name": "dog", "parent": "animal"}, {"name": "cat", "parent": "animal"}]
    mine = Vocabulary.from_dict({"name": "mine", "classes": classes})
    images = {("mine", "classify", 0): 30, ("mine", "classify", 1): 4, ("mine", "classify", -1): 9}
    write_labels(LabelInputs(vocabularies=(mine,)), tmp_path, count=lambda merged: rolled_up_classes(merged, images))
    page = (tmp_path / TREE_FILE).read_text()
    assert "34 images" in page and "30 images" in page and "9 images" not in page


def test_the_summary(tmp_path):
    lines = summary_lines(write_labels(OWN, tmp_path))
    assert lines[0].split() == [
        "VOCABULARY",
        "id",
        "exact",
        "lemma",
        "synonym",
        "embedding",
        "decided",
        "new",
        "review",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["coco", "imagenet1k", "caltech101", "total"]
    assert sum(map(int, lines[-1].split()[1:])) == 80 + 1000 + 102


def test_faults_write_nothing(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match="vocabularies: expected 1 or more, got none"):
        write_labels(LabelInputs(), out)
    circle = [{"name": "cup", "parent": "mug"}, {"name": "mug", "parent": "cup"}]
    circular = Vocabulary.from_dict({"name": "circle", "classes": circle})
    with pytest.raises(DataError, match="taxonomy: cycle "):
        write_labels(LabelInputs(vocabularies=(circular,)), out)
    for name, line in (
        ("none.json", "none.json: no such file"),
        (".", "data.noun: no such file; give the folder dict/"),
    ):
        with pytest.raises(DataError, match=line):
            write_labels(LabelInputs(vocabularies=OWN.vocabularies, taxonomy=str(tmp_path / name)), out)
    assert contents(out) == {}
