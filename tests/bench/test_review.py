import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score, precision_score, recall_score

from intern_vision.bench.review import MAX_CONFUSION_CLASSES, Review, Reviewer
from intern_vision.heads.base import Prediction
from intern_vision.task import Task

NAMES = ("ant", "bee", "cat", "dog")


def labelled(scores, truth, num_kept=3, names=NAMES):
    """A reviewer that has seen one batch of label predictions."""
    reviewer = Reviewer(Task(family="classify", class_names=names), num_kept)
    predictions = [Prediction(label=int(row.argmax()), scores=row) for row in scores]
    reviewer.update(predictions, {"label_B": truth, "keys": [f"k{i}" for i in range(len(truth))]}, [])
    return reviewer


def mapped(family, predictions, targets, num_kept=3, **task):
    """A reviewer that has seen one batch of a dense family."""
    reviewer = Reviewer(Task(family=family, **task), num_kept)
    reviewer.update(predictions, {"keys": [f"k{i}" for i in range(len(targets))]}, targets)
    return reviewer


def boxes(*rows):
    """A target of one image from rows ``x0 y0 x1 y1 label``, padded."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    padding = np.zeros((1, 5), np.float32) + np.float32([0, 0, 0, 0, -1])
    table = np.concatenate([table, padding])
    return {"boxes_BN4": table[None, :, :4], "box_labels_BN": table[None, :, 4].astype(np.int64)}


def said(*rows):
    """A prediction from rows ``x0 y0 x1 y1 label score``."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Prediction(boxes=table[:, :4], labels=table[:, 4].astype(np.int64), scores=table[:, 5])


def test_confusion_and_classes_are_those_of_an_independent_library():
    rng = np.random.default_rng(0)
    scores, truth = rng.dirichlet(np.ones(4), 60).astype(np.float32), rng.integers(0, 4, 60)
    guess = scores.argmax(1)
    review = labelled(scores, truth).review()
    assert np.array_equal(review.confusion, confusion_matrix(truth, guess, labels=range(4)))
    assert [c.recall for c in review.classes] == pytest.approx(list(recall_score(truth, guess, average=None)))
    assert [c.precision for c in review.classes] == pytest.approx(list(precision_score(truth, guess, average=None)))
    assert review.num_images == 60 and review.num_faulty == (truth != guess).sum()
    assert Review.from_json(review.to_json()) == review
    true_class, said_class, count = review.pairs[0]
    cells = confusion_matrix(truth, guess) * (1 - np.eye(4, dtype=int))
    assert count == cells.max() == cells[NAMES.index(true_class), NAMES.index(said_class)]


def test_the_worst_mistakes_are_the_surest_wrong_answers_and_unknown_labels_are_none():
    scores = np.float32([[0.9, 0.1, 0, 0], [0.2, 0.8, 0, 0], [0.6, 0.4, 0, 0], [1, 0, 0, 0], [0.3, 0.7, 0, 0]])
    reviewer = labelled(scores, np.array([1, 0, 1, -1, 1]), num_kept=2)
    assert [index for index, _ in reviewer.worst()] == [0, 1]
    review = reviewer.review()
    assert [mistake.text for mistake in review.mistakes] == ["is bee, said ant 0.90", "is ant, said bee 0.80"]
    assert review.num_faulty == 3 and sum(map(sum, review.confusion)) == 4


def test_a_large_confusion_matrix_is_left_out_and_its_largest_cells_kept():
    names = tuple(f"c{i}" for i in range(MAX_CONFUSION_CLASSES + 1))
    scores = np.eye(len(names), dtype=np.float32)[[3, 3, 5]]
    review = labelled(scores, np.array([4, 4, 5]), names=names).review()
    assert review.confusion == () and review.pairs == (("c4", "c3", 2),)


def test_concepts_are_counted_one_by_one():
    reviewer = Reviewer(Task(family="multilabel", class_names=NAMES), 3)
    scores = np.float32([[0.9, 0.2, 0.7, 0.1], [0.1, 0.6, 0.1, 0.1]])
    truth = np.float32([[1, 1, 0, 0], [0, 1, 0, 0]])
    reviewer.update([Prediction(scores=row) for row in scores], {"concepts_BK": truth, "keys": ["a", "b"]}, [])
    review = reviewer.review()
    assert [(c.num_true, c.num_said, c.num_right) for c in review.classes] == [
        (1, 1, 1),
        (2, 1, 1),
        (0, 1, 0),
        (0, 0, 0),
    ]
    (mistake,) = review.mistakes
    assert (mistake.key, mistake.text) == ("a", "missed bee, 2 wrong in all")
    assert mistake.badness == pytest.approx(0.8)


def test_boxes_are_matched_once_and_weak_or_ignored_ones_count_for_nothing():
    first = boxes((0, 0, 10, 10, 0), (20, 20, 40, 40, 1), (50, 50, 60, 60, 0))
    first["box_attributes"] = {"ignored": np.float32([[0, 0, 1, np.nan]])}
    guess = said(
        (0, 0, 10, 11, 0, 0.9),  # right
        (1, 0, 10, 10, 0, 0.8),  # the same object again
        (20, 20, 40, 40, 0, 0.7),  # another class
        (50, 50, 60, 60, 0, 0.6),  # ignored
        (0, 0, 5, 5, 1, 0.1),  # too weak
    )
    review = mapped("detect", [guess, said()], [first, boxes()], class_names=NAMES[:2]).review()
    assert [(c.num_true, c.num_said, c.num_right) for c in review.classes] == [(1, 3, 1), (1, 0, 0)]
    (mistake,) = review.mistakes
    assert (mistake.text, mistake.badness, review.num_faulty) == ("1 missed, 2 false", 3.0, 1)


def test_masks_give_the_overlap_of_each_class_and_ignore_255():
    rng = np.random.default_rng(1)
    truth, guess = rng.integers(0, 3, (2, 6, 8)), rng.integers(0, 3, (2, 6, 8))
    truth[0, :2] = 255
    targets = [{"mask_BHW": mask[None].astype(np.uint8)} for mask in truth]
    predictions = [Prediction(mask=mask.astype(np.uint8)) for mask in guess]
    review = mapped("segment", predictions, targets, class_names=NAMES[:3]).review()
    known = truth != 255
    assert [c.iou for c in review.classes] == pytest.approx(
        list(jaccard_score(truth[known], guess[known], average=None))
    )
    assert np.array_equal(review.confusion, confusion_matrix(truth[known], guess[known]))
    worst = [jaccard_score(t[t != 255], g[t != 255], average="macro") for t, g in zip(truth, guess, strict=True)]
    assert review.mistakes[0].badness == pytest.approx(1 - min(worst))


def test_depth_errors_are_relative_and_unknown_depth_is_no_mistake():
    targets = [{"depth_BHW": np.float32([[[2.0, 0.0]]])}, {"depth_BHW": np.zeros((1, 1, 2), np.float32)}]
    predictions = [Prediction(depth=np.float32([[3.0, 9.0]]))] * 2
    reviewer = mapped("depth", predictions, targets, max_depth_m=10.0)
    assert [(m.text, m.badness) for m in reviewer.review().mistakes] == [("off by 50 %", 0.5)]
    assert [index for index, _ in reviewer.worst()] == [0] and reviewer.review().classes == ()
