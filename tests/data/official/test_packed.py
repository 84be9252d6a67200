import numpy as np
import pytest
from official_layouts import write_cifar10, write_cifar100, write_fer2013, write_pcam, write_pickle, write_svhn
from official_pictures import picture

from intern_vision.data.official import read_official
from intern_vision.errors import DataError


def test_cifar10_keeps_pixels_labels_and_names(tmp_path):
    write_cifar10(tmp_path, num_train=15, num_test=6, seed=3)
    reading = read_official("cifar10", tmp_path)
    assert reading.tasks["classify"].class_names == ("airplane", "automobile", "bird")
    samples = list(reading)
    # Five batches of three: the second batch begins with the fourth image of its own classes.
    assert [sample.label for sample in samples[:6]] == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(samples[0].image, picture(np.random.default_rng(3), 0, 32, 32))
    assert [sample.key.split("-")[0] for sample in samples[13:17]] == [
        "train_00013",
        "train_00014",
        "test_00000",
        "test_00001",
    ]


def test_cifar100_takes_the_fine_labels(tmp_path):
    write_cifar100(tmp_path)
    reading = read_official("cifar100", tmp_path)
    assert reading.tasks["classify"].class_names == ("apple", "aquarium fish", "baby")
    assert [sample.label for sample in reading][:4] == [0, 1, 2, 0]


def test_a_foreign_pickle_is_refused_by_name(tmp_path):
    folder = write_cifar10(tmp_path)
    write_pickle(folder / "cifar-10-batches-py/data_batch_2", {"data": print, "labels": [0]})
    with pytest.raises(DataError, match=r"data_batch_2: not in the official layout of CIFAR-10: .*asks for .*print"):
        read_official("cifar10", tmp_path)
    write_pickle(folder / "cifar-10-batches-py/data_batch_2", {"data": np.zeros((1, 3072), np.uint8)})
    with pytest.raises(DataError, match="data_batch_2: .*it has no labels"):
        read_official("cifar10", tmp_path)
    (folder / "cifar-10-batches-py/data_batch_2").unlink()
    with pytest.raises(DataError, match=r"data_batch_2: missing; it is part of CIFAR-10, get it from https://www.cs"):
        read_official("cifar10", tmp_path)


def test_svhn_calls_the_digit_zero_zero(tmp_path):
    write_svhn(tmp_path, seed=1)
    reading = read_official("svhn", tmp_path)
    samples = list(reading)
    assert [sample.label for sample in samples[:11]] == [*range(10), 0]
    assert reading.tasks["classify"].class_names[0] == "0"
    rng = np.random.default_rng(1)
    assert all(np.array_equal(sample.image, picture(rng, sample.label, 32, 32)) for sample in samples)


def test_svhn_of_a_wrong_version_is_named(tmp_path):
    folder = write_svhn(tmp_path)
    (folder / "test_32x32.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    with pytest.raises(DataError, match="test_32x32.mat: not in the official layout of SVHN"):
        read_official("svhn", tmp_path)


def test_pcam_reads_slices(tmp_path):
    write_pcam(tmp_path, num_train=4, num_test=2, seed=2)
    samples = list(read_official("pcam", tmp_path))
    rng = np.random.default_rng(2)
    assert all(np.array_equal(sample.image, picture(rng, sample.label, 96, 96)) for sample in samples)
    assert [sample.split for sample in samples] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2


@pytest.mark.parametrize("name", ["fer2013.csv", "icml_face_data.csv"])
def test_fer2013_in_either_order_of_columns(tmp_path, name):
    folder = write_fer2013(tmp_path, num_train=8, num_test=2)
    lines = (folder / "fer2013.csv").read_text().splitlines()
    first = lines[1].split(",")[1].split()
    if name != "fer2013.csv":
        (folder / "fer2013.csv").unlink()
        rows = [line.split(",") for line in lines[1:]]
        text = [f"{emotion},{usage},{pixels}" for emotion, pixels, usage in rows]
        (folder / name).write_text("\n".join(["emotion, Usage, pixels", *text]))
    samples = list(read_official("fer2013", tmp_path))
    assert [sample.label for sample in samples[:8]] == [*range(7), 0]
    assert [sample.split for sample in samples] == ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    assert np.array_equal(samples[0].image[..., 1].ravel(), np.array(first, np.uint8))


def test_fer2013_with_an_unknown_usage_is_named(tmp_path):
    folder = write_fer2013(tmp_path, num_train=2, num_test=1)
    text = (folder / "fer2013.csv").read_text()
    (folder / "fer2013.csv").write_text(text.replace("PublicTest", "Nowhere"))
    with pytest.raises(DataError, match="fer2013.csv: not in the official layout of FER2013: 'Nowhere'"):
        read_official("fer2013", tmp_path)
