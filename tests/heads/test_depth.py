import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.heads.depth import SCALE_EPS, SQRT_EPS, affine_loss, align, gradient_loss, silog_loss


def test_overfits(overfit):
    first, last, scores = overfit("depth", 60)
    assert last < 0.3 * first and scores["abs_rel"] < 0.12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0))
def test_silog_equals_a_loop(seed, share_valid):
    rng = np.random.default_rng(seed)
    error, valid = rng.normal(0.3, 0.5, (2, 5, 6)), rng.random((2, 5, 6)) < share_valid
    values = [error[index] for index in np.ndindex(error.shape) if valid[index]]
    expected = 0.0
    if values:
        mean = math.fsum(values) / len(values)
        mean_square = math.fsum(value * value for value in values) / len(values)
        expected = math.sqrt(mean_square - 0.85 * mean * mean + SQRT_EPS)
    loss = silog_loss(torch.tensor(error, dtype=torch.float32), torch.tensor(valid))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_silog_forgives_scale_but_not_fully():
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    pattern = torch.randn(1, 8, 8)
    near, far = silog_loss(pattern, valid), silog_loss(pattern - pattern.mean() + 1.0, valid)
    assert near < far < torch.sqrt((pattern - pattern.mean() + 1.0).square().mean())


def test_gradient_loss_equals_a_loop():
    rng = np.random.default_rng(1)
    error, valid = rng.normal(size=(2, 9, 12)), rng.random((2, 9, 12)) < 0.7
    expected = 0.0
    for step in (1, 2, 4, 8):
        total, num_valid = 0.0, 0
        for b in range(2):
            for y in range(0, 9, step):
                for x in range(0, 12, step):
                    num_valid += valid[b, y, x]
                    for other_y, other_x in ((y + step, x), (y, x + step)):
                        if other_y < 9 and other_x < 12 and valid[b, y, x] and valid[b, other_y, other_x]:
                            total += abs(error[b, y, x] - error[b, other_y, other_x])
        expected += total / max(num_valid, 1)
    assert float(gradient_loss(torch.tensor(error), torch.tensor(valid))) == pytest.approx(expected, rel=1e-6)


def test_unknown_depth_does_not_count(head_for, features, batch):
    head = head_for("depth")
    outputs = head(features)
    batch["depth_BHW"][4:] = 0.0
    batch["depth_BHW"][3] = 11.0
    few = head.losses(outputs, batch)
    part = {name: value[:3] for name, value in outputs.items()}
    expected = head.losses(part, {"depth_BHW": batch["depth_BHW"][:3]})
    for name, loss in few.items():
        torch.testing.assert_close(loss, expected[name])


def test_a_batch_of_unknown_depth_gives_zero_and_finite_gradients(head_for, features, batch):
    head = head_for("depth")
    batch["depth_BHW"][:] = 0.0
    losses = head.losses(head(features), batch)
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all((parameter.grad == 0).all() for parameter in head.parameters())


def test_a_perfect_fit_has_finite_gradients():
    error = torch.zeros(1, 8, 8, requires_grad=True)
    silog_loss(error, torch.ones(1, 8, 8, dtype=torch.bool)).backward()
    assert error.grad.isfinite().all()


def test_depth_is_bounded(head_for, features):
    head = head_for("depth")
    with torch.no_grad():
        head.decoder.predict.weight.mul_(1e4)
    (prediction, *_) = head.predict(head(features), (50, 70))
    assert prediction.depth.shape == (50, 70) and prediction.depth.dtype == np.float32
    assert prediction.depth.min() >= 1e-3 and prediction.depth.max() <= 10.0


def aligned_loop(values):
    """Less the lower median, over the mean absolute distance from it."""
    median = sorted(values)[(len(values) - 1) // 2]
    scale = math.fsum(abs(value - median) for value in values) / len(values)
    return [(value - median) / max(scale, SCALE_EPS) for value in values]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0))
def test_affine_loss_equals_a_loop(seed, share_valid):
    rng = np.random.default_rng(seed)
    predicted, truth = rng.uniform(0.05, 2, (2, 3, 5, 6))
    valid = rng.random((3, 5, 6)) < share_valid
    valid[0] = False
    terms = []
    for own, true, mask in zip(predicted, truth, valid, strict=True):
        if mask.any():
            pairs = zip(aligned_loop(own[mask].tolist()), aligned_loop(true[mask].tolist()), strict=True)
            terms.append(math.fsum(abs(one - other) for one, other in pairs) / mask.sum())
    valid = torch.tensor(valid)
    error = align(torch.tensor(predicted, dtype=torch.float32), valid)
    error = error - align(torch.tensor(truth, dtype=torch.float32), valid)
    assert error.isfinite().all()
    assert float(affine_loss(error, valid)) == pytest.approx(sum(terms) / max(len(terms), 1), rel=1e-3, abs=1e-5)


def test_affine_loss_is_blind_to_scale_and_shift_of_the_inverse_depth(head_for, features, batch):
    head = head_for("depth", depth_loss="affine", affine_weight=2.0)
    outputs = head(features)
    losses = head.losses(outputs, batch)
    assert set(losses) == {"affine", "gradient"}
    moved = batch | {"depth_BHW": 1 / (3.0 / batch["depth_BHW"] + 0.2)}
    for name, loss in head.losses(outputs, moved).items():
        torch.testing.assert_close(loss, losses[name], rtol=1e-3, atol=1e-5)
    right = {"log_depth_B1HW": batch["depth_BHW"].log()[:, None]}
    assert head.losses(right, moved)["affine"] < 1e-4
    assert head.losses(right, batch | {"depth_BHW": batch["depth_BHW"].square() / 10})["affine"] > 0.1


def test_affine_loss_has_finite_gradients_where_an_image_is_unknown_or_flat(head_for, features, batch):
    head = head_for("depth", depth_loss="affine")
    batch["depth_BHW"][0] = 0.0
    batch["depth_BHW"][1] = 3.0
    sum(head.losses(head(features), batch).values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    batch["depth_BHW"][:] = 0.0
    assert all(loss == 0 for loss in head.losses(head(features), batch).values())


def test_affine_head_learns_the_order_of_depths(overfit):
    first, last, _ = overfit("depth", 60, depth_loss="affine")
    assert last < 0.3 * first


def test_a_depth_heads_weights_fit_another_largest_depth(head_for):
    source, target = head_for("depth"), head_for("depth", depth_loss="affine")
    names = {name.removesuffix("." + name.rpartition(".")[2]) for name in source.state_dict()}
    assert all(name.startswith(source.shared_prefixes()) for name in names)
    target.load_state_dict(source.state_dict())
