import copy

import helpers
import pytest
import torch
from toy_training import batch_of, image_text

from intern_vision.errors import DataError
from intern_vision.heads import HeadConfig
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task
from intern_vision.train.objective import (
    CachedFeaturesObjective,
    MultiTaskObjective,
)

TASKS = {
    "multilabel": Task(family="multilabel", class_names=("a", "b", "c")),
    "depth": Task(family="depth", max_depth_m=10.0),
}


def multi_task(**settings):
    torch.manual_seed(0)
    heads = {name: HeadSpec(task=task, config=HeadConfig(neck_width=8)) for name, task in TASKS.items()}
    return MultiTaskObjective(
        VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX, heads=heads)), **settings
    )


def task_batch(num_images=4):
    batch = batch_of(num_images)
    generator = torch.Generator().manual_seed(1)
    concepts = (torch.rand(num_images, 3, generator=generator) > 0.5).float()
    depth = 1 + 5 * torch.rand(num_images, helpers.SIZE_PX, helpers.SIZE_PX, generator=generator)
    return {"image_BCHW": batch["image_BCHW"], "keys": batch["keys"], "concepts_BK": concepts, "depth_BHW": depth}


def test_each_head_gives_its_own_losses_times_its_weight():
    objective, batch = multi_task(task_weights={"depth": 3.0}).eval(), task_batch()
    losses, _ = objective(batch)
    features = objective.model(batch["image_BCHW"])
    expected = {
        f"{name}/{loss}": (3.0 if name == "depth" else 1.0) * value.item()
        for name, head in objective.model.heads.items()
        for loss, value in head.losses(head(features), batch).items()
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
    assert {name.split("/")[0] for name in losses} == {"multilabel", "depth"}


def test_missing_labels_are_named():
    batch = task_batch()
    del batch["concepts_BK"]
    with pytest.raises(DataError, match="concepts_BK"):
        multi_task()(batch)


@pytest.mark.parametrize("frozen", ["backbone", "heads"])
def test_frozen_parts_get_no_gradient(frozen):
    objective = multi_task(**{f"freeze_{frozen}": True}).train()
    before = copy.deepcopy(objective.model.state_dict())
    sum(objective(task_batch())[0].values()).backward()
    for name, parameter in objective.model.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None and not parameter.requires_grad
    learned = [p for name, p in objective.model.named_parameters() if not name.startswith(frozen)]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    if frozen == "backbone":  # its running statistics as well
        after = objective.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith(frozen))
        assert not objective.model.backbone.training and objective.model.heads.training


def test_cached_features_give_the_losses_of_the_images():
    objective, batch = multi_task().eval(), task_batch()
    with torch.no_grad():
        features = objective.model(batch["image_BCHW"])
        expected, _ = objective(batch)
    cached = CachedFeaturesObjective(objective.model).eval()
    rows = {f"map_{level}": map_BCHW for level, map_BCHW in enumerate(features.maps)} | {"vector": features.vector_BD}
    losses, _ = cached({**rows, **{name: value for name, value in batch.items() if name != "image_BCHW"}})
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, rel=1e-4
    )


def test_no_trained_tensor_is_without_dimensions():
    # DeepSpeed broadcasts the first weights as bytes, which a tensor without dimensions refuses to be.
    with pytest.raises(RuntimeError, match="dim"):
        torch.zeros(()).view(torch.uint8)
    for objective in (image_text(), multi_task()):
        assert all(parameter.ndim > 0 for parameter in objective.parameters())
