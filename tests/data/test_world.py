"""The made world: what is drawn depends on (seed, set, split, index) alone, and every label fits every other."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.bench.protocol import stratified_share
from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.data.world import (
    CONCEPT_PARENTS,
    CONCEPTS,
    DOWNSTREAM,
    MAX_CAPTION_WORDS,
    MAX_DEPTH_M,
    UPSTREAM,
    VOCABULARY,
    WorldSet,
    render,
)
from intern_vision.data.world_caption import Described, caption_scene
from intern_vision.data.world_names import BACKGROUNDS, COLOURS, FAMILIES, SHAPES, SPECIES, TEXTURES
from intern_vision.data.world_scene import (
    FIRST_OBJECT,
    GROUND,
    PALETTES,
    Thing,
    add_things,
    outdoor_camera,
    outdoors,
    room,
    visible_boxes,
)
from intern_vision.data.world_shapes import distance_table, sample_distance, sample_texture
from intern_vision.errors import ConfigError, DataError

ALL_SETS = [UPSTREAM, *DOWNSTREAM.values()]
MADE_SETS = [world_set for world_set in ALL_SETS if world_set.name != "digits"]
OPTIONAL_FIELDS = ("caption", "label", "concepts", "boxes", "box_labels", "mask", "depth")
by_name = pytest.mark.parametrize("world_set", ALL_SETS, ids=lambda world_set: world_set.name)


def same(a: Sample, b: Sample) -> bool:
    return (a.key, a.split) == (b.key, b.split) and all(
        np.array_equal(getattr(a, field), getattr(b, field)) for field in ("image", *OPTIONAL_FIELDS)
    )


@pytest.fixture(scope="module")
def upstream() -> list[Sample]:
    return render(UPSTREAM, 3, "train", range(300))


def things_at(*places: tuple[float, float], radius_m: float = 0.7) -> list[Thing]:
    return [
        Thing(
            shape="disc",
            texture="plain",
            tint=(0.8, 0.1, 0.1),
            tint2=(0.1, 0.1, 0.1),
            column_px=column_px,
            depth_m=depth_m,
            radius_m=radius_m,
        )
        for column_px, depth_m in places
    ]


def empty_frame(seed: int = 0, size_px: int = 64):
    rng = np.random.default_rng(seed)
    return outdoors(rng, outdoor_camera(rng, size_px), PALETTES["meadow"], "checks")


@by_name
def test_a_sample_does_not_depend_on_its_chunk_or_order(world_set: WorldSet) -> None:
    together = render(world_set, 5, "train", range(32))
    assert all(same(sample, render(world_set, 5, "train", [i])[0]) for i, sample in enumerate(together))
    backwards = render(world_set, 5, "train", range(31, -1, -1))
    assert all(same(a, b) for a, b in zip(together, reversed(backwards), strict=True))


@settings(max_examples=15, deadline=None)
@given(
    world_set=st.sampled_from(ALL_SETS),
    seed=st.integers(0, 2**32 - 1),
    indices=st.lists(st.integers(0, 599), min_size=1, max_size=4),
    size_px=st.integers(16, 97),
)
def test_every_set_yields_its_fields_at_any_size(world_set, seed, indices, size_px) -> None:
    for index, sample in zip(indices, render(world_set, seed, "train", indices, size_px), strict=True):
        assert sample.key == f"{world_set.name}-train-{index:06d}" and sample.split == "train"
        assert sample.image.shape == (size_px, size_px, 3) and sample.image.dtype == np.uint8
        assert {field for field in OPTIONAL_FIELDS if getattr(sample, field) is not None} == set(world_set.fields)
        check_labels(world_set, sample)


def check_labels(world_set: WorldSet, sample: Sample) -> None:
    size = sample.image.shape[0]
    tasks = world_set.tasks
    if sample.label is not None:
        assert 0 <= sample.label < tasks["classify"].num_classes
    if sample.boxes is not None:
        assert sample.boxes.dtype == np.float32 and sample.boxes.shape == (len(sample.box_labels), 4)
        assert sample.box_labels.dtype == np.int64
        assert ((sample.boxes >= 0) & (sample.boxes <= size)).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert ((sample.box_labels >= 0) & (sample.box_labels < tasks["detect"].num_classes)).all()
    if sample.mask is not None:
        assert sample.mask.shape == (size, size) and sample.mask.dtype == np.uint8
        assert set(np.unique(sample.mask)) <= {*range(tasks["segment"].num_classes), IGNORE_LABEL}
    if sample.depth is not None:
        assert sample.depth.shape == (size, size) and sample.depth.dtype == np.float32
        assert sample.depth.min() > 0 and sample.depth.max() <= tasks["depth"].max_depth_m == MAX_DEPTH_M


def test_the_sets_are_those_of_the_benchmark() -> None:
    families = {name: set(world_set.tasks) for name, world_set in DOWNSTREAM.items()}
    classify = ("flower", "texture", "count", "relation", "sketch", "digits", "species")
    assert families == {
        **{name: {"classify"} for name in classify},
        "det_novel": {"detect"},
        "det_thermal": {"detect"},
        "seg_night": {"segment"},
        "seg_mosaic": {"segment"},
        "depth_room": {"depth"},
    }
    own_sizes = ("digits", "species")
    sizes = {(s.num_train, s.num_val, s.num_test) for name, s in DOWNSTREAM.items() if name not in own_sizes}
    assert sizes == {(2000, 0, 1000)}
    assert (UPSTREAM.num_train, UPSTREAM.num_val, UPSTREAM.num_test) == (30_000, 1_000, 0)
    assert set(UPSTREAM.tasks) == {"multilabel", "detect", "segment", "depth"}


def test_species_are_many_easy_and_two_images_a_class_at_ten_percent() -> None:
    species = DOWNSTREAM["species"]
    assert len(set(SPECIES)) == species.tasks["classify"].num_classes == 102
    for one, other in itertools.combinations(SPECIES, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 2
    samples = render(species, 0, "train", range(species.num_train), 16)
    drawn = stratified_share([s.key for s in samples], [s.label for s in samples], 0.1, 2021)
    labels = {sample.key: sample.label for sample in samples}
    assert Counter(labels[key] for key in drawn) == dict.fromkeys(range(102), 2)


def test_downstream_label_names_are_new() -> None:
    seen = {*SHAPES, *TEXTURES, *COLOURS}
    for name in ("flower", "texture", "count", "relation", "sketch", "det_novel", "seg_mosaic"):
        (task,) = DOWNSTREAM[name].tasks.values()
        assert not seen & set(task.class_names)


def test_concepts_form_a_two_level_hierarchy() -> None:
    assert len(CONCEPTS) == len(set(CONCEPTS)) == 48
    assert set(CONCEPT_PARENTS) == set(SHAPES) and len(SHAPES) == 24
    assert Counter(CONCEPT_PARENTS.values()) == dict.fromkeys(FAMILIES, 4)


@pytest.mark.parametrize("name", ["flower", "texture", "count", "relation", "sketch"])
def test_made_classification_sets_are_balanced(name: str) -> None:
    world_set = replace(DOWNSTREAM[name], num_train=100)
    counts = Counter(sample.label for sample in render(world_set, 0, "train", range(100), 16))
    assert len(counts) == world_set.tasks["classify"].num_classes
    assert max(counts.values()) - min(counts.values()) <= 1


def test_digits_are_the_official_data_split_in_file_order() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    digits = DOWNSTREAM["digits"]
    assert digits.num_train + digits.num_test == len(data.target) == 1797
    test = render(digits, 9, "test", range(600), 16)
    assert [sample.label for sample in test] == data.target[1197:].tolist()
    assert np.array_equal(render(digits, 0, "train", [0], 64)[0].image, render(digits, 8, "train", [0], 64)[0].image)
    small = test[0].image[..., 0].reshape(8, 2, 8, 2).mean((1, 3))
    assert np.corrcoef(small.ravel(), data.images[1197].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("world_set", MADE_SETS, ids=lambda world_set: world_set.name)
def test_splits_seeds_and_indices_share_no_scene(world_set: WorldSet) -> None:
    world_set = replace(world_set, num_val=20, num_test=20)
    places = [("train", 0), ("val", 0), ("test", 0), ("train", 1)]
    images = [s.image.tobytes() for split, seed in places for s in render(world_set, seed, split, range(20), 32)]
    assert len(set(images)) == len(images)


def test_boxes_are_tight_around_the_mask_of_a_lone_family_member(upstream: list[Sample]) -> None:
    num_checked = 0
    for sample in upstream:
        families = [FAMILIES.index(CONCEPT_PARENTS[SHAPES[label]]) for label in sample.box_labels]
        assert {int(c) for c in np.unique(sample.mask)} - {6, 7, IGNORE_LABEL} == set(families)
        for box, family in zip(sample.boxes, families, strict=True):
            if families.count(family) == 1:
                rows, cols = np.nonzero(sample.mask == family)
                assert box.tolist() == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
                num_checked += 1
    assert num_checked > 300


def test_concepts_are_those_of_the_boxed_objects(upstream: list[Sample]) -> None:
    names = [[CONCEPTS[c] for c in sample.concepts] for sample in upstream]
    for sample, present in zip(upstream, names, strict=True):
        assert list(sample.concepts) == sorted(set(sample.concepts))
        shapes = {SHAPES[label] for label in sample.box_labels}
        assert shapes == set(present) & set(SHAPES)
        assert {CONCEPT_PARENTS[shape] for shape in shapes} == set(present) & set(FAMILIES)
        for kind in (TEXTURES, COLOURS):
            assert 1 <= len(set(present) & set(kind)) <= len(sample.boxes)
    assert set(CONCEPTS) == {name for present in names for name in present}


def test_captions_stay_within_the_vocabulary_and_mostly_tell_the_truth(upstream: list[Sample]) -> None:
    words = [sample.caption.split() for sample in upstream]
    assert all(0 < len(caption) <= MAX_CAPTION_WORDS for caption in words)
    assert {word for caption in words for word in caption} <= set(VOCABULARY)
    said = [(c, s) for c, s in zip(words, upstream, strict=True) if len(set(c) & set(COLOURS)) == 1]
    true = [bool(set(c) & {CONCEPTS[i] for i in s.concepts} & set(COLOURS)) for c, s in said]
    assert len(said) > 80 and 0.85 < np.mean(true) < 1


def described(shape: str, x: float, depth_m: float) -> Described:
    return Described(shape=shape, texture="plain", colour="red", size="small", x=x, depth_m=depth_m)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_objects=st.integers(1, 3), background=st.sampled_from(BACKGROUNDS))
def test_the_longest_caption_fits(seed: int, num_objects: int, background: str) -> None:
    objects = [described(SHAPES[5 * k], 0.3 * k, 2.0 + k) for k in range(num_objects)]
    words = caption_scene(np.random.default_rng(seed), objects, background).split()
    assert len(words) <= MAX_CAPTION_WORDS and set(words) <= set(VOCABULARY)


def test_caption_relations_hold_at_the_stated_rate() -> None:
    left_near, right_far = described("disc", 0.2, 2.5), described("tree", 0.8, 4.5)
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(1500):
        words = caption_scene(rng, [left_near, right_far], "snow").split()
        subject = next((word for word in words if word in ("disc", "tree")), None)
        relation = {"left", "right", "front", "behind"} & set(words)
        if {"disc", "tree"} <= set(words) and relation:
            verdicts.append(relation <= ({"left", "front"} if subject == "disc" else {"right", "behind"}))
    # Wrong where the relation is (half of the 6 %), or either shape word is.
    assert len(verdicts) > 150 and 0.9 < np.mean(verdicts) < 1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    near_m=st.floats(2.4, 3.4),
    gap_m=st.floats(0.2, 2.0),
    shift_px=st.floats(-6, 6),
    swap=st.booleans(),
)
def test_what_is_nearer_occludes_whatever_the_order(seed, near_m, gap_m, shift_px, swap) -> None:
    near, far = things_at((32, near_m), (32 + shift_px, near_m + gap_m))
    alone = empty_frame(seed)
    add_things(alone, [near], 0.0)
    frame = empty_frame(seed)
    add_things(frame, [far, near] if swap else [near, far], 0.0)
    near_index = FIRST_OBJECT + (1 if swap else 0)
    assert np.array_equal(frame.owner_HW == near_index, alone.owner_HW == FIRST_OBJECT)
    assert (frame.depth_HW[frame.owner_HW == near_index] == np.float32(near_m)).all()
    # Nothing of the ground lies before an object's pixels, but for half a pixel at its foot.
    objects = frame.owner_HW >= FIRST_OBJECT
    assert (frame.depth_HW[objects] <= empty_frame(seed).depth_HW[objects] + 0.35).all()


def test_ground_depth_is_that_of_the_camera_and_objects_stand_on_it() -> None:
    frame = empty_frame()
    camera = frame.camera
    rows = np.flatnonzero((frame.owner_HW == GROUND).all(axis=1))
    expected = camera.focal_px * camera.height_m / (rows + 0.5 - camera.horizon_px)
    assert np.allclose(frame.depth_HW[rows, 0], np.minimum(expected, MAX_DEPTH_M), rtol=1e-5)
    add_things(frame, things_at((32, 3.0)), 0.0)
    lowest = np.flatnonzero((frame.owner_HW == FIRST_OBJECT).any(axis=1))[-1] + 1
    assert abs(lowest - camera.ground_row_px(3.0)) <= 1.5


def test_a_room_is_a_convex_box_in_depth() -> None:
    frame, (_, _, back_m) = room(np.random.default_rng(4), 65)
    assert np.isclose(frame.depth_HW.max(), back_m, rtol=1e-5) and frame.depth_HW.min() > 0.5
    # The inverse depth of a convex box is the largest of its planes' affine functions: convex along a row.
    inverse = 1 / frame.depth_HW.astype(np.float64)
    assert (inverse[:, 2:] - 2 * inverse[:, 1:-1] + inverse[:, :-2] > -1e-6).all()


def test_hidden_objects_lose_box_and_concepts_and_are_ignored_in_the_mask(upstream: list[Sample]) -> None:
    frame = empty_frame()
    # The far disc is smaller on screen and stands right behind the near one.
    add_things(frame, [*things_at((32, 2.4), radius_m=0.9), *things_at((33, 3.0), radius_m=0.6)], 0.0)
    assert list(visible_boxes(frame)) == [0]
    ignored = [sample for sample in render(UPSTREAM, 1, "train", range(400)) if (sample.mask == IGNORE_LABEL).any()]
    assert ignored and len(ignored) < 40
    for sample in ignored:
        families = {FAMILIES.index(CONCEPT_PARENTS[SHAPES[label]]) for label in sample.box_labels}
        assert set(np.unique(sample.mask)) - {6, 7, IGNORE_LABEL} == families
        assert sample.depth[sample.mask == IGNORE_LABEL].max() < MAX_DEPTH_M


@pytest.mark.parametrize("size_px", [32, 128])
def test_scenes_scale_with_the_image(size_px: int) -> None:
    small = render(UPSTREAM, 0, "train", range(8), 64)
    other = render(UPSTREAM, 0, "train", range(8), size_px)
    for a, b in zip(small, other, strict=True):
        assert a.caption == b.caption and a.concepts == b.concepts
        assert np.abs(a.boxes * (size_px / 64) - b.boxes).max() <= 2.5 * max(1, size_px / 64)


def test_distances_are_euclidean_and_rotation_turns_clockwise() -> None:
    axis = np.arange(64) + 0.5 - 32
    exact = np.hypot(*np.meshgrid(axis, axis)) - 0.92 * 20
    assert np.abs(sample_distance("disc", 20, (32, 32), 0.0, (0, 0, 64, 64)) - exact)[20:44, 6:58].max() < 0.35
    # A quarter turn clockwise points the arrow to the right.
    arrow = sample_distance("arrow", 20, (32, 32), np.pi / 2, (0, 0, 64, 64)) < 0
    assert np.flatnonzero(arrow.any(axis=0))[-1] > 50 and arrow[:, 40].sum() > arrow[:, 16].sum()
    assert (distance_table("ring")[80, 80] > 0) and distance_table("ring")[80, 120] < 0


@pytest.mark.parametrize("texture", [*TEXTURES, *DOWNSTREAM["texture"].tasks["classify"].class_names])
def test_textures_repeat_with_their_period(texture: str) -> None:
    values = sample_texture(texture, 32, (0, 0), 0.0, (0, 0, 64, 64))
    assert values.min() >= 0 and values.max() <= 1 + 1e-6
    assert np.allclose(values[:32, :32], values[32:, 32:], atol=1e-4)
    assert texture == "plain" or values.std() > 0.15


def test_faults_name_the_field_and_the_fix() -> None:
    with pytest.raises(DataError, match=r"set flower, split test: index 1000 is outside 0\.\.999; .*num_test"):
        render(DOWNSTREAM["flower"], 0, "test", [1000])
    with pytest.raises(DataError, match="index -1"):
        render(UPSTREAM, 0, "train", [-1])
    with pytest.raises(ConfigError, match=r"world_set\.name: expected one of upstream, .*'nowhere'"):
        render(replace(UPSTREAM, name="nowhere"), 0, "train", [0])
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match="seed: expected 0 to"):
            render(UPSTREAM, seed, "train", [0])
    with pytest.raises(ConfigError, match="split: expected train, val or test, got 'dev'"):
        render(UPSTREAM, 0, "dev", [0])
    with pytest.raises(ConfigError, match="image_size_px: expected at least 16, got 8"):
        render(UPSTREAM, 0, "train", [0], 8)
