import json
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from intern_vision.data.codec import encode_jpeg, encode_png
from intern_vision.data.manifest import Quarantined, read_manifest
from intern_vision.data.readers import (
    SplitRule,
    detect_format,
    read_coco,
    read_dataset,
    read_depth,
    read_image_folder,
    read_labels_csv,
    read_masks,
)
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.errors import DataError

RED = np.zeros((12, 20, 3), np.uint8) + np.array([220, 10, 10], np.uint8)


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(RED) if data is None else data)


def coco(tmp_path, **changes):
    document = {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 12}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [2, 3, 5, 6]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [-1, 0, 22, 12]},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 12], "iscrowd": 1},
        ],
    }
    put(tmp_path / "images" / "a.png")
    path = tmp_path / "annotations" / "instances_val2017.json"
    put(path, json.dumps(document | changes).encode())
    return path


def test_class_folders_become_labels_with_every_format(tmp_path):
    put(tmp_path / "cat" / "a b.png")
    put(tmp_path / "cat" / "deep" / "c.JPG", encode_jpeg(RED))
    put(tmp_path / "ant" / "d.bmp", cv2.imencode(".bmp", RED[..., ::-1])[1].tobytes())
    put(tmp_path / "ant" / "notes.txt", b"not an image")
    reading = read_image_folder(tmp_path)
    assert reading.tasks["classify"].class_names == ("ant", "cat")
    samples = list(reading)
    assert reading.num_samples == len(samples) == 3
    assert sorted(sample.label for sample in samples) == [0, 1, 1]
    assert all(np.abs(sample.image.astype(int) - RED).max() <= 3 for sample in samples)
    assert [sample.key for sample in reading] == [sample.key for sample in samples]


def test_split_folders_are_kept_and_missing_splits_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for index in range(20):
            put(tmp_path / "train" / name / f"{index}.png", encode_png(rng.integers(0, 256, (4, 4, 3), np.uint8)))
        put(tmp_path / "test" / name / "t.png")
    splits = Counter((sample.split, sample.label) for sample in read_image_folder(tmp_path))
    assert splits == {(split, label): n for split, n in (("train", 18), ("val", 2), ("test", 1)) for label in (0, 1)}
    whole = Counter((sample.split, sample.label) for sample in read_image_folder(tmp_path / "train"))
    assert whole == {(split, label): n for split, n in (("train", 14), ("val", 2), ("test", 4)) for label in (0, 1)}
    drawn = [sample.split for sample in read_image_folder(tmp_path / "train", SplitRule(seed=1))]
    assert drawn != [sample.split for sample in read_image_folder(tmp_path / "train")]


def test_copies_of_one_file_are_drawn_together(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(20):
        data = encode_png(rng.integers(0, 256, (4, 4, 3), np.uint8))
        for copy in ("x", "y"):
            put(tmp_path / "a" / f"{index}{copy}.png", data)
    reading = read_image_folder(tmp_path)
    splits = {item.path.stem: item.split for item in reading.items}
    assert all(splits[f"{index}x"] == splits[f"{index}y"] for index in range(20))
    assert Counter(splits.values()) == {"train": 28, "val": 4, "test": 8} and reading.drawn == ("test", "val")


def test_a_folder_with_labels_for_several_tasks_is_read_for_the_one_wanted(tmp_path):
    for folder in ("images", "masks", "depth"):
        put(tmp_path / folder / "a.png", encode_png(np.ones((12, 20), np.uint8)) if folder != "images" else None)
    (tmp_path / "labels.csv").write_text("file,label\nimages/a.png,cat\n")
    assert set(read_dataset(tmp_path).tasks) == {"segment"}
    for family in ("segment", "depth", "classify"):
        assert set(read_dataset(tmp_path, family=family).tasks) == {family}
    with pytest.raises(DataError, match="expected labels for detect, got masks"):
        read_dataset(tmp_path, family="detect")
    with pytest.raises(DataError, match="expected labels for multilabel, got classify"):
        read_dataset(tmp_path, family="multilabel")


def test_bad_images_are_quarantined_and_reach_the_manifest(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    put(tmp_path / "in" / "a" / "good.png")
    put(tmp_path / "in" / "a" / "cut.jpg", encode_jpeg(noise)[:2000])
    put(tmp_path / "in" / "a" / "text.png", b"hello")
    reading = read_dataset(tmp_path / "in")
    bad = [sample for sample in reading if isinstance(sample, Quarantined)]
    assert sorted(item.uri.rsplit("/", 1)[1] for item in bad) == ["cut.jpg", "text.png"]
    info = DatasetInfo(name="mine", tasks=reading.tasks)
    write_dataset(reading, info, tmp_path / "out", max_quarantined_share=0.7)
    rows = read_manifest(tmp_path / "out" / "manifest.parquet").to_pydict()
    assert sorted(rows["status"]) == ["ok", "quarantined", "quarantined"]
    assert all(reason for reason, status in zip(rows["reason"], rows["status"], strict=True) if status != "ok")


def test_coco_boxes_become_clipped_corners(tmp_path):
    coco(tmp_path)
    reading = read_dataset(tmp_path)
    assert reading.tasks["detect"].class_names == ("cat", "dog")
    (sample,) = reading
    assert sample.split == "val"
    assert sample.boxes.tolist() == [[2, 3, 7, 9], [0, 0, 20, 12]]
    assert sample.box_labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 8, "category_id": 9, "bbox": [0, 0, 1, 1]}, "annotation 5: image_id 8"),
        ({"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}, "annotation 5: category_id 1"),
        ({"image_id": 7, "category_id": 9, "bbox": [30, 0, 5, 5]}, r"annotation 5: box \[30, 0, 5, 5\] .* 20 x 12"),
        ({"image_id": 7, "category_id": 9, "bbox": [3, 3, 0, 5]}, "annotation 5: box"),
    ],
)
def test_wrong_coco_annotations_are_named(tmp_path, annotation, message):
    path = coco(tmp_path, annotations=[{"id": 5} | annotation])
    with pytest.raises(DataError, match=message):
        read_coco(path)


def test_coco_with_another_image_size_is_quarantined_and_other_json_refused(tmp_path):
    path = coco(tmp_path, images=[{"id": 7, "file_name": "a.png", "width": 40, "height": 24}])
    (bad,) = read_coco(path, tmp_path / "images")
    assert "annotation says (24, 40)" in bad.reason
    put(tmp_path / "other.json", b'{"images": 3}')
    with pytest.raises(DataError, match="other.json: expected COCO instances"):
        read_coco(tmp_path / "other.json")


def test_masks_grey_and_palette_with_class_names(tmp_path):
    mask = np.zeros((12, 20), np.uint8)
    mask[3:5], mask[7] = 2, 255
    for name in ("a", "b"):
        put(tmp_path / "images" / f"{name}.png")
    put(tmp_path / "masks" / "a.png", encode_png(mask))
    palette = Image.fromarray(mask).convert("P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "masks" / "b.png")
    assert read_masks(tmp_path).tasks["segment"].class_names == ("class_0", "class_1", "class_2")
    (tmp_path / "classes.txt").write_text("sky\nsea\nsand\n")
    reading = read_dataset(tmp_path)
    assert reading.tasks["segment"].class_names == ("sky", "sea", "sand")
    assert all(np.array_equal(sample.mask, mask) for sample in reading)
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    with pytest.raises(DataError, match=r"masks/a.png: mask value 2, but there are 2 labels \(0..1\)"):
        list(read_masks(tmp_path))
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match="images/a.png: no .*masks/a.png for this image"):
        read_masks(tmp_path)


def test_depth_in_png_units_and_npy_metres(tmp_path):
    metres = np.linspace(0, 8, 240, dtype=np.float32).reshape(12, 20)
    for split in ("train", "test"):
        put(tmp_path / "images" / split / "a.png")
    put(tmp_path / "depth" / "train" / "a.png", encode_png(np.rint(metres * 256).astype(np.uint16)))
    (tmp_path / "depth" / "test").mkdir()
    np.save(tmp_path / "depth" / "test" / "a.npy", metres)
    (tmp_path / "scale.txt").write_text(f"{1 / 256}\n")
    reading = read_dataset(tmp_path)
    assert reading.tasks["depth"].max_depth_m == pytest.approx(8.0)
    samples = {sample.split: sample for sample in reading}
    assert set(samples) == {"train", "test"}
    for sample in samples.values():
        assert np.abs(sample.depth - metres).max() <= 1 / 512 + 1e-6
    capped = next(iter(read_depth(tmp_path, max_depth_m=4.0)))
    assert capped.depth.max() <= 4.0
    (tmp_path / "scale.txt").write_text("0")
    with pytest.raises(DataError, match="scale.txt: expected metres per unit"):
        read_depth(tmp_path)


def test_labels_table_one_or_several(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / f"{name}.png")
    path = tmp_path / "labels.csv"
    path.write_text("file,label,split,caption\na.png,dog,test,\nb.png,cat,val,a cat\n")
    samples = list(read_dataset(tmp_path))
    assert [(sample.label, sample.split, sample.caption) for sample in samples] == [
        (1, "test", None),
        (0, "val", "a cat"),
    ]
    path.write_text("file,labels\na.png,dog|cat\nb.png,\n")
    reading = read_dataset(path)
    assert reading.tasks["multilabel"].class_names == ("cat", "dog")
    assert [sample.concepts for sample in reading] == [(0, 1), ()]
    path.write_text("file,label\na.png,\n")
    with pytest.raises(DataError, match="labels.csv: line 2: expected a file, a label"):
        read_labels_csv(path)
    path.write_text("name,label\na.png,x\n")
    with pytest.raises(DataError, match="expected rows under a header with file and label"):
        read_labels_csv(path)


def test_an_unknown_layout_lists_the_accepted_ones(tmp_path):
    with pytest.raises(DataError, match=r"(?s)not a layout that can be read.*image folder.*COCO boxes.*scale.txt"):
        detect_format(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        detect_format(tmp_path / "none")


def test_what_is_listed_twice_or_not_text_or_not_coco_is_named(tmp_path):
    put(tmp_path / "a.png")
    path = tmp_path / "labels.csv"
    path.write_text("file,label\na.png,dog\na.png,dog\n")
    with pytest.raises(DataError, match="a.png: listed twice; keep one of the entries"):
        read_labels_csv(path)
    path.write_bytes("file,label\na.png,Bär\n".encode("latin-1"))
    with pytest.raises(DataError, match="labels.csv: expected UTF-8 text, got byte 0xe4 at 18"):
        read_labels_csv(path)
    annotations = coco(tmp_path / "boxes", annotations=[{"id": 5, "image_id": 7, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(DataError, match="not as COCO has it: no field 'category_id'"):
        read_coco(annotations)
