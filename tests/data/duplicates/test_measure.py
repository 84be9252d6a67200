import numpy as np
import pytest
from made_manifests import picture

from benchmarks.duplicate_recall import figures, made_images, photo_tiles
from intern_vision.data.duplicates import near
from intern_vision.data.duplicates.measure import (
    COSINES,
    curve_svg,
    least_cosine,
    measure_embedding,
    measure_perceptual,
)
from intern_vision.data.duplicates.near import PictureIndex, near_between, without_near
from intern_vision.data.duplicates.planted import CHANGES, crop, overlay
from intern_vision.data.duplicates.thumbnail import WHOLE, View, thumbnail
from intern_vision.data.duplicates.verify import differences


@pytest.fixture(scope="module")
def images():
    return photo_tiles(2) + made_images(4, 96)


def test_planted_duplicates_are_found_and_distinct_images_are_not(images):
    curve = measure_perceptual(images)
    shares = {name: share for name, (share, _, _) in figures(curve).items()}
    assert curve["num_images"] + curve["num_plain"] == len(images) and curve["num_plain"] <= 2
    assert shares.pop("distinct") == 0
    assert min(shares[name] for name in ("saved anew", "resized", "grey", "mirrored")) >= 0.99, shares
    assert min(shares[name] for name in ("cropped", "overlaid")) >= 0.95, shares
    for shown in curve["changes"].values():
        assert shown["recall"] == sorted(shown["recall"])
        shares_by_threshold = zip(shown["low"], shown["recall"], shown["high"], strict=True)
        assert all(low <= share + 1e-9 and share <= high + 1e-9 for low, share, high in shares_by_threshold)
    assert curve_svg(curve, "a < b", 0.01).count("<polyline") == len(CHANGES) + 2


def test_a_hundred_copies_cost_a_hundred_comparisons(images):
    copies = np.stack([thumbnail(images[0])] * 100 + [thumbnail(image) for image in images[1:4]])
    index = PictureIndex(copies)
    pairs = index.pairs()
    assert len(index.twins.rows) == len(pairs.rows) == 99
    assert set(pairs.rows.tolist()) == {0} and not pairs.distances.any()
    assert [len(each) for each in (without_near([images[0]] * 3 + images[1:3]), without_near(images[:1]))] == [3, 1]


def test_pictures_that_too_many_resemble_are_counted(images, monkeypatch):
    monkeypatch.setattr(near, "MAX_SHARING", 4)
    # The same brightness, so the same hash, in colours that have nothing in common.
    alike = np.repeat(thumbnail(images[0])[None], 12)
    alike["colour"] = np.random.default_rng(0).integers(0, 256, alike["colour"].shape)
    index = PictureIndex(alike)
    assert not len(index.pairs().rows) and index.num_crowded == 8
    others = PictureIndex(np.stack([thumbnail(image) for image in images[:6]]))
    assert not len(others.pairs().rows) and others.num_crowded == 0


@pytest.mark.parametrize("contrast", [0.12, 1.0])
def test_something_glaring_in_a_faint_picture_does_no_harm(images, contrast):
    image = np.clip(128 + contrast * (images[0].astype(float) - 128), 0, 255).astype(np.uint8)
    height, width = image.shape[:2]
    changed = image.copy()
    changed[: height // 10] = (250, 210, 40)
    other = np.clip(128 + contrast * (images[1].astype(float) - 128), 0, 255).astype(np.uint8)
    first, second, third = (thumbnail(each)[None] for each in (image, changed, other))
    assert differences(first, second, [WHOLE])[0] < 0.001 and differences(second, first, [WHOLE])[0] < 0.001
    assert differences(third, second, [WHOLE])[0] > 0.05
    # Where much is covered nothing is known of the rest.
    changed[: height // 3] = (250, 210, 40)
    assert differences(first, thumbnail(changed)[None], [WHOLE])[0] > 0.0075


def test_what_is_far_apart_is_not_aligned_to_the_end(images):
    parts = [image[: round(0.93 * image.shape[0]), round(0.04 * image.shape[1]) :] for image in images[:8]]
    first = np.stack([thumbnail(image) for image in [*images[:8], *images[1:9]]])
    second = np.stack([thumbnail(part) for part in [*parts, *parts]])
    views = [View((0.0, 0.95), (0.025, 1.0))] * 16
    exact, bound = (differences(first, second, views, exact_to=limit) for limit in (0.05, 0.0075))
    is_near = exact <= 0.0075
    assert is_near[:8].sum() >= 6 and not is_near[8:].any()
    assert (bound[is_near] == exact[is_near]).all() and (bound[~is_near] > 0.0075).all()


def test_either_may_be_a_part_of_the_other(images):
    rng = np.random.default_rng(0)
    images = [images[number] for number in range(0, 48, 8)]
    whole = [thumbnail(image) for image in images]
    part = [thumbnail(crop(image, rng)) for image in images]
    for first, second in ((whole, part), (part, whole)):
        hits = near_between(PictureIndex(np.stack(first)), PictureIndex(np.stack(second)))
        assert hits.queries.tolist() == hits.rows.tolist() == list(range(6))


def test_alignment_is_finer_than_the_views(images):
    image = images[0]
    height, width = image.shape[:2]
    part = image[: round(0.93 * height), round(0.04 * width) :]
    first, second = thumbnail(image)[None], thumbnail(part)[None]
    close, far = (differences(first, second, [view])[0] for view in (View((0.0, 0.95), (0.025, 1.0)), WHOLE))
    assert close < 0.005 and far > 2 * close
    flipped = np.ascontiguousarray(part[:, ::-1])
    mirrored = View((0.0, 0.95), (0.025, 1.0), mirrored=True)
    assert differences(first, thumbnail(flipped)[None], [mirrored])[0] < 0.005
    assert differences(first, thumbnail(images[1])[None], [WHOLE])[0] > 0.1


def test_other_colours_make_another_picture_and_grey_does_not(images):
    image = images[25]
    swapped = np.ascontiguousarray(image[:, :, [0, 2, 1]])
    weights = np.array([0.299, 0.587, 0.114])
    # The same brightness everywhere, other colours.
    swapped = np.clip(swapped + ((image - swapped.astype(float)) @ weights)[..., None], 0, 255).astype(np.uint8)
    grey = CHANGES["grey"](image, np.random.default_rng(0))
    others = np.stack([thumbnail(each) for each in (image, grey, swapped)])
    found = differences(np.stack([thumbnail(image)] * 3), others, [WHOLE] * 3)
    assert found[0] < 1e-5 and found[1] < 1e-3 and found[2] == 2


def test_embeddings_are_measured_the_same_way():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(12)]

    def embed(batch):
        means = np.array([np.concatenate([each.mean((0, 1)), each.std((0, 1))]) for each in batch], np.float32)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    curve = measure_embedding(images, embed)
    vectors = embed(images)
    cosines = vectors @ vectors.T - 2 * np.eye(12)
    expected = [float((cosines.max(axis=1) >= cosine - 2e-6).mean()) for cosine in COSINES]
    assert curve["distinct"]["share"] == expected and curve["changes"]["mirrored"]["recall"][-1] == 1
    used = least_cosine(curve, 0.5)
    assert used == 1 or expected[COSINES.index(used)] <= 0.5
    assert least_cosine(curve | {"distinct": {"share": [1.0] * len(COSINES)}}, 0.1) == 1
    assert least_cosine(curve | {"distinct": {"share": [0.0] * len(COSINES)}}, 0.1) == COSINES[0]


def test_an_overlay_covers_a_small_part():
    image = np.full((90, 120, 3), 128, np.uint8)
    for seed in range(20):
        changed = (overlay(image, np.random.default_rng(seed)) != image).any(axis=2).mean()
        assert 0.03 < changed <= 0.1


def test_fine_stripes_of_other_colours_are_other_pictures():
    stripes = [thumbnail(picture(seed, 96, 128)) for seed in (8, 105)]
    assert not len(PictureIndex(np.stack(stripes)).pairs().queries)
