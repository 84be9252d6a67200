import copy
import math

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_training import LOCAL_KINDS, affines_of, batch_of, local_batch, local_objective

from intern_vision.errors import ConfigError
from intern_vision.models.layers import DropPath, normalise
from intern_vision.models.vision import VisionModel
from intern_vision.train.batch_norm import synchronise_batch_norms
from intern_vision.train.dense_objective import (
    HIDDEN_RGB,
    PixelPropagation,
    pixel_loss,
    positive_cells,
)


def cells_by_hand(affine, grid, size_px):
    """Centre and diagonal of each cell in the source image, by solving the map for its corners."""
    solve = np.linalg.inv(affine[:, :2])
    cells = []
    for row in range(grid[0]):
        for col in range(grid[1]):
            corners = [
                solve @ (np.array([(col + dx) * size_px / grid[1], (row + dy) * size_px / grid[0]]) - affine[:, 2])
                for dx, dy in ((0, 0), (1, 1))
            ]
            cells.append(((corners[0] + corners[1]) / 2, math.dist(*corners)))
    return cells


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(4, 4), (3, 5)]), st.floats(0.3, 2.0))
def test_positive_cells_are_those_whose_centres_are_near_in_the_source(seed, grid, threshold):
    first, second = affines_of(2, seed), affines_of(2, seed + 1)
    found = positive_cells(first, second, grid, helpers.SIZE_PX, threshold)
    for image in range(2):
        ones, others = (cells_by_hand(a[image].double().numpy(), grid, helpers.SIZE_PX) for a in (first, second))
        for i, (centre, diagonal) in enumerate(ones):
            for j, (other, other_diagonal) in enumerate(others):
                distance = math.dist(centre, other) / max(diagonal, other_diagonal)
                if abs(distance - threshold) > 1e-3:
                    assert bool(found[image, i, j]) == (distance < threshold)


def test_the_same_view_pairs_each_cell_with_itself_only():
    view = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    assert torch.equal(positive_cells(view, view, (4, 4), 32, 0.7)[0], torch.eye(16, dtype=torch.bool))
    flipped = torch.tensor([[[-1.0, 0, 32], [0, 1.0, 0]]])
    assert positive_cells(view, flipped, (1, 4), 32, 0.1)[0].nonzero().tolist() == [[0, 3], [1, 2], [2, 1], [3, 0]]


def test_pixel_loss_and_propagation_equal_loops():
    torch.manual_seed(0)
    own, target = torch.randn(2, 8, 2, 3), torch.randn(2, 8, 2, 3)
    positive = torch.rand(2, 6, 6) > 0.6
    positive[1] = False
    total = 0.0
    for image in range(2):
        pairs = positive[image].nonzero().tolist()
        cosines = [
            float(F.cosine_similarity(own[image].flatten(1)[:, i], target[image].flatten(1)[:, j], dim=0))
            for i, j in pairs
        ]
        total -= sum(cosines) / len(cosines) if cosines else 0.0
    assert float(pixel_loss(own, target, positive)) == pytest.approx(total / 2, rel=1e-5)

    module = PixelPropagation(8)
    with torch.no_grad():
        found, transformed = module(own), module.transform(own)
        for i in range(6):
            expected = torch.zeros(8)
            for j in range(6):
                one, other = own[0].flatten(1)[:, i], own[0].flatten(1)[:, j]
                similarity = max(float(F.cosine_similarity(one, other, dim=0)), 0.0) ** 2
                expected += similarity * transformed[0].flatten(1)[:, j]
            torch.testing.assert_close(found[0].flatten(1)[:, i], expected, atol=1e-5, rtol=1e-4)


def test_patch_loss_equals_a_loop_over_the_hidden_cells():
    objective = local_objective("masked").eval()
    torch.manual_seed(1)
    own, target, centre = torch.rand(2, 10, 2, 2), torch.rand(2, 10, 2, 2), torch.rand(10)
    hidden = torch.tensor([[[1.0, 0], [0, 1]], [[0, 0], [1, 0]]])
    terms = []
    for image, row, col in hidden.nonzero().tolist():
        teacher = torch.exp((target[image, :, row, col] - centre) / 0.04)
        student = torch.exp(own[image, :, row, col] / 0.1)
        terms.append(-float((teacher / teacher.sum() * torch.log(student / student.sum())).sum()))
    before = centre.clone()
    found = objective._patch_loss(own, target, hidden, centre)
    assert len(terms) == 3 and float(found) == pytest.approx(sum(terms) / 3, rel=1e-4)
    assert torch.equal(centre, before)
    objective.train()._patch_loss(own, target, hidden, centre)
    torch.testing.assert_close(centre, 0.9 * before + 0.1 * target.mean((0, 2, 3)))


def test_every_other_image_is_masked_by_whole_patches():
    objective = local_objective("masked", mask_share=0.25)
    image_BCHW = batch_of(6)["image_BCHW"]
    hidden = objective._hide(image_BCHW)
    stride = objective.model.backbone.strides[-1]
    side = helpers.SIZE_PX // stride
    assert hidden.shape == (6, side, side) and set(hidden.unique().tolist()) == {0.0, 1.0}
    assert hidden[1::2].sum() == 0
    assert hidden[::2].sum((1, 2)).tolist() == [round(0.25 * side * side)] * 3
    seen = []
    objective.model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = {"image_BCHW": image_BCHW}
    torch.manual_seed(3)
    objective.eval()(batch)
    torch.manual_seed(3)
    pixels = objective._hide(image_BCHW).repeat_interleave(stride, 1).repeat_interleave(stride, 2).bool()
    plain = normalise(image_BCHW)
    grey = normalise(torch.tensor(HIDDEN_RGB, dtype=torch.uint8).view(1, 3, 1, 1))[0, :, 0, 0]
    shown = seen[0].permute(0, 2, 3, 1)
    assert torch.allclose(shown[pixels], grey.expand(int(pixels.sum()), 3))
    assert torch.equal(shown[~pixels], plain.permute(0, 2, 3, 1)[~pixels])


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_the_student_learns_and_nothing_else_does(kind):
    objective, batch = local_objective(kind).train(), local_batch()
    anchor = copy.deepcopy(objective._anchor[0].state_dict())
    losses, _ = objective(batch)
    assert losses.keys() == {"local", "embedding"} and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    learned = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("model.backbone.segments") for name in learned)
    assert any(name.startswith("projectors.0") for name in learned) and "model.text.projection.weight" in learned
    assert not any(name.startswith(("teacher", "model.text.encoder", "model.text.log_scale")) for name in learned)
    assert not any("anchor" in name for name in objective.state_dict())
    assert all(torch.equal(value, anchor[name]) for name, value in objective._anchor[0].state_dict().items())
    assert not objective._anchor[0].training
    assert objective.teacher.training and all(
        not module.training for module in objective.teacher.modules() if isinstance(module, DropPath)
    )
    passes = (objective.passes_per_sample, objective.forward_passes_per_sample)
    assert passes == {"pixpro": (2, 3), "masked": (1, 2)}[kind]


def test_the_embedding_loss_is_zero_at_the_start_and_grows_with_the_distance():
    batch = local_batch()
    objective = local_objective("pixpro").eval()
    assert float(objective(batch)[0]["embedding"].detach()) == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        for parameter in objective.model.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    student = objective.model
    with torch.no_grad():
        pairs = [
            model.text.projection(model(batch["image_BCHW"]).vector_BD) for model in (student, objective._anchor[0])
        ]
    expected = 1 - sum(float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(*pairs, strict=True)) / len(pairs[0])
    assert expected > 1e-4
    assert float(objective(batch)[0]["embedding"].detach()) == pytest.approx(expected, rel=1e-3)
    without = local_objective("pixpro", embedding_weight=0.0)
    assert without(batch)[0].keys() == {"local"} and without.forward_passes_per_sample == 2


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_the_teacher_follows_with_a_momentum_that_grows_to_one(kind):
    objective, batch = local_objective(kind, num_updates=4).train(), local_batch()
    for step in range(6):
        with torch.no_grad():
            for parameter in objective.model.backbone.parameters():
                parameter.add_(0.1)
        before = {name: p.clone() for name, p in objective.teacher.named_parameters()}
        student = {f"backbone.{name}": p.detach().clone() for name, p in objective.model.backbone.named_parameters()}
        objective(batch)
        momentum = 1 - 0.01 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / 4)))
        for name, target in student.items():
            expected = momentum * before[name] + (1 - momentum) * target
            torch.testing.assert_close(dict(objective.teacher.named_parameters())[name], expected)
    assert int(objective.num_updates) == 6
    other = local_objective(kind, num_updates=4)
    other.load_state_dict(objective.state_dict())
    for (name, one), (_, two) in zip(objective.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(one, two), name
    objective.eval()(batch)
    assert int(objective.num_updates) == 6  # an evaluation moves nothing


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_few_steps_lower_the_loss(kind):
    objective, batch = local_objective(kind, num_updates=30).train(), local_batch()
    synchronise_batch_norms(objective)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(30):
        torch.manual_seed(0)
        loss = objective(batch)[0]["local"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < found[0] - 0.1


def test_saved_is_the_student_alone(tmp_path):
    objective = local_objective("masked")
    objective.save(tmp_path)
    assert VisionModel.load(tmp_path).state_dict().keys() == objective.model.state_dict().keys()


def test_faults_are_named():
    with pytest.raises(ConfigError, match=r"local.num_levels: expected at most 3 for this backbone, got 4"):
        local_objective("pixpro", num_levels=4)
    batch = {"image_BCHW": batch_of(1)["image_BCHW"]}
    with pytest.raises(ConfigError, match="trainer.batch_size: mode masked needs 2 images or more"):
        local_objective("masked")(batch)
