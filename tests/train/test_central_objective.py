import helpers
import pytest
import torch
from helpers import train_here, trainer_config
from toy_models import TASKS, batch_of, model_of

from intern_vision.data.augment import Augment
from intern_vision.data.sample import Sample
from intern_vision.models.vision import VisionModel
from intern_vision.task import View
from intern_vision.train.central_objective import CentralObjective
from intern_vision.train.trainer import TrainJob

VIEWS = {family: View(main=family) for family in TASKS}


def central(**spec):
    return model_of(0, TASKS, **{"experts": tuple(TASKS), "main": "depth", "views": VIEWS} | spec)


def wake(model):
    for module in model.backbone.transfers.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)


def test_every_head_has_the_losses_of_its_own_deployed_view(tmp_path):
    model, batch = central(), batch_of()
    wake(model)
    model.save(tmp_path)
    objective = CentralObjective(model, {"depth": 2.0}).eval()
    with torch.no_grad():
        losses, values = objective(batch)
    assert not values
    expected = {}
    for family in TASKS:
        alone = VisionModel.load_family(tmp_path, family)
        head = alone.heads[family]
        weight = 2.0 if family == "depth" else 1.0
        for name, loss in head.losses(head(alone(batch["image_BCHW"])), batch).items():
            expected[f"{family}/{name}"] = weight * float(loss.detach())
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("attached", [False, True])
def test_an_expert_learns_from_its_own_losses_alone_unless_attached(attached):
    model = central()
    wake(model)
    objective = CentralObjective(model, attached=attached).train()
    losses, _ = objective(batch_of())
    sum(loss for name, loss in losses.items() if name.startswith("depth/")).backward()
    touched = {name.split(".")[2] for name, p in model.named_parameters() if "backbone" in name and p.grad is not None}
    assert touched == ({"depth", "multilabel"} if attached else {"depth"})


@pytest.mark.parametrize("bf16", [False, True])
def test_every_trained_parameter_gets_a_gradient_in_every_step(bf16):
    # Under autocast too: an expert's weights, cast without gradient while it is a source, must be cast anew.
    views = {"multilabel": View(main="depth", bn_set="classify"), "depth": View(main="depth", bn_set="dense")}
    for model in (central(), central(views=views)):
        objective = CentralObjective(model).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            losses, _ = objective(batch_of())
        sum(losses.values()).backward()
        trained = {name for name, p in objective.named_parameters() if p.requires_grad}
        assert trained == {name for name, p in objective.named_parameters() if p.grad is not None}
    # An expert that is only read is not among them.
    assert not any(name.startswith("model.backbone.experts.multilabel.") for name in trained)


def test_passes_are_counted_with_the_sources():
    objective = CentralObjective(central())
    assert (objective.passes_per_sample, objective.forward_passes_per_sample) == (2, 2)
    one_main = {"multilabel": View(main="depth"), "depth": View(main="depth")}
    objective = CentralObjective(central(views=one_main))
    assert (objective.passes_per_sample, objective.forward_passes_per_sample) == (1, 1)


class Pictures:
    """Samples as a dataset gives them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        batch = batch_of(8)
        depth = batch["depth_BHW"][index].numpy()
        image = batch["image_BCHW"][index].permute(1, 2, 0).contiguous().numpy()
        return Sample(key=str(index), image=image, split="train", concepts=(index % 3,), depth=depth)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_central_model_trains_under_zero(zero_stage):
    job = TrainJob(
        objective=CentralObjective(central(main="depth", views={"depth": View(main="depth"), **VIEWS})),
        source=Pictures(),
        transform=Augment(helpers.AUGMENT, num_concepts=3),
        config=trainer_config(num_steps=2, batch_size=4, zero_stage=zero_stage),
        learning_rate_scales={"model.backbone.experts": 0.1},
    )
    steps = [event for event in train_here(job) if event["event"] == "step"]
    assert len(steps) == 2 and all(event["metrics"]["loss"] > 0 for event in steps)
