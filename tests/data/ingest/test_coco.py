import json

import numpy as np
import own_data
import pytest
from ingest_parts import HEIGHT_PX, WIDTH_PX, encoded, write

from intern_vision.data.codec import decode_labels, encode_png
from intern_vision.data.manifest_store import read_bytes
from intern_vision.errors import DataError


def test_boxes_equal_those_of_the_reader_of_own_data(take_up, tmp_path):
    from intern_vision.data.coco import read_coco

    root = own_data.coco(tmp_path / "in")
    taken = take_up(root)
    for sample in read_coco(root):
        row = taken.by_name(f"/{sample.key.split('-')[0].removeprefix('images_')}.jpg")
        assert [[box[name] for name in ("x0", "y0", "x1", "y1")] for box in row["boxes"]] == sample.boxes.tolist()
    assert taken.info.sources[0].tasks["detect"].class_names == own_data.SHAPES[:3]


def faulty(document):
    boxes = document["annotations"]
    boxes[0]["bbox"] = [float("nan"), 1, 5, 5]
    boxes[1]["bbox"] = [30, 30, -5, 5]
    boxes[2]["bbox"] = [70, 60, 50, 5]
    boxes[3]["category_id"] = 77
    boxes[4]["id"] = boxes[5]["id"]
    boxes[6]["bbox"] = "box"
    document["images"][7]["height"] = 99
    document["images"][8]["file_name"] = "../outside.jpg"
    document["images"][9]["file_name"] = "none.jpg"
    document["images"].append(document["images"][10] | {"file_name": "11.jpg"})


def test_what_is_wrong_with_one_image_sets_that_image_apart(take_up, tmp_path):
    taken = take_up(own_data.coco(tmp_path / "in", faulty))
    reasons = {row["uri"].rsplit("/", 1)[-1]: row["reason"] for row in taken.rows if row["status"] != "ok"}
    at = "annotations/instances.json: image"
    expected = {
        "0.jpg": f"box: {at} 0: annotation 1000: box [nan, 1.0, 5.0, 5.0] (x, y, width, height) does not fit",
        "1.jpg": f"box: {at} 1: annotation 1001: box [30.0, 30.0, -5.0, 5.0]",
        "2.jpg": f"box: {at} 2: annotation 1002: box [70.0, 60.0, 50.0, 5.0]",
        "3.jpg": f"category: {at} 3: annotation 1003: category_id 77 is not among the categories",
        "4.jpg": f"duplicate: {at} 4: annotation id 1005 occurs twice",
        "5.jpg": f"duplicate: {at} 5: annotation id 1005 occurs twice",
        "6.jpg": f"box: {at} 6: annotation 1006: expected x, y, width and height, got box",
        "7.jpg": f"size: {at} 7: the image is (72, 80) high and wide, its annotation says (99, 80)",
        "outside.jpg": f"path: {at} 8: 'images/../outside.jpg' leads out of",
        "none.jpg": f"missing: {at} 9: no file",
        "10.jpg": f"duplicate: {at} 10: image id 10 occurs twice",
        "11.jpg": f"duplicate: {at} 11: 11.jpg is listed twice",
    }
    assert reasons.keys() == expected.keys()
    assert [name for name in expected if not reasons[name].startswith(expected[name])] == []


def without_categories(document):
    del document["images"]


def lost(document):
    document["annotations"][3]["image_id"] = 900


def twice(document):
    document["categories"].append({"id": 10, "name": "other"})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (without_categories, "expected COCO annotations, a JSON object with the lists images, annotations"),
        (lost, "annotation 1003: image_id 900 is not among the images"),
        (twice, "a category id occurs twice"),
    ],
)
def test_what_is_wrong_with_the_file_ends_the_ingest(take_up, tmp_path, change, line):
    with pytest.raises(DataError, match=f"annotations/instances.json: {line}"):
        take_up(own_data.coco(tmp_path / "in", change))


def panoptic(root):
    """Two images with captions, boxes and masks in three files; the segment ids are above 255."""
    categories = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT_PX, "width": WIDTH_PX, "license": 4} for n in (1, 2)]
    segments, captions, instances = [], [], []
    for image in images:
        number = image["id"]
        write(root / "images" / f"{number}.png", encoded(seed=number))
        ids = np.zeros((HEIGHT_PX, WIDTH_PX), np.int64)
        ids[:10], ids[12:20, 3:9] = 70_000, 300 + number
        write(root / "annotations" / "panoptic_val" / f"{number}.png", encode_png(_colours(ids)))
        infos = [{"id": 70_000, "category_id": 7}, {"id": 300 + number, "category_id": 3, "bbox": [3, 12, 6, 8]}]
        segments.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
        captions += [{"id": 10 * number + k, "image_id": number, "caption": f"cat {number} {k} "} for k in (0, 1)]
        instances.append({"id": number, "image_id": number, "category_id": 3, "bbox": [2, 11, 8, 10], "iscrowd": 1})
    licences = [{"id": 4, "name": "CC-BY-2.0"}]
    for name, annotations in (("panoptic", segments), ("captions", captions), ("instances", instances)):
        document = {"images": images, "annotations": annotations, "licenses": licences}
        if name != "captions":
            document["categories"] = categories[:1] if name == "instances" else categories
        write(root / "annotations" / f"{name}_val.json", json.dumps(document))
    return root


def _colours(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)


def test_captions_boxes_and_masks_of_one_image_are_one_row(take_up, tmp_path):
    root = panoptic(tmp_path / "in")
    taken = take_up(root)
    assert taken.info.num_ok == 2
    tasks = taken.info.sources[0].tasks
    assert tasks["detect"].class_names == ("cat",) and tasks["segment"].class_names == ("cat", "sky")
    row = taken.by_name("images/2.png")
    assert (row["caption"], row["split"], row["licence"]) == ("cat 2 0", "val", "CC-BY-2.0")
    assert [(box["x0"], box["y1"], box["ignored"]) for box in row["boxes"]] == [(2.0, 21.0, True)]
    expected = np.full((HEIGHT_PX, WIDTH_PX), 255, np.uint8)
    expected[:10], expected[12:20, 3:9] = 1, 0
    assert np.array_equal(decode_labels(read_bytes(row["mask"])), expected)
    # Without a file of instances, boxes are those of the things.
    (root / "annotations" / "instances_val.json").unlink()
    row = take_up(root).by_name("images/1.png")
    assert [(box["label"], box["x0"], box["y1"], box["ignored"]) for box in row["boxes"]] == [("cat", 3.0, 20.0, False)]
    # Nothing is drawn anew where nothing changed; what changed is.
    before = take_up(root)
    write(root / "annotations" / "panoptic_val" / "1.png", encode_png(np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)))
    after = take_up(root, earlier=before)
    assert after.facts["num_taken_over"] == 1
    assert after.by_name("images/2.png") == before.by_name("images/2.png")
    assert (decode_labels(read_bytes(after.by_name("images/1.png")["mask"])) == 255).all()


def test_segments_that_no_list_has(take_up, tmp_path):
    root = panoptic(tmp_path / "in")
    write(root / "annotations" / "panoptic_val" / "1.png", encode_png(np.full((HEIGHT_PX, WIDTH_PX, 3), 9, np.uint8)))
    (root / "annotations" / "panoptic_val" / "2.png").unlink()
    write(root / "images" / "3.png", encoded(seed=3))
    document = json.loads((root / "annotations" / "captions_val.json").read_text())
    document["images"].append({"id": 3, "file_name": "3.png", "height": HEIGHT_PX, "width": WIDTH_PX})
    write(root / "annotations" / "captions_val.json", json.dumps(document))
    taken = take_up(root)
    assert taken.info.num_ok == 1
    at = "mask: annotations/captions_val.json: image"
    assert taken.by_name("images/1.png")["reason"].startswith(f"{at} 1: segment: file://")
    assert taken.by_name("images/1.png")["reason"].endswith("/1.png: segment 592137 is not in segments_info")
    assert taken.by_name("images/2.png")["reason"].startswith(f"{at} 2: missing: no file ")
