import numpy as np
import pytest
import torch
from helpers import AUGMENT, GENOTYPE, HEAD, SIZE_PX

from intern_vision.data.augment import Resize
from intern_vision.data.batch import collate
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.store import open_store
from intern_vision.task import Task
from intern_vision.train.features import backbone_digest, cache_features, infer
from intern_vision.train.upstream import fields_of, head_specs


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX)).eval()


@pytest.fixture
def source(world, tmp_path):
    def of(*families):
        return ShardSource(
            open_store(world.store_root),
            world.upstream.uri,
            cache_dir=tmp_path / "cache",
            split="train",
            fields=fields_of(families),
        )

    return of


def batches_of(source, batch_size=10):
    return evaluation_batches(source, batch_size, Resize(AUGMENT, num_concepts=len(source.info.concept_names)))


def cache_of(model, source, folder, **settings):
    settings = {"bf16": False, "pooled": False} | settings
    return cache_features(model, batches_of(source), num_images=len(source), folder=folder, **settings)


def test_cached_features_are_those_of_the_model(model, source, tmp_path):
    images = source("depth")
    cache = cache_of(model, images, tmp_path / "maps")
    pooled = cache_of(model, images, tmp_path / "pooled", pooled=True)
    assert cache.keys == pooled.keys == images.keys
    assert set(cache.arrays) == {"map_0", "map_1", "map_2", "vector"} and set(pooled.arrays) == {"pooled"}
    row = 0
    for batch in batches_of(images):
        with torch.no_grad():
            features = infer(model, batch["image_BCHW"], bf16=False)
        rows = slice(row, row + len(batch["keys"]))
        for level, map_BCHW in enumerate(features.maps):
            np.testing.assert_allclose(cache.arrays[f"map_{level}"][rows], map_BCHW.numpy(), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(pooled.arrays["pooled"][rows], features.pooled_pyramid(), rtol=2e-3, atol=2e-3)
        row = rows.stop
    assert row == 96 and isinstance(cache.arrays["map_0"], np.memmap) and cache.arrays["map_0"].dtype == np.float16


@pytest.mark.parametrize("family", ["multilabel", "detect", "segment", "depth"])
def test_cached_examples_hold_the_targets_of_their_images(model, source, tmp_path, family):
    images = source(family)
    cache = cache_of(model, images, tmp_path / "maps")
    wanted = [images.keys[index] for index in (40, 3, 77)]
    examples = cache.source(wanted)
    assert len(examples) == 3
    # In row order, whatever the order asked for.
    assert [examples[index]["key"] for index in range(3)] == [images.keys[index] for index in (3, 40, 77)]
    batch = collate([examples[index] for index in range(3)])
    resize = Resize(AUGMENT, num_concepts=len(images.info.concept_names))
    expected = collate([resize(images[index], np.random.default_rng(0)) for index in (3, 40, 77)])
    for name in ("concepts_BK", "boxes_BN4", "box_labels_BN", "mask_BHW", "depth_BHW"):
        assert (name in batch) == (name in expected)
        if name in expected:
            assert torch.equal(batch[name], expected[name]) and batch[name].dtype == expected[name].dtype, name
    head = VisionModel(
        ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=head_specs(images.info, (family,), HEAD))
    ).heads[family]
    features = infer(model, expected["image_BCHW"], bf16=False)
    assert all(torch.isfinite(loss) for loss in head.losses(head(features), batch).values())


def test_bfloat16_is_close_and_comes_as_float32(model, source):
    image_BCHW = next(iter(batches_of(source("depth"))))["image_BCHW"]
    exact, rough = infer(model, image_BCHW, bf16=False), infer(model, image_BCHW, bf16=True)
    assert rough.vector_BD.dtype == torch.float32 and all(m.dtype == torch.float32 for m in rough.maps)
    assert not torch.equal(exact.vector_BD, rough.vector_BD)
    torch.testing.assert_close(rough.vector_BD, exact.vector_BD, rtol=0.05, atol=0.05)


def test_keys_that_are_not_cached_are_simply_absent(model, source, tmp_path):
    cache = cache_of(model, source("depth"), tmp_path / "maps")
    assert cache.rows(["unknown", cache.keys[5], cache.keys[2]]) == [2, 5]


def test_ignored_boxes_are_not_among_the_targets(model, source, tmp_path):
    images = source("detect")
    batches = list(batches_of(images))
    plain = cache_features(model, batches, num_images=len(images), folder=tmp_path / "a", bf16=False, pooled=True)
    for batch in batches:
        ignored_BN = torch.full(batch["box_labels_BN"].shape, torch.nan)
        ignored_BN[:, 0], ignored_BN[:, 1:] = 1, 0
        batch["box_attributes"] = {"ignored": ignored_BN.masked_fill(batch["box_labels_BN"] < 0, torch.nan)}
    cache = cache_features(model, batches, num_images=len(images), folder=tmp_path / "b", bf16=False, pooled=True)
    for every, kept in zip(plain.targets, cache.targets, strict=True):
        assert np.array_equal(kept["boxes"], every["boxes"][1:])
        assert np.array_equal(kept["box_labels"], every["box_labels"][1:])


@pytest.mark.parametrize("num_boxes", [(0, 0, 0), (2, 0, 3)])
def test_boxes_are_kept_image_by_image_without_the_ignored_ones(model, tmp_path, num_boxes):
    rng, examples = np.random.default_rng(0), []
    for index, count in enumerate(num_boxes):
        ignored = np.arange(count) == 1
        example = {"key": f"k{index}", "image": rng.integers(0, 255, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)}
        example |= {"boxes": rng.random((count, 4)).astype(np.float32), "box_labels": np.arange(count)}
        examples.append(example | {"box_attributes": {"ignored": ignored.astype(np.float32)}})
    batches = [collate(examples[:2]), collate(examples[2:])]
    cache = cache_features(model, batches, num_images=3, folder=tmp_path / "maps", bf16=False, pooled=True)
    found = cache.source(cache.keys)
    for row, example in enumerate(examples):
        wanted = np.flatnonzero(example["box_attributes"]["ignored"] != 1)
        np.testing.assert_array_equal(found[row]["boxes"], example["boxes"][wanted])
        assert found[row]["box_labels"].tolist() == wanted.tolist()


def test_a_digest_is_of_the_backbone_alone(tmp_path):
    folders = []
    for name, seed, heads in (("a", 0, {}), ("b", 0, {"depth": Task(family="depth", max_depth_m=9.0)}), ("c", 1, {})):
        torch.manual_seed(seed)
        specs = {family: HeadSpec(task=task, config=HEAD) for family, task in heads.items()}
        VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=specs)).save(tmp_path / name)
        folders.append(tmp_path / name)
    one, with_head, other = map(backbone_digest, folders)
    assert one == with_head != other and len(one) == 64
