import cv2
import numpy as np
import pytest
from official_layouts import write_retinopathy

from intern_vision.data.official import read_official
from intern_vision.data.official.retinopathy import normalised_eye
from intern_vision.errors import DataError


def test_public_is_for_validation_and_private_is_scored(tmp_path):
    write_retinopathy(tmp_path, num_train=4, num_test=2)
    samples = list(read_official("retinopathy", tmp_path))
    assert [sample.split for sample in samples] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert [sample.label for sample in samples] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert all(sample.encoded[:2] == b"\xff\xd8" for sample in samples)


def test_the_eye_becomes_a_disc_of_270_px_on_grey():
    image = np.zeros((200, 300, 3), np.uint8)
    cv2.circle(image, (150, 100), 80, (180, 90, 30), -1)
    cv2.circle(image, (150, 100), 4, (255, 255, 255), -1)
    eye = normalised_eye(image)
    assert eye.shape == (540, 540, 3)
    assert (eye[0, 0] == 128).all() and (eye[-1, -1] == 128).all()
    # Away from edges the local mean is the image itself; a bright spot stands out.
    assert np.abs(eye[270, 100].astype(int) - 128).max() <= 2
    assert eye[270, 270].min() > 200


def test_an_image_without_an_eye_does_not_fail():
    assert normalised_eye(np.zeros((50, 60, 3), np.uint8)).shape[2] == 3


def test_an_unknown_usage_is_named(tmp_path):
    folder = write_retinopathy(tmp_path, num_train=2, num_test=1)
    path = folder / "retinopathy_solution.csv"
    path.write_text(path.read_text().replace("Private", "Secret"))
    with pytest.raises(DataError, match="retinopathy_solution.csv: .*Secret"):
        read_official("retinopathy", tmp_path)
