import pytest
import torch
from torch import nn
from torch.nn import functional

from intern_vision.errors import ConfigError
from intern_vision.models.genotype import TOY_SA, BlockShape
from intern_vision.models.layers import (
    AttentionBlock,
    CrossCovarianceAttention,
    CrossCovarianceBlock,
    DropPath,
    FusedMBConv,
    MBConv,
    MixerBlock,
    SelfAttention,
    SqueezeExcite,
    normalise,
    split_heads,
)


def block_shape(in_width=16, out_width=16, expansion=2, stride=1, size_px=8, drop_path=0.0):
    return BlockShape(
        stage=0,
        operator="mbconv",
        in_width=in_width,
        out_width=out_width,
        hidden_width=in_width * expansion,
        stride=stride,
        in_size_px=size_px,
        out_size_px=-(-size_px // stride),
        drop_path=drop_path,
    )


@pytest.mark.parametrize("block", [MBConv, FusedMBConv])
@pytest.mark.parametrize("expansion", [1, 2])
def test_fresh_convolution_block_is_the_identity(block, expansion):
    x = torch.randn(2, 16, 9, 7)
    net = block(block_shape(expansion=expansion), TOY_SA).train()
    assert torch.equal(net(x), x)
    nn.init.ones_(net.branch[-1].weight)
    assert not torch.allclose(net(x), x, atol=0.1)


@pytest.mark.parametrize("block", [AttentionBlock, CrossCovarianceBlock])
def test_fresh_attention_block_adds_only_the_position_convolution(block):
    x = torch.randn(2, 16, 9, 7)
    net = block(block_shape(), TOY_SA)
    torch.testing.assert_close(net(x), x + net.position(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("block", [MBConv, FusedMBConv, AttentionBlock, CrossCovarianceBlock, MixerBlock])
@pytest.mark.parametrize(("out_width", "stride"), [(16, 1), (32, 1), (16, 2), (32, 2)])
def test_output_sizes_and_gradients(block, out_width, stride):
    size_px = 7
    net = block(block_shape(out_width=out_width, stride=stride, size_px=size_px, drop_path=0.1), TOY_SA)
    y = net(torch.randn(2, 16, size_px, size_px))
    assert y.shape == (2, out_width, -(-size_px // stride), -(-size_px // stride))
    y.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("block", [AttentionBlock, CrossCovarianceBlock])
def test_transition_has_neither_mlp_nor_drop_path(block):
    names = {name for name, _ in block(block_shape(stride=2, drop_path=0.5), TOY_SA).named_children()}
    assert names == {"position", "norm_attention", "attention", "shortcut", "pool"}


def test_memory_layout_does_not_change_the_result():
    x = torch.randn(2, 16, 8, 6)
    net = AttentionBlock(block_shape(), TOY_SA.with_overrides({"layer_scale_init": 1.0}))
    last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, net(x))


def test_self_attention_equals_torch():
    attention, x = SelfAttention(32, 24, 8), torch.randn(2, 10, 32)
    allowed = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, -1, -1)
    q, k, v = split_heads(attention.qkv(x), 8)
    for mask in (None, allowed):
        expected = functional.scaled_dot_product_attention(q, k, v, mask if mask is None else mask[:, None])
        expected = attention.projection(expected.transpose(1, 2).flatten(2))
        torch.testing.assert_close(attention(x, mask), expected)


def test_cross_covariance_equals_a_loop():
    attention, x = CrossCovarianceAttention(12, 12, 4), torch.randn(2, 5, 12)
    attention.projection = nn.Identity()
    with torch.no_grad():
        attention.temperature.copy_(torch.tensor([0.5, 1.0, 3.0])[:, None, None])
        qkv = attention.qkv(x)
        expected = torch.zeros(2, 5, 12)
        for sample in range(2):
            for head in range(3):
                start = head * 4
                q, k, v = (qkv[sample, :, part * 12 + start : part * 12 + start + 4] for part in range(3))
                logits = torch.zeros(4, 4)
                for i in range(4):
                    for j in range(4):
                        cosine = (q[:, i] @ k[:, j]) / (q[:, i].norm() * k[:, j].norm())
                        logits[i, j] = cosine * attention.temperature[head, 0, 0]
                weights = logits.softmax(1)
                for i in range(4):
                    expected[sample, :, start + i] = sum(weights[i, j] * v[:, j] for j in range(4))
        torch.testing.assert_close(attention(x), expected)


def test_squeeze_excite_gates_whole_channels():
    gate, x = SqueezeExcite(16), torch.randn(3, 16, 5, 4)
    factor = gate(x) / x
    torch.testing.assert_close(factor, factor[:, :, :1, :1].expand_as(factor), rtol=1e-4, atol=1e-5)
    assert factor.min() >= 0
    assert factor.max() <= 1 + 1e-5


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    y = drop(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(y[:, 0, 0], y[:, 2, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


def test_mixer_refuses_another_size():
    with pytest.raises(ConfigError, match="8 x 8 tokens, got 6 x 8"):
        MixerBlock(block_shape(), TOY_SA)(torch.randn(1, 16, 6, 8))


def test_initial_weights():
    net = AttentionBlock(block_shape(in_width=64, out_width=64), TOY_SA)
    assert net.scale_mlp.unique().tolist() == [pytest.approx(1e-6)]
    assert MBConv(block_shape(), TOY_SA).branch[-1].weight.abs().sum() == 0


def test_normalise():
    image = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8).to(memory_format=torch.channels_last)
    x = normalise(image)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x[:, 1], (image[:, 1] / 255 - 0.456) / 0.224)
