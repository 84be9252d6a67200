import copy

import pytest
import torch
from helpers import GENOTYPE, SIZE_PX
from torch import nn

from intern_vision.errors import ConfigError
from intern_vision.models.low_rank import add_adapters, merge_adapters
from intern_vision.models.metanet import MetaNet
from intern_vision.models.public_backbones import PublicBackbone, make_public_backbone

RESNET = PublicBackbone(kind="resnet", num_blocks=(1, 1, 1, 1), width=8, bottleneck=False)
VIT = PublicBackbone(kind="vit", num_blocks=(4,), width=16, num_heads=2, patch_size_px=8, position_size_px=32)


def metanet():
    torch.manual_seed(0)
    return MetaNet(GENOTYPE).eval()


def image(seed=0):
    return torch.randn(2, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(seed))


def outputs(network):
    with torch.no_grad():
        features = network(image())
    return [*features.maps, features.vector_BD]


def disturb(parameters):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_fresh_adapters_change_nothing_and_alone_are_trained():
    network = metanet()
    before, sizes = outputs(network), sum(p.numel() for p in network.parameters())
    adapters = add_adapters(network, rank=2)
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(network), strict=True))
    sum(m.square().sum() for m in network(image()).maps).backward()
    own = {id(parameter) for parameter in adapters}
    assert {id(p) for p in network.parameters() if p.requires_grad} == own
    assert {id(p) for p in network.parameters() if p.grad is not None} <= own
    assert any(float(parameter.grad.abs().max()) > 0 for parameter in adapters if parameter.grad is not None)
    assert 0 < sum(p.numel() for p in adapters) < 0.8 * sizes


@pytest.mark.parametrize("make", [metanet, lambda: make_public_backbone(RESNET), lambda: make_public_backbone(VIT)])
def test_merged_weights_are_plain_and_compute_exactly_the_same(make):
    network = make().eval()
    names = {name: tensor.shape for name, tensor in network.state_dict().items()}
    start = copy.deepcopy(network)
    disturb(add_adapters(network, rank=2))
    adapted = outputs(network)
    assert not torch.equal(adapted[-1], outputs(start)[-1])
    merge_adapters(network)
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == names
    assert all(torch.equal(one, other) for one, other in zip(adapted, outputs(network), strict=True))
    plain = make().eval()
    plain.load_state_dict(network.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(adapted, outputs(plain), strict=True))
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("rank", [1, 3])
def test_an_adapter_has_the_rank_asked_for(rank):
    network = nn.Sequential(nn.Conv2d(6, 10, 3), nn.Flatten(), nn.Linear(10, 7))
    before = [network[at].weight.detach().clone() for at in (0, 2)]
    disturb(add_adapters(network, rank))
    merge_adapters(network)
    for start, at in zip(before, (0, 2), strict=True):
        change = (network[at].weight - start).flatten(1)
        assert int(torch.linalg.matrix_rank(change, atol=1e-5)) == rank


def test_depthwise_convolutions_are_left_alone():
    network = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    add_adapters(network, 2)
    assert not hasattr(network[0], "parametrizations") and hasattr(network[1], "parametrizations")
    with pytest.raises(ConfigError, match="lora needs linear or convolution layers, and Sequential has none"):
        add_adapters(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)), 2)
