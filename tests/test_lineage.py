import re
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from intern_vision.errors import MissingObjectError
from intern_vision.lineage import Lineage, render_svg, render_text, trace
from intern_vision.ref import Kind, Ref
from intern_vision.stages.base import COMMIT_MARKER, Record
from intern_vision.store import Store, join_uri, open_store

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}")


def commit(store: Store, kind: Kind, name: str, *parents: str, stage: str = "expert") -> str:
    uri = join_uri(store.root_uri, stage, re.sub(r"\W", "-", name))
    ref = Ref(kind=kind, name=name, uri=uri, digest="ab" * 32, num_bytes=1_234_567, parents=parents)
    record = Record(
        ref=ref,
        stage=stage,
        key="k",
        code="c",
        config={},
        inputs={"of": parents},
        files={},
        facts={"score": 0.5, "note": "a<b"},
        started_unix_s=1.0,
        wall_s=2.0,
        cpu_s=3.0,
        run_id="run7",
    )
    store.put(record.to_json().encode(), join_uri(uri, COMMIT_MARKER))
    return uri


@pytest.fixture
def diamond(store: Store) -> Lineage:
    world = commit(store, "dataset", "world", stage="prepare")
    gone = join_uri(store.root_uri, "search", "genotype-1")
    amateur = commit(store, "weights", "amateur", gone, world, stage="amateur")
    experts = [commit(store, "weights", f"expert-{task}", amateur, world) for task in ("detect", "segment")]
    generalist = commit(store, "model", "generalist <&> \x07bell", *experts, amateur, stage="generalist")
    return trace(store, generalist)


def test_trace_reads_the_whole_graph(diamond, store):
    names = {uri: node.name for uri, node in diamond.nodes.items()}
    assert list(names.values())[0].startswith("generalist")
    edges = {(names[parent], names[child].split()[0]) for parent, child in diamond.edges}
    assert edges == {
        ("genotype-1", "amateur"),
        ("world", "amateur"),
        ("amateur", "expert-detect"),
        ("world", "expert-detect"),
        ("amateur", "expert-segment"),
        ("world", "expert-segment"),
        ("expert-detect", "generalist"),
        ("expert-segment", "generalist"),
        ("amateur", "generalist"),
    }
    amateur = diamond.nodes[join_uri(store.root_uri, "amateur", "amateur")]
    assert (amateur.stage, amateur.kind, amateur.digest, amateur.num_bytes) == (
        "amateur",
        "weights",
        "ab" * 32,
        1_234_567,
    )
    assert (dict(amateur.facts), amateur.run_id, amateur.wall_s) == ({"score": 0.5, "note": "a<b"}, "run7", 2.0)
    assert [node.name for node in diamond.nodes.values() if node.kind == "missing"] == ["genotype-1"]


def test_records_are_read_once_for_several_graphs(diamond, store, tmp_path):
    records = {}
    first = trace(store, diamond.uri, records)
    assert records.keys() == {uri for uri, node in diamond.nodes.items() if node.kind != "missing"}
    assert first == diamond
    # Nothing can be read any more, yet every graph below is known.
    away = open_store(f"file://{tmp_path / 'away'}")
    assert trace(away, diamond.uri, records) == diamond


def test_an_output_that_is_not_there_is_an_error(store):
    with pytest.raises(MissingObjectError):
        trace(store, join_uri(store.root_uri, "expert", "none"))


def test_the_tree_shows_each_output_once_in_full(diamond):
    lines = render_text(diamond).splitlines()
    labels = [re.split(r"  ", line.lstrip("│├└─ "))[0] for line in lines]
    assert labels == [
        "generalist <&> bell",
        "expert-detect",
        "amateur",
        "genotype-1",
        "world",
        "world",
        "expert-segment",
        "amateur",
        "world",
        "amateur",
    ]
    assert "MISSING" in lines[3]
    assert lines[2] == "│  ├─ amateur  (weights by amateur, 1.2 MB, abababab, 2.0 s)"
    assert [index for index, line in enumerate(lines) if line.endswith("(see above)")] == [7, 9]


def boxes_of(svg: str) -> dict[str, tuple[float, float, float, float]]:
    boxes = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        place = tuple(float(rect.get(name)) for name in ("x", "y", "width", "height"))
        boxes[group.find(f"{SVG}text").text] = place
    return boxes


def test_the_drawing_is_well_formed_ordered_and_self_contained(diamond):
    svg = render_svg(diamond)
    root = ElementTree.fromstring(svg)
    boxes = boxes_of(svg)
    assert len(boxes) == 6
    assert boxes["world"][0] == boxes["genotype-1"][0] < boxes["amateur"][0] < boxes["expert-detect"][0]
    assert boxes["expert-detect"][0] == boxes["expert-segment"][0] < boxes["generalist <&> bell"][0]
    assert len(list(root.iter(f"{SVG}path"))) == len(diamond.edges) == 9
    assert "a<b" in "".join(title.text for title in root.iter(f"{SVG}title"))
    assert not re.search(r"<script|<style|href|url\(|@import", svg)
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(x >= 0 and x + w <= width and y >= 0 and y + h <= height for x, y, w, h in boxes.values())


def test_boxes_never_overlap_and_no_edge_crosses_one(diamond):
    svg = render_svg(diamond)
    places = list(boxes_of(svg).values())
    for index, (x, y, w, h) in enumerate(places):
        for other_x, other_y, *_ in places[:index]:
            assert abs(x - other_x) >= w or abs(y - other_y) >= h
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        for y_before, x_end in re.findall(r"([\d.]+) H([\d.]+)", path.get("d")):
            right, y = float(x_end), float(y_before)
            assert not any(x + w == right and top <= y <= top + h for x, top, w, h in places)


def test_many_outputs_are_drawn_quickly(store):
    layer = [commit(store, "dataset", f"data-{i}", stage="prepare") for i in range(20)]
    for depth in range(4):
        layer = [commit(store, "weights", f"w-{depth}-{i}", *layer[i::5], *layer[:2]) for i in range(20)]
    lineage = trace(store, commit(store, "report", "all", *layer, stage="report"))
    started = time.perf_counter()
    root = ElementTree.fromstring(render_svg(lineage))
    assert time.perf_counter() - started < 2
    assert len(list(root.iter(f"{SVG}g"))) == len(lineage.nodes)
