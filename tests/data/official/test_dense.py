from collections import Counter

import cv2
import numpy as np
import pytest
from official_dense_layouts import voc_mask, write_kitti_eigen, write_nyu_v2, write_voc2012_seg
from official_pictures import corner_box, save

from intern_vision.data.codec import decode_labels
from intern_vision.data.manifest import Quarantined
from intern_vision.data.official import read_official
from intern_vision.errors import DataError


@pytest.mark.parametrize("form", ["png", "sbd"])
def test_voc_masks_keep_void_and_come_from_both_lists(tmp_path, form):
    write_voc2012_seg(tmp_path, form=form)
    reading = read_official("voc2012_seg", tmp_path)
    assert reading.tasks["segment"].class_names[:2] == ("background", "aeroplane")
    samples = list(reading)
    assert Counter((sample.split, sample.stratum) for sample in samples) == {
        ("train", "train"): 4,
        ("train", "aug"): 8,
        ("test", "val"): 6,
    }
    for index, sample in enumerate([*samples[:4], *samples[12:]]):
        assert np.array_equal(sample.mask, voc_mask(index % 4 % 3 if index < 4 else (index - 4) % 3))
        assert 255 in sample.mask
    assert np.array_equal(samples[4].mask, voc_mask(1))


def test_a_palette_gives_indices_and_not_colours(tmp_path):
    folder = write_voc2012_seg(tmp_path, num_train=3, num_test=1)
    path = next((folder / "VOCdevkit/VOC2012/SegmentationClass").iterdir())
    data = path.read_bytes()
    assert data[25] == 3 and set(np.unique(decode_labels(data))) <= {0, 1, 2, 3, 255}
    with pytest.raises(ValueError, match="ends before"):
        decode_labels(data[:-40])


def test_voc_without_added_masks_is_named(tmp_path):
    import shutil

    folder = write_voc2012_seg(tmp_path)
    shutil.rmtree(folder / "benchmark_RELEASE")
    shutil.rmtree(folder / "VOCdevkit/VOC2012/SegmentationClassAug")
    with pytest.raises(DataError, match="SegmentationClassAug: missing"):
        read_official("voc2012_seg", tmp_path)


def test_kitti_depth_is_in_metres_up_to_the_cap(tmp_path):
    write_kitti_eigen(tmp_path)
    reading = read_official("kitti_eigen", tmp_path)
    assert reading.tasks["depth"].max_depth_m == 80 and reading.num_samples == 18
    samples = list(reading)
    for index, sample in enumerate(samples[:12]):
        x, y, width, height = corner_box(index % 3)
        expected = np.zeros((36, 48), np.float32)
        expected[y : y + height, x : x + width] = 10.5
        expected[-1] = 0
        assert np.array_equal(sample.depth, expected)
    strata = Counter(sample.stratum for sample in samples if sample.split == "train")
    assert strata == {"2011_09_26_drive_0001_sync": 6, "2011_09_26_drive_0002_sync": 6}
    assert not any(item.stratum.endswith("0009_sync") for item in reading.items)


def test_depth_of_8_bits_or_another_size_is_quarantined(tmp_path):
    folder = write_kitti_eigen(tmp_path)
    paths = sorted((folder / "data_depth_annotated/train").rglob("*.png"))
    save(paths[0], np.zeros((36, 48), np.uint8))
    paths[1].unlink()
    bad = [sample for sample in read_official("kitti_eigen", tmp_path) if isinstance(sample, Quarantined)]
    assert sorted("expected depth of 16 bits, got 8" in sample.reason for sample in bad) == [False, True]


@pytest.mark.parametrize("form", ["mat", "list"])
def test_nyu_test_images_from_the_labelled_file_or_a_list(tmp_path, form):
    write_nyu_v2(tmp_path, form=form)
    samples = list(read_official("nyu_v2", tmp_path))
    test = [sample for sample in samples if sample.split == "test"]
    assert len(test) == 6 and {sample.stratum for sample in samples if sample.split == "train"} == {
        "bathroom_0000",
        "bathroom_0001",
    }
    for index, sample in enumerate(test):
        x, y, _, _ = corner_box(index % 3)
        assert sample.image.shape == (36, 48, 3) and sample.depth.dtype == np.float32
        # The number 1 of the file is no test image: it would be black, and 1 m away.
        assert sample.depth[y, x] == 2.5 and sample.depth[-1, -1] == 4 and sample.image.max() > 150
        assert cv2.blur(sample.image, (7, 7)).max(axis=(0, 1)).argmax() == index % 3


def test_a_list_that_leads_out_is_refused(tmp_path):
    folder = write_nyu_v2(tmp_path)
    (folder / "nyudepthv2_train_files_with_gt.txt").write_text("/../../x.jpg /../../x.png 518.8\n")
    with pytest.raises(DataError, match="nyudepthv2_train_files_with_gt.txt: the path .* leads out"):
        read_official("nyu_v2", tmp_path)
