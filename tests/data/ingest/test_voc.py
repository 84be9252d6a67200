import io

import numpy as np
import pytest
from ingest_parts import HEIGHT_PX, WIDTH_PX, encoded, write
from PIL import Image

from intern_vision.data.codec import decode_labels
from intern_vision.data.manifest_store import read_bytes
from intern_vision.data.official.names import VOC
from intern_vision.errors import DataError

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def xml(*boxes, label="dog", size=(WIDTH_PX, HEIGHT_PX), difficult=0):
    things = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult>{BOX.format(*box)}</object>" for box in boxes
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{things}</annotation>"


def palette_mask(values):
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([255 - value // 3 for value in range(768)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VOC"
    for number in range(1, 5):
        write(root / "JPEGImages" / f"{number}.jpg", encoded("JPEG", seed=number))
    write(root / "Annotations" / "1.xml", xml((1, 1, 10, 12), (5, 5, WIDTH_PX, HEIGHT_PX)))
    write(root / "Annotations" / "2.xml", xml((3, 4, 9, 9), label="cat", difficult=1))
    write(root / "Annotations" / "3.xml", xml())
    values = np.random.default_rng(0).choice([0, 12, 255], (HEIGHT_PX, WIDTH_PX)).astype(np.uint8)
    write(root / "SegmentationClass" / "1.png", palette_mask(values))
    write(root / "ImageSets" / "Main" / "train.txt", "1\n2\n")
    write(root / "ImageSets" / "Main" / "dog_train.txt", "3 -1\n")
    write(root / "ImageSets" / "Segmentation" / "val.txt", "1\n")
    return root


def test_boxes_masks_and_lists(take_up, root):
    taken = take_up(root.parent)
    assert taken.reasons == []
    (source,) = taken.info.sources
    assert source.layout == "voc" and source.tasks["detect"].class_names == ("cat", "dog")
    assert source.tasks["segment"].class_names == ("background", *VOC)
    row = taken.by_name("/1.jpg")
    corners = [[box[name] for name in ("x0", "y0", "x1", "y1")] for box in row["boxes"]]
    assert corners == [[0, 0, 10, 12], [4, 4, WIDTH_PX, HEIGHT_PX]] and row["split"] == "train"
    assert set(np.unique(decode_labels(read_bytes(row["mask"])))) == {0, 12, 255}
    row = taken.by_name("/2.jpg")
    assert row["boxes"][0]["difficult"] and row["mask"] is None
    # Looked at and empty is not the same as never looked at.
    assert taken.by_name("/3.jpg")["boxes"] == [] and taken.by_name("/4.jpg")["boxes"] is None


def test_what_is_wrong_with_an_annotation_sets_its_image_apart(take_up, root):
    write(root / "Annotations" / "1.xml", xml((10, 1, 3, 12)))
    write(root / "Annotations" / "2.xml", xml((1, 1, "nan", 12)))
    write(root / "Annotations" / "3.xml", "<annotation><object>")
    write(root / "Annotations" / "4.xml", xml((1, 1, 5, 5), size=(99, 98)))
    write(root / "Annotations" / "5.xml", xml((1, 1, 5, 5)))
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    write(root / "Annotations" / "6.xml", bomb)
    write(root / "JPEGImages" / "6.jpg", encoded("JPEG", seed=6))
    write(root / "JPEGImages" / "7.jpg", encoded("JPEG", seed=7))
    write(root / "ImageSets" / "Segmentation" / "train.txt", "7\n")
    with pytest.raises(DataError, match="no usable image in any source; the first: file:"):
        take_up(root)
    write(root / "JPEGImages" / "8.jpg", encoded("JPEG", seed=8))
    taken = take_up(root)
    reasons = {row["uri"].rsplit("/", 1)[-1]: row["reason"] for row in taken.rows if row["status"] != "ok"}
    assert reasons.pop("5.jpg").startswith("missing: no file ")
    assert reasons == {
        "1.jpg": "box: Annotations/1.xml: object 1 (dog): box [9.0, 0.0, -6.0, 12.0] (x, y, width, height) does not "
        "fit its 32 x 24 image",
        "2.jpg": "box: Annotations/2.xml: object 1 (dog): box [0.0, 0.0, nan, 12.0] (x, y, width, height) does not "
        "fit its 32 x 24 image",
        "3.jpg": "annotation: Annotations/3.xml: no element found: line 1, column 20",
        "4.jpg": "size: the image is (24, 32) high and wide, its annotation says (98, 99)",
        "6.jpg": "annotation: Annotations/6.xml: EntitiesForbidden(name='b', system_id=None, public_id=None)",
        "7.jpg": "mask: missing: no SegmentationClass/7.png, which ImageSets/Segmentation lists",
    }
