"""Genotype: what a MetaNet is made of, with its parameter and multiply-add counts in closed form.

The named genotypes follow the released MetaNet configurations (gv-benchmark repository,
``metanet.py`` and its configs): six stages found by search on one small cell, then scaled.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from intern_vision.config import Config
from intern_vision.errors import ConfigError

Operator = Literal["mbconv", "fused_mbconv", "attention", "cross_covariance", "mixer"]
Activation = Literal["gelu", "relu"]

STEM_STRIDE = 2
IMAGE_CHANNELS = 3


class StageGene(Config):
    """A run of equal blocks; the first one changes width and stride.

    Attributes:
        operator: the block's operator.
        expansion: hidden width of a block over its input width.
        width: output channels.
        num_blocks: blocks in the stage.
        stride: stride of the first block, 1 or 2.
    """

    operator: Operator
    expansion: float = Field(gt=0)
    width: int = Field(gt=0)
    num_blocks: int = Field(gt=0)
    stride: Literal[1, 2]


class Genotype(Config):
    """A whole MetaNet.

    Attributes:
        stem_width: channels of the 3x3 stride-2 stem convolution.
        stages: the stages from fine to coarse.
        head_width: channels of the 1x1 convolution before average pooling; 0 leaves it out and
            the image vector is the last map's mean and maximum over positions, concatenated.
        head_size: channels of one attention head.
        activation: non-linearity of every block; squeeze-excite always uses ReLU inside.
        squeeze_excite: channel gates in the convolution blocks.
        layer_scale_init: first value of the per-channel factors on attention and MLP branches.
        drop_path: stochastic-depth probability of the last block; it grows linearly from 0.
        image_size_px: height and width that ``mixer`` stages are built for; the other
            operators take any size and ignore it.
    """

    stem_width: int = Field(gt=0)
    stages: tuple[StageGene, ...] = Field(min_length=1)
    head_width: int = Field(default=1280, ge=0)
    head_size: int = Field(default=32, gt=0)
    activation: Activation = "gelu"
    squeeze_excite: bool = True
    layer_scale_init: float = Field(default=1e-6, gt=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    image_size_px: int = Field(default=224, gt=0)

    def faults(self) -> list[str]:
        """Attention widths must split into heads; the last stage must reach stride 4."""
        faults = []
        width = self.stem_width
        for index, stage in enumerate(self.stages):
            if stage.operator in ("attention", "cross_covariance"):
                for name, value in (("input width", width), ("width", stage.width)):
                    if value % self.head_size:
                        faults.append(
                            f"stages.{index}: {name} {value} must be a multiple of head_size {self.head_size}"
                        )
            width = stage.width
        if self._stage_strides()[-1] < 4:
            faults.append("stages: expected a last stage at stride 4 or coarser; give two stages stride 2")
        return faults

    @property
    def taps(self) -> tuple[int, ...]:
        """Index of the last stage at each stride of 4 and coarser, fine to coarse."""
        strides = self._stage_strides()
        last_at = {stride: index for index, stride in enumerate(strides) if stride >= 4}
        return tuple(last_at.values())

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the tapped feature maps."""
        return tuple(self.stages[tap].width for tap in self.taps)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the tapped feature maps with respect to the image."""
        return tuple(self._stage_strides()[tap] for tap in self.taps)

    @property
    def vector_width(self) -> int:
        """Width of the pooled image vector."""
        return self.head_width or 2 * self.stages[-1].width

    @property
    def num_blocks(self) -> int:
        """Blocks over all stages."""
        return sum(stage.num_blocks for stage in self.stages)

    def blocks(self, image_size_px: int) -> Iterator["BlockShape"]:
        """Every block from fine to coarse, with the map sizes a square image gives."""
        size = -(-image_size_px // STEM_STRIDE)
        width = self.stem_width
        last = max(self.num_blocks - 1, 1)
        index = 0
        for stage_index, stage in enumerate(self.stages):
            for position in range(stage.num_blocks):
                stride = stage.stride if position == 0 else 1
                out_size = -(-size // stride)
                yield BlockShape(
                    stage=stage_index,
                    operator=stage.operator,
                    in_width=width,
                    out_width=stage.width,
                    hidden_width=int(width * stage.expansion),
                    stride=stride,
                    in_size_px=size,
                    out_size_px=out_size,
                    drop_path=self.drop_path * index / last,
                )
                size, width, index = out_size, stage.width, index + 1

    def _stage_strides(self) -> list[int]:
        strides, stride = [], STEM_STRIDE
        for stage in self.stages:
            stride *= stage.stride
            strides.append(stride)
        return strides


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """One block of a genotype.

    Attributes:
        stage: index of its stage.
        operator: its operator.
        in_width: channels in.
        out_width: channels out.
        hidden_width: expanded channels, ``floor(in_width * expansion)``.
        stride: 1 or 2.
        in_size_px: height and width of the map in.
        out_size_px: height and width of the map out, ``ceil(in_size_px / stride)``.
        drop_path: probability that the block's branch is dropped for a sample.
    """

    stage: int
    operator: Operator
    in_width: int
    out_width: int
    hidden_width: int
    stride: int
    in_size_px: int
    out_size_px: int
    drop_path: float

    @property
    def is_transition(self) -> bool:
        """Whether the block changes stride or width."""
        return self.stride != 1 or self.in_width != self.out_width


@dataclass(frozen=True, slots=True)
class Cost:
    """Learned parameters, and multiply-adds of one image's forward pass."""

    num_parameters: int = 0
    num_macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Sums both counts."""
        return Cost(self.num_parameters + other.num_parameters, self.num_macs + other.num_macs)


def num_parameters(genotype: Genotype, num_classes: int = 0) -> int:
    """Learned parameters of the MetaNet, with a linear classifier when ``num_classes`` > 0."""
    classifier = (genotype.vector_width + 1) * num_classes
    return sum(cost.num_parameters for cost in costs(genotype, genotype.image_size_px)) + classifier


def num_macs(genotype: Genotype, image_size_px: int) -> int:
    """Multiply-adds of one square image's forward pass: convolutions, linears and attention products.

    Raises:
        ConfigError: the genotype has a ``mixer`` stage, which is built for another size.
    """
    return sum(cost.num_macs for cost in costs(genotype, image_size_px))


def costs(genotype: Genotype, image_size_px: int) -> tuple[Cost, ...]:
    """Costs of the stem, of every stage and of the head, in that order.

    Raises:
        ConfigError: the genotype has a ``mixer`` stage, which is built for another size.
    """
    has_mixer = any(stage.operator == "mixer" for stage in genotype.stages)
    if has_mixer and image_size_px != genotype.image_size_px:
        raise ConfigError(
            f"genotype.image_size_px: a mixer stage is built for {genotype.image_size_px} px, got {image_size_px} px; "
            "set image_size_px to the image size"
        )
    stages = [Cost() for _ in genotype.stages]
    size = -(-image_size_px // STEM_STRIDE)
    stem = _conv(IMAGE_CHANNELS, genotype.stem_width, 3, size, bias=False) + _norm(genotype.stem_width)
    for block in genotype.blocks(image_size_px):
        stages[block.stage] += _BLOCK_COSTS[block.operator](block, genotype)
        size = block.out_size_px
    head = Cost()
    if genotype.head_width:
        head = _conv(genotype.stages[-1].width, genotype.head_width, 1, size, bias=False) + _norm(genotype.head_width)
    return (stem, *stages, head)


def squeeze_width(hidden_width: int) -> int:
    """Bottleneck of a squeeze-excite gate: a quarter, rounded to a multiple of 8, at least 90 % of it."""
    target = hidden_width // 4
    width = max(8, (target + 4) // 8 * 8)
    return width + 8 if width < 0.9 * target else width


def _conv(in_width: int, out_width: int, kernel: int, out_size: int, *, bias: bool, depthwise: bool = False) -> Cost:
    weights = kernel * kernel * out_width * (1 if depthwise else in_width)
    return Cost(weights + (out_width if bias else 0), weights * out_size * out_size)


def _linear(in_width: int, out_width: int, num_rows: int) -> Cost:
    return Cost((in_width + 1) * out_width, in_width * out_width * num_rows)


def _norm(width: int) -> Cost:
    return Cost(2 * width)


def _shortcut(block: BlockShape) -> Cost:
    return _conv(block.in_width, block.out_width, 1, block.out_size_px, bias=True) if block.is_transition else Cost()


def _gate(width: int, genotype: Genotype) -> Cost:
    if not genotype.squeeze_excite:
        return Cost()
    squeezed = squeeze_width(width)
    return _conv(width, squeezed, 1, 1, bias=True) + _conv(squeezed, width, 1, 1, bias=True)


def _mbconv(block: BlockShape, genotype: Genotype) -> Cost:
    hidden = block.hidden_width
    cost = _shortcut(block)
    if block.in_width != hidden or block.stride != 1:
        cost += _norm(block.in_width) + _conv(block.in_width, hidden, 1, block.in_size_px, bias=False) + _norm(hidden)
    cost += _conv(hidden, hidden, 3, block.out_size_px, bias=False, depthwise=True) + _norm(hidden)
    cost += _gate(hidden, genotype)
    return cost + _conv(hidden, block.out_width, 1, block.out_size_px, bias=True) + _norm(block.out_width)


def _fused_mbconv(block: BlockShape, genotype: Genotype) -> Cost:
    hidden, size = block.hidden_width, block.out_size_px
    cost = _shortcut(block) + _gate(hidden, genotype) + _norm(block.out_width)
    if block.in_width == hidden:
        return cost + _conv(hidden, block.out_width, 3, size, bias=True)
    cost += _norm(block.in_width) + _conv(block.in_width, hidden, 3, size, bias=False) + _norm(hidden)
    return cost + _conv(hidden, block.out_width, 1, size, bias=True)


def _attention(block: BlockShape, genotype: Genotype) -> Cost:
    # Both products, q with k and the weights with v: N x N x head_size a head for self-attention,
    # head_size x head_size x N for cross-covariance.
    width, num_tokens = block.in_width, block.out_size_px**2
    if block.operator == "attention":
        products = Cost(0, 2 * num_tokens * num_tokens * width)
    else:
        products = Cost(width // genotype.head_size, 2 * num_tokens * genotype.head_size * width)
    cost = _conv(width, width, 3, block.in_size_px, bias=True, depthwise=True) + _norm(width) + products
    cost += _linear(width, 3 * width, num_tokens) + _linear(width, block.out_width, num_tokens)
    cost += Cost(block.out_width)  # LayerScale of the attention branch
    if block.is_transition:
        return cost + _shortcut(block)
    return cost + _norm(width) + _mlp(width, block.hidden_width, width, num_tokens) + Cost(width)


def _mixer(block: BlockShape, genotype: Genotype) -> Cost:
    width, out_width = block.in_width, block.out_width
    num_in, num_out = block.in_size_px**2, block.out_size_px**2
    cost = _norm(width) + _mlp(num_in, 2 * num_in, num_out, width)
    cost += _norm(width) + _mlp(width, block.hidden_width, out_width, num_out)
    if not block.is_transition:
        return cost + Cost(2 * out_width)
    return cost + _conv(width, width, 1, block.out_size_px, bias=True) + _shortcut(block)


def _mlp(in_width: int, hidden_width: int, out_width: int, num_rows: int) -> Cost:
    return _linear(in_width, hidden_width, num_rows) + _linear(hidden_width, out_width, num_rows)


_BLOCK_COSTS: dict[Operator, Callable[[BlockShape, Genotype], Cost]] = {
    "mbconv": _mbconv,
    "fused_mbconv": _fused_mbconv,
    "attention": _attention,
    "cross_covariance": _attention,
    "mixer": _mixer,
}


def metanet_stages(
    operators: tuple[Operator, ...], widths: tuple[int, ...], num_blocks: tuple[int, ...]
) -> tuple[StageGene, ...]:
    """Six stages with the searched cell's expansions 1 4 6 3 2 5 and strides 1 2 2 2 1 2."""
    return tuple(
        StageGene(operator=operator, expansion=expansion, width=width, num_blocks=blocks, stride=stride)
        for operator, expansion, width, blocks, stride in zip(
            operators, (1, 4, 6, 3, 2, 5), widths, num_blocks, (1, 2, 2, 2, 1, 2), strict=True
        )
    )


_SELF_ATTENTION: tuple[Operator, ...] = ("mbconv",) * 4 + ("attention",) * 2
_CROSS_COVARIANCE: tuple[Operator, ...] = ("fused_mbconv",) * 2 + ("mbconv",) * 2 + ("cross_covariance",) * 2

MN_B4 = Genotype(
    stem_width=32,
    stages=metanet_stages(_SELF_ATTENTION, (32, 64, 128, 192, 192, 384), (2, 3, 6, 6, 6, 12)),
    head_size=48,
)
MN_B15 = Genotype(
    stem_width=96,
    stages=metanet_stages(_CROSS_COVARIANCE, (128, 256, 512, 768, 768, 1536), (4, 6, 12, 12, 12, 24)),
    head_size=64,
    drop_path=0.3,
)
TOY_SA = Genotype(
    stem_width=8,
    stages=metanet_stages(_SELF_ATTENTION, (8, 16, 24, 32, 32, 48), (1, 1, 1, 1, 1, 2)),
    head_size=16,
)
TOY_XCA = Genotype(
    stem_width=8,
    stages=metanet_stages(_CROSS_COVARIANCE, (8, 16, 24, 32, 32, 48), (1, 1, 1, 1, 1, 2)),
    head_size=16,
)
# For 64-pixel images on CPU cores: dense 3x3 convolutions, because the depthwise backward pass is slow there,
# and LayerScale from 1, because branches that start at 1e-6 take most of a short run to wake up.
NANO = Genotype(
    stem_width=16,
    stages=(
        StageGene(operator="fused_mbconv", expansion=2, width=32, num_blocks=2, stride=2),
        StageGene(operator="fused_mbconv", expansion=3, width=64, num_blocks=2, stride=2),
        StageGene(operator="attention", expansion=4, width=192, num_blocks=5, stride=2),
    ),
    head_width=0,
    head_size=32,
    squeeze_excite=False,
    layer_scale_init=1.0,
    image_size_px=64,
)

GENOTYPES: dict[str, Genotype] = {
    "nano": NANO,
    "mn_b4": MN_B4,
    "mn_b15": MN_B15,
    "toy_sa": TOY_SA,
    "toy_xca": TOY_XCA,
}
