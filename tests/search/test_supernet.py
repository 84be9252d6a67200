import copy
import random

import numpy as np
import pytest
import torch
from helpers import GENOTYPE, SIZE_PX, train_here, trainer_config
from torch import nn

from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.models.genotype import TOY_XCA, Genotype, num_macs
from intern_vision.models.metanet import MetaNet
from intern_vision.models.vision import HeadSpec
from intern_vision.search.reward import Reward
from intern_vision.search.space import Space, SpaceConfig
from intern_vision.search.supernet import (
    SUPERNET_FILE,
    SuperNet,
    SupernetObjective,
    load_supernet,
    supernet_model,
    widest_genotype,
)
from intern_vision.task import Task
from intern_vision.train.trainer import TrainJob

FEW = SpaceConfig(expansions=(1, 2), width_factors=(0.5, 1, 1.5), block_offsets=(0, 1))
SPACES = {"plain": Space(GENOTYPE, FEW, SIZE_PX), "stride_1": Space(TOY_XCA, FEW, SIZE_PX)}
HEADS = {"multilabel": HeadSpec(task=Task(family="multilabel", class_names=("red", "green", "blue")))}
REWARD = Reward(target_macs=num_macs(SPACES["plain"].template, SIZE_PX), max_ratio=1.3)


def draw(space: Space, seed: int) -> Genotype:
    rng = random.Random(seed)
    return space.decode([rng.randrange(len(decision.options)) for decision in space.decisions])


def images(seed: int, number: int = 6) -> torch.Tensor:
    return torch.randn(number, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(seed))


def standalone(net: SuperNet) -> MetaNet:
    """The genotype's own network with copies of the slices."""
    own = MetaNet(net.genotype)
    missing, unknown = own.load_state_dict({k: v.detach().clone() for k, v in net.weights().items()}, strict=False)
    assert not unknown and all("running" in name or "tracked" in name for name in missing)
    return own


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    found = {}
    for name, space in SPACES.items():
        found[name] = SuperNet(space)
        for parameter in found[name].parameters():  # so that no branch is hidden behind a zero scale
            nn.init.normal_(parameter, std=0.2)
    return found


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(6))
def test_a_slice_is_the_genotype_s_own_network(nets, name, seed):
    net, space = nets[name].train(), SPACES[name]
    net.use(draw(space, seed))
    own = standalone(net)
    torch.manual_seed(1)  # for stochastic depth
    found = net(images(seed))
    torch.manual_seed(1)
    expected = own(images(seed))
    for map_BCHW, own_BCHW, width in zip(found.maps, expected.maps, net.channels, strict=True):
        assert map_BCHW.shape[1] == width and not map_BCHW[:, own_BCHW.shape[1] :].any()
        torch.testing.assert_close(map_BCHW[:, : own_BCHW.shape[1]], own_BCHW, atol=1e-3, rtol=1e-3)
    assert found.vector_BD.shape[1] == net.vector_width
    vector_BD = found.vector_BD
    if not net.genotype.head_width:
        vector_BD = torch.cat([half[:, : own.channels[-1]] for half in vector_BD.chunk(2, dim=1)], dim=1)
    deviation_B = expected.vector_BD.std(dim=1, correction=0, keepdim=True)
    standardised_BD = (expected.vector_BD - expected.vector_BD.mean(1, keepdim=True)) / deviation_B
    torch.testing.assert_close(vector_BD, standardised_BD, atol=5e-2, rtol=1e-2)


def test_only_the_slices_in_use_get_gradients(nets):
    net = copy.deepcopy(nets["plain"]).train()
    net.use(SPACES["plain"].template)
    net(images(0)).vector_BD.square().sum().backward()
    used = {name.split(".")[1] for name, p in net.named_parameters() if p.grad is not None and name.startswith("bl")}
    assert used == {"stage0-fused_mbconv-0-first", "stage1-mbconv-0-first", "stage2-attention-0-first"}
    grad = net.blocks["stage1-mbconv-0-first"].shortcut[1].weight.grad
    assert grad.shape[:2] == (24, 16), "1.5 x 16 channels, from 1.5 x 8 in whole heads"
    assert grad[:16, :8].abs().min() > 0 and not grad[16:].any() and not grad[:, 8:].any()


@pytest.mark.parametrize("name", SPACES)
def test_recalibrated_statistics_are_averages_over_the_batches(nets, name):
    net = nets[name]
    net.use(draw(SPACES[name], 11))
    batches = [images(seed) for seed in (1, 2, 3)]
    own = standalone(net).train()
    for module in own.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for batch in batches:
            torch.manual_seed(0)
            own(batch)
    torch.manual_seed(0)
    net.recalibrate(batches)
    assert not net.training
    with torch.no_grad():
        found, expected = net(images(9)), own.eval()(images(9))
    if not net.genotype.drop_path:
        width = own.channels[0]
        torch.testing.assert_close(found.maps[0][:, :width], expected.maps[0], atol=1e-3, rtol=1e-3)
    # The same call gives the same statistics, and the next genotype gets fresh ones.
    first = {name: buffer.clone() for name, buffer in net._statistics.items()}
    assert any(buffer.abs().sum() > 0 for name, buffer in first.items() if name.endswith("mean"))
    net.use(net.genotype)
    assert not any(buffer.any() for name, buffer in net._statistics.items() if name.endswith("mean"))


class Colours:
    """Images of one colour channel; the concepts say which."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        concepts = np.eye(3, dtype=np.float32)[index % 3]
        image = np.random.default_rng(index).integers(0, 60, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        return {"key": str(index), "image": image + (concepts * 180).astype(np.uint8), "concepts": concepts}


def make_objective(num_paths: int = 2) -> SupernetObjective:
    torch.manual_seed(0)
    model = supernet_model(SPACES["plain"], HEADS)
    return SupernetObjective(model, SPACES["plain"], REWARD, num_paths=num_paths, seed=4)


@pytest.mark.slow
def test_training_learns_and_what_is_saved_loads(tmp_path):
    objective = make_objective(num_paths=1)
    config = trainer_config(num_steps=16, batch_size=12, learning_rate=2e-2, log_every=4, gradient_clip=1.0)
    job = TrainJob(objective=objective, source=Colours(), transform=lambda sample, rng: sample, config=config)
    losses = [event["metrics"]["loss"] for event in train_here(job) if event["event"] == "step"]
    assert losses[-1] < losses[0]
    assert int(objective.num_steps_done) == 16
    objective.save(tmp_path)
    again = supernet_model(SPACES["plain"], HEADS)
    load_supernet(again, tmp_path / SUPERNET_FILE)
    for name, tensor in objective.model.state_dict().items():
        assert torch.equal(tensor.cpu(), again.state_dict()[name])
    with pytest.raises(CheckpointError, match="weights of another architecture"):
        load_supernet(supernet_model(SPACES["stride_1"], HEADS), tmp_path / SUPERNET_FILE)


def test_paths_follow_from_the_step_and_fit_the_cap():
    objective = make_objective(num_paths=3)
    assert objective.passes_per_sample == 3
    paths = [list(objective._paths(step)) for step in range(8)]
    assert paths == [list(make_objective(num_paths=3)._paths(step)) for step in range(8)]
    flat = [genotype for step in paths for genotype in step]
    assert len(flat) == 24 and len(set(flat)) > 12
    assert all(num_macs(genotype, SIZE_PX) <= 1.3 * REWARD.target_macs for genotype in flat)
    strict = Reward(target_macs=1)
    nowhere = SupernetObjective(objective.model, SPACES["plain"], strict, num_paths=1, seed=0)
    with pytest.raises(ConfigError, match="max_macs_ratio: none of 2000 random candidates"):
        next(nowhere._paths(0))


def test_heads_are_built_for_the_widest_genotype():
    space = SPACES["plain"]
    widest = widest_genotype(space)
    for seed in range(20):
        for width, own in zip(widest.channels, draw(space, seed).channels, strict=True):
            assert own <= width and width % space.template.head_size == 0
    model = supernet_model(space, HEADS)
    assert model.heads["multilabel"].linear.in_features == 2 * widest.stages[-1].width
