import re
import zipfile

import numpy as np
import own_data
import pytest
from ingest_parts import encoded, write

from intern_vision.data.codec import decode_labels, encode_png
from intern_vision.data.manifest_store import read_bytes
from intern_vision.errors import ConfigError, DataError
from intern_vision.stages import ingest


def test_classes_are_folders_and_splits_above_them(take_up, tmp_path):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            write(tmp_path / "in" / split / label / "deep" / "1.png", encoded(seed=hash((split, label)) % 99))
    write(tmp_path / "in" / "train" / "alone.png", encoded())
    taken = take_up({"uri": str(tmp_path / "in"), "licence": "CC0-1.0", "name": "pets"})
    (source,) = taken.info.sources
    assert (source.name, source.layout, source.num_rows) == ("pets", "image_folder", 5)
    assert source.tasks["classify"].class_names == ("cat", "dog")
    row = taken.by_name("val/dog/deep/1.png")
    assert (row["labels"], row["split"], row["source"], row["licence"]) == (["dog"], "val", "pets", "CC0-1.0")
    assert taken.reasons == ["label: lies in no class folder"]
    assert [row["key"] for row in taken.rows] == sorted(row["key"] for row in taken.rows)


def test_images_without_labels(take_up, tmp_path):
    write(tmp_path / "in" / "1.png", encoded())
    write(tmp_path / "in" / ".hidden.png", encoded())
    taken = take_up({"uri": str(tmp_path / "in"), "split": "train"})
    (row,) = taken.rows
    assert row["labels"] is None and row["split"] == "train" and taken.info.sources[0].layout == "images"
    own_data.image_folder(tmp_path / "classes", 1)
    taken = take_up({"uri": str(tmp_path / "classes"), "layout": "images"})
    assert taken.info.num_ok == 5 and taken.info.sources[0].tasks == {}


def test_masks_with_names_and_without(take_up, tmp_path):
    root = own_data.masks(tmp_path / "in")
    taken = take_up(root)
    assert taken.info.sources[0].tasks["segment"].class_names == ("background", "circle", "square")
    row = taken.by_name("images/3.png")
    assert np.array_equal(decode_labels(read_bytes(row["mask"])), decode_labels((root / "masks/3.png").read_bytes()))
    (root / "classes.txt").unlink()
    assert take_up(root).info.sources[0].tasks["segment"].class_names == ("class_0", "class_1", "class_2")
    before = take_up(root)
    (root / "classes.txt").write_text("background\ncircle\n")
    assert take_up(root, earlier=before).info.num_ok == 20
    (root / "masks" / "0.png").unlink()
    write(root / "masks" / "2.png", encode_png(np.zeros((8, 9), np.uint8)))
    write(root / "masks" / "4.png", b"no picture")
    taken = take_up(root)
    reasons = taken.reasons
    assert sum(reason == "mask: value 2, but there are 2 classes" for reason in reasons) == 20
    rest = sorted(reason[:12] for reason in reasons if "value 2" not in reason)
    assert rest == ["mask: file:/", "mask: is (8,", "mask: missin"]
    assert all(row["mask"] is None for row in taken.rows if row["status"] != "ok")


def test_depth_in_units_and_in_metres(take_up, tmp_path):
    root = own_data.depth(tmp_path / "in")
    np.save(root / "depth" / "0.npy", np.full(own_data.SIZE_PX, 7.5, np.float32))
    (root / "depth" / "0.png").unlink()
    (root / "depth" / "1.png").unlink()
    np.save(root / "depth" / "2.npy", np.full((3, 3), 1.0, np.float32))
    (root / "depth" / "2.png").unlink()
    np.save(root / "depth" / "3.npy", np.array([{}]), allow_pickle=True)
    (root / "depth" / "3.png").unlink()
    taken = take_up(root)
    assert taken.by_name("images/0.png")["depth_scale"] == 1.0 and taken.by_name("/4.png")["depth_scale"] == 0.001
    assert taken.info.sources[0].tasks["depth"].max_depth_m == 7.5
    missing, damaged, small = sorted(re.sub(r"file://\S*/", "", reason) for reason in taken.reasons)
    assert missing == f"depth: 1.png: missing: no file {root}/depth/1.png"
    assert damaged.startswith("depth: 3.npy: Object arrays cannot be loaded when allow_pickle=False")
    assert small == "depth: is (3, 3) high and wide, its upright image (72, 80)"
    (root / "scale.txt").write_text("millimetres")
    with pytest.raises(DataError, match=r"in/scale.txt: expected metres per unit, a number above 0"):
        take_up(root)


def test_a_layout_that_is_not_clear_is_one_line(take_up, tmp_path):
    own_data.coco(tmp_path / "in")
    own_data.masks(tmp_path / "in")
    with pytest.raises(DataError, match=r"in: can be read as masks and as coco; name its layout with --layout: ") as e:
        take_up(tmp_path / "in")
    assert "\n" not in str(e.value)
    assert take_up({"uri": str(tmp_path / "in"), "layout": "coco"}).info.sources[0].layout == "coco"
    write(tmp_path / "none" / "notes.txt", "nothing")
    with pytest.raises(DataError, match=r"none: holds no layout that can be read; name its layout .*image_folder \("):
        take_up(tmp_path / "none")
    with pytest.raises(DataError, match=r"notes.txt: not a file that can be read as a source"):
        take_up(tmp_path / "none" / "notes.txt")
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        take_up(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="layout must be one of auto, image_folder, .*, got 'yolo'"):
        ingest.SourceConfig.from_dict({"uri": "x", "layout": "yolo"})
    with pytest.raises(ConfigError, match="sources: the name 'in' is given to two of them"):
        take_up(tmp_path / "in", tmp_path / "other" / "in")


@pytest.mark.parametrize("layout", ["image_folder", "coco", "depth", "table"])
def test_an_archive_holds_any_of_them(take_up, tmp_path, layout):
    made = {"image_folder": own_data.image_folder, "table": own_data.labels_csv}
    made.get(layout, getattr(own_data, layout, None))(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted((tmp_path / "in").rglob("*")):
            archive.write(path, f"top/{path.relative_to(tmp_path / 'in')}")
    packed, plain = take_up(tmp_path / "in.zip"), take_up(tmp_path / "in")
    assert packed.info.sources[0].layout == plain.info.sources[0].layout == layout
    assert packed.info.num_ok == plain.info.num_ok > 0
    names = ("digest", "labels", "caption", "boxes", "width_px")
    assert sorted(str([row[name] for name in names]) for row in packed.rows) == sorted(
        str([row[name] for name in names]) for row in plain.rows
    )
    for row in packed.rows[:3]:
        assert "/blobs/" in row["uri"] and len(read_bytes(row["uri"])) == row["num_bytes"]
        for blob in filter(None, (row["mask"], row["depth"])):
            assert "/blobs/" in blob and read_bytes(blob)
