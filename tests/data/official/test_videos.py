import numpy as np
import pytest
from official_layouts import NUM_FRAMES, write_kinetics700, write_ucf101, write_video
from official_pictures import picture

from intern_vision.data.manifest import Quarantined
from intern_vision.data.official import read_official
from intern_vision.data.official.videos import middle_frame
from intern_vision.errors import DataError


@pytest.mark.parametrize(("suffix", "code"), [("avi", "MJPG"), ("mp4", "mp4v")])
def test_the_middle_frame_is_taken(tmp_path, suffix, code):
    path = tmp_path / f"video.{suffix}"
    write_video(path, np.random.default_rng(0), 1, code)
    image, encoded, frame = middle_frame(path)
    assert frame == NUM_FRAMES // 2 == 4 and encoded[:2] == b"\xff\xd8"
    # Each frame is brighter by 10: number 4 lies 40 above the first, whose mean is known from the picture.
    first = (picture(np.random.default_rng(0), 1) // 2).astype(float).mean((0, 1))
    assert np.abs(image.mean((0, 1)) - first - 40).max() < 4


def test_ucf101_is_one_frame_a_video(tmp_path):
    write_ucf101(tmp_path)
    reading = read_official("ucf101", tmp_path)
    assert reading.tasks["classify"].class_names == ("apply eye makeup", "baby crawling", "yo yo")
    samples = list(reading)
    assert [sample.label for sample in samples] == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert {sample.frame for sample in samples} == {NUM_FRAMES // 2}


def test_missing_videos_of_kinetics_are_counted_with_a_reason(tmp_path):
    write_kinetics700(tmp_path)
    reading = read_official("kinetics700", tmp_path)
    assert reading.num_samples == 10
    (bad,) = [sample for sample in reading if isinstance(sample, Quarantined)]
    assert bad.reason == "video -train00006__000001_000011.mp4 is missing"
    assert reading.tasks["classify"].class_names == ("abseiling", "air drumming", "zumba")


def test_kinetics_videos_may_lie_anywhere_below_their_split(tmp_path):
    folder = write_kinetics700(tmp_path)
    keys = [item.key for item in read_official("kinetics700", tmp_path).items]
    for path in sorted((folder / "train").rglob("*.mp4")):
        path.rename(folder / "train" / path.name)
    reading = read_official("kinetics700", tmp_path)
    assert [item.key for item in reading.items] == keys
    assert sum(isinstance(sample, Quarantined) for sample in reading) == 1


def test_a_broken_video_is_quarantined(tmp_path):
    folder = write_ucf101(tmp_path, num_train=3, num_test=1)
    path = sorted((folder / "UCF-101").rglob("*.avi"))[0]
    path.write_bytes(b"no video")
    bad = [sample for sample in read_official("ucf101", tmp_path) if isinstance(sample, Quarantined)]
    assert [path.name in sample.reason and "cannot be decoded" in sample.reason for sample in bad] == [True]


def test_a_list_without_its_class_is_named(tmp_path):
    folder = write_ucf101(tmp_path, num_train=3, num_test=1)
    (folder / "ucfTrainTestlist/testlist01.txt").write_text("Juggling/v_Juggling_g01_c01.avi\n")
    with pytest.raises(DataError, match="testlist01.txt: not in the official layout of UCF101"):
        read_official("ucf101", tmp_path)
