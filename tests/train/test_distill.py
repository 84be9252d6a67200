import copy

import helpers
import pytest
import torch
import torch.nn.functional as F
from toy_models import TASKS, batch_of, model_of

from intern_vision.errors import ConfigError
from intern_vision.models.features import Features
from intern_vision.models.vision import ModelSpec, VisionModel
from intern_vision.task import View
from intern_vision.train.distill import DistillObjective, TeacherMatch


def teachers_of(num):
    return {f"expert{number}": model_of(10 + number) for number in range(num)}


def huber(own, target):
    gap = (own - target).abs()
    return torch.where(gap < 1, 0.5 * gap.square(), gap - 0.5)


@torch.no_grad()
def match_loop(match, student, teacher):
    """The loss of each sample, level by level and channel by channel, with the batch's own statistics."""
    total = torch.zeros(len(student.vector_BD))
    own_levels, targets = [*student.maps, student.vector_BD], [*teacher.maps, teacher.vector_BD]
    for project, own, target in zip(match.projectors, own_levels, targets, strict=True):
        projected, channels = project(own), []
        for channel in range(target.shape[1]):
            values = target[:, channel]
            values = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
            channels.append(huber(projected[:, channel], values).flatten(1).mean(1) if values.dim() > 1 else None)
            if values.dim() == 1:
                channels[-1] = huber(projected[:, channel], values)
        total += torch.stack(channels).mean(0)
    return total / len(targets)


def features_of(widths, vector_width, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = tuple(
        scale * torch.randn(3, width, 8 // 2**level, 8 // 2**level, generator=generator)
        for level, width in enumerate(widths)
    )
    return Features(maps, scale * torch.randn(3, vector_width, generator=generator))


class Widths:
    def __init__(self, channels, vector_width):
        self.channels, self.vector_width = channels, vector_width


def test_matching_equals_a_loop_at_every_level_and_in_the_vector():
    torch.manual_seed(0)
    match = TeacherMatch(Widths((4, 6), 5), Widths((3, 7), 9))
    student, teacher = features_of((4, 6), 5), features_of((3, 7), 9, scale=30.0, seed=1)
    loss_B = match(student, teacher)
    assert loss_B.shape == (3,) and torch.allclose(loss_B, match_loop(match, student, teacher), rtol=1e-4)
    # A teacher of other scales gives the same targets.
    other = TeacherMatch(Widths((4, 6), 5), Widths((3, 7), 9))
    other.load_state_dict(copy.deepcopy(TeacherMatch(Widths((4, 6), 5), Widths((3, 7), 9)).state_dict()))
    other.projectors.load_state_dict(match.projectors.state_dict())
    scaled = Features(tuple(0.01 * m + 5 for m in teacher.maps), 0.01 * teacher.vector_BD - 3)
    assert torch.allclose(other(student, scaled), loss_B, atol=1e-2)


def test_targets_are_standardised_by_what_was_seen_so_far():
    match = TeacherMatch(Widths((4,), 5), Widths((3,), 9))
    seen = [features_of((3,), 9, seed=seed) for seed in range(6)]
    for teacher in seen:
        match(features_of((4,), 5), teacher)
    values = torch.cat([teacher.maps[0] for teacher in seen])
    assert torch.allclose(match.standardizers[0].mean_C, values.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(match.standardizers[0].var_C, values.var((0, 2, 3), correction=0), rtol=1e-3)
    match.eval()
    before = copy.deepcopy(match.state_dict())
    match(features_of((4,), 5), features_of((3,), 9, scale=100.0))
    assert all(torch.equal(value, before[name]) for name, value in match.state_dict().items())


def test_the_loss_is_the_mean_over_teachers_and_leaves_them_alone():
    student, teachers, batch = model_of(0, TASKS), teachers_of(2), batch_of()
    frozen = copy.deepcopy({name: teacher.state_dict() for name, teacher in teachers.items()})
    objective = DistillObjective(student, teachers, 0.5, {"depth": 0.0, "multilabel": 0.0}).train()
    assert (objective.passes_per_sample, objective.forward_passes_per_sample) == (1, 2)
    student.eval()  # so that the student's features can be had again
    losses, values = objective(batch)
    with torch.no_grad():
        own = student(batch["image_BCHW"])
        expected = [
            match_loop(match, own, teacher(batch["image_BCHW"])).mean()
            for match, teacher in zip(objective.matches, teachers.values(), strict=True)
        ]
    assert float(losses["distill"].detach()) == pytest.approx(0.5 * float(sum(expected)) / 2, rel=1e-4)
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {f"distill/{name}": float(value) for name, value in zip(teachers, expected, strict=True)}, rel=1e-4
    )
    assert all(float(loss.detach()) == 0 for name, loss in losses.items() if name != "distill")
    objective.train()
    sum(objective(batch)[0].values()).backward()
    for name, teacher in teachers.items():
        assert not teacher.training
        assert all(torch.equal(value, frozen[name][key]) for key, value in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad.abs().sum() > 0 for p in objective.matches.parameters() if p.ndim > 1)
    assert not any("teacher" in name for name in objective.state_dict())


def test_task_losses_come_on_top():
    student, batch = model_of(0, TASKS), batch_of()
    objective = DistillObjective(student, teachers_of(1), 1.0, {"depth": 3.0}).eval()
    losses, _ = objective(batch)
    head = student.heads["depth"]
    own = head.losses(head(student(batch["image_BCHW"])), batch)
    assert {name for name in losses if name.startswith("depth/")} == {f"depth/{name}" for name in own}
    assert all(
        float(losses[f"depth/{name}"].detach()) == pytest.approx(3 * float(loss.detach()), rel=1e-5)
        for name, loss in own.items()
    )
    assert "distill" in losses and any(name.startswith("multilabel/") for name in losses)


def test_a_fused_teacher_is_matched_in_each_of_its_views():
    views = {"multilabel": View(main="multilabel"), "depth": View(main="depth")}
    fused = model_of(1, TASKS, experts=tuple(TASKS), main="depth", views=views)
    objective = DistillObjective(model_of(0, TASKS), {"expert": model_of(2), "fused": fused}, 1.0)
    assert objective.forward_passes_per_sample == 1 + 4  # two views and two sources
    losses, values = objective(batch_of())
    assert set(values) == {"distill/expert", "distill/fused-multilabel", "distill/fused-depth"}
    assert float(losses["distill"].detach()) == pytest.approx(sum(map(float, values.values())) / 3, rel=1e-5)


def test_dropping_keeps_the_teacher_that_is_matched_worst():
    objective = DistillObjective(model_of(0), teachers_of(3), 1.0, teacher_drop_probability=0.5).train()
    loss_BT = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.5, 3.0]]).repeat(400, 1)
    torch.manual_seed(0)
    found = torch.stack([objective._balanced(row[None]) for row in loss_BT[:200]])
    worst = loss_BT.amax(1)[:200]
    means = {1: [5.0, 3.0, 3.5, 8 / 3], 0: [4.0, 2.25, 3.5, 2.5]}  # every subset that holds the worst one
    for row, value in enumerate(found.tolist()):
        assert any(value == pytest.approx(mean, rel=1e-5) for mean in means[1 - row % 2])
    kept_alone = (found == worst).float().mean()
    assert 0.15 < float(kept_alone) < 0.35  # both others left out: a quarter of the time
    assert objective.eval()._balanced(loss_BT) == pytest.approx(float(loss_BT.mean()))
    everyone = DistillObjective(model_of(0), teachers_of(3), 1.0).train()
    assert float(everyone._balanced(loss_BT)) == pytest.approx(float(loss_BT.mean()))


def test_distilling_alone_makes_the_student_like_its_teachers():
    torch.manual_seed(0)
    batch = batch_of()
    objective = DistillObjective(model_of(0), teachers_of(1), 1.0).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        losses, _ = objective(batch)
        losses["distill"].backward()
        optimizer.step()
        found.append(float(losses["distill"].detach()))
    assert found[-1] < 0.9 * found[0]


def test_moving_a_distilling_objective_moves_its_teachers():
    teacher = model_of(1)
    DistillObjective(model_of(0), {"a": teacher}, 1.0).to(torch.float64)
    assert all(p.dtype == torch.float64 for p in teacher.parameters())


def test_a_teacher_of_other_strides_is_refused():
    stages = [stage.to_dict() for stage in helpers.GENOTYPE.stages]
    genotype = helpers.GENOTYPE.with_overrides({"stages": [*stages[:2], stages[2] | {"stride": 1}]})
    teacher = VisionModel(ModelSpec(genotype=genotype, image_size_px=helpers.SIZE_PX))
    with pytest.raises(ConfigError, match=r"teachers.other: expected strides \(4, 8, 16\), got \(4, 8\)"):
        DistillObjective(model_of(0), {"other": teacher}, 1.0)


def test_smooth_l1_is_the_one_of_the_loop():
    own, target = torch.linspace(-3, 3, 13), torch.zeros(13)
    assert torch.allclose(huber(own, target), F.smooth_l1_loss(own, target, reduction="none"))
