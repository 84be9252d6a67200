from intern_vision.data.annotation.rows import label_counts, labelled_and_pool, main_label, rewrite
from intern_vision.data.labels.concept import Concept, LabelSystem
from intern_vision.data.manifest import ManifestBox, ManifestRow, write_manifest
from intern_vision.data.tables import iter_rows

BOXES = (ManifestBox(label="cat", x0=0, y0=0, x1=4, y1=4), ManifestBox(label="dog", x0=0, y0=0, x1=9, y1=2))


def row(key, **values):
    return ManifestRow(key=key, uri=f"file:///{key}.png", **values)


ROWS = [
    row("a", labels=("cat",), source="x"),
    row("b", labels=("dog",), split="test", source="x"),
    row("c", labels=("dog",), status="removed", reason="duplicate: of a", source="x"),
    row("d", source="x"),
    row("e", split="val", source="x"),
    row("f", status="removed", reason="noise: shows no object", source="y"),
    row("g", status="removed", reason="duplicate: of noise: no", source="y"),
    row("h", status="quarantined", reason="image: noise", source="y"),
    row("i", labels=(), split="train", source="y"),
    row("j", boxes=BOXES, split="train", source="y"),
    row("k", boxes=(), split="train", source="y"),
]


def test_who_is_learned_from_and_who_may_be_asked_about(tmp_path):
    write_manifest(ROWS, tmp_path / "m.parquet")

    def keys(question, *sources):
        return ["".join(each.column("key")) for each in labelled_and_pool(tmp_path / "m.parquet", question, sources)]

    assert keys("label") == ["a", "dfjk"] and keys("label", "y") == ["a", "fjk"]
    assert keys("box") == ["j", "adfi"]
    labelled, pool = labelled_and_pool(tmp_path / "m.parquet", "box", ())
    assert pool.positions_N.tolist() == [0, 3, 5, 8] and [each["key"] for each in pool] == ["a", "d", "f", "i"]
    (only,) = labelled
    assert main_label(only, "box") == "dog"


def test_rewriting_changes_what_it_is_told(tmp_path):
    write_manifest(ROWS, tmp_path / "m.parquet")
    changes = {
        3: {"labels": ["dog"]},
        5: {"status": "ok", "reason": ""},
        0: {"status": "removed", "reason": "unsure: x"},
    }
    assert rewrite(tmp_path / "m.parquet", tmp_path / "new.parquet", changes) == {"num_in": 7, "num_out": 7}
    before, after = (list(iter_rows(tmp_path / name)) for name in ("m.parquet", "new.parquet"))
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        assert new == old | changes.get(position, {})


def test_counts_roll_up_over_concepts():
    ids = {"animal": "n1", "cat": "n2", "dog": "n3"}
    concepts = [Concept(id=id, names={"en": (name,)}) for name, id in ids.items()]
    system = LabelSystem(concepts, {"n2": ["n1"], "n3": ["n1"]})
    labels = ["cat", "cat", "dog", "animal", "teapot"]
    assert label_counts(labels, ("animal", "cat", "teapot"), None) == [1, 2, 1]
    assert label_counts(labels, ("animal", "cat", "teapot"), system) == [4, 2, 1]
