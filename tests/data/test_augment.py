import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2yiq, yiq2rgb

from intern_vision.data.augment import (
    Augment,
    AugmentConfig,
    Resize,
    change_colours,
    crop_affine,
    warp_boxes,
    warp_image,
    warp_labels,
)
from intern_vision.data.batch import collate
from intern_vision.data.sample import Sample
from intern_vision.data.settings import CLIP_CROP, MOCO_V2
from intern_vision.data.text import Tokenizer
from intern_vision.errors import ConfigError, DataError

STILL = {
    "hflip_probability": 0.0,
    "colour_probability": 0.0,
    "grey_probability": 0.0,
    "scale_min": 1.0,
    "aspect_max": 1.0,
}


def square_scene(size_px=64, box=(20, 12, 44, 50)):
    """A white rectangle on black whose mask, depth and box say the same."""
    x0, y0, x1, y1 = box
    inside = np.zeros((size_px, size_px), bool)
    inside[y0:y1, x0:x1] = True
    return Sample(
        key="scene",
        split="train",
        image=np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, axis=2),
        boxes=np.array([box], np.float32),
        box_labels=np.array([3]),
        mask=inside.astype(np.uint8),
        depth=np.where(inside, 2.0, 7.0).astype(np.float32),
    )


def test_nothing_to_do_changes_nothing():
    sample = square_scene()
    example = Augment(AugmentConfig(**STILL))(sample, np.random.default_rng(0))
    assert np.array_equal(example["image"], sample.image)
    assert np.array_equal(example["mask"], sample.mask)
    assert np.array_equal(example["depth"], sample.depth)
    assert np.array_equal(example["boxes"], sample.boxes)
    assert example["image"].dtype == example["mask"].dtype == np.uint8


def test_flip_is_an_exact_mirror():
    rng = np.random.default_rng(0)
    sample = square_scene(box=(3, 5, 20, 30))
    sample.image = rng.integers(0, 256, sample.image.shape, np.uint8)
    example = Augment(AugmentConfig(**{**STILL, "hflip_probability": 1.0}))(sample, rng)
    assert np.array_equal(example["image"], sample.image[:, ::-1])
    assert np.array_equal(example["mask"], sample.mask[:, ::-1])
    assert example["boxes"].tolist() == [[44, 5, 61, 30]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 1.0), st.sampled_from([32, 64, 96]))
def test_image_mask_depth_and_boxes_move_together(seed, scale_min, size_px):
    config = AugmentConfig(
        image_size_px=size_px,
        scale_min=scale_min,
        colour_probability=0.0,
        grey_probability=0.0,
        min_box_visibility=0.05,
    )
    example = Augment(config)(square_scene(), np.random.default_rng(seed))
    bright = example["image"][..., 0] > 127
    # Two kinds of sampling may differ by the one pixel at an edge.
    edge = np.zeros_like(bright)
    for axis in (0, 1):
        for step in (-1, 1):
            edge |= np.roll(bright, step, axis) != bright
    assert (bright == (example["mask"] == 1))[~edge].all()
    assert np.array_equal(example["mask"] == 1, example["depth"] == 2.0)
    if len(example["boxes"]):
        ys, xs = np.nonzero(example["mask"] == 1)
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(example["boxes"][0] - expected).max() <= 1.01
        assert example["box_labels"].tolist() == [3]


def test_a_large_image_is_averaged_and_not_skipped():
    checker = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    affine = np.array([[0.25, 0, 0], [0, 0.25, 0]])
    shrunk = warp_image(np.repeat(checker[..., None], 3, axis=2), affine, 64)
    assert np.abs(shrunk.astype(int) - 128).max() <= 1


def test_outside_is_ignored_and_unknown():
    affine = np.array([[0.5, 0, 16], [0, 0.5, 16]])
    mask = warp_labels(np.ones((64, 64), np.uint8), affine, 64, 255)
    depth = warp_labels(np.ones((64, 64), np.float32), affine, 64, 0)
    assert (mask == 1).sum() == (depth == 1).sum() == 32 * 32
    assert set(np.unique(mask)) == {1, 255} and set(np.unique(depth)) == {0.0, 1.0}


def test_boxes_that_are_hardly_visible_are_dropped():
    boxes = np.array([[0, 0, 10, 10], [-6, 0, 4, 10], [-9, 0, 1, 10], [70, 0, 80, 10]], np.float32)
    kept_boxes, kept = warp_boxes(boxes, np.array([[1.0, 0, 0], [0, 1.0, 0]]), 64, 0.3)
    assert kept.tolist() == [True, True, False, False]
    assert kept_boxes.tolist() == [[0, 0, 10, 10], [0, 0, 4, 10]]
    none, _ = warp_boxes(np.zeros((0, 4), np.float32), np.eye(2, 3), 64, 0.3)
    assert none.shape == (0, 4) and none.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 0.999), min_size=5, max_size=5), st.integers(8, 300), st.integers(8, 300))
def test_crops_stay_inside_and_keep_their_area(draws, width, height):
    config = AugmentConfig(scale_min=0.2, scale_max=1.0)
    affine = crop_affine(config, width, height, draws)
    corners = (np.array([[0.0, 0.0], [64.0, 64.0]]) - affine[:, 2]) / np.diag(affine[:, :2])
    assert corners.min() > -1e-6
    assert corners[:, 0].max() < width + 1e-6 and corners[:, 1].max() < height + 1e-6
    assert np.abs(np.diff(corners, axis=0)).prod() <= (0.2 + 0.8 * draws[0]) * width * height + 1e-6


def test_colours_change_the_image_only_and_grey_is_grey():
    sample = square_scene()
    sample.image = np.random.default_rng(1).integers(0, 256, sample.image.shape, np.uint8)
    loud = Augment(AugmentConfig(**{**STILL, "colour_probability": 1.0}))(sample, np.random.default_rng(2))
    assert np.abs(loud["image"].astype(int) - sample.image).mean() > 3
    assert np.array_equal(loud["mask"], sample.mask)
    grey = Augment(AugmentConfig(**{**STILL, "grey_probability": 1.0}))(sample, np.random.default_rng(2))["image"]
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    luma = sample.image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[..., 0] - luma).max() <= 1.5
    soft = Augment(AugmentConfig(**{**STILL, "blur_probability": 1.0, "blur_sigma_min_px": 1.0}))
    assert soft(sample, np.random.default_rng(0))["image"].std() < sample.image.std() / 2


def test_jitter_without_clipping_has_the_stated_ranges():
    sample = square_scene()
    sample.image[:] = 100
    config = AugmentConfig(**{**STILL, "colour_probability": 1.0, "brightness": 0.5, "hue": 0.5})
    values = [Augment(config)(sample, np.random.default_rng(seed))["image"] for seed in range(100)]
    means = np.array([value.mean() for value in values])
    assert 50 <= means.min() < 60 and 140 < means.max() <= 150
    assert max(np.ptp(value) for value in values) <= 1


def test_named_sets_have_the_source_s_numbers():
    assert MOCO_V2.to_dict() == {
        "image_size_px": 224,
        "scale_min": 0.2,
        "scale_max": 1.0,
        "aspect_max": 4 / 3,
        "hflip_probability": 0.5,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "colour_probability": 0.8,
        "grey_probability": 0.2,
        "blur_probability": 0.5,
        "blur_sigma_min_px": 0.1,
        "blur_sigma_max_px": 2.0,
        "num_views": 2,
        "min_box_visibility": 0.3,
    }
    quiet = {name: CLIP_CROP.to_dict()[name] for name in CLIP_CROP.to_dict() if name.endswith("probability")}
    assert set(quiet.values()) == {0.0} and (CLIP_CROP.scale_min, CLIP_CROP.scale_max) == (0.5, 1.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_one_matrix_equals_brightness_contrast_saturation_and_hue_one_after_the_other(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(100, 140, (9, 7, 3), np.uint8)  # no factor takes these out of 0..255
    draws = np.concatenate([[0.0, 0.9], rng.random(7)])
    config = MOCO_V2.with_overrides({"blur_probability": 0.0, "contrast": 0.2, "saturation": 0.2, "brightness": 0.3})
    steps = 2 * draws[2:6] - 1
    found = change_colours(config, image, draws)
    expected = image * (1 + 0.3 * steps[0])
    grey = expected @ [0.299, 0.587, 0.114]
    expected = grey.mean() + (1 + 0.2 * steps[1]) * (expected - grey.mean())
    grey = (expected @ [0.299, 0.587, 0.114])[..., None]
    expected = grey + (1 + 0.2 * steps[2]) * (expected - grey)
    yiq = rgb2yiq(expected)
    turned = (yiq[..., 1] + 1j * yiq[..., 2]) * np.exp(2j * np.pi * 0.1 * steps[3])
    expected = yiq2rgb(np.stack([yiq[..., 0], turned.real, turned.imag], axis=-1))
    assert np.abs(found - expected).max() <= 1.0


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.7, 0.999])
def test_blur_is_gaussian_with_the_drawn_deviation(draw):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    found = change_colours(MOCO_V2, image, [0.99, 0.99, *[0.5] * 4, 0.4, draw, 0.0])
    sigma = 0.1 + 1.9 * draw
    expected = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="mirror", truncate=4.0)
    assert np.abs(found[8:-8, 8:-8] - expected[8:-8, 8:-8]).max() <= 2.0
    assert np.array_equal(change_colours(MOCO_V2, image, [0.99, 0.99, *[0.5] * 4, 0.6, draw, 0.0]), image)


def test_views_say_where_they_lie():
    sample = square_scene()
    augment = Augment(AugmentConfig(num_views=2, colour_probability=0.0, grey_probability=0.0))
    batch = collate([augment(sample, np.random.default_rng(seed)) for seed in range(4)])
    assert batch["affine_B23"].shape == batch["second_affine_B23"].shape == (4, 2, 3)
    for view, affine in (("image_BCHW", "affine_B23"), ("second_image_BCHW", "second_affine_B23")):
        for shown, own in zip(batch[view], batch[affine], strict=True):
            again = warp_image(sample.image, own.double().numpy(), 64)
            assert np.abs(again.astype(int) - shown.permute(1, 2, 0).numpy()).max() <= 1
    assert "affine" not in Augment(AugmentConfig())(sample, np.random.default_rng(0))


def test_hidden_tokens_follow_from_seed_and_place_alone():
    captions = ["a red cup on a green table", "a blue cup"]
    tokenizer = Tokenizer.train(captions, 300)
    sample = square_scene()
    sample.caption = captions[0]
    augment = Augment(AugmentConfig(), tokenizer=tokenizer, context_length=20, mask_share=0.5)
    example, again = (augment(sample, np.random.default_rng(5)) for _ in range(2))
    hidden = example["token_targets"] >= 0
    assert hidden.any() and np.array_equal(example["token_targets"][hidden], example["tokens"][hidden])
    assert all(np.array_equal(example[name], again[name]) for name in ("masked_tokens", "token_targets"))
    plain = Augment(AugmentConfig(), tokenizer=tokenizer, context_length=20)(sample, np.random.default_rng(5))
    assert "masked_tokens" not in plain and np.array_equal(plain["image"], example["image"])


def test_two_views_differ_and_carry_both_captions():
    captions = ["a red cup on a green table", "a blue cup"]
    tokenizer = Tokenizer.train(captions, 300)
    sample = square_scene()
    sample.caption, sample.concepts, sample.label = captions[0], (1, 4), 2
    augment = Augment(AugmentConfig(num_views=2), tokenizer=tokenizer, context_length=20, num_concepts=6)
    examples = [augment(sample, np.random.default_rng(seed)) for seed in range(6)]
    batch = collate(examples)
    assert batch["image_BCHW"].shape == batch["second_image_BCHW"].shape == (6, 3, 64, 64)
    assert (batch["image_BCHW"] != batch["second_image_BCHW"]).any()
    assert batch["tokens_BL"].shape == (6, 20)
    assert (batch["tokens_BL"] != batch["second_tokens_BL"]).any()
    assert batch["concepts_BK"].tolist() == [[0, 1, 0, 0, 1, 0]] * 6
    assert batch["label_B"].tolist() == [2] * 6
    again = augment(sample, np.random.default_rng(5))
    assert all(np.array_equal(again[name], examples[5][name]) for name in again)


def test_resize_keeps_every_box_and_the_way_back():
    sample = square_scene()
    sample.image = np.zeros((48, 96, 3), np.uint8)
    sample.mask, sample.depth = np.zeros((48, 96), np.uint8), None
    sample.boxes = np.array([[6, 3, 90, 45], [0, 0, 0.5, 0.5]], np.float32)
    sample.box_labels = np.array([0, 1])
    example = Resize(AugmentConfig(image_size_px=32))(sample)
    height, width = example["original_size_px"]
    back = example["boxes"] * np.array([width, height, width, height]) / 32
    assert np.allclose(back, sample.boxes)
    assert example["image"].shape == (32, 32, 3) and example["mask"].shape == (32, 32)


def test_faults_are_named():
    with pytest.raises(ConfigError, match="scale_min must be <= scale_max"):
        AugmentConfig.from_dict({"scale_min": 0.9, "scale_max": 0.5})
    sample = square_scene()
    sample.concepts = (9,)
    with pytest.raises(DataError, match="sample scene: concepts .* num_concepts is 4"):
        Augment(AugmentConfig(), num_concepts=4)(sample, np.random.default_rng(0))


def test_ignored_boxes_are_not_learnt_but_scored():
    scene = square_scene()
    scene.boxes = np.array([[20, 12, 44, 50], [2, 2, 10, 10], [50, 50, 60, 60]], np.float32)
    scene.box_labels = np.array([0, 1, 2])
    scene.box_attributes = {"ignored": np.array([0, 1, 0], np.float32), "easy": np.array([1, 0, 1], np.float32)}
    example = Augment(AugmentConfig(image_size_px=64, **STILL))(scene, np.random.default_rng(0))
    assert example["box_labels"].tolist() == [0, 2] and len(example["boxes"]) == 2
    assert example["box_attributes"]["easy"].tolist() == [1, 1]
    example = Resize(AugmentConfig(image_size_px=64))(scene)
    assert example["box_labels"].tolist() == [0, 1, 2]
    assert example["box_attributes"]["ignored"].tolist() == [0, 1, 0]


def test_attributes_follow_the_boxes_that_a_crop_keeps():
    scene = square_scene()
    scene.boxes = np.array([[0, 0, 8, 8], [24, 24, 40, 40], [26, 26, 38, 38]], np.float32)
    scene.box_labels = np.array([0, 1, 2])
    scene.box_attributes = {"ignored": np.array([0, 0, 1], np.float32), "height_px": np.array([8, 16, 12], np.float32)}
    config = AugmentConfig(image_size_px=64, **STILL | {"scale_min": 0.25, "scale_max": 0.25})
    for seed in range(20):
        example = Augment(config)(scene, np.random.default_rng(seed))
        heights = [{0: 8, 1: 16}[label] for label in example["box_labels"].tolist()]
        assert example["box_attributes"]["height_px"].tolist() == heights
