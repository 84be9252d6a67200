import random
from collections import Counter

import pytest

from intern_vision.data.manifest import ManifestBox, ManifestRow, write_manifest
from intern_vision.data.summary import find_rows, rows_by_group, summarise

CLASSES = ("cat", "dog", "tree")


def made_rows(num_rows=300, seed=0):
    draw = random.Random(seed)
    rows = []
    for number in range(num_rows):
        status, reason = draw.choice(
            (("ok", ""), ("ok", ""), ("removed", "text: too short"), ("quarantined", "decode: x: y"))
        )
        names = [draw.choice(CLASSES) for _ in range(draw.randrange(4))]
        boxes = tuple(ManifestBox(label=name, x0=0, y0=0, x1=2, y1=2) for name in names)
        rows.append(
            ManifestRow(
                key=f"k{number:04d}",
                uri=f"file:///{number}.jpg",
                digest=f"{draw.getrandbits(256):064x}",
                num_bytes=number,
                source=draw.choice(("own", "web")),
                licence=draw.choice(("", "CC0")),
                split=draw.choice(("", "train")),
                caption=draw.choice((None, "a cat")),
                labels=draw.choice((None, (), tuple(sorted(set(names))))),
                boxes=draw.choice((None, boxes)),
                concepts=None,
                status=status,
                reason=reason,
            )
        )
    return rows


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("summary") / "manifest.parquet"
    rows = made_rows()
    write_manifest(rows, path)
    return rows, path


def test_counts_are_those_of_a_plain_loop(manifest):
    rows, path = manifest
    summary = summarise(path)
    ok = [row for row in rows if row.status == "ok"]
    for source in summary.sources:
        own = [row for row in ok if row.source == source.name]
        assert source.statuses == Counter(row.status for row in rows if row.source == source.name)
        assert source.num_bytes == sum(row.num_bytes for row in own)
        assert source.splits == Counter(row.split or "none" for row in own)
        assert source.licences == Counter(row.licence or "none stated" for row in own)
        for name in ("caption", "labels", "boxes"):
            assert source.annotated[name] == sum(getattr(row, name) is not None for row in own)
    assert {source.name for source in summary.sources} == {"own", "web"}
    kinds = Counter((row.reason.split(":")[0], row.status) for row in rows if row.status != "ok")
    assert {(item.kind, item.status): item.num_rows for item in summary.reasons} == kinds
    shown = Counter(("label", row.source, name) for row in ok for name in row.labels or ())
    shown += Counter(("box", row.source, name) for row in ok for name in {box.label for box in row.boxes or ()})
    assert {(item.by, item.source, item.name): item.num_images for item in summary.names} == shown
    assert dict(summary.most_frequent("label", 9)) == Counter(name for row in ok for name in row.labels or ())
    assert len(summary.most_frequent("box", 2)) == 2 and summary.most_frequent("concept", 2) == []


@pytest.mark.parametrize("by", ["source", "label", "box", "reason"])
def test_rows_of_a_group_are_those_with_the_smallest_digests(manifest, by):
    rows, path = manifest
    groups_of = {
        "source": lambda row: [row.source] if row.status == "ok" else [],
        "label": lambda row: row.labels or () if row.status == "ok" else [],
        "box": lambda row: {box.label for box in row.boxes or ()} if row.status == "ok" else [],
        "reason": lambda row: [row.reason.split(":")[0]] if row.status != "ok" else [],
    }[by]
    groups = sorted({group for row in rows for group in groups_of(row)})[::-1]
    found = rows_by_group(path, by, [*groups, "absent"], 5)
    assert list(found) == groups
    for group, items in found.items():
        members = sorted((row.digest, row.key) for row in rows if group in groups_of(row))
        assert [(item["digest"], item["key"]) for item in items] == members[:5]
        assert set(items[0]) == set(ManifestRow.__dataclass_fields__)
    assert rows_by_group(path, by, [], 5) == {}


def test_the_choice_does_not_depend_on_the_order_of_rows(manifest, tmp_path):
    rows, path = manifest
    write_manifest(rows[::-1], tmp_path / "turned.parquet")
    assert rows_by_group(tmp_path / "turned.parquet", "label", CLASSES, 4) == rows_by_group(path, "label", CLASSES, 4)


def test_rows_are_found_by_every_condition(manifest):
    rows, path = manifest
    assert [row["key"] for row in find_rows(path, key="k0007")] == ["k0007"]
    wanted = [row.key for row in rows if (row.status, row.source) == ("quarantined", "web")]
    assert [row["key"] for row in find_rows(path, status="quarantined", source="web", num_rows=999)] == wanted
    texts = find_rows(path, reason="text", num_rows=3)
    assert [row["reason"] for row in texts] == ["text: too short"] * 3


def test_no_rows_give_an_empty_summary(tmp_path):
    write_manifest([], tmp_path / "none.parquet")
    summary = summarise(tmp_path / "none.parquet")
    assert (summary.sources, summary.reasons, summary.names) == ((), (), ())
    assert rows_by_group(tmp_path / "none.parquet", "source", ["own"], 3) == {}
