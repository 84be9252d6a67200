import json
import random

import official_layouts
import pytest

from intern_vision.bench import splits
from intern_vision.bench.protocol import list_digest, stratified_share
from intern_vision.bench.suite import SUITE
from intern_vision.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def published():
    return splits.read_splits()


def test_every_set_has_its_row_and_every_made_list_is_published(published):
    assert [row.dataset for row in published if row.source == "official"] == [row.name for row in SUITE]
    for row in published:
        assert {"10", "100"} <= row.lists.keys()
        assert row.source == "official" or all(each.digest for each in row.lists.values()), row.name
    assert len({row.identity for row in published}) == len(published)
    assert splits.to_text(published) == splits.SPLITS_PATH.read_text()


def test_expected_numbers_of_official_sets_are_the_suites(published):
    flowers = next(row for row in published if row.dataset == "flowers102")
    assert flowers.lists["10"] == splits.ListDigest(num_images=204)
    assert flowers.lists["100"].num_images == 2_040 and flowers.lists["2shot.1"].num_images == 204
    detection = next(row for row in published if row.dataset == "voc0712")
    assert list(detection.lists) == ["10", "100"]


def test_published_lists_of_small_sets_are_found_again(published):
    small = [row for row in published if row.num_train <= 1_500 and row.source != "official"]
    assert {row.dataset for row in small} == {"flower", "det_novel", "seg_night", "depth_room", "digits"}
    found = splits.compute(small)
    assert found == tuple(small)
    splits.check(published, found)


def test_digests_are_those_of_an_independent_draw(published):
    from sklearn.datasets import load_digits

    row = next(row for row in published if row.dataset == "digits")
    labels = [int(label) for label in load_digits().target[: row.num_train]]
    keys = [f"digits-train-{index:06d}" for index in range(row.num_train)]
    order = random.Random(0).sample(range(row.num_train), row.num_train)
    drawn = stratified_share([keys[i] for i in order], [labels[i] for i in order], 0.1, row.seed)
    assert row.lists["10"] == splits.ListDigest(num_images=len(drawn), digest=list_digest(drawn))


def test_the_first_list_that_differs_is_named(published):
    (row,) = [row for row in published if row.dataset == "digits"]
    lists = row.lists | {"4shot.1": splits.ListDigest(num_images=40, digest="0" * 64)}
    with pytest.raises(DataError, match=r"splits: digits \(1,197 images\) @4shot.1: published +40 images  \w{12}, "):
        splits.check(published, [row.model_copy(update={"lists": lists})])


def test_unknown_sets_are_refused_by_name(published):
    assert [row.dataset for row in splits.selected_rows(published, ("cifar10",))] == ["cifar10"]
    with pytest.raises(ConfigError, match="--datasets: expected names among flower, .*nyu_v2, got 'cifar'"):
        splits.selected_rows(published, ("cifar",))


def test_a_persons_copy_fills_in_what_is_unpublished_and_is_compared_from_then_on(published, tmp_path):
    official_layouts.write_oxford_pets(tmp_path, num_train=30)
    rows = splits.selected_rows(published, ("oxford_pets", "food101"))
    found = splits.compute(rows, tmp_path)
    pets = next(row for row in found if row.dataset == "oxford_pets")
    assert pets.num_train == 30 and pets.lists["10"].num_images == 3 and pets.lists["100"].num_images == 30
    # The other set's folder is absent.
    assert [row for row in found if row.dataset == "food101"] == [row for row in rows if row.dataset == "food101"]
    lines = splits.to_lines(found, published)
    assert sum("not published" in line for line in lines) == len(pets.lists)
    splits.check(published, found)
    path = tmp_path / "splits.json"
    path.write_text(splits.to_text(splits.merged(published, found)))
    known = splits.read_splits(path)
    assert pets in known and len(known) == len(published)
    official_layouts.write_oxford_pets(tmp_path / "other", num_train=31)
    with pytest.raises(DataError, match=r"splits: oxford_pets \(31 images\) @100: "):
        splits.merged(known, splits.compute(splits.selected_rows(known, ("oxford_pets",)), tmp_path / "other"))


def test_lists_of_a_copy_are_those_that_the_adaptation_draws(tmp_path, monkeypatch):
    """Keys and strata are taken without opening an image, and must be those of the prepared dataset."""
    from helpers import set_environment

    from intern_vision.data.loader import ShardSource
    from intern_vision.stages import prepare
    from intern_vision.stages.adapt import strata_of
    from intern_vision.stages.base import Inputs, run_stage
    from intern_vision.store import open_store

    set_environment(monkeypatch, {"INTERN_STORE": f"file://{tmp_path}/store", "INTERN_STATE": str(tmp_path / "state")})
    for name, family in (("oxford_pets", "classify"), ("voc0712", "detect"), ("kitti_eigen", "depth")):
        getattr(official_layouts, f"write_{name}")(tmp_path)
        ref = run_stage("prepare", prepare.Config(dataset=name, official=name, path=str(tmp_path)), Inputs())
        source = ShardSource(open_store(ref.uri), ref.uri, cache_dir=tmp_path / "cache", split="train", fields=())
        keys, strata = splits.official_keys(name, tmp_path)
        assert sorted(keys) == sorted(source.keys)
        ours = stratified_share(keys, strata, 0.5, 2021)
        assert ours == stratified_share(source.keys, strata_of(source, family), 0.5, 2021)


def test_a_file_that_is_no_list_is_named(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"rule": "x", "rows": [{"dataset": "x"}]}))
    with pytest.raises(ConfigError, match=str(path)):
        splits.read_splits(path)
