from itertools import islice

import pytest
import torch
from torch import nn

from intern_vision.models.genotype import MN_B4, MN_B15, NANO, TOY_SA, TOY_XCA
from intern_vision.models.metanet import MetaNet


@pytest.mark.parametrize("genotype", [MN_B4, MN_B15, TOY_SA, TOY_XCA])
@pytest.mark.parametrize(
    ("size", "map_sizes"),
    [
        ((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ((225, 161), [(57, 41), (29, 21), (15, 11), (8, 6)]),
        ((33, 70), [(9, 18), (5, 9), (3, 5), (2, 3)]),
    ],
)
def test_map_sizes(genotype, size, map_sizes):
    with torch.device("meta"):
        net = MetaNet(genotype)
        features = net(torch.empty(2, 3, *size))
    assert [tuple(x.shape) for x in features.maps] == [
        (2, width, *map_size) for width, map_size in zip(net.channels, map_sizes, strict=True)
    ]
    assert features.vector_BD.shape == (2, net.vector_width) == (2, 1280)


def test_same_features_for_odd_sizes_in_both_layouts():
    torch.manual_seed(0)
    net, x = MetaNet(TOY_XCA).eval(), torch.randn(2, 3, 45, 67)
    expected = net(x)
    got = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for a, b in zip(got.maps, expected.maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.vector_BD, expected.vector_BD, rtol=1e-4, atol=1e-5)


def test_vector_without_head_is_mean_and_maximum():
    net = MetaNet(NANO).eval()
    features = net(torch.randn(2, 3, 64, 64))
    assert features.vector_BD.shape == (2, 384)
    torch.testing.assert_close(features.vector_BD[:, :192], features.maps[-1].mean((2, 3)))
    torch.testing.assert_close(features.vector_BD[:, 192:], features.maps[-1].amax((2, 3)))


def test_levels_stop_early():
    net = MetaNet(TOY_SA).eval()
    calls = []
    for level, segment in enumerate(net.segments):
        segment.register_forward_hook(lambda *_, level=level: calls.append(level))
    assert len(list(islice(net.levels(torch.randn(1, 3, 32, 32)), 2))) == 2
    assert calls == [0, 1]


@pytest.mark.parametrize("genotype", [TOY_SA, TOY_XCA, NANO])
def test_bfloat16_autocast_trains(genotype):
    torch.manual_seed(0)
    net = MetaNet(genotype)
    x = torch.randn(8, 3, 48, 48)
    with torch.autocast("cpu", torch.bfloat16):
        features = net(x)
        loss = features.vector_BD.float().square().mean() + features.maps[0].float().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters() if parameter.grad is not None)
    net.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rounded = net(x).vector_BD.float()
    with torch.no_grad():
        exact = net(x).vector_BD
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_every_parameter_gets_a_gradient():
    net = MetaNet(TOY_XCA)
    net(torch.randn(4, 3, 64, 64)).vector_BD.square().mean().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_layer_index_grows_with_depth():
    with torch.device("meta"):
        net = MetaNet(MN_B4)
    indices = [net.layer_index(name) for name, _ in net.named_parameters()]
    assert indices == sorted(indices)
    assert set(indices) == set(range(net.num_layers))
    assert net.num_layers == 37
    assert net.layer_index("segments.1.0.branch.0.weight") == 6


def test_initial_weights():
    torch.manual_seed(0)
    net = MetaNet(TOY_SA)
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    weights = torch.cat([linear.weight.flatten() for linear in linears])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(not linear.bias.any() for linear in linears)
