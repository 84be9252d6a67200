"""Genotype: what a MetaNet is made of, and the named ones.

Sources: gv-benchmark repository, ``metanet.py`` and its configs (MN-B4, MN-B15); UniNet repository,
``uninet.py`` (arXiv 2207.05420; down-sampling modules, UniNet-B0 to B6); United Perception
repository, its MetaNet backbone (MN-B7). All have the six stages that a search found on one small
cell, scaled. Costs in closed form: ``cost.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from intern_vision.config import Config
from intern_vision.models.cost import STEM_STRIDE, Cost, costs, num_macs, num_parameters

__all__ = ["GENOTYPES", "BlockShape", "Cost", "Genotype", "StageGene", "costs", "num_macs", "num_parameters"]

Operator = Literal["mbconv", "fused_mbconv", "attention", "cross_covariance", "mixer"]
Downsampling = Literal["block", "local", "local_global", "global"]
Activation = Literal["gelu", "relu"]

ATTENTION_OPERATORS = ("attention", "cross_covariance")
# Down-sampling modules whose queries see all tokens, in heads of the stage's width.
ATTENTION_DOWNSAMPLINGS = ("local_global", "global")


class StageGene(Config):
    """A run of equal blocks; what stands first changes width and stride.

    Attributes:
        operator: the block's operator.
        expansion: hidden width of a block over its input width.
        width: output channels.
        num_blocks: blocks in the stage.
        stride: stride of the stage, 1 or 2.
        downsampling: what changes width and stride: ``block``, the first block itself, or a
            module of its own before blocks that keep the shape: ``local`` (depthwise
            convolution), ``local_global`` (its output queries all tokens) or ``global`` (pooled
            tokens query all tokens).
    """

    operator: Operator
    expansion: float = Field(gt=0)
    width: int = Field(gt=0)
    num_blocks: int = Field(gt=0)
    stride: Literal[1, 2]
    downsampling: Downsampling = "block"

    def shapes(self, in_width: int, in_size_px: int) -> list["BlockShape"]:
        """The stage's modules in order, without drop path, on a square map.

        Args:
            in_width: channels that enter the stage.
            in_size_px: height and width of the map that enters it.
        """
        out_size_px = -(-in_size_px // self.stride)
        entry = BlockShape(
            operator=self.operator,
            in_width=in_width,
            out_width=self.width,
            hidden_width=int(in_width * self.expansion),
            stride=self.stride,
            in_size_px=in_size_px,
            out_size_px=out_size_px,
        )
        inner = BlockShape(
            operator=self.operator,
            in_width=self.width,
            out_width=self.width,
            hidden_width=int(self.width * self.expansion),
            stride=1,
            in_size_px=out_size_px,
            out_size_px=out_size_px,
        )
        if self.downsampling == "block":
            return [entry] + [inner] * (self.num_blocks - 1)
        return [replace(entry, operator=self.downsampling, hidden_width=self.width)] + [inner] * self.num_blocks


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
        """Widths must split into heads, stages must reach stride 4, and the image must fill the coarsest cell."""
        faults = []
        width = self.stem_width
        for index, stage in enumerate(self.stages):
            faults += [f"stages.{index}: {fault}" for fault in self._stage_faults(stage, width)]
            width = stage.width
        coarsest = self._stage_strides()[-1]
        if coarsest < 4:
            faults.append("stages: expected a last stage at stride 4 or coarser, give two stages stride 2")
        if self.image_size_px < coarsest:
            faults.append(
                f"image_size_px: {self.image_size_px} px is smaller than the coarsest stride ({coarsest} px), "
                "use larger images or fewer stages of stride 2"
            )
        return faults

    def _stage_faults(self, stage: StageGene, in_width: int) -> list[str]:
        faults = []
        has_module = stage.downsampling != "block"
        narrowest = stage.width if has_module else min(in_width, stage.width)
        if int(narrowest * stage.expansion) < 1:
            faults.append(f"expansion {stage.expansion} leaves no hidden channel, make it at least 1 / {narrowest}")
        if stage.downsampling == "local" and stage.stride == 1 and in_width == stage.width:
            faults.append(
                f"downsampling 'local' has nothing to do at stride 1 and width {in_width}, "
                "use 'block', or 'local_global' to mix all tokens"
            )
        widths = {}
        if stage.operator in ATTENTION_OPERATORS or stage.downsampling in ATTENTION_DOWNSAMPLINGS:
            widths["width"] = stage.width
        if stage.operator in ATTENTION_OPERATORS and not has_module:
            widths = {"input width": in_width} | widths
        return faults + [
            f"{name} {value} must be a multiple of head_size {self.head_size}"
            for name, value in widths.items()
            if value % self.head_size
        ]

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
        """Every block and down-sampling module from fine to coarse, with the map sizes a square image gives."""
        size_px, width = -(-image_size_px // STEM_STRIDE), self.stem_width
        last, index = max(self.num_blocks - 1, 1), 0
        for stage_index, stage in enumerate(self.stages):
            for shape in stage.shapes(width, size_px):
                is_block = shape.operator == stage.operator
                drop_path = self.drop_path * index / last if is_block else 0.0
                yield replace(shape, stage=stage_index, drop_path=drop_path)
                index += is_block
            size_px, width = -(-size_px // stage.stride), stage.width

    def _stage_strides(self) -> list[int]:
        strides, stride = [], STEM_STRIDE
        for stage in self.stages:
            stride *= stage.stride
            strides.append(stride)
        return strides


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """One block or down-sampling module of a genotype.

    Attributes:
        operator: its operator, or the kind of down-sampling module.
        in_width: channels in.
        out_width: channels out.
        hidden_width: expanded channels, ``floor(in_width * expansion)``; ``out_width`` for a
            down-sampling module.
        stride: 1 or 2.
        in_size_px: height and width of the map in.
        out_size_px: height and width of the map out, ``ceil(in_size_px / stride)``.
        stage: index of its stage.
        drop_path: probability that the block's branch is dropped for a sample.
    """

    operator: Operator | Downsampling
    in_width: int
    out_width: int
    hidden_width: int
    stride: int
    in_size_px: int
    out_size_px: int
    stage: int = 0
    drop_path: float = 0.0

    @property
    def is_transition(self) -> bool:
        """Whether the block changes stride or width."""
        return self.stride != 1 or self.in_width != self.out_width


def metanet_stages(
    operators: tuple[Operator, ...],
    widths: tuple[int, ...],
    num_blocks: tuple[int, ...],
    downsamplings: tuple[Downsampling, ...] = ("block",) * 6,
) -> tuple[StageGene, ...]:
    """Six stages with the searched cell's expansions 1 4 6 3 2 5 and strides 1 2 2 2 1 2."""
    return tuple(
        StageGene(
            operator=operator,
            expansion=expansion,
            width=width,
            num_blocks=blocks,
            stride=stride,
            downsampling=downsampling,
        )
        for operator, expansion, width, blocks, stride, downsampling in zip(
            operators, (1, 4, 6, 3, 2, 5), widths, num_blocks, (1, 2, 2, 2, 1, 2), downsamplings, strict=True
        )
    )


def uninet(widths: tuple[int, ...], num_blocks: tuple[int, ...], image_size_px: int) -> Genotype:
    """A member of the UniNet family, which MetaNet was scaled from.

    Four MBConv and two self-attention stages with heads of 32 channels. Every stage but the first
    begins with a down-sampling module, three local and two local-global ones; the one at stride 1
    stands between equal widths too, and its shortcut has no pooling. With the 1000-way classifier
    the parameters are the published ones to every printed digit (11.451, 16.211, 24.02, 43.796,
    72.883, 117 M for B0/B1 to B6), and so are the GFLOPs, counted as fvcore counts (``cost.py``):
    0.555, 1.118, 2.159, 4.258, 9.429 for B0 to B4. Multiply-adds alone are 1.4 to 2.1 % below
    them. GFLOPs of B5 and B6 are not published.

    Args:
        widths: channels of the six stages.
        num_blocks: blocks of the six stages.
        image_size_px: height and width the member is meant for.
    """
    modules: tuple[Downsampling, ...] = ("block",) + ("local",) * 3 + ("local_global",) * 2
    return Genotype(
        stem_width=32,
        stages=metanet_stages(_SELF_ATTENTION, widths, num_blocks, modules),
        head_size=32,
        image_size_px=image_size_px,
    )


_SELF_ATTENTION: tuple[Operator, ...] = ("mbconv",) * 4 + ("attention",) * 2
_CROSS_COVARIANCE: tuple[Operator, ...] = ("fused_mbconv",) * 2 + ("mbconv",) * 2 + ("cross_covariance",) * 2

MN_B4 = Genotype(
    stem_width=32,
    stages=metanet_stages(_SELF_ATTENTION, (32, 64, 128, 192, 192, 384), (2, 3, 6, 6, 6, 12)),
    head_size=48,
)
# 100.198 M parameters with 21,842 classes (published: 100.2 M). The published 7.26 GFLOPs are those at 224 px
# without attention products (7.259); with them it has 7.455.
MN_B7 = Genotype(
    stem_width=32,
    stages=metanet_stages(_SELF_ATTENTION, (48, 96, 160, 256, 256, 512), (2, 4, 8, 8, 8, 16)),
    head_size=32,
)
MN_B15 = Genotype(
    stem_width=96,
    stages=metanet_stages(_CROSS_COVARIANCE, (128, 256, 512, 768, 768, 1536), (4, 6, 12, 12, 12, 24)),
    head_size=64,
    drop_path=0.3,
)
UNINETS: dict[str, Genotype] = {
    "uninet_b0": uninet((24, 48, 80, 128, 128, 256), (1, 2, 4, 4, 4, 8), 160),
    "uninet_b1": uninet((24, 48, 80, 128, 128, 256), (1, 2, 4, 4, 4, 8), 224),
    "uninet_b2": uninet((24, 48, 80, 128, 128, 256), (2, 3, 6, 6, 6, 12), 256),
    "uninet_b3": uninet((24, 56, 96, 160, 160, 288), (2, 3, 7, 7, 7, 14), 288),
    "uninet_b4": uninet((32, 64, 112, 192, 192, 352), (2, 4, 9, 9, 9, 18), 320),
    "uninet_b5": uninet((32, 64, 112, 224, 224, 448), (3, 5, 10, 10, 10, 20), 384),
    "uninet_b6": uninet((48, 96, 160, 256, 256, 512), (4, 6, 12, 12, 12, 24), 448),
}
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
    "mn_b7": MN_B7,
    "mn_b15": MN_B15,
    **UNINETS,
    "toy_sa": TOY_SA,
    "toy_xca": TOY_XCA,
}
