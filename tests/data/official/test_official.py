import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from official_layouts import WRITERS, write_all

from intern_vision.bench.suite import SUITE, find_row
from intern_vision.data.manifest import Quarantined
from intern_vision.data.official import READERS, read_official
from intern_vision.data.reading import SplitRule
from intern_vision.data.sample_check import sample_fault
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError, DataError

# Training and test images of the miniatures that do not have 12 and 6.
COUNTS = {"ucf101": (6, 3), "kinetics700": (6, 3), "caltech101": (60, 6), "cifar10": (15, 6)}
COUNTS |= {"flowers102": (204, 102), "svhn": (20, 10), "retinopathy": (10, 5), "fer2013": (14, 7), "gtsrb": (86, 43)}
VALIDATED = {"retinopathy": 5, "fer2013": 7, "pcam": 6}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


def test_every_row_has_a_reader_and_a_miniature():
    assert {row.reader for row in SUITE} == set(READERS) and set(WRITERS) == {row.name for row in SUITE}


def test_finding_a_dataset_needs_no_heavy_library(data_root):
    import subprocess

    code = "import sys; import intern_vision.data.official; print({'torch', 'cv2', 'scipy', 'h5py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("row", SUITE, ids=lambda row: row.name)
def test_miniature_is_read_with_its_official_splits(data_root, row):
    reading = read_official(row.name, data_root)
    (task,) = reading.tasks.values()
    assert task.family == row.family
    samples = [sample for sample in reading if not isinstance(sample, Quarantined)]
    num_train, num_test = COUNTS.get(row.name, (12, 6))
    splits = Counter(sample.split for sample in samples)
    if row.name in ("eurosat", "resisc45"):
        assert splits == {"train": 14, "val": 5, "test": 5}
    else:
        expected = {"train": num_train, "test": num_test, "val": VALIDATED.get(row.name, 0)}
        assert splits == {split: count for split, count in expected.items() if count}
    assert len({sample.key for sample in samples}) == len(samples)
    info = DatasetInfo(name=row.name, tasks=reading.tasks)
    assert [fault for sample in samples if (fault := sample_fault(sample, info))] == []
    if row.family == "classify":
        for split in splits:
            assert {sample.label for sample in samples if sample.split == split} == set(range(task.num_classes))
        assert {sample.stratum for sample in samples} == {str(sample.label) for sample in samples}


@pytest.mark.parametrize("row", SUITE, ids=lambda row: row.name)
def test_an_absent_set_says_where_to_get_it(tmp_path, row):
    with pytest.raises(DataError, match=f"{row.name}: no such folder") as error:
        read_official(row.name, tmp_path)
    assert row.source_url in str(error.value) and "\n" not in str(error.value)
    (tmp_path / row.name).mkdir()
    with pytest.raises(DataError) as error:
        read_official(row.name, tmp_path)
    assert row.source_url in str(error.value) and row.name in str(error.value)


def test_keys_depend_neither_on_the_place_nor_on_the_top_folder(data_root, tmp_path):
    for name in ("food101", "cifar10", "kitti_eigen"):
        WRITERS[name](tmp_path)
        first, second = (read_official(name, root).items for root in (data_root, tmp_path))
        assert [item.key for item in first] == [item.key for item in second]
    (top,) = (tmp_path / "food101").iterdir()
    for part in sorted(top.iterdir()):
        part.rename(tmp_path / "food101" / part.name)
    top.rmdir()
    assert [item.key for item in read_official("food101", tmp_path).items] == [
        item.key for item in read_official("food101", data_root).items
    ]


def test_drawn_splits_follow_the_rule_and_others_do_not(data_root):
    def splits(name, seed):
        return [item.split for item in read_official(name, data_root, SplitRule(seed=seed)).items]

    for name in ("caltech101", "eurosat", "resisc45"):
        assert splits(name, 0) == splits(name, 0) != splits(name, 1)
    assert splits("food101", 0) == splits("food101", 1)


def test_caltech_trains_on_thirty_a_class(data_root):
    items = read_official("caltech101", data_root).items
    assert Counter((item.split, item.annotation) for item in items if item.split == "train") == {
        ("train", 0): 30,
        ("train", 1): 30,
    }


def test_images_are_opened_one_by_one(data_root):
    reading = read_official("cifar10", data_root)
    opened = []
    load = reading.load
    counting = replace(reading, load=lambda item: opened.append(item.key) or load(item))
    assert next(iter(counting)).image.dtype == np.uint8
    assert len(opened) == 1


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not in the suite"):
        read_official("mnist", tmp_path)


def test_every_scale_reaches_its_cap():
    assert find_row("kitti_eigen").depth_scale * 256 == 1 and find_row("nyu_v2").depth_scale == 0.001
