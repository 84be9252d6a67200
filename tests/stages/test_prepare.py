from pathlib import Path

import numpy as np
import official_layouts
import own_data
import pytest
from helpers import SIZE_PX

from intern_vision.bench.suite import find_row
from intern_vision.data.check import Findings
from intern_vision.data.codec import encode_png
from intern_vision.data.loader import ShardSource, load_info
from intern_vision.data.official import read_official
from intern_vision.data.sample import Sample
from intern_vision.data.text import Tokenizer
from intern_vision.data.world import DOWNSTREAM
from intern_vision.errors import ConfigError, DataError
from intern_vision.stages import prepare
from intern_vision.stages.base import Inputs, read_record, run_stage
from intern_vision.store import join_uri, open_store


def prepared(world, tmp_path, name: str = "", **settings):
    config = prepare.Config(**{"dataset": "flower", "num_train": 12, "num_test": 6, "image_size_px": 32} | settings)
    ref = run_stage("prepare", config, Inputs(), name=name or config.dataset)
    store = open_store(world.store_root)
    return ref, load_info(store, ref.uri), read_record(store, ref.uri)


def source_of(world, uri: str, tmp_path: Path, split, fields) -> ShardSource:
    return ShardSource(open_store(world.store_root), uri, cache_dir=tmp_path / "cache", split=split, fields=fields)


def test_upstream_has_every_kind_of_supervision_and_a_tokenizer(world, tmp_path):
    fields = ("caption", "concepts", "boxes", "box_labels", "mask", "depth")
    source = source_of(world, world.upstream.uri, tmp_path, "train", fields)
    assert len(source) == 96 and source.info.num_val == 16
    sample = source[0]
    assert sample.image.shape == (SIZE_PX, SIZE_PX, 3)
    assert sample.mask.shape == sample.depth.shape == (SIZE_PX, SIZE_PX)
    assert len(sample.boxes) == len(sample.box_labels) > 0 and sample.concepts and sample.caption
    assert set(source.info.tasks) == {"multilabel", "detect", "segment", "depth"}
    assert len(source.info.concept_names) == 48
    path = tmp_path / "tokenizer.json"
    open_store(world.store_root).get(f"{world.upstream.uri}/{prepare.TOKENIZER_FILE}", path)
    tokenizer = Tokenizer.load(path)
    assert tokenizer.decode(tokenizer.encode(sample.caption, 40)) == sample.caption.lower()
    assert tokenizer.vocab_size <= 512


def test_sets_without_captions_have_no_tokenizer(world, tmp_path):
    _, info, record = prepared(world, tmp_path)
    assert prepare.TOKENIZER_FILE not in record.files
    assert (info.num_train, info.num_val, info.num_test) == (12, 0, 6)
    assert record.facts["num_train"] == 12 and record.facts["num_quarantined"] == 0


def test_the_same_config_gives_the_same_bytes_and_the_seed_others(world, tmp_path):
    one, other, third = (prepared(world, tmp_path, name, seed=seed)[0] for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one.uri != other.uri and one.digest == other.digest != third.digest


def test_any_number_of_processes_gives_the_same_bytes(world, tmp_path, monkeypatch):
    config = prepare.Config(dataset="flower", num_train=30, num_test=7, image_size_px=32, seed=3)
    alone = run_stage("prepare", config, Inputs(), name="alone")
    monkeypatch.setattr(prepare, "MIN_IMAGES_FOR_WORKERS", 1)
    monkeypatch.setattr(prepare, "CHUNK_SIZE", 5)
    together = run_stage("prepare", config, Inputs(), name="together", num_ranks=2)
    assert alone.digest == together.digest


def test_real_images_are_taken_as_far_as_they_go(world, tmp_path):
    _, info, _ = prepared(world, tmp_path, dataset="digits", num_train=100_000, num_test=5)
    assert (info.num_train, info.num_test) == (DOWNSTREAM["digits"].num_train, 5)


def test_own_files_become_a_dataset(world, tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "own" / label
        folder.mkdir(parents=True)
        for number in range(10):
            image = rng.integers(0, 256, (20, 24, 3), np.uint8)
            (folder / f"{number}.png").write_bytes(encode_png(image))
    ref, info, record = prepared(world, tmp_path, dataset="pets", path=str(tmp_path / "own"))
    assert ref.name == "pets" and info.tasks["classify"].class_names == ("cat", "dog")
    assert info.num_train + info.num_val + info.num_test == 20
    source = source_of(world, ref.uri, tmp_path, None, ("label",))
    assert sorted({source[index].label for index in range(20)}) == [0, 1]
    assert record.facts["num_quarantined"] == 0


def test_what_cannot_be_prepared_is_named(world, tmp_path):
    with pytest.raises(ConfigError, match="dataset: expected one of upstream, flower, .*, got 'flour'"):
        prepared(world, tmp_path, dataset="flour")
    with pytest.raises(DataError, match="nowhere"):
        prepared(world, tmp_path, dataset="own", path=str(tmp_path / "nowhere"))


OFFICIAL = ("cifar10", "flowers102", "retinopathy", "wider_face", "citypersons", "voc2012_seg", "kitti_eigen")


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_set_keeps_its_splits_metric_and_pixels(world, tmp_path, name):
    official_layouts.WRITERS[name](tmp_path)
    row = find_row(name)
    ref, info, _ = prepared(world, tmp_path, dataset=f"gvb-{name}", path=str(tmp_path), official=name)
    assert (info.name, info.metric, info.licence, info.source) == (ref.name, row.metric, row.licence, row.source_url)
    assert info.depth_scale == row.depth_scale and set(info.tasks) == {row.family}
    reading = [sample for sample in read_official(name, tmp_path) if isinstance(sample, Sample)]
    assert info.num_train == sum(sample.split == "train" for sample in reading)
    source = source_of(world, ref.uri, tmp_path, None, [field for field in info.fields if field != "image"])
    assert source.keys == [sample.key for sample in reading]
    assert source.strata == [sample.stratum for sample in reading]
    for stored, sample in zip((source[index] for index in range(len(source))), reading, strict=True):
        assert np.array_equal(stored.image, sample.image) and stored.label == sample.label
        for field in ("boxes", "box_labels", "mask", "depth"):
            assert np.array_equal(getattr(stored, field), getattr(sample, field)), field
        assert stored.box_attributes.keys() == sample.box_attributes.keys()
        for attribute, values in sample.box_attributes.items():
            assert np.array_equal(stored.box_attributes[attribute], values)


def test_frames_keep_their_index_and_missing_videos_their_reason(world, tmp_path):
    official_layouts.write_kinetics700(tmp_path)
    ref, info, record = prepared(world, tmp_path, dataset="kinetics", path=str(tmp_path), official="kinetics700")
    assert record.facts["num_quarantined"] == info.num_quarantined == 1 and info.num_train == 6
    source = source_of(world, ref.uri, tmp_path, "train", ("label", "frame"))
    assert source[0].frame == official_layouts.NUM_FRAMES // 2


def test_an_official_set_that_is_not_there_is_named(world, tmp_path):
    with pytest.raises(DataError, match=r"svhn: no such folder; get SVHN from http"):
        prepared(world, tmp_path, dataset="svhn", path=str(tmp_path), official="svhn")
    with pytest.raises(ConfigError, match="official must be one of cifar10, .*, nyu_v2"):
        prepare.Config.from_dict({"dataset": "mnist", "path": "data", "official": "mnist"})
    with pytest.raises(ConfigError, match="path must be the data root where official is given"):
        prepare.Config.from_dict({"dataset": "svhn", "official": "svhn"})


def test_too_many_missing_files_stop_an_official_set(world, tmp_path):
    folder = official_layouts.write_food101(tmp_path)
    for path in sorted((folder / "food-101/images/waffles").iterdir())[:3]:
        path.unlink()
    with pytest.raises(DataError, match="3 of 18 samples are unusable, the limit is 5%"):
        prepared(world, tmp_path, dataset="food101", path=str(tmp_path), official="food101")


def test_findings_of_own_data_lie_beside_it_and_wrong_data_is_not_committed(world, tmp_path):
    shapes = own_data.image_folder(tmp_path / "shapes")
    (shapes / "circle" / "0.png").write_bytes(b"no picture")
    ref, info, record = prepared(world, tmp_path, dataset="shapes", path=str(shapes))
    text = open_store(world.store_root).read(join_uri(ref.uri, prepare.FINDINGS_FILE)).decode()
    findings = Findings.from_json(text)
    assert findings.num_unreadable == info.num_quarantined == 1 and findings.drawn == ("test", "val")
    assert sum(findings.num_images.values()) == 49 and prepare.FINDINGS_FILE in record.files
    (shapes / "blob").mkdir()
    with pytest.raises(DataError, match="class 'blob': the folder has no image"):
        prepared(world, tmp_path, dataset="shapes", path=str(shapes), content_digest="other")


def test_distant_own_depth_keeps_its_range(world, tmp_path):
    rooms = own_data.depth(tmp_path / "rooms")
    (rooms / "scale.txt").write_text("0.02")
    ref, info, _ = prepared(world, tmp_path, dataset="rooms", path=str(rooms))
    source = source_of(world, ref.uri, tmp_path, None, ("depth",))
    assert info.tasks["depth"].max_depth_m == pytest.approx(80.0)
    assert float(source[0].depth.max()) == pytest.approx(80.0, abs=0.01)
