import csv
import io

import pytest

from intern_vision.data.labels.merge import merge
from intern_vision.data.labels.review import mappings_csv, read_decisions, review_csv
from intern_vision.data.labels.vocabulary import Vocabulary
from intern_vision.errors import DataError

LISTS = [
    Vocabulary.from_dict({"name": "a", "classes": ["carousel", 'odd, "name"', "face"]}),
    Vocabulary.from_dict({"name": "b", "classes": [{"name": "roundabout", "synonyms": ["carousel"]}, "Faces", "face"]}),
]


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_tables():
    merged = merge(LISTS)
    review = rows(review_csv(merged.mappings, merged.system))
    assert [(r["class"], r["proposal_name"], r["proposal_sources"], r["decision"]) for r in review] == [
        ("roundabout", "carousel", "a", ""),
        ("face", "face", "a b", ""),
    ]
    mappings = rows(mappings_csv(merged.mappings, merged.system))
    assert [(r["class"], r["kind"], r["confidence"], r["status"]) for r in mappings] == [
        ("carousel", "new", "1", "certain"),
        ('odd, "name"', "new", "1", "certain"),
        ("face", "new", "1", "certain"),
        ("roundabout", "synonym", "0.7", "review"),
        ("Faces", "lemma", "0.95", "certain"),
        ("face", "exact", "0.5", "review"),
    ]


def decided(folder, *decisions):
    merged = merge(LISTS)
    path = folder / "review.csv"
    text = review_csv(merged.mappings, merged.system).splitlines()
    path.write_text("\n".join([text[0], *(t + d for t, d in zip(text[1:], decisions, strict=True))]) + "\n")
    return path


def test_decisions_are_read_and_written_back(tmp_path):
    path = decided(tmp_path, "Same", " new ")
    decisions = read_decisions(path, LISTS)
    merged = merge(LISTS, decisions=decisions)
    assert decisions == {("b", "classify", 0): merged.mappings[0].concept, ("b", "classify", 2): "new"}
    again = review_csv(merged.mappings, merged.system)
    assert [row["decision"] for row in rows(again)] == ["same", "new"]
    assert [row["status"] for row in rows(mappings_csv(merged.mappings, merged.system))][3:] == [
        "decided",
        "certain",
        "decided",
    ]
    # What was written gives the same decisions and is written again.
    path.write_text(again)
    assert read_decisions(path, LISTS) == decisions


def test_a_concept_of_ones_own_choice(tmp_path):
    odd = merge(LISTS).mappings[1].concept
    decisions = read_decisions(decided(tmp_path, odd, ""), LISTS)
    assert decisions == {("b", "classify", 0): odd}
    merged = merge(LISTS, decisions=decisions)
    assert [row["decision"] for row in rows(review_csv(merged.mappings, merged.system))] == [odd, ""]


def test_a_certain_match_may_be_undone(tmp_path):
    path = decided(tmp_path, "", "")
    with open(path, "a") as file:
        file.write("b,classify,1,Faces,lemma,0.95,,,,new\n")
    merged = merge(LISTS, decisions=read_decisions(path, LISTS))
    (faces,) = (m for m in merged.mappings if m.class_name == "Faces")
    assert faces.kind == "decided" and merged.system[faces.concept].sources[0] == "b"
    again = rows(review_csv(merged.mappings, merged.system))
    assert [(row["class"], row["decision"]) for row in again if row["decision"]] == [("Faces", "new")]


def test_a_spreadsheet_may_put_a_mark_in_front(tmp_path):
    path = decided(tmp_path, "same", "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_decisions(path, LISTS)) == 1


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("b,classify,0,roundabout", "z,classify,0,roundabout", r"review.csv:2: no vocabulary z \(classify\) is merged"),
        ("b,classify,0,roundabout", "b,detect,0,roundabout", r"review.csv:2: no vocabulary b \(detect\) is merged"),
        ("b,classify,2,face", "b,classify,9,face", "review.csv:3: b has no class 9 called 'face'; edit the column"),
        ("b,classify,2,face", "b,classify,-2,face", "review.csv:3: b has no class -2"),
        ("b,classify,2,face", "b,classify,2,farce", "review.csv:3: b has no class 2 called 'farce'"),
        ("decision", "verdict", "review.csv: no column decision; keep the columns vocabulary, "),
        ("b,classify,2,face", "b,classify,2", "review.csv:3: expected 10 cells"),
        ("b,classify,2,face", "b,classify,0,roundabout", "review.csv:3: b roundabout is decided twice; keep one row"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, old, new, line):
    path = decided(tmp_path, "same", "new")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=line):
        read_decisions(path, LISTS)


def test_other_files(tmp_path):
    with pytest.raises(DataError, match="no such file; give the review.csv that intern data label wrote"):
        read_decisions(tmp_path / "none.csv", LISTS)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_decisions(tmp_path / "x.csv", LISTS)
    path = decided(tmp_path, "same", "")
    row = path.read_text().splitlines()[1].split(",")
    row[6] = ""
    path.write_text(",".join(path.read_text().splitlines()[0].split(",")) + "\n" + ",".join(row) + "\n")
    with pytest.raises(DataError, match="review.csv:2: decision: same needs a proposal"):
        read_decisions(path, LISTS)
