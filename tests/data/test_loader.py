import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.data import loader
from intern_vision.data.augment import AugmentConfig, Resize
from intern_vision.data.batch import collate
from intern_vision.data.loader import ShardSource, evaluation_batches, load_info, make_loader, read_index
from intern_vision.data.sample import Sample
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.errors import ConfigError, DataError
from intern_vision.store import open_store
from intern_vision.task import Task

INFO = DatasetInfo(
    name="toy",
    tasks={"classify": Task(family="classify", class_names=("a", "b", "c"))},
    concept_names=("k0", "k1"),
)
ALL = ("caption", "label", "concepts", "boxes", "box_labels", "mask", "depth")


def make_sample(index):
    rng = np.random.default_rng(index)
    return Sample(
        key=f"s{index:03d}",
        split=("train", "train", "val")[index % 3],
        image=rng.integers(0, 256, (16, 16, 3), np.uint8),
        caption=f"picture {index}",
        label=index % 3,
        concepts=(index % 2,),
        boxes=np.array([[1, 2, 9, 10]] * (index % 6), np.float32).reshape(-1, 4),
        box_labels=np.arange(index % 6),
        mask=rng.integers(0, 5, (16, 16), np.uint8),
        depth=rng.uniform(0.5, 9, (16, 16)).astype(np.float32),
    )


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data"
    write_dataset(map(make_sample, range(20)), INFO, folder, max_shard_bytes=20_000, lossless=True)
    uri = folder.as_uri()
    return open_store(uri), uri, folder, tmp_path / "cache"


def open_source(dataset, **options):
    store, uri, _, cache_dir = dataset
    return ShardSource(store, uri, **({"cache_dir": cache_dir, "fields": ALL} | options))


class Numbers:
    """A source whose samples are their own indices."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


def number_example(index, rng):
    image = rng.integers(0, 256, (2, 2, 3), np.uint8)
    return {"key": str(index), "label": index, "image": image}


def run(size=7, batch_size=6, seed=0, start_step=0, num_steps=5, rank=0, num_ranks=1, **options):
    batches = make_loader(
        Numbers(size),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
        rank=rank,
        num_ranks=num_ranks,
        transform=number_example,
        **options,
    )
    return list(batches)


def joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in ("label_B", "image_BCHW")}


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2**31), st.integers(0, 4))
def test_any_number_of_ranks_sees_the_same_global_batches(size, per_rank, seed, start_step):
    arguments = {"size": size, "batch_size": 12 * per_rank, "seed": seed, "num_steps": 2, "num_threads": 0}
    whole = run(**arguments, start_step=start_step)
    for num_ranks in (2, 3, 4):
        ranks = [run(**arguments, start_step=start_step, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        for step, batch in enumerate(whole):
            together = joined([batches[step] for batches in ranks])
            assert torch.equal(together["label_B"], batch["label_B"])
            assert torch.equal(together["image_BCHW"], batch["image_BCHW"])


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 100), st.integers(0, 7))
def test_a_resumed_run_goes_on_where_it_stopped(size, batch_size, seed, start_step):
    arguments = {"size": size, "batch_size": batch_size, "seed": seed}
    whole = run(**arguments, num_steps=8)
    rest = run(**arguments, start_step=start_step, num_steps=8 - start_step, num_threads=2)
    assert len(rest) == 8 - start_step
    for batch, expected in zip(rest, whole[start_step:], strict=True):
        assert batch["keys"] == expected["keys"]
        assert torch.equal(batch["image_BCHW"], expected["image_BCHW"])


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(0, 100), st.booleans())
def test_each_epoch_is_a_permutation(size, seed, shuffle):
    labels = joined(run(size=size, batch_size=4, seed=seed, num_steps=size, num_threads=0, shuffle=shuffle))["label_B"]
    for epoch in labels[: 4 * size].reshape(4, size).tolist():
        assert sorted(epoch) == list(range(size))
        assert shuffle or epoch == list(range(size))


def test_epochs_and_near_seeds_have_orders_of_their_own():
    orders = set()
    for seed in range(4):
        labels = joined(run(size=50, batch_size=50, seed=seed, num_steps=4))["label_B"].reshape(4, 50)
        orders |= {tuple(epoch) for epoch in labels.tolist()}
    assert len(orders) == 16


def test_a_late_step_costs_no_replay():
    batches = run(size=1000, start_step=10**9, num_steps=2)
    assert len(batches) == 2
    assert run(size=1000, start_step=10**9 + 1, num_steps=1)[0]["keys"] == batches[1]["keys"]


def test_loader_faults_are_named():
    with pytest.raises(ConfigError, match="batch_size: expected a multiple of the 4 ranks, got 6"):
        run(batch_size=6, num_ranks=4)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        run(rank=2, num_ranks=2)
    with pytest.raises(DataError, match="holds no sample"):
        run(size=0)


def test_samples_come_back_as_written(dataset):
    source = open_source(dataset)
    assert len(source) == 20
    for index in (19, 0, 7, 7):
        read, written = source[index], make_sample(index)
        for name in ("key", "split", "caption", "label", "concepts"):
            assert getattr(read, name) == getattr(written, name)
        for name in ("image", "boxes", "box_labels", "mask"):
            assert np.array_equal(getattr(read, name), getattr(written, name)), name
            assert getattr(read, name).dtype == getattr(written, name).dtype
        assert np.abs(read.depth - written.depth).max() < 0.00051 and read.depth.dtype == np.float32


def test_only_asked_fields_are_filled(dataset):
    sample = open_source(dataset, fields=("label", "depth"))[4]
    assert sample.label == 1 and sample.depth is not None
    assert sample.caption is sample.boxes is sample.mask is sample.concepts is None


def test_split_and_keys_select(dataset):
    val = open_source(dataset, split="val")
    assert val.keys == [f"s{index:03d}" for index in range(2, 20, 3)]
    few = open_source(dataset, split="train", keys=["s004", "s000"])
    assert few.keys == ["s000", "s004"] and few.labels == [0, 1]
    with pytest.raises(DataError, match="no sample 's002' in split train"):
        open_source(dataset, split="train", keys=["s002"])
    with pytest.raises(DataError, match="no sample in split test"):
        open_source(dataset, split="test")
    with pytest.raises(ConfigError, match="unknown name 'masks'"):
        open_source(dataset, fields=("masks",))


def test_absent_fields_are_refused_and_gaps_are_unknown(tmp_path):
    bare, labelled = make_sample(0), make_sample(1)
    bare.label = bare.mask = bare.depth = bare.caption = labelled.caption = None
    write_dataset([bare, labelled], INFO, tmp_path / "data")
    dataset = (open_store((tmp_path / "data").as_uri()), (tmp_path / "data").as_uri(), None, tmp_path / "cache")
    with pytest.raises(DataError, match="dataset toy has no caption; it has image, label"):
        open_source(dataset, fields=("caption",))
    sample = open_source(dataset, fields=("label", "mask", "depth"))[0]
    assert sample.label == -1 and (sample.mask == 255).all() and (sample.depth == 0).all()


def test_damaged_shards_and_indices_are_named(dataset):
    store, uri, folder, cache_dir = dataset
    shard = load_info(store, uri).shards[0]
    data = bytearray((folder / shard.path).read_bytes())
    data[600] ^= 1
    (folder / shard.path).write_bytes(data)
    source = open_source(dataset)
    with pytest.raises(DataError, match=f"{uri}/shards/00000.tar: shard is missing or corrupt"):
        source[0]
    (folder / shard.path).unlink()
    with pytest.raises(DataError, match=f"{uri}/shards/00000.tar: shard is missing or corrupt"):
        next(evaluation_batches(source, 4, Resize(AugmentConfig(image_size_px=16))))
    assert not list(cache_dir.glob("*.tar"))
    (folder / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="index.parquet: its SHA-256 is not the one"):
        read_index(store, uri)
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match="dataset.json: no dataset lies here"):
        load_info(store, uri)


def test_a_cut_local_copy_is_fetched_again_and_the_cache_stays_bounded(dataset):
    store, uri, _, cache_dir = dataset
    info = load_info(store, uri)
    first = cache_dir / f"{info.shards[0].sha256}.tar"
    expected = open_source(dataset)[0].image
    first.write_bytes(first.read_bytes()[:700])
    assert np.array_equal(open_source(dataset)[0].image, expected)
    limit = info.shards[0].num_bytes + info.shards[1].num_bytes
    source = open_source(dataset, max_cache_bytes=limit)
    keys = [source[index].key for index in range(20)]
    assert keys == source.keys
    assert sum(path.stat().st_size for path in cache_dir.glob("*.tar")) <= limit
    assert not first.exists()


READ_ALL = """
import sys
from pathlib import Path
from intern_vision.data.loader import ShardSource
from intern_vision.store import open_store
uri, cache_dir = sys.argv[1:]
source = ShardSource(open_store(uri), uri, cache_dir=Path(cache_dir), fields=(), max_cache_bytes=40_000)
print([int(source[index].image.sum()) for index in range(len(source))])
"""


def test_processes_and_threads_share_a_cache(dataset):
    _, uri, _, cache_dir = dataset
    expected = [int(make_sample(index).image.sum()) for index in range(20)]
    command = [sys.executable, "-c", READ_ALL, uri, str(cache_dir)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    source = open_source(dataset, max_cache_bytes=40_000)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda index: int(source[index].image.sum()), range(20))) == expected
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert json.loads(output) == expected


def test_a_shard_let_go_by_another_thread_stays_readable(dataset, monkeypatch):
    monkeypatch.setattr(loader, "_MAX_OPEN_FILES", 1)
    expected = [int(make_sample(index).image.sum()) for index in range(20)]
    source = open_source(dataset)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert list(pool.map(lambda index: int(source[index].image.sum()), range(20))) == expected


def test_evaluation_reads_everything_once_in_order(dataset):
    source = open_source(dataset, split="val")
    batches = list(evaluation_batches(source, 4, Resize(AugmentConfig(image_size_px=16), num_concepts=2)))
    assert [len(batch["keys"]) for batch in batches] == [4, 2]
    assert [key for batch in batches for key in batch["keys"]] == source.keys
    batch = batches[0]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items() if name != "keys"}
    assert shapes == {
        "image_BCHW": ((4, 3, 16, 16), torch.uint8),
        "label_B": ((4,), torch.int64),
        "concepts_BK": ((4, 2), torch.float32),
        "boxes_BN4": ((4, 8, 4), torch.float32),
        "box_labels_BN": ((4, 8), torch.int64),
        "mask_BHW": ((4, 16, 16), torch.uint8),
        "depth_BHW": ((4, 16, 16), torch.float32),
        "original_size_px_B2": ((4, 2), torch.int64),
    }
    assert np.array_equal(batch["image_BCHW"][1].permute(1, 2, 0).numpy(), make_sample(5).image)
    assert batch["box_labels_BN"][1].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert batch["image_BCHW"].is_contiguous()


def test_examples_that_differ_in_fields_are_refused():
    image = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(DataError, match="samples a and b differ in label"):
        collate([{"key": "a", "image": image}, {"key": "b", "image": image, "label": 1}])


def test_arrays_of_other_names_are_stacked():
    image = np.zeros((2, 2, 3), np.uint8)
    examples = [{"key": str(index), "image": image, "feature": np.full(3, index, np.float32)} for index in range(2)]
    assert collate(examples)["feature"].tolist() == [[0, 0, 0], [1, 1, 1]]


ATTRIBUTES = {"ignored": np.array([0, 1, 0], np.float32), "height_px": np.array([8.5, 4, 7], np.float32)}


def attributed(key, attributes, num_boxes):
    boxes = np.array([[1, 2, 9, 10]] * num_boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(num_boxes, np.int64)
    image = np.zeros((16, 16, 3), np.uint8)
    sample = Sample(key=key, split="train", image=image, boxes=boxes, box_labels=labels, box_attributes=attributes)
    sample.stratum, sample.frame = f"drive {key}", 7
    return sample


def test_boxes_come_with_their_attributes(tmp_path):
    samples = [attributed("a", ATTRIBUTES, 3), attributed("b", {}, 2), attributed("c", {"ignored": np.zeros(0)}, 0)]
    info = write_dataset(samples, INFO, tmp_path / "data")
    assert info.fields == ("image", "boxes", "box_labels", "box_attributes", "frame")
    uri = (tmp_path / "data").as_uri()
    source = ShardSource(open_store(uri), uri, cache_dir=tmp_path / "cache", fields=("boxes", "box_labels", "frame"))
    assert source.strata == ["drive a", "drive b", "drive c"] and source[1].frame == 7
    for name, values in ATTRIBUTES.items():
        assert np.array_equal(source[0].box_attributes[name], values) and values.dtype == np.float32
    assert source[1].box_attributes == {} and source[2].box_attributes["ignored"].shape == (0,)
    (batch,) = evaluation_batches(source, 3, Resize(AugmentConfig(image_size_px=16)), num_threads=0)
    nan = float("nan")
    expected = {
        "ignored": [[0, 1, 0, nan], [nan] * 4, [nan] * 4],
        "height_px": [[8.5, 4, 7, nan], [nan] * 4, [nan] * 4],
    }
    assert batch["box_attributes"].keys() == expected.keys()
    for name, values in expected.items():
        tensor = batch["box_attributes"][name]
        assert tensor.dtype == torch.float32 and tensor.shape == batch["box_labels_BN"].shape
        assert np.array_equal(tensor.numpy(), np.array(values, np.float32), equal_nan=True)


def test_without_attributes_a_batch_has_no_such_key(dataset):
    source = open_source(dataset, fields=("boxes", "box_labels"))
    batch = next(evaluation_batches(source, 4, Resize(AugmentConfig(image_size_px=16)), num_threads=0))
    assert "box_attributes" not in batch and "boxes_BN4" in batch


def test_an_index_without_strata_is_still_read(dataset):
    import hashlib

    import pyarrow.parquet as pq

    store, uri, folder, _ = dataset
    path = folder / "index.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["stratum"]), path)
    info = json.loads((folder / "dataset.json").read_text())
    info["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(info))
    source = open_source(dataset)
    assert source.strata == [""] * 20 and source[3].label == 0
