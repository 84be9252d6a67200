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
    mask_tokens,
    masked_token_loss,
    negative_cosine,
    standardise,
)

MASK_ID = 297


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


def test_negative_cosine_ignores_lengths_and_stops_the_gradient():
    prediction, target = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    loss = negative_cosine(prediction, 3 * target)
    pairs = zip(prediction.tolist(), target.tolist(), strict=True)
    loop = -sum(sum(a * b for a, b in zip(p, t, strict=True)) / (math.hypot(*p) * math.hypot(*t)) for p, t in pairs) / 4
    assert float(loss.detach()) == pytest.approx(loop, abs=1e-5)
    loss.backward()
    assert target.grad is None and prediction.grad.abs().sum() > 0
    assert float(negative_cosine(prediction, prediction).detach()) == pytest.approx(-1.0)


def caption_tokens(num_rows=400, length=24):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, MASK_ID, (num_rows, length), generator=generator)
    tokens[:, 0] = MASK_ID + 1  # start
    for row in range(num_rows):
        end = 3 + row % (length - 3)
        tokens[row, end] = MASK_ID + 2
        tokens[row, end + 1 :] = 0
    return tokens


def test_a_share_of_the_ordinary_tokens_is_corrupted_as_in_bert():
    torch.manual_seed(0)
    tokens = caption_tokens()
    corrupted, targets = mask_tokens(tokens, mask_id=MASK_ID, first_special_id=MASK_ID)
    ordinary, chosen = (tokens > 0) & (tokens < MASK_ID), targets != -100
    assert not (chosen & ~ordinary).any()
    assert torch.equal(corrupted[~chosen], tokens[~chosen]) and torch.equal(targets[chosen], tokens[chosen])
    num_ordinary, num_chosen = int(ordinary.sum()), int(chosen.sum())
    # Four standard deviations of a binomial.
    assert abs(num_chosen / num_ordinary - 0.15) < 4 * math.sqrt(0.15 * 0.85 / num_ordinary)
    shares = {
        "mask": (corrupted == MASK_ID)[chosen].float().mean(),
        "same": (corrupted == tokens)[chosen].float().mean(),
    }
    for name, expected in (("mask", 0.8), ("same", 0.1)):
        assert abs(float(shares[name]) - expected) < 4 * math.sqrt(expected * (1 - expected) / num_chosen) + 0.001
    others = corrupted[chosen & (corrupted != MASK_ID)]
    assert int(others.min()) >= 1 and int(others.max()) < MASK_ID


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_is_respected(share):
    torch.manual_seed(0)
    tokens = caption_tokens()
    _, targets = mask_tokens(tokens, mask_id=MASK_ID, first_special_id=MASK_ID, share=share)
    num_ordinary = int(((tokens > 0) & (tokens < MASK_ID)).sum())
    assert int((targets >= 0).sum()) / num_ordinary == pytest.approx(share, abs=0.03)


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


def test_standardised_maps_have_no_scale():
    map_BCHW = 5 + 3 * torch.randn(4, 6, 5, 5)
    found = standardise(map_BCHW)
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(6), atol=1e-5)
    assert torch.allclose(found.std((0, 2, 3)), torch.ones(6), atol=1e-3)
    assert torch.allclose(standardise(10 * map_BCHW), found, atol=1e-3)
    assert torch.isfinite(standardise(torch.ones(2, 3, 4, 4))).all()
