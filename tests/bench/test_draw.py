import numpy as np
import pytest

from intern_vision.bench import draw
from intern_vision.data import world
from intern_vision.data.codec import decode_image
from intern_vision.data.sample import Sample
from intern_vision.errors import DataError
from intern_vision.heads.base import Prediction
from intern_vision.task import Task

SETS = {"classify": "sketch", "detect": "det_novel", "segment": "seg_night", "depth": "depth_room"}
MULTILABEL = world.UPSTREAM.tasks["multilabel"]


def samples_of(family, num_samples=3, size_px=64):
    if family == "multilabel":
        return world.render(world.UPSTREAM, 0, "train", range(num_samples), size_px), MULTILABEL
    world_set = world.DOWNSTREAM[SETS[family]]
    return world.render(world_set, 0, "test", range(num_samples), size_px), world_set.tasks[family]


def truth_as_prediction(sample, task):
    """What a model that is always right says."""
    if task.family in ("classify", "multilabel"):
        scores = np.zeros(task.num_classes, np.float32)
        scores[list(sample.concepts or (sample.label,))] = 0.9
        return Prediction(label=sample.label, scores=scores)
    if task.family == "detect":
        scores = np.full(len(sample.boxes), 0.9, np.float32)
        return Prediction(boxes=sample.boxes, labels=sample.box_labels, scores=scores)
    if task.family == "segment":
        return Prediction(mask=np.where(sample.mask == 255, 0, sample.mask))
    return Prediction(depth=sample.depth)


def has_colour(image, colour):
    return bool((image == np.array(colour)).all(-1).any())


def test_samples_grid_is_a_png_with_large_cells():
    samples = world.render(world.UPSTREAM, 0, "train", range(3))
    data = draw.draw_samples(samples, world.UPSTREAM.tasks)
    grid = decode_image(data)
    assert data.startswith(b"\x89PNG")
    assert grid.shape[0] > 2 * draw.MIN_CELL_PX and grid.shape[1] > 2 * 3 * draw.MIN_CELL_PX
    # The label of a box lies on its class colour, which neither world nor text uses.
    assert has_colour(grid, draw.class_colour(int(samples[0].box_labels[0])))


def test_what_was_never_annotated_takes_no_panel():
    image = np.zeros((64, 64, 3), np.uint8)
    bare = Sample(key="a", split="train", image=image)
    unknown = Sample(
        key="b",
        split="train",
        image=image,
        label=-1,
        mask=np.full((64, 64), 255, np.uint8),
        depth=np.zeros((64, 64), np.float32),
    )
    assert draw.draw_samples([bare], {}) == draw.draw_samples([unknown], {})


def test_images_of_any_shape_fit_one_grid():
    shapes = ((40, 90), (300, 200), (7, 5))
    samples = [
        Sample(key=str(n), split="train", image=np.full((*shape, 3), 90, np.uint8), caption="A café " + "x" * n)
        for n, shape in enumerate(shapes)
    ]
    grid = decode_image(draw.draw_samples(samples, {}))
    assert grid.shape[1] == 3 * draw.MIN_CELL_PX + 4 * 10


@pytest.mark.parametrize("family", [*SETS, "multilabel"])
def test_predictions_grid_for_every_family(family):
    samples, task = samples_of(family)
    right = draw.draw_predictions(samples, [truth_as_prediction(sample, task) for sample in samples], task)
    grid = decode_image(right)
    assert grid.shape[0] > draw.MIN_CELL_PX and grid.shape[1] <= 720
    others = [truth_as_prediction(sample, task) for sample in reversed(samples)]
    assert draw.draw_predictions(samples, others, task) != right


def test_right_and_wrong_labels_differ_in_colour():
    samples, task = samples_of("classify", 1)
    right = truth_as_prediction(samples[0], task)
    wrong = Prediction(label=(samples[0].label + 1) % task.num_classes, scores=right.scores)

    def blue_and_orange(prediction):
        text = decode_image(draw.draw_predictions(samples, [prediction], task))[-30:].astype(int)
        return (text[..., 2] - text[..., 0]).max() > 60, (text[..., 0] - text[..., 2]).max() > 60

    assert blue_and_orange(right) == (True, False)
    assert blue_and_orange(wrong) == (False, True)


def test_weak_boxes_are_not_drawn():
    samples, task = samples_of("detect", 1)
    boxes = np.array([[5, 5, 40, 40]], np.float32)
    labels = np.array([0], np.int64)

    def drawn(score):
        prediction = Prediction(boxes=boxes, labels=labels, scores=np.array([score], np.float32))
        return draw.draw_prediction(samples[0].image, prediction, task)

    assert has_colour(drawn(0.9), draw.class_colour(0))
    assert not has_colour(drawn(0.1)[: draw.MIN_CELL_PX], draw.class_colour(0))


@pytest.mark.parametrize("family", [*SETS, "multilabel"])
@pytest.mark.parametrize("size_px", [48, 400])
def test_one_picture_of_any_size(family, size_px):
    samples, task = samples_of(family, 1, size_px)
    before = samples[0].image.copy()
    picture = draw.draw_prediction(samples[0].image, truth_as_prediction(samples[0], task), task)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert picture.shape[0] > max(size_px, draw.MIN_CELL_PX) <= picture.shape[1]
    assert np.array_equal(samples[0].image, before)


def test_class_colours_differ_for_twenty_one_classes():
    assert len({draw.class_colour(index) for index in range(21)}) == 21


def test_faults_name_the_field():
    samples, task = samples_of("segment", 1)
    with pytest.raises(DataError, match="at least 1"):
        draw.draw_samples([], {})
    with pytest.raises(DataError, match="expected 1, one a sample, got 0"):
        draw.draw_predictions(samples, [], task)
    with pytest.raises(DataError, match="mask: expected a value"):
        draw.draw_predictions(samples, [Prediction()], task)
    with pytest.raises(DataError, match=r"mask predicted at \(32, 32\), known at \(64, 64\)"):
        draw.draw_predictions(samples, [Prediction(mask=np.zeros((32, 32), np.uint8))], task)
    with pytest.raises(DataError, match="boxes: expected a value"):
        draw.draw_prediction(samples[0].image, Prediction(), Task(family="detect", class_names=("x",)))
