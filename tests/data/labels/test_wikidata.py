import bz2
import gzip
import json
import lzma
import tracemalloc

import pytest

from intern_vision.data.labels.wikidata import read_wikidata
from intern_vision.errors import DataError


def entity(number, name, subclass_of=(), instance_of=(), rank="normal", **fields):
    def claims(targets):
        return [
            {"rank": rank, "mainsnak": {"snaktype": "value", "datavalue": {"value": {"numeric-id": t, "id": f"Q{t}"}}}}
            for t in targets
        ]

    return {
        "type": "item",
        "id": f"Q{number}",
        "labels": {"en": {"language": "en", "value": name}, "de": {"language": "de", "value": f"{name} (de)"}},
        "aliases": {"en": [{"language": "en", "value": f"other {name}"}]},
        "descriptions": {"en": {"language": "en", "value": f"about {name}"}},
        "claims": {"P279": claims(subclass_of), "P31": claims(instance_of), "P18": []},
    } | fields


ITEMS = [
    entity(1, "vehicle"),
    entity(2, "car", [1]),
    entity(3, "racing car", [2, 4]),
    entity(4, "sports equipment"),
    entity(5, "the one car", instance_of=[2]),
    entity(6, "plant"),
    entity(7, "old idea", [1], rank="deprecated"),
    {"type": "property", "id": "P279", "labels": {}},
]


def dump(path, items, opener=open):
    """As the dumps are: an array with an entity a line."""
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(item) for item in items) + "\n]\n")
    return path


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open)])
def test_what_lies_below_the_roots(tmp_path, suffix, opener):
    path = dump(tmp_path / f"dump.json{suffix}", ITEMS, opener)
    branch = read_wikidata(path, ["Q1"], languages=("en", "de"))
    system = branch.system
    assert set(system.ids) == {"Q1", "Q2", "Q3"} and branch.cut_edges == ()
    assert system.parents("Q3") == ("Q2",)
    assert system["Q2"].names == {"en": ("car", "other car"), "de": ("car (de)",)}
    assert system["Q2"].descriptions == {"en": "about car"}


def test_instances_and_several_roots(tmp_path):
    path = dump(tmp_path / "dump.json", ITEMS)
    system = read_wikidata(path, ["Q4", "Q1"], with_instances=True).system
    assert set(system.ids) == {"Q1", "Q2", "Q3", "Q4", "Q5"}
    assert system.parents("Q3") == ("Q2", "Q4") and system.is_a("Q5", "Q1")


def test_cycles_of_the_dump_are_cut_and_told(tmp_path):
    path = dump(
        tmp_path / "dump.json", [entity(1, "a", [3]), entity(2, "b", [1]), entity(3, "c", [2]), entity(4, "d", [3])]
    )
    branch = read_wikidata(path, ["Q1"])
    assert branch.cut_edges == (("Q2", "Q1"),)
    assert branch.system.ancestors("Q1") == {"Q3", "Q2"} and branch.system.is_a("Q4", "Q2")


def test_faults_name_the_line(tmp_path):
    path = dump(tmp_path / "dump.json", ITEMS)
    with pytest.raises(DataError, match="Q99 is not in the dump"):
        read_wikidata(path, ["Q99"])
    with pytest.raises(DataError, match="expected an item id Q<number>, got 'car'"):
        read_wikidata(path, ["car"])
    with pytest.raises(DataError, match="no such file; give a Wikidata JSON dump"):
        read_wikidata(tmp_path / "none", ["Q1"])
    broken = path.read_text().replace('"id": "Q2"', '"id": "L2"', 1)
    path.write_text(broken)
    with pytest.raises(DataError, match=r"dump.json:3: expected an item id Q<number>, got 'L2'"):
        read_wikidata(path, ["Q1"])
    path.write_text(broken + "{half P279\n" + '{half "P279"\n')
    with pytest.raises(DataError, match=r"dump.json:"):
        read_wikidata(path, ["Q1"])


def test_empty_tables_are_lists_in_dumps(tmp_path):
    empty = {"labels": [], "aliases": [], "descriptions": [], "claims": []}
    path = dump(tmp_path / "dump.json", [entity(1, "a") | empty, entity(2, "b", [1])])
    system = read_wikidata(path, ["Q1"]).system
    assert system["Q1"].name == "Q1" and system.is_a("Q2", "Q1")


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open)])
@pytest.mark.parametrize("damage", ["cut", "changed", "text"])
def test_a_damaged_archive_is_named(tmp_path, suffix, opener, damage):
    path = dump(tmp_path / f"dump.json{suffix}", ITEMS, opener)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = {"cut": b"", "changed": b"x" * (len(content) // 2), "text": b""}[damage]
    path.write_bytes(b"no archive" if damage == "text" else content)
    with pytest.raises(DataError, match=f"dump.json{suffix}: damaged archive"):
        read_wikidata(path, ["Q1"])


def test_memory_does_not_grow_with_what_is_not_kept(tmp_path):
    path = tmp_path / "dump.json.gz"
    text = "x" * 20_000
    with gzip.open(path, "wt", compresslevel=1) as file:
        for number in range(500):
            file.write(json.dumps(entity(number + 10, text, [9])) + ",\n")
        file.write(json.dumps(entity(1, "root")) + "\n")
    tracemalloc.start()
    try:
        system = read_wikidata(path, ["Q1"]).system
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 20 MB of entities go by, twice.
    assert len(system) == 1 and peak_bytes < 5e6
