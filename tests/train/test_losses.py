import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.train.losses import (
    NeighbourQueue,
    contrastive_loss,
    gather_rows,
    masked_token_loss,
    negative_cosine,
    sigmoid_loss,
)


def unit_rows(num_rows, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_rows, width, generator=generator), dim=-1)


def contrastive_loop(image, text, scale):
    total = 0.0
    for one, other in ((image, text), (text, image)):
        for row in range(len(one)):
            scores = [
                scale * sum(a * b for a, b in zip(one[row], other[col], strict=True)) for col in range(len(other))
            ]
            total += math.log(sum(math.exp(score) for score in scores)) - scores[row]
    return total / (2 * len(image))


def test_contrast_equals_a_loop():
    image, text = unit_rows(5, seed=1), unit_rows(5, seed=2)
    found = contrastive_loss(image, text, torch.tensor(7.0))
    assert float(found) == pytest.approx(contrastive_loop(image.tolist(), text.tolist(), 7.0), rel=1e-5)


def test_contrast_is_symmetric_and_best_at_matching_rows():
    image, text, scale = unit_rows(6, seed=1), unit_rows(6, seed=2), torch.tensor(10.0)
    assert float(contrastive_loss(image, text, scale)) == pytest.approx(float(contrastive_loss(text, image, scale)))
    assert contrastive_loss(image, image, scale) < contrastive_loss(image, text, scale)
    assert float(contrastive_loss(image, text, torch.tensor(0.0))) == pytest.approx(math.log(6))


@given(st.permutations(range(6)))
def test_contrast_does_not_depend_on_the_order_of_pairs(order):
    image, text, scale = unit_rows(6, seed=1), unit_rows(6, seed=2), torch.tensor(5.0)
    shuffled = contrastive_loss(image[order], text[order], scale)
    assert float(shuffled) == pytest.approx(float(contrastive_loss(image, text, scale)), rel=1e-5)


def test_pairwise_sigmoid_equals_a_loop_and_its_bias_says_no():
    image, text = unit_rows(5, seed=1), unit_rows(5, seed=2)
    total = 0.0
    for row in range(5):
        for col in range(5):
            logit = 7.0 * sum(a * b for a, b in zip(image[row].tolist(), text[col].tolist(), strict=True)) - 3.0
            total += math.log(1 + math.exp(-logit if row == col else logit))
    found = sigmoid_loss(image, text, torch.tensor(7.0), torch.tensor(-3.0))
    assert float(found) == pytest.approx(total / 5, rel=1e-5)
    # At the start nearly only the B positives cost anything, about 10 each, whatever the batch.
    for rows in (4, 64):
        start = sigmoid_loss(unit_rows(rows, 256), unit_rows(rows, 256, 1), torch.tensor(10.0), torch.tensor(-10.0))
        assert float(start) == pytest.approx(10.0, abs=1.0)


def test_negative_cosine_ignores_lengths_and_stops_the_gradient():
    prediction, target = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    loss = negative_cosine(prediction, 3 * target)
    pairs = zip(prediction.tolist(), target.tolist(), strict=True)
    loop = -sum(sum(a * b for a, b in zip(p, t, strict=True)) / (math.hypot(*p) * math.hypot(*t)) for p, t in pairs) / 4
    assert float(loss.detach()) == pytest.approx(loop, abs=1e-5)
    loss.backward()
    assert target.grad is None and prediction.grad.abs().sum() > 0
    assert float(negative_cosine(prediction, prediction).detach()) == pytest.approx(-1.0)


def test_masked_token_loss_equals_a_loop_and_is_zero_without_targets():
    logits, targets = torch.randn(3, 5, 11), torch.full((3, 5), -100)
    assert float(masked_token_loss(logits, targets)) == 0.0
    targets[0, 1], targets[2, 4] = 7, 0
    loop = -sum(float(logits[row, col].log_softmax(0)[token]) for row, col, token in ((0, 1, 7), (2, 4, 0))) / 2
    assert float(masked_token_loss(logits, targets)) == pytest.approx(loop, rel=1e-5)


def test_queue_gives_the_nearest_old_row_and_forgets_the_oldest():
    queue = NeighbourQueue(6, 8)
    start = queue.rows_QD.clone()
    first, second = unit_rows(4, seed=5), unit_rows(4, seed=6)
    found = queue.nearest(first)
    for row, text in zip(found, first, strict=True):
        assert torch.equal(row, max(start, key=lambda old, text=text: float(old @ text)))
    queue.push(first)
    assert torch.equal(queue.nearest(first), first)
    queue.push(second)  # 8 rows through a queue of 6: rows 0 and 1 are overwritten
    assert torch.equal(queue.rows_QD, torch.cat([second[2:], first[2:], second[:2]]))
    assert int(queue.next_row) == 2


def test_queue_is_kept_in_checkpoints_and_takes_no_gradient():
    queue = NeighbourQueue(6, 8)
    text = unit_rows(4).requires_grad_()
    queue.push(text)
    assert not queue.nearest(text).requires_grad and not queue.rows_QD.requires_grad
    other = NeighbourQueue(6, 8)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.rows_QD, queue.rows_QD) and int(other.next_row) == 4


def test_a_batch_larger_than_the_queue_leaves_only_its_own_rows():
    queue = NeighbourQueue(3, 8)
    text = unit_rows(7)
    queue.push(text)
    assert sorted(queue.rows_QD[:, 0].tolist()) == sorted(text[-3:, 0].tolist())
    assert int(queue.next_row) == 7 % 3


def test_gathering_alone_changes_nothing():
    rows = unit_rows(3).requires_grad_()
    assert gather_rows(rows) is rows
