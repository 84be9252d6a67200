from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.config import Config
from intern_vision.data.augment import Augment
from intern_vision.data.loader import ShardSource, evaluation_batches, make_loader
from intern_vision.data.mixture import MixtureOrder, MixtureSource, block_counts, source_shares
from intern_vision.data.sample import Sample
from intern_vision.data.settings import AugmentConfig, MixtureConfig
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.errors import ConfigError, DataError
from intern_vision.store import open_store
from intern_vision.task import Task

FIELDS = ("label", "concepts", "boxes", "box_labels", "mask", "depth")
LABELS = DatasetInfo(name="labels", tasks={"classify": Task(family="classify", class_names=("a", "b", "c"))})
SCENES = DatasetInfo(
    name="scenes",
    tasks={
        "multilabel": Task(family="multilabel", class_names=("x", "y")),
        "detect": Task(family="detect", class_names=("x", "y")),
        "segment": Task(family="segment", class_names=("x", "y")),
        "depth": Task(family="depth", max_depth_m=10.0),
    },
    concept_names=("x", "y"),
)


def labelled(index):
    image = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
    return Sample(key=f"s{index:03d}", split="train", image=image, label=index % 3)


def scene(index):
    sample = labelled(index)
    sample.label = None
    sample.concepts = (index % 2,)
    sample.boxes, sample.box_labels = np.array([[1, 2, 9, 10]], np.float32), np.array([index % 2])
    sample.mask, sample.depth = np.full((16, 16), index % 2, np.uint8), np.full((16, 16), 2.5, np.float32)
    return sample


def open_part(folder, info, make, num_samples, fields):
    write_dataset(map(make, range(num_samples)), info, folder / info.name, lossless=True)
    uri = (folder / info.name).as_uri()
    return ShardSource(open_store(uri), uri, cache_dir=folder / "cache", fields=fields, split="train")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    scene_fields = ("concepts", "boxes", "box_labels", "mask", "depth")
    return open_part(folder, LABELS, labelled, 5, ("label",)), open_part(folder, SCENES, scene, 20, scene_fields)


def open_mixture(parts, **config):
    return MixtureSource(parts, FIELDS, MixtureConfig(**config))


def loaded(mixture, num_steps, start_step=0, rank=0, num_ranks=1, batch_size=4, seed=3):
    return list(
        make_loader(
            mixture,
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            num_steps=num_steps,
            rank=rank,
            num_ranks=num_ranks,
            transform=Augment(AugmentConfig(image_size_px=16), num_concepts=2),
        )
    )


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=4)
temperatures = st.floats(0, 1)


@settings(max_examples=30, deadline=None)
@given(sizes, temperatures, st.integers(1, 9))
def test_blocks_are_in_the_ratio_of_the_shares_and_enough_for_every_sample(num_samples, temperature, block_size):
    weights = [count**temperature for count in num_samples]
    shares = source_shares(num_samples, temperature)
    assert shares == pytest.approx([weight / sum(weights) for weight in weights])
    counts = block_counts(num_samples, temperature, block_size)
    assert all(count * block_size >= samples for count, samples in zip(counts, num_samples, strict=True))
    for count, share in zip(counts, shares, strict=True):
        assert count / sum(counts) == pytest.approx(share, abs=0.005)


@settings(max_examples=30, deadline=None)
@given(sizes, temperatures, st.sampled_from([1, 4]), st.integers(0, 2**31))
def test_a_virtual_epoch_draws_each_source_by_its_count_and_each_sample_evenly(sizes, temperature, block_size, seed):
    order = MixtureOrder(sizes, temperature, block_size, seed)
    counts = block_counts(sizes, temperature, block_size)
    starts = np.cumsum([0, *sizes])
    for epoch in range(2):
        positions = range(epoch * sum(counts) * block_size, (epoch + 1) * sum(counts) * block_size)
        drawn = Counter(order[at] for at in positions)
        for source, count in enumerate(counts):
            times = [drawn[index] for index in range(starts[source], starts[source + 1])]
            assert sum(times) == count * block_size
            assert max(times) - min(times) <= 2 and min(times) >= 1 - epoch


def test_large_sources_keep_their_order_too():
    order = MixtureOrder([3, 70_000], 1.0, 1, 0)
    drawn = {order[at] for at in range(70_003)}
    assert drawn == set(range(70_003))


@settings(max_examples=30, deadline=None)
@given(sizes, temperatures, st.booleans(), st.integers(0, 2**31), st.integers(0, 10**7))
def test_the_order_is_a_function_of_seed_and_position(sizes, temperature, homogeneous, seed, start):
    block_size = 6 if homogeneous else 1
    one, other = (MixtureOrder(sizes, temperature, block_size, seed) for _ in range(2))
    positions = range(start, start + 12)
    expected = [one[at] for at in positions]
    assert [other[at] for at in reversed(positions)] == expected[::-1]
    assert all(0 <= index < sum(sizes) for index in expected)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(0, 40), st.booleans())
def test_any_number_of_ranks_and_any_start_sees_the_same_global_batches(parts, num_ranks, start, homogeneous):
    mixture = open_mixture(parts, homogeneous=homogeneous)
    alone = [batch["keys"] for batch in loaded(mixture, start + 3)][start:]
    ranks = [loaded(mixture, 3, start, rank, num_ranks) for rank in range(num_ranks)]
    joined = [sum((rank[step]["keys"] for rank in ranks), []) for step in range(3)]
    assert joined == alone


def test_homogeneous_batches_have_one_source_and_the_sources_their_shares(parts):
    batches = loaded(open_mixture(parts, homogeneous=True), 300)
    first = [batch["source_B"].unique().tolist() for batch in batches]
    assert all(len(sources) == 1 for sources in first)
    # 5 and 20 samples: 1/3 and 2/3 by the square root.
    assert np.mean([sources[0] for sources in first]) == pytest.approx(2 / 3, abs=0.08)
    mixed = loaded(open_mixture(parts), 300)
    assert np.mean([batch["source_B"].float().mean() for batch in mixed]) == pytest.approx(2 / 3, abs=0.04)
    assert any(len(batch["source_B"].unique()) == 2 for batch in mixed)


def test_what_a_source_lacks_is_unknown(parts):
    mixture = open_mixture(parts)
    (batch,) = evaluation_batches(
        mixture,
        len(mixture),
        lambda sample, rng: Augment(AugmentConfig(image_size_px=16, scale_min=1.0), num_concepts=2)(
            sample, np.random.default_rng(0)
        ),
    )
    from_labels = batch["source_B"] == 0
    assert from_labels.tolist() == [True] * 5 + [False] * 20
    assert batch["keys"][0] == "labels/s000" and batch["keys"][5] == "scenes/s000"
    assert batch["label_B"].tolist() == [0, 1, 2, 0, 1] + [-1] * 20
    assert (batch["mask_BHW"][from_labels] == 255).all() and (batch["mask_BHW"][~from_labels] < 2).all()
    assert (batch["depth_BHW"][from_labels] == 0).all() and (batch["depth_BHW"][~from_labels] == 2.5).all()
    assert (batch["box_labels_BN"][from_labels] == -1).all() and (batch["box_labels_BN"][~from_labels, 0] >= 0).all()
    assert (batch["concepts_BK"][from_labels] == 0).all() and (batch["concepts_BK"][~from_labels].sum(1) == 1).all()


def test_bad_mixtures_are_named(parts):
    with pytest.raises(DataError, match="expected sources with different names, got labels, labels"):
        MixtureSource((parts[0], parts[0]), FIELDS, MixtureConfig())
    with pytest.raises(DataError, match="got none"):
        MixtureSource((), FIELDS, MixtureConfig())
    assert issubclass(MixtureConfig, Config)
    with pytest.raises(ConfigError, match="mixture.temperature"):
        MixtureConfig.from_dict({"temperature": 1.5}, at="mixture")
