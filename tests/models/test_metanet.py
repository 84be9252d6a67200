import copy
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_genotypes import genotypes
from torch import nn

from intern_vision.errors import ConfigError
from intern_vision.models.central import CentralModel
from intern_vision.models.genotype import MN_B4, MN_B15, NANO, TOY_SA, TOY_XCA, UNINETS, Genotype
from intern_vision.models.metanet import MetaNet
from intern_vision.task import View
from intern_vision.train.schedule import parameter_groups

# Every operator but the mixer, and every down-sampling module; DropPath, and LayerScale that lets branches count.
ALL_KINDS = Genotype.from_dict(
    {
        "stem_width": 8,
        "head_width": 32,
        "head_size": 8,
        "drop_path": 0.5,
        "layer_scale_init": 0.5,
        "image_size_px": 32,
        "stages": [
            {
                "operator": operator,
                "expansion": 2,
                "width": width,
                "num_blocks": 2,
                "stride": stride,
                "downsampling": downsampling,
            }
            for operator, width, stride, downsampling in (
                ("fused_mbconv", 8, 2, "block"),
                ("mbconv", 16, 2, "local"),
                ("attention", 16, 2, "local_global"),
                ("cross_covariance", 16, 1, "global"),
                ("attention", 24, 2, "block"),
            )
        ],
    }
)


def awake(net):
    """Branches that start at 0 are given weight."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("genotype", [MN_B4, MN_B15, TOY_XCA, UNINETS["uninet_b0"]])
def test_map_sizes(genotype):
    with torch.device("meta"):
        net = MetaNet(genotype)
    for size, map_sizes in (
        ((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ((225, 161), [(57, 41), (29, 21), (15, 11), (8, 6)]),
        ((33, 70), [(9, 18), (5, 9), (3, 5), (2, 3)]),
    ):
        features = net(torch.empty(2, 3, *size, device="meta"))
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


@given(genotypes(), st.integers(33, 70), st.integers(33, 70), st.booleans())
@settings(max_examples=12)
def test_taps_of_any_genotype_at_any_size(genotype, height_px, width_px, channels_last):
    if any(stage.operator == "mixer" for stage in genotype.stages):
        height_px = width_px = genotype.image_size_px
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = MetaNet(genotype).eval().to(memory_format=layout)
    with torch.no_grad():
        features = net(torch.randn(2, 3, height_px, width_px).to(memory_format=layout))
    assert [tuple(x.shape) for x in features.maps] == [
        (2, channels, -(-height_px // stride), -(-width_px // stride))
        for channels, stride in zip(net.channels, net.strides, strict=True)
    ]
    assert all(stride in (4, 8, 16, 32) for stride in net.strides)
    assert features.vector_BD.shape == (2, net.vector_width)
    if channels_last:
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in features.maps)


def test_too_small_an_image_is_one_line():
    net = MetaNet(TOY_SA)
    assert net(torch.randn(2, 3, 32, 32)).maps[-1].shape[-2:] == (1, 1)
    with pytest.raises(ConfigError) as error:
        net(torch.randn(2, 3, 40, 31))
    assert str(error.value) == (
        "image_size_px: 40 x 31 px is smaller than the coarsest stride, 32 px; "
        "use larger images or fewer stages of stride 2"
    )


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


@pytest.mark.parametrize("genotype", [TOY_SA, TOY_XCA, NANO, ALL_KINDS])
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


def test_bfloat16_gradients_are_close_to_float32():
    torch.manual_seed(0)
    exact = awake(MetaNet(ALL_KINDS.with_overrides({"drop_path": 0.0})))
    rounded = copy.deepcopy(exact)
    x, weight = torch.randn(16, 3, 32, 32), torch.randn(32)
    with torch.autocast("cpu", torch.bfloat16):
        (rounded(x).vector_BD.float() @ weight).sum().backward()
    (exact(x).vector_BD @ weight).sum().backward()
    found = torch.cat([parameter.grad.flatten() for parameter in rounded.parameters()])
    expected = torch.cat([parameter.grad.flatten() for parameter in exact.parameters()])
    assert torch.isfinite(found).all()
    assert torch.cosine_similarity(found, expected, dim=0) > 0.95


def trained(net, x, num_forwards=1, num_backwards=1):
    """Loss and gradients of seeded passes; every forward pass draws its own DropPath."""
    torch.manual_seed(1)
    losses = []
    for index in range(num_forwards):
        features = net(x + index)
        losses.append(features.vector_BD.square().mean() + sum(map_BCHW.square().mean() for map_BCHW in features.maps))
    for _ in range(num_backwards):
        sum(losses).backward(retain_graph=True)
    return torch.stack(losses).detach(), [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize(("num_forwards", "num_backwards"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_checkpointed_activations_change_nothing(num_forwards, num_backwards, precision):
    torch.manual_seed(0)
    plain, x = awake(MetaNet(ALL_KINDS)), torch.randn(4, 3, 32, 32)
    checkpointed = copy.deepcopy(plain)
    checkpointed.checkpoint_activations = True
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        losses, gradients = trained(plain, x, num_forwards, num_backwards)
        same_losses, same_gradients = trained(checkpointed, x, num_forwards, num_backwards)
    assert torch.equal(losses, same_losses)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same_gradients, strict=True))
    statistics = dict(plain.named_buffers())
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in checkpointed.named_buffers())
    assert statistics["stem.1.num_batches_tracked"] == num_forwards
    norms = [module for module in checkpointed.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and norm.num_batches_tracked == num_forwards for norm in norms)


def test_checkpointed_activations_take_less_memory():
    def num_saved_bytes(net):
        saved = {}

        def pack(x):
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            features = net(torch.randn(8, 3, 64, 64))
        own = {tensor.untyped_storage().data_ptr() for tensor in net.state_dict(keep_vars=True).values()}
        del features
        return sum(num_bytes for pointer, num_bytes in saved.items() if pointer not in own)

    net = MetaNet(ALL_KINDS)
    plain = num_saved_bytes(net)
    net.checkpoint_activations = True
    assert num_saved_bytes(net) < 0.35 * plain


def test_checkpointed_blocks_recompute_in_the_mode_of_their_forward_pass():
    torch.manual_seed(0)
    experts = {name: awake(MetaNet(ALL_KINDS)) for name in ("a", "b")}
    plain = CentralModel(experts, "a", {"a": ("one", "two")})
    checkpointed = copy.deepcopy(plain)
    for net in checkpointed.experts.values():
        net.checkpoint_activations = True
    x, gradients = torch.randn(4, 3, 32, 32), []
    for model in (plain, checkpointed):
        torch.manual_seed(1)
        features = [model(x, View(main="a", bn_set=name)) for name in ("one", "two")]
        loss = sum(scale * each.vector_BD.square().mean() for scale, each in zip((1, 2), features, strict=True))
        model.eval()
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert not any(module.training for module in model.modules())
    assert any(".sets.two." in name and gradient is not None for name, gradient in gradients[0].items())
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        assert gradient is None or torch.equal(gradient, gradients[1][name]), name
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), checkpointed.buffers(), strict=True))


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
    with torch.device("meta"):
        net = MetaNet(UNINETS["uninet_b0"])
    indices = [net.layer_index(name) for name, _ in net.named_parameters()]
    assert indices == sorted(indices)
    assert set(indices) == set(range(net.num_layers))
    assert net.num_layers == 1 + 23 + 5 + 1


def test_initial_weights():
    torch.manual_seed(0)
    net = MetaNet(ALL_KINDS)
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    weights = torch.cat([linear.weight.flatten() for linear in linears])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(not linear.bias.any() for linear in linears)
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    values = dict(net.named_parameters())
    scales = [value for name, value in values.items() if name.rsplit(".", 1)[-1].startswith("scale_")]
    assert len(scales) == 2 * 2 + 2 * 2 + 1 + 2
    assert all(value.eq(0.5).all() for value in scales)
    assert all(value.eq(1).all() for name, value in values.items() if name.endswith("temperature"))
    zero = [name for name, value in values.items() if name.endswith("weight") and not value.any()]
    assert zero == [f"segments.{k}.{j}.branch.{i}.weight" for k, j, i in ((0, 0, 6), (0, 1, 6), (1, 1, 9), (1, 2, 9))]


def test_what_weight_decay_leaves_out():
    net = MetaNet(ALL_KINDS)
    groups = parameter_groups(net, learning_rate=1.0, weight_decay=0.1, learning_rate_scales={})
    (undecayed,) = (group["params"] for group in groups if group["weight_decay"] == 0)
    undecayed = {id(parameter) for parameter in undecayed}
    for name, parameter in net.named_parameters():
        position_type = "position.weight" in name or name.endswith("temperature")
        assert (id(parameter) in undecayed) == (parameter.ndim == 1 or position_type), name
