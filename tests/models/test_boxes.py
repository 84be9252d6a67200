import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.models.boxes import batched_nms, box_area, box_iou, clip_boxes, greedy_keep

coordinates = st.integers(0, 12)


@st.composite
def scenes(draw):
    num_boxes = draw(st.integers(0, 14))
    boxes = [
        (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        for x0, y0, x1, y1 in draw(st.lists(st.tuples(*[coordinates] * 4), min_size=num_boxes, max_size=num_boxes))
    ]
    scores = draw(st.lists(st.integers(0, 4), min_size=num_boxes, max_size=num_boxes))
    labels = draw(st.lists(st.integers(0, 1), min_size=num_boxes, max_size=num_boxes))
    return (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32) / 4,
        torch.tensor(labels, dtype=torch.int64),
    )


def iou(a, b):
    """Counts unit cells; exact for integer coordinates."""
    cells = [{(x, y) for x in range(int(x0), int(x1)) for y in range(int(y0), int(y1))} for x0, y0, x1, y1 in (a, b)]
    union = cells[0] | cells[1]
    return len(cells[0] & cells[1]) / len(union) if union else 0.0


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_iou_counts_cells(scene):
    boxes, _, _ = scene
    expected = torch.tensor([iou(a, b) for a in boxes.tolist() for b in boxes.tolist()])
    got = box_iou(boxes, boxes)
    assert got.shape == (len(boxes), len(boxes))
    torch.testing.assert_close(got.flatten(), expected)


@settings(max_examples=80, deadline=None)
@given(scenes(), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_nms_equals_the_greedy_loop(scene, threshold):
    boxes, scores, labels = scene
    overlaps = box_iou(boxes, boxes)
    kept = []
    for index in sorted(range(len(boxes)), key=lambda index: (-scores[index].item(), index)):
        if all(labels[other] != labels[index] or overlaps[other, index] <= threshold for other in kept):
            kept.append(index)
    assert batched_nms(boxes, scores, labels, threshold).tolist() == kept


def test_nms_settles_a_long_chain():
    # Every box overlaps only its neighbours, so each decision hangs on the one before.
    starts = torch.arange(60.0)
    boxes = torch.stack([starts * 4, torch.zeros(60), starts * 4 + 10, torch.full((60,), 10.0)], 1)
    kept = batched_nms(boxes, 1 - starts / 100, torch.zeros(60, dtype=torch.int64), 0.4)
    assert kept.tolist() == list(range(0, 60, 2))


def test_area_and_clipping():
    boxes = torch.tensor([[-5.0, 2.0, 4.0, 30.0], [8.0, 9.0, 7.0, 12.0]])
    assert box_area(boxes).tolist() == [252.0, 0.0]
    assert clip_boxes(boxes, 20, 10).tolist() == [[0, 2, 4, 20], [8, 9, 7, 12]]


def test_iou_of_large_and_empty_boxes():
    boxes = torch.tensor([[0.0, 0.0, 1e4, 1e4], [3.0, 3.0, 3.0, 3.0]])
    assert box_iou(boxes, boxes).tolist() == [[1.0, 0.0], [0.0, 0.0]]


@settings(max_examples=60, deadline=None)
@given(scenes(), st.sampled_from([0.0, 0.5]), st.randoms(use_true_random=False))
def test_greedy_keep_equals_the_loop_for_each_image(scene, threshold, random):
    boxes, _, labels = scene
    boxes, labels = torch.stack([boxes, boxes.flip(0)]), torch.stack([labels, labels.flip(0)])
    valid = torch.tensor([[random.random() < 0.7 for _ in row] for row in labels.tolist()]).view(labels.shape)
    got = greedy_keep(boxes, valid.bool(), threshold, labels)
    for image in range(2):
        overlaps = box_iou(boxes[image], boxes[image])
        kept = []
        for index in range(boxes.shape[1]):
            rivals = [other for other in kept if labels[image, other] == labels[image, index]]
            if valid[image, index] and all(overlaps[other, index] <= threshold for other in rivals):
                kept.append(index)
        assert got[image].nonzero().flatten().tolist() == kept


def test_iou_broadcasts_over_images():
    torch.manual_seed(0)
    corner = torch.rand(3, 5, 2)
    boxes = torch.cat([corner, corner + torch.rand(3, 5, 2)], -1)
    got = box_iou(boxes[:1, :4], boxes)
    assert got.shape == (3, 4, 5)
    for image in range(3):
        torch.testing.assert_close(got[image], box_iou(boxes[0, :4], boxes[image]))
