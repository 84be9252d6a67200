import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import commit_folder, set_environment
from made_manifests import commit_rows, image_row, picture

from intern_vision.data.codec import decode_image, encode_jpeg, encode_png
from intern_vision.data.manifest import ManifestBox, SourceInfo
from intern_vision.errors import ConfigError, DataError
from intern_vision.stages import data_report
from intern_vision.stages.base import Inputs, run_stage
from intern_vision.stages.report import REPORT_FILE
from intern_vision.store import join_uri, open_store
from intern_vision.task import Task

HEIGHT_PX, WIDTH_PX = 24, 32
SCENES = SourceInfo(
    name="scenes",
    uri="s3://raw/scenes",
    layout="coco",
    tasks={"detect": Task(family="detect", class_names=("lamp", "<b>sofa</b>"))},
)


@pytest.fixture
def store_root(tmp_path, monkeypatch):
    root = f"file://{tmp_path}/store"
    set_environment(monkeypatch, {"INTERN_STORE": root, "INTERN_STATE": str(tmp_path / "state")})
    return root


def made_rows(folder):
    """Pets with labels; scenes with boxes, masks and depth; one row each that was taken out or is broken."""
    rows = []
    for index in range(9):
        values = {"source": "pets", "licence": "CC0", "split": "train", "labels": ("cat" if index % 3 else "dog",)}
        rows.append(image_row(folder, f"pets-{index}", picture(index), **values))
    for index in range(4):
        (folder / f"mask-{index}.png").write_bytes(encode_png(np.full((HEIGHT_PX, WIDTH_PX), index, np.uint8)))
        (folder / f"depth-{index}.png").write_bytes(encode_png(np.full((HEIGHT_PX, WIDTH_PX), 900, np.uint16)))
        rows.append(
            image_row(
                folder,
                f"scenes-{index}",
                picture(20 + index),
                source="scenes",
                caption="<script>alert(1)</script> at night",
                boxes=(ManifestBox(label="<b>sofa</b>", x0=2, y0=3, x1=20, y1=15),),
                mask=(folder / f"mask-{index}.png").as_uri() if index != 3 else f"file://{folder}/nowhere.png",
                depth=(folder / f"depth-{index}.png").as_uri(),
                depth_scale=0.001,
            )
        )
    removed = {"status": "removed", "source": "pets"}
    rows.append(image_row(folder, "pets-twin", picture(0), reason="duplicate: same as pets-0", **removed))
    rows.append(image_row(folder, "pets-leak", picture(1), reason="leak: flower/test f-1 (exact)", **removed))
    broken = encode_jpeg(picture(1))[:60]
    rows.append(image_row(folder, "pets-cut", broken, status="quarantined", source="pets", reason="decode: cut short"))
    return rows


def duplicates(folder, rows):
    by_key = {row.key: row for row in rows}
    inside, leak = {"against": "", "against_uri": ""}, {"against": "flower/test", "against_uri": by_key["pets-2"].uri}
    table = [
        {"group": 0, "key": "pets-0", "kept": True, "method": "perceptual", "distance": 0.0} | inside,
        {"group": 0, "key": "pets-twin", "kept": False, "method": "perceptual", "distance": 2.0} | inside,
        {"group": 1, "key": "pets-leak", "kept": False, "method": "exact", "distance": 0.0} | leak,
    ]
    for row in table:
        row["uri"] = by_key[row["key"]].uri
    pq.write_table(pa.Table.from_pylist(table), folder / "duplicates.parquet")
    leaks = [{"dataset": "flower", "split": "test", "num_images": 24, "num_leaks": 1, "by_method": {"exact": 1}}]
    (folder / "leaks.json").write_text(json.dumps(leaks))


def written(store_root, ref, **settings):
    config = data_report.Config(**settings)
    made = run_stage("data_report", config, Inputs(manifest=(ref,)), name="data_report")
    return made, open_store(store_root).read(join_uri(made.uri, REPORT_FILE)).decode()


class Page(HTMLParser):
    """Tags, text and picture sources of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_page_shows_every_part_and_needs_nothing_from_outside(store_root, tmp_path):
    folder = tmp_path / "made"
    rows = made_rows(folder)
    duplicates(folder, rows)
    rules = [{"rule": "size", "num_in": 14, "num_out": 13, "settings": {"min_px": 8}, "examples": []}]
    (folder / "filters.json").write_text(json.dumps(rules))
    agreement = {"kappa": 0.875, "num_items": 40, "annotators": {"anna": {"num_votes": 40}, "ben": {"num_votes": 38}}}
    (folder / "agreement.json").write_text(json.dumps(agreement))
    (folder / "tree.html").write_text("<section><h2>Tree of labels</h2></section>")
    pets = SourceInfo(name="pets", uri="file:///pets", layout="image_folder", licence="CC0")
    ref = commit_rows(store_root, folder, rows, (pets, SCENES), name="both")
    made, text = written(store_root, ref)
    assert made.kind == "report" and made.parents == (ref.uri,)
    page = Page(text)
    assert "script" not in page.tags and "b" in page.tags
    own, pictures = [s for s in page.sources if s[0] == "#"], [s for s in page.sources if s[0] != "#"]
    assert len(own) == 9 and len(pictures) > 30
    for source in pictures:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        assert max(decode_image(base64.b64decode(data)).shape) <= 160
    words = " ".join(" ".join(page.texts).split())
    for wanted in (
        "both",
        "16 images offered by 2 sources",
        "<script>alert(1)</script> at night",
        "boxes: 1 <b>sofa</b>",
        "none stated",
        "mask: file://",
        "duplicate: same as pets-0",
        "decode: cut short",
        "taken out: perceptual, distance 2",
        "of flower/test",
        '{"min_px": 8}',
        "kappa 0.875",
        "Tree of labels",
    ):
        assert wanted in words, wanted
    summary = json.loads(open_store(store_root).read(join_uri(made.uri, data_report.SUMMARY_FILE)))
    assert {source["name"]: source["statuses"] for source in summary["sources"]} == {
        "pets": {"ok": 9, "removed": 2, "quarantined": 1},
        "scenes": {"ok": 4},
    }


def test_depth_and_masks_are_panels_of_their_own(store_root, tmp_path):
    rows = [row for row in made_rows(tmp_path / "made") if row.source == "scenes"]
    ref = commit_rows(store_root, tmp_path / "made", rows, (SCENES,))
    _, text = written(store_root, ref, max_concepts=0, num_images=4)
    figures = re.findall(r'<figure class="card">(.*?)</figure>', text, re.DOTALL)
    # Image, mask and depth; of the one whose mask is gone two.
    assert sorted(figure.count("<img") for figure in figures) == [2, 3, 3, 3]


def test_a_manifest_without_steps_or_images_is_a_short_page(store_root, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    ref = commit_rows(store_root, folder, [], ())
    _, text = written(store_root, ref, title="nothing yet")
    assert "<h1>nothing yet</h1>" in text and "<img" not in text and "Leaks" not in text


def test_missing_images_are_told_on_the_card(store_root, tmp_path):
    rows = made_rows(tmp_path / "made")[:2]
    ref = commit_rows(store_root, tmp_path / "made", rows, ())
    (tmp_path / "made" / "pets-0.jpg").unlink()
    _, text = written(store_root, ref)
    assert text.count("cannot be shown: ") == 2 and "no picture" in text


def test_other_outputs_are_refused(store_root, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x").write_text("x")
    scores = commit_folder(store_root, "evaluate", "scores", "pets", tmp_path / "own")
    with pytest.raises(ConfigError, match="expected a manifest or a dataset, got the scores pets"):
        written(store_root, scores)
    prepared = commit_folder(store_root, "prepare", "dataset", "pets", tmp_path / "own")
    with pytest.raises(DataError, match="was made from no manifest; give the output of intern data ingest"):
        written(store_root, prepared)
