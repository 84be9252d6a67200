import pytest
import torch
from torch import nn
from torch.nn import functional

from intern_vision.models.downsampling import GlobalDownsampling, LocalDownsampling, LocalGlobalDownsampling
from intern_vision.models.genotype import TOY_SA, BlockShape

MODULES = [LocalDownsampling, LocalGlobalDownsampling, GlobalDownsampling]


def module_of(kind, in_width=8, out_width=16, stride=2):
    torch.manual_seed(0)
    shape = BlockShape(
        operator="local",
        in_width=in_width,
        out_width=out_width,
        hidden_width=out_width,
        stride=stride,
        in_size_px=9,
        out_size_px=-(-9 // stride),
    )
    return kind(shape, TOY_SA.with_overrides({"head_size": 4}))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("out_width", "stride"), [(16, 2), (8, 2), (16, 1), (8, 1)])
def test_output_sizes_gradients_and_memory_layout(kind, out_width, stride):
    net = module_of(kind, out_width=out_width, stride=stride)
    y = net(torch.randn(2, 8, 9, 6).to(memory_format=torch.channels_last))
    assert y.shape == (2, out_width, -(-9 // stride), -(-6 // stride))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize("kind", MODULES)
def test_only_a_stride_pools_the_shortcut(kind):
    x = torch.randn(2, 8, 6, 6)
    net = module_of(kind)
    pooled = functional.conv2d(functional.max_pool2d(x, 3, 2, 1), net.shortcut[1].weight, net.shortcut[1].bias)
    torch.testing.assert_close(net.shortcut(x), pooled)
    net = module_of(kind, stride=1)
    torch.testing.assert_close(net.shortcut(x), functional.conv2d(x, net.shortcut[0].weight, net.shortcut[0].bias))


def test_local_sees_only_its_neighbourhood():
    net, x = module_of(LocalDownsampling).eval(), torch.randn(1, 8, 9, 9, requires_grad=True)
    net(x)[..., 2, 1].square().sum().backward()
    seen = x.grad.abs().sum(1)[0] > 0
    assert seen[3:6, 1:4].all()
    assert seen.sum() == 9


@pytest.mark.parametrize("kind", [LocalGlobalDownsampling, GlobalDownsampling])
def test_attention_equals_a_loop(kind):
    net, x = module_of(kind).eval(), torch.randn(2, 8, 5, 4)
    with torch.no_grad():
        nn.init.normal_(net.key_value.weight)
        if kind is LocalGlobalDownsampling:
            depthwise, norm, pointwise = net.query
            q = functional.conv2d(x, depthwise.weight, depthwise.bias, stride=2, padding=1, groups=8)
            q = (q - norm.running_mean.view(1, -1, 1, 1)) / (norm.running_var.view(1, -1, 1, 1) + norm.eps).sqrt()
        else:
            pointwise = net.query[1]
            q = functional.max_pool2d(x, 3, 2, 1)
        q = torch.einsum("bchw,oc->bhwo", q, pointwise.weight[:, :, 0, 0]) + pointwise.bias
        q = functional.layer_norm(q, (16,)).reshape(2, 6, 16)
        key_value = net.key_value(functional.layer_norm(x.permute(0, 2, 3, 1), (8,)).reshape(2, 20, 8))
        mixed = torch.zeros(2, 6, 16)
        for sample in range(2):
            for head in range(4):
                part = slice(4 * head, 4 * head + 4)
                keys, values = key_value[sample, :, :16][:, part], key_value[sample, :, 16:][:, part]
                for token in range(6):
                    weights = ((keys * q[sample, token, part]).sum(1) / 2).softmax(0)
                    mixed[sample, token, part] = (weights[:, None] * values).sum(0)
        expected = net.projection(mixed).reshape(2, 3, 2, 16).permute(0, 3, 1, 2) + net.shortcut(x)
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LocalGlobalDownsampling, GlobalDownsampling])
def test_a_global_module_sees_every_token_from_everywhere(kind):
    net, x = module_of(kind).eval(), torch.randn(1, 8, 9, 9, requires_grad=True)
    net(x)[..., 0, 0].square().sum().backward()
    assert x.grad.abs().sum(1).all()
