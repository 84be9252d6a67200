"""Blocks of MetaNet. B batch, C channels, H W height and width, N tokens (N = H * W), G heads, S head size.

Source: gv-benchmark repository, ``metanet.py``; cross-covariance attention is XCiT's (arXiv 2106.09681).
Every block maps ``(B, C, H, W)`` to ``(B, C', ceil(H / stride), ceil(W / stride))``. Attention blocks
see tokens ``(B, N, C)``: in channels-last memory both layouts are views of the same bytes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from intern_vision.errors import ConfigError
from intern_vision.models.cost import squeeze_width
from intern_vision.models.genotype import Activation, BlockShape, Genotype
from intern_vision.models.public_backbones import IMAGENET_MEAN, IMAGENET_STD, Rgb


def normalise(image_BCHW: Tensor, mean: Rgb = IMAGENET_MEAN, std: Rgb = IMAGENET_STD) -> Tensor:
    """Turns uint8 RGB images, 0 to 255, into float32 of mean 0 and deviation 1 over a dataset; ImageNet by default.

    Args:
        image_BCHW: ``(B, 3, H, W)`` uint8; the memory layout is kept.
        mean: the dataset's mean of red, green and blue, 0 to 1.
        std: its deviation.
    """
    mean_C = torch.tensor(mean, device=image_BCHW.device)
    std_C = torch.tensor(std, device=image_BCHW.device)
    return (image_BCHW.float() - 255 * mean_C[:, None, None]) / (255 * std_C[:, None, None])


def make_activation(name: Activation) -> nn.Module:
    """The non-linearity of that name; ReLU works in place."""
    return nn.GELU() if name == "gelu" else nn.ReLU(inplace=True)


def init_weights(module: nn.Module) -> None:
    """Linears: truncated normal of deviation 0.02 and bias 0; all else keeps torch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): zeroes the whole branch of a sample, scales up the others."""

    def __init__(self, probability: float):
        """Takes the probability of a sample's being dropped, 0 to 1."""
        super().__init__()
        self.probability = probability

    def forward(self, x_BX: Tensor) -> Tensor:
        """Drops samples of ``(B, ...)`` in training; the identity in evaluation."""
        if not self.training or self.probability == 0:
            return x_BX
        keep = 1 - self.probability
        mask_B1 = x_BX.new_empty((x_BX.shape[0],) + (1,) * (x_BX.ndim - 1)).bernoulli_(keep)
        return x_BX * (mask_B1 / keep)

    def extra_repr(self) -> str:
        """Shows the probability."""
        return f"probability={self.probability:g}"


class SqueezeExcite(nn.Module):
    """Channel gate (arXiv 1709.01507) with a hard sigmoid; the bottleneck is a quarter of ``width``."""

    def __init__(self, width: int):
        """Builds the gate for ``width`` channels."""
        super().__init__()
        squeezed = squeeze_width(width)
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Multiplies every channel by its gate, 0 to 1."""
        gate_BC11 = self.squeeze(x_BCHW.mean((2, 3), keepdim=True)).relu()
        return x_BCHW * functional.hardsigmoid(self.excite(gate_BC11))


class MBConv(nn.Module):
    """Inverted bottleneck with a depthwise 3x3; no activation after the sum.

    A fresh block with unchanged shape is the identity: the last BatchNorm's scale starts at 0.
    """

    def __init__(self, shape: BlockShape, genotype: Genotype):
        """Builds the block of a shape."""
        super().__init__()
        hidden = shape.hidden_width
        self.shortcut = _shortcut(shape)
        layers: list[nn.Module] = []
        if shape.in_width != hidden or shape.stride != 1:
            layers += [
                nn.BatchNorm2d(shape.in_width),
                nn.Conv2d(shape.in_width, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                make_activation(genotype.activation),
            ]
        layers += [
            nn.Conv2d(hidden, hidden, 3, shape.stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            make_activation(genotype.activation),
        ]
        layers += [SqueezeExcite(hidden)] if genotype.squeeze_excite else []
        layers += [nn.Conv2d(hidden, shape.out_width, 1), _zero_scale_norm(shape.out_width)]
        self.branch = nn.Sequential(*layers)
        self.drop_path = DropPath(shape.drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shortcut plus branch."""
        return self.shortcut(x_BCHW) + self.drop_path(self.branch(x_BCHW))


class FusedMBConv(nn.Module):
    """Inverted bottleneck whose expansion is a dense 3x3; with expansion 1 a single gated 3x3.

    A fresh block with unchanged shape is the identity: the last BatchNorm's scale starts at 0.
    """

    def __init__(self, shape: BlockShape, genotype: Genotype):
        """Builds the block of a shape."""
        super().__init__()
        hidden = shape.hidden_width
        self.shortcut = _shortcut(shape)
        gate = [SqueezeExcite(hidden)] if genotype.squeeze_excite else []
        if shape.in_width == hidden:
            layers = [*gate, nn.Conv2d(hidden, shape.out_width, 3, shape.stride, 1)]
        else:
            layers = [
                nn.BatchNorm2d(shape.in_width),
                nn.Conv2d(shape.in_width, hidden, 3, shape.stride, 1, bias=False),
                nn.BatchNorm2d(hidden),
                make_activation(genotype.activation),
                *gate,
                nn.Conv2d(hidden, shape.out_width, 1),
            ]
        self.branch = nn.Sequential(*layers, _zero_scale_norm(shape.out_width))
        self.drop_path = DropPath(shape.drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shortcut plus branch."""
        return self.shortcut(x_BCHW) + self.drop_path(self.branch(x_BCHW))


class SelfAttention(nn.Module):
    """Multi-head softmax attention over tokens, without window or relative position.

    Args:
        in_width: channels in; must be a multiple of ``head_size``.
        out_width: channels out.
        head_size: channels of one head.
    """

    def __init__(self, in_width: int, out_width: int, head_size: int):
        """Builds the projections."""
        super().__init__()
        self.head_size = head_size
        self.qkv = nn.Linear(in_width, 3 * in_width)
        self.projection = nn.Linear(in_width, out_width)

    def forward(self, x_BNC: Tensor, allowed_BNN: Tensor | None = None) -> Tensor:
        """Mixes tokens.

        Args:
            x_BNC: tokens.
            allowed_BNN: bool, broadcast over the batch; True where a query (row) may look at a
                key (column). Every query must be allowed at least one key.

        Returns:
            ``(B, N, out_width)``.
        """
        q_BGNS, k_BGNS, v_BGNS = split_heads(self.qkv(x_BNC), self.head_size)
        mixed_BGNS = attend(q_BGNS, k_BGNS, v_BGNS, allowed_BNN)
        return self.projection(mixed_BGNS.transpose(1, 2).flatten(2))


class CrossCovarianceAttention(nn.Module):
    """Attention over channels: a ``(S, S)`` matrix a head, so the cost is linear in the tokens.

    Queries and keys have unit length along the tokens; every head learns a temperature, first 1.
    """

    def __init__(self, in_width: int, out_width: int, head_size: int):
        """Builds the projections; see ``SelfAttention`` for the arguments."""
        super().__init__()
        self.head_size = head_size
        self.temperature = nn.Parameter(torch.ones(in_width // head_size, 1, 1))
        self.qkv = nn.Linear(in_width, 3 * in_width)
        self.projection = nn.Linear(in_width, out_width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Mixes the channels of every head; ``(B, N, C)`` to ``(B, N, out_width)``."""
        q_BGNS, k_BGNS, v_BGNS = split_heads(self.qkv(x_BNC), self.head_size)
        q_BGSN = functional.normalize(q_BGNS, dim=-2).transpose(-2, -1)
        logits_BGSS = (q_BGSN @ functional.normalize(k_BGNS, dim=-2)) * self.temperature
        mixed_BGNS = v_BGNS @ logits_BGSS.softmax(-1).to(v_BGNS.dtype).transpose(-2, -1)
        return self.projection(mixed_BGNS.transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Linear, activation, linear on the last axis."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, activation: Activation):
        """Builds the two linears."""
        super().__init__(
            nn.Linear(in_width, hidden_width), make_activation(activation), nn.Linear(hidden_width, out_width)
        )


class AttentionBlock(nn.Module):
    """Position convolution, then attention and MLP on tokens, each scaled per channel (LayerScale).

    A transition block pools the normalised tokens before attention, adds a pooled 1x1 shortcut,
    and has neither MLP nor DropPath.
    """

    attention_class: type[nn.Module] = SelfAttention

    def __init__(self, shape: BlockShape, genotype: Genotype):
        """Builds the block of a shape."""
        super().__init__()
        width, init = shape.in_width, genotype.layer_scale_init
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = self.attention_class(width, shape.out_width, genotype.head_size)
        self.scale_attention = nn.Parameter(torch.full((shape.out_width,), init))
        self.is_transition = shape.is_transition
        if self.is_transition:
            self.shortcut = _shortcut(shape)
            self.pool = nn.MaxPool2d(3, shape.stride, 1)
        else:
            self.norm_mlp = nn.LayerNorm(width)
            self.mlp = Mlp(width, shape.hidden_width, width, genotype.activation)
            self.scale_mlp = nn.Parameter(torch.full((width,), init))
            self.drop_path = DropPath(shape.drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mixes the tokens of a map."""
        x_BCHW = x_BCHW + self.position(x_BCHW)
        if self.is_transition:
            normed_BCHW = to_map(self.norm_attention(to_tokens(x_BCHW)), x_BCHW.shape[-2:])
            pooled_BCHW = self.pool(normed_BCHW)
            branch_BNC = self.scale_attention * self.attention(to_tokens(pooled_BCHW))
            return self.shortcut(x_BCHW) + to_map(branch_BNC, pooled_BCHW.shape[-2:])
        x_BNC = to_tokens(x_BCHW)
        x_BNC = x_BNC + self.drop_path(self.scale_attention * self.attention(self.norm_attention(x_BNC)))
        x_BNC = x_BNC + self.drop_path(self.scale_mlp * self.mlp(self.norm_mlp(x_BNC)))
        return to_map(x_BNC, x_BCHW.shape[-2:])


class CrossCovarianceBlock(AttentionBlock):
    """The attention block with attention over channels."""

    attention_class = CrossCovarianceAttention


class MixerBlock(nn.Module):
    """Token MLP then channel MLP (arXiv 2105.01601); works at one map size only."""

    def __init__(self, shape: BlockShape, genotype: Genotype):
        """Builds the block of a shape."""
        super().__init__()
        width, out_width = shape.in_width, shape.out_width
        num_in, num_out = shape.in_size_px**2, shape.out_size_px**2
        self.in_size_px, self.image_size_px = shape.in_size_px, genotype.image_size_px
        self.norm_tokens = nn.LayerNorm(width)
        self.mlp_tokens = Mlp(num_in, 2 * num_in, num_out, genotype.activation)
        self.norm_channels = nn.LayerNorm(width)
        self.mlp_channels = Mlp(width, shape.hidden_width, out_width, genotype.activation)
        self.is_transition = shape.is_transition
        if self.is_transition:
            self.shortcut_tokens = nn.Sequential(nn.MaxPool2d(3, shape.stride, 1), nn.Conv2d(width, width, 1))
            self.shortcut_channels = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(width, out_width, 1))
        else:
            self.scale_tokens = nn.Parameter(torch.full((width,), genotype.layer_scale_init))
            self.scale_channels = nn.Parameter(torch.full((width,), genotype.layer_scale_init))
            self.drop_path = DropPath(shape.drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Mixes the tokens of a map.

        Raises:
            ConfigError: the map has another size than the block was built for.
        """
        if x_BCHW.shape[-2:] != (self.in_size_px, self.in_size_px):
            got = " x ".join(str(size) for size in x_BCHW.shape[-2:])
            raise ConfigError(
                f"genotype.image_size_px: {self.image_size_px} px gives a mixer stage {self.in_size_px} x "
                f"{self.in_size_px} tokens, got {got}; set it to the image size"
            )
        tokens_BNC = self.mlp_tokens(self.norm_tokens(to_tokens(x_BCHW)).transpose(1, 2)).transpose(1, 2)
        if not self.is_transition:
            x_BNC = to_tokens(x_BCHW) + self.drop_path(self.scale_tokens * tokens_BNC)
            x_BNC = x_BNC + self.drop_path(self.scale_channels * self.mlp_channels(self.norm_channels(x_BNC)))
            return to_map(x_BNC, x_BCHW.shape[-2:])
        y_BCHW = self.shortcut_tokens(x_BCHW)
        y_BCHW = y_BCHW + to_map(tokens_BNC, y_BCHW.shape[-2:])
        branch_BNC = self.mlp_channels(self.norm_channels(to_tokens(y_BCHW)))
        return self.shortcut_channels(y_BCHW) + to_map(branch_BNC, y_BCHW.shape[-2:])


def to_tokens(x_BCHW: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, N, C)``; a view in channels-last memory too."""
    return x_BCHW.flatten(2).transpose(1, 2)


def to_map(x_BNC: Tensor, size_HW: torch.Size) -> Tensor:
    """``(B, N, C)`` as ``(B, C, H, W)`` in channels-last memory."""
    return x_BNC.transpose(1, 2).unflatten(2, size_HW)


def split_heads(qkv_BN3C: Tensor, head_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(B, G, N, S)`` from one projection ``(B, N, 3 G S)``."""
    q, k, v = qkv_BN3C.unflatten(2, (3, -1, head_size)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def attend(q_BGNS: Tensor, k_BGMS: Tensor, v_BGMS: Tensor, allowed_BNM: Tensor | None = None) -> Tensor:
    """Softmax attention of N queries on M tokens, scaled by ``S ** -0.5``.

    Args:
        q_BGNS: queries.
        k_BGMS: keys.
        v_BGMS: values.
        allowed_BNM: bool, broadcast over the batch; True where a query may look at a token.

    Returns:
        ``(B, G, N, S)`` in the values' dtype.
    """
    # Written out: on the CPU, the backward pass of the fused kernel takes some thirty times
    # as long in bfloat16 as in float32, and a third of a whole training step.
    logits_BGNM = (q_BGNS * q_BGNS.shape[-1] ** -0.5) @ k_BGMS.transpose(-2, -1)
    if allowed_BNM is not None:
        logits_BGNM = logits_BGNM.masked_fill(~allowed_BNM[:, None], float("-inf"))
    return logits_BGNM.softmax(-1).to(v_BGMS.dtype) @ v_BGMS


def _shortcut(shape: BlockShape) -> nn.Module:
    if not shape.is_transition:
        return nn.Identity()
    return nn.Sequential(nn.MaxPool2d(3, shape.stride, 1), nn.Conv2d(shape.in_width, shape.out_width, 1))


def _zero_scale_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width)
    nn.init.zeros_(norm.weight)
    return norm
