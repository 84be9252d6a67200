import csv
import json
import shutil

import cv2
import numpy as np
import own_data
import pytest
from PIL import Image

from intern_vision.data.check import MAX_NAMED, Findings, check_reading, difference_hash
from intern_vision.data.readers import read_dataset
from intern_vision.errors import DataError


def checked(path, **permissions):
    """Findings of a path, which survive JSON."""
    findings = check_reading(read_dataset(path), **permissions)
    assert Findings.from_json(findings.to_json()) == findings
    return findings


def only_error(findings):
    (line,) = findings.errors
    assert "\n" not in line
    with pytest.raises(DataError) as raised:
        findings.require_none_wrong()
    assert str(raised.value) == line and raised.value.exit_code == 2
    return line


@pytest.fixture
def shapes(tmp_path):
    return own_data.image_folder(tmp_path / "shapes")


def test_clean_data_is_counted_by_class_and_split(shapes):
    findings = checked(shapes)
    assert findings.num_images == {"train": 35, "val": 5, "test": 10} and findings.drawn == ("test", "val")
    assert findings.classes == {shape: {"train": 7, "val": 1, "test": 2} for shape in own_data.SHAPES}
    assert findings.errors == () and findings.modes == {"RGB": 50} and findings.sizes_px == (72, 72, 80, 80)
    text = "\n".join(findings.lines())
    assert "classify: 35 train, 5 val, 10 test images (test and val drawn by a seeded rule)" in text
    assert "10 test images: the score will be uncertain" in text and text.count("class ") == 5


@pytest.mark.parametrize("layout", ["labels_csv", "coco", "masks", "depth"])
def test_every_layout_of_clean_data_is_clean(tmp_path, layout):
    getattr(own_data, layout)(tmp_path)
    findings = checked(tmp_path)
    assert findings.errors == () and findings.num_images == {"train": 28, "val": 4, "test": 8}
    assert bool(findings.classes) == (layout != "depth")


def test_empty_class_is_named(shapes):
    (shapes / "blob").mkdir()
    assert only_error(checked(shapes)) == "class 'blob': the folder has no image; add images or remove the folder"


def test_class_with_one_image_is_named_and_a_test_split_of_ones_own_makes_it_usable(shapes, tmp_path):
    for index in range(1, 10):
        (shapes / "cross" / f"{index}.png").unlink()
    assert only_error(checked(shapes)).startswith("class 'cross': one image only; add a second")
    own = tmp_path / "own"
    shutil.copytree(shapes, own / "train")
    own_data.image_folder(tmp_path / "more", 12)
    for shape in own_data.SHAPES:
        (own / "test" / shape).mkdir(parents=True)
        shutil.copy(tmp_path / "more" / shape / "11.png", own / "test" / shape)
    assert checked(own).errors == ()


@pytest.mark.parametrize("num_images", [1, 0])
def test_one_image_alone_cannot_be_learned_and_tested(tmp_path, num_images):
    own_data.image_folder(tmp_path, 1)
    for shape in own_data.SHAPES[1:]:
        shutil.rmtree(tmp_path / shape)
    if not num_images:
        (tmp_path / "circle" / "0.png").write_bytes(b"no picture")
    assert f"{num_images} usable images: expected at least 2" in checked(tmp_path).errors[-1]


def test_one_class_is_nothing_to_tell_apart(tmp_path):
    own_data.image_folder(tmp_path)
    for shape in own_data.SHAPES[1:]:
        shutil.rmtree(tmp_path / shape)
    assert only_error(checked(tmp_path)) == "one class (circle): expected two or more to tell apart"


def test_class_of_the_test_split_alone_is_named(shapes, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(shapes, own / "train")
    shutil.rmtree(own / "train" / "cross")
    (own / "test" / "cross").mkdir(parents=True)
    shutil.copy(shapes / "cross" / "0.png", own / "test" / "cross")
    assert only_error(checked(own)) == "class 'cross': 1 in test and none in train; add training images of it"


def test_test_images_in_train_are_named_unless_allowed(shapes, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(shapes, own / "train")
    for shape in own_data.SHAPES:
        (own / "test" / shape).mkdir(parents=True)
        # Saved anew: other bytes, the same pixels.
        Image.open(shapes / shape / "3.png").save(own / "test" / shape / "again.bmp")
    line = only_error(checked(own))
    assert line.startswith("the same picture in two splits: test image ") and "--allow-leaks" in line
    assert f"{own}/test/circle/again.bmp is also the train image {own}/train/circle/3.png" in line.replace(
        "val", "train"
    )
    assert f"and {5 - MAX_NAMED} more" in line
    allowed = checked(own, allow_leaks=True)
    assert allowed.errors == () and any("two splits" in text for text in allowed.warnings)


def test_pictures_that_look_alike_in_two_splits_are_told_when_asked_for(shapes, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(shapes, own / "train")
    for shape in own_data.SHAPES:
        (own / "test" / shape).mkdir(parents=True)
        image = Image.open(shapes / shape / "3.png").resize((160, 144), Image.Resampling.BICUBIC)
        image.point(lambda value: min(255, value + 9)).save(own / "test" / shape / "larger.jpg", quality=80)
    assert checked(own).errors == () and not any("alike" in text for text in checked(own).warnings)
    (told,) = [text for text in checked(own, near_duplicates=True).warnings if "look alike" in text]
    assert f"test image {own}/test/circle/larger.jpg and " in told and f"{own}/train/circle/3.png" in told
    assert "and 2 more; look at them" in told
    # Other pictures of the same kind are no copies.
    assert not any("alike" in text for text in checked(shapes, near_duplicates=True).warnings)


def test_difference_hash_compares_neighbours_from_the_upper_left():
    rows = np.zeros((8, 9), np.uint8)
    rows[0, 1], rows[7, 8] = 200, 100
    image = np.repeat(np.repeat(rows, 4, 0), 4, 1)[..., None].repeat(3, 2)
    assert difference_hash(image) == (1 << 63) | 1


def test_copies_are_drawn_into_one_split_and_told(shapes):
    for shape in own_data.SHAPES:
        for index in range(10):
            shutil.copy(shapes / shape / f"{index}.png", shapes / shape / f"copy{index}.png")
    findings = checked(shapes)
    assert findings.errors == () and findings.num_duplicates == 50
    assert any(text.startswith("the same picture twice: ") for text in findings.warnings)
    assert findings.num_images == {"train": 70, "val": 10, "test": 20}


def test_one_picture_with_two_labels_is_named(shapes):
    shutil.copy(shapes / "circle" / "0.png", shapes / "square" / "x.png")
    line = only_error(checked(shapes))
    assert line.startswith("one picture with two labels: ") and "is circle, the same picture" in line


def test_mixed_sizes_and_modes_work_and_are_told(tmp_path):
    rng = np.random.default_rng(0)
    modes = {"L": "png", "P": "png", "RGBA": "png", "CMYK": "jpg", "RGB": "webp"}
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(4):
            for mode, suffix in modes.items():
                size = (20 + 4 * number, 24, 3)
                image = Image.fromarray(rng.integers(0, 256, size, np.uint8)).convert(mode)
                image.save(tmp_path / label / f"{mode}{number}.{suffix}")
            wide = rng.integers(0, 65536, (20, 24)).astype(np.uint16)
            assert cv2.imwrite(str(tmp_path / label / f"wide{number}.png"), wide)
    findings = checked(tmp_path)
    assert findings.errors == () and sum(findings.num_images.values()) == 48
    assert findings.modes == dict.fromkeys(("CMYK", "L", "P", "RGBA", "RGB", "I;16"), 8)
    assert findings.sizes_px == (20, 32, 24, 24)
    told = " ".join(findings.warnings)
    for text in ("transparency is dropped", "palette colours", "colour profile", "upper 8 of 16 bits", "grey images"):
        assert text in told


def test_labels_without_an_image_are_named(tmp_path):
    table = own_data.labels_csv(tmp_path / "pairs")
    (tmp_path / "pairs" / "pictures" / "7.jpg").unlink()
    line = only_error(checked(table))
    assert line == f"labels without an image: {tmp_path}/pairs/pictures/7.jpg; add the images or remove their labels"
    own_data.masks(tmp_path / "regions")
    (tmp_path / "regions" / "images" / "7.png").unlink()
    line = only_error(checked(tmp_path / "regions"))
    assert line.startswith(f"labels without an image: {tmp_path}/regions/masks/7.png; ")


def test_images_without_a_label_are_named_unless_allowed(tmp_path):
    table = own_data.labels_csv(tmp_path / "pairs")
    rows = list(csv.reader(table.open()))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:-2])
    line = only_error(checked(table))
    assert line.startswith("images without a label: ") and "pictures/38.jpg" in line and "--allow-unlabelled" in line
    allowed = checked(table, allow_unlabelled=True)
    assert allowed.errors == () and allowed.warnings[0].endswith("; left out")
    shapes = own_data.image_folder(tmp_path / "shapes")
    shutil.copy(shapes / "circle" / "0.png", shapes / "lost.png")
    assert "shapes/lost.png" in only_error(checked(shapes))


def test_pictures_in_another_format_are_told(shapes):
    (shapes / "circle" / "phone.HEIC").write_bytes(b"x")
    findings = checked(shapes)
    assert findings.errors == () and any("circle/phone.HEIC; save them as JPEG" in text for text in findings.warnings)


def test_unreadable_files_are_told_and_too_many_refused(shapes):
    (shapes / "circle" / "0.png").write_bytes(b"no picture")
    findings = checked(shapes)
    assert findings.errors == () and findings.num_unreadable == 1
    assert any("circle/0.png (not an image that can be decoded); left out" in text for text in findings.warnings)
    for index in range(1, 4):
        (shapes / "circle" / f"{index}.png").write_bytes(b"no picture")
    assert "more than 5% of 50 images" in only_error(checked(shapes))


def test_every_wrong_mask_is_named_with_its_value(tmp_path):
    own_data.masks(tmp_path)
    for index in (3, 5):
        mask = cv2.imread(str(tmp_path / "masks" / f"{index}.png"), cv2.IMREAD_UNCHANGED)
        mask[0, 0] = 9
        cv2.imwrite(str(tmp_path / "masks" / f"{index}.png"), mask)
    findings = checked(tmp_path)
    assert len(findings.errors) == 2
    assert all("mask value 9, but there are 3 labels (0..2)" in line for line in findings.errors)
    with pytest.raises(DataError, match=r"masks/3.png: mask value 9.*\(1 more; intern adapt --check lists them\)"):
        findings.require_none_wrong()


def test_box_outside_its_image_is_named(tmp_path):
    def outside(document):
        document["annotations"][3]["bbox"] = [200, 10, 20, 20]

    own_data.coco(tmp_path, outside)
    with pytest.raises(DataError, match=r"annotation 1003: box \[200, 10, 20, 20\]"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(("scale", "median"), [("1", "4000"), ("0.000001", "0.004")])
def test_depth_of_another_scale_is_named(tmp_path, scale, median):
    own_data.depth(tmp_path)
    (tmp_path / "scale.txt").write_text(scale)
    line = only_error(checked(tmp_path))
    assert line.startswith(f"depth: the median is {median} m, expected 0.01 to 200;") and "scale.txt" in line


def test_unused_categories_are_told(tmp_path):
    def add(document):
        document["categories"].append({"id": 99, "name": "hexagon"})

    own_data.coco(tmp_path, add)
    findings = checked(tmp_path)
    assert findings.errors == () and "never in train: hexagon" in findings.warnings


def test_pictures_of_a_turned_camera_are_turned_with_their_labels(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "a.png", exif=exif)
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 30}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 5, 20]}],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    (upright,) = read_dataset(path)
    assert np.array_equal(upright.image, np.rot90(stored, -1))
    assert check_reading(read_dataset(path)).num_turned == 1
    # Boxes that were drawn on the pixels as stored.
    document["images"][0] |= {"width": 30, "height": 20}
    document["annotations"][0]["bbox"] = [2, 3, 20, 5]
    path.write_text(json.dumps(document))
    (as_stored,) = read_dataset(path)
    assert np.array_equal(as_stored.image, stored)
