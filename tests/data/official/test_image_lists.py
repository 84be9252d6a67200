import cv2
import numpy as np
import pytest
from official_layouts import WRITERS
from official_pictures import picture
from scipy.io import savemat

from intern_vision.data.codec import decode_image
from intern_vision.data.manifest import Quarantined
from intern_vision.data.official import read_official
from intern_vision.data.official.names import FLOWERS, TRAFFIC_SIGNS
from intern_vision.errors import DataError

NAMES = {
    "food101": ("apple pie", "baby back ribs", "waffles"),
    "oxford_pets": ("Abyssinian", "american bulldog", "Bengal"),
    "flowers102": FLOWERS,
    "sun397": ("abbey", "apartment building outdoor", "zen garden"),
    "stanford_cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"),
    "dtd": ("banded", "blotchy", "zigzagged"),
    "caltech101": ("BACKGROUND Google", "Faces easy"),
    "fgvc_aircraft": ("707-320", "Cessna 172", "F/A-18"),
    "eurosat": ("AnnualCrop", "Forest", "SeaLake"),
    "resisc45": ("airplane", "baseball diamond", "wetland"),
    "gtsrb": TRAFFIC_SIGNS,
    "imagenet": ("tench", "crane (n02012849)", "crane (n03126707)"),
}
# A list of each set, and a line in it that its reader must refuse.
LISTS = {
    "food101": ("food-101/meta/test.txt", "pizza/1"),
    "sun397": ("Partitions/Testing_01.txt", "/a/attic/sun_1.jpg"),
    "fgvc_aircraft": ("fgvc-aircraft-2013b/data/images_variant_test.txt", "0034309 A380"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_labels_belong_together(tmp_path, name):
    folder = WRITERS[name](tmp_path)
    reading = read_official(name, tmp_path)
    assert reading.tasks["classify"].class_names == NAMES[name]
    for sample in reading:
        # The bright square tells the class: its channel, and the half it lies in.
        bright = np.unravel_index(cv2.blur(sample.image, (7, 7)).argmax(), sample.image.shape)
        assert bright[2] == sample.label % 3, f"{folder}: {sample.key}"
        assert (bright[1] >= sample.image.shape[1] // 2) == bool(sample.label % 2)


def test_files_go_on_unchanged(tmp_path):
    WRITERS["food101"](tmp_path)
    reading = read_official("food101", tmp_path)
    sample = next(iter(reading))
    assert sample.encoded == reading.items[0].path.read_bytes()
    assert np.array_equal(decode_image(sample.encoded), sample.image)


@pytest.mark.parametrize("name", LISTS)
def test_an_unknown_class_in_a_list_is_named(tmp_path, name):
    folder = WRITERS[name](tmp_path)
    path, line = LISTS[name]
    with (folder / path).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=f"{path}: class .* is not among the 3 classes"):
        read_official(name, tmp_path)


def test_a_list_cannot_lead_out_of_its_set(tmp_path):
    folder = WRITERS["dtd"](tmp_path)
    for escape in ("../../../secret.jpg", "banded/../../../secret.jpg"):
        (folder / "dtd/labels/test1.txt").write_text(f"{escape}\n")
        with pytest.raises(DataError, match=r"test1.txt: the path .*secret.jpg' leads out of"):
            read_official("dtd", tmp_path)


def test_a_short_line_is_named_with_its_number(tmp_path):
    folder = WRITERS["oxford_pets"](tmp_path)
    (folder / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nBengal_2\n")
    with pytest.raises(DataError, match=r"test.txt: line 2: expected 2 columns, got 'Bengal_2'"):
        read_official("oxford_pets", tmp_path)
    (folder / "annotations/test.txt").write_text("Abyssinian_1 one 1 1\n")
    with pytest.raises(DataError, match=r"test.txt: not in the official layout of Oxford-IIIT Pets: .*'one'"):
        read_official("oxford_pets", tmp_path)


def test_a_table_without_a_column_is_named(tmp_path):
    folder = WRITERS["gtsrb"](tmp_path)
    (folder / "GT-final_test.csv").write_text("Filename;Width\n00000.ppm;30\n")
    with pytest.raises(
        DataError, match="GT-final_test.csv: expected the columns Filename, ClassId; ClassId is missing"
    ):
        read_official("gtsrb", tmp_path)


def test_a_class_beyond_the_names_is_named(tmp_path):
    folder = WRITERS["flowers102"](tmp_path, num_train=4, num_test=2)
    savemat(folder / "imagelabels.mat", {"labels": np.full((1, 6), 103, np.uint8)})
    with pytest.raises(DataError, match="class index 102, but Flowers-102 has 102 classes"):
        read_official("flowers102", tmp_path)
    savemat(folder / "imagelabels.mat", {"other": [1]})
    with pytest.raises(DataError, match="imagelabels.mat: .*it has no variable labels"):
        read_official("flowers102", tmp_path)


def test_a_listed_image_that_is_not_there_is_quarantined(tmp_path):
    folder = WRITERS["food101"](tmp_path)
    next((folder / "food-101/images/waffles").glob("*.jpg")).unlink()
    (bad,) = [sample for sample in read_official("food101", tmp_path) if isinstance(sample, Quarantined)]
    assert "No such file" in bad.reason and "waffles" in bad.uri


def test_lists_replace_the_drawn_splits(tmp_path):
    folder = WRITERS["eurosat"](tmp_path)
    paths = [path.relative_to(folder / "2750").as_posix() for path in sorted((folder / "2750").rglob("*.jpg"))]
    (folder / "lists").mkdir()
    for split, part in (("train", paths[:10]), ("val", paths[10:14]), ("test", paths[14:])):
        (folder / f"lists/{split}.txt").write_text("\n".join(part))
    items = read_official("eurosat", tmp_path).items
    assert [item.split for item in items] == ["train"] * 10 + ["val"] * 4 + ["test"] * 10
    (folder / "lists/val.txt").unlink()
    with pytest.raises(DataError, match="lists/val.txt: missing"):
        read_official("eurosat", tmp_path)


def test_imagenet_validation_may_lie_in_folders(tmp_path):
    folder = WRITERS["imagenet"](tmp_path)
    flat = {item.path.name: item.annotation for item in read_official("imagenet", tmp_path).items}
    base = folder / "ILSVRC/Data/CLS-LOC"
    synsets = sorted(part.name for part in (base / "train").iterdir())
    for path in sorted((base / "val").glob("*.JPEG")):
        place = base / "val" / synsets[flat[path.name]]
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)
    (folder / "LOC_val_solution.csv").unlink()
    assert {item.path.name: item.annotation for item in read_official("imagenet", tmp_path).items} == flat


def test_gtsrb_takes_the_final_training_images_where_they_are_alone(tmp_path):
    folder = WRITERS["gtsrb"](tmp_path)
    (folder / "GTSRB/Final_Training").mkdir()
    (folder / "GTSRB/Training").rename(folder / "GTSRB/Final_Training/Images")
    samples = list(read_official("gtsrb", tmp_path))
    assert len(samples) == 129 and samples[0].encoded is None
    # ppm is not kept as it is, because a shard holds JPEG and PNG; its pixels are.
    assert np.array_equal(samples[0].image, picture(np.random.default_rng(0), 0, 29, 30))
