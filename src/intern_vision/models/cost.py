"""Costs of a genotype in closed form: learned parameters, multiply-adds, and element-wise operations.

Multiply-adds are those of convolutions, linears and attention products. The GFLOPs printed in the
UniNet repository come from fvcore in evaluation mode, which counts a multiply-add as one and adds
2 operations an element of BatchNorm, 5 of LayerNorm and 1 of average pooling; ``Cost`` keeps those
apart as ``num_elementwise_ops``, so published figures are their sum.

A stage's cost is kept by its gene, input width and map size: candidates of a search share most
stages, and no module is built to count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from intern_vision.errors import ConfigError

if TYPE_CHECKING:
    from intern_vision.models.genotype import BlockShape, Genotype, StageGene

STEM_STRIDE = 2
IMAGE_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """What a part costs; everything but the parameters is for one image's forward pass.

    Attributes:
        num_parameters: learned parameters.
        num_macs: multiply-adds of convolutions, linears and attention products.
        num_elementwise_ops: operations of norms and average pooling, as fvcore counts them.
    """

    num_parameters: int = 0
    num_macs: int = 0
    num_elementwise_ops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Sums all counts."""
        return Cost(
            self.num_parameters + other.num_parameters,
            self.num_macs + other.num_macs,
            self.num_elementwise_ops + other.num_elementwise_ops,
        )

    def __mul__(self, times: int) -> "Cost":
        """The cost of ``times`` such parts."""
        return Cost(self.num_parameters * times, self.num_macs * times, self.num_elementwise_ops * times)


def num_parameters(genotype: "Genotype", num_classes: int = 0) -> int:
    """Learned parameters of the MetaNet, with a linear classifier when ``num_classes`` > 0."""
    classifier = (genotype.vector_width + 1) * num_classes
    return sum(cost.num_parameters for cost in costs(genotype, genotype.image_size_px)) + classifier


def num_macs(genotype: "Genotype", image_size_px: int) -> int:
    """Multiply-adds of one square image's forward pass: convolutions, linears and attention products.

    Raises:
        ConfigError: the image is smaller than the coarsest stride, or the genotype has a
            ``mixer`` stage, which is built for another size.
    """
    return sum(cost.num_macs for cost in costs(genotype, image_size_px))


def costs(genotype: "Genotype", image_size_px: int) -> tuple[Cost, ...]:
    """Costs of the stem, of every stage with its down-sampling module, and of the head, in that order.

    Raises:
        ConfigError: the image is smaller than the coarsest stride, or the genotype has a
            ``mixer`` stage, which is built for another size.
    """
    check_image_size(genotype.strides[-1], image_size_px, image_size_px)
    has_mixer = any(stage.operator == "mixer" for stage in genotype.stages)
    if has_mixer and image_size_px != genotype.image_size_px:
        raise ConfigError(
            f"genotype.image_size_px: a mixer stage is built for {genotype.image_size_px} px, got {image_size_px} px; "
            "set image_size_px to the image size"
        )
    width, size_px = genotype.stem_width, -(-image_size_px // STEM_STRIDE)
    total = [_conv(IMAGE_CHANNELS, width, 3, size_px, bias=False) + _batch_norm(width, size_px)]
    for stage in genotype.stages:
        total.append(_stage(stage, width, size_px, genotype.head_size, genotype.squeeze_excite))
        width, size_px = stage.width, -(-size_px // stage.stride)
    if genotype.head_width:
        width = genotype.head_width
        head = _conv(genotype.stages[-1].width, width, 1, size_px, bias=False) + _batch_norm(width, size_px)
    else:
        head = Cost()
    total.append(head + Cost(0, 0, width * size_px * size_px))
    return tuple(total)


def check_image_size(coarsest_stride: int, height_px: int, width_px: int) -> None:
    """ConfigError when an image does not fill one cell of the coarsest map."""
    if min(height_px, width_px) < coarsest_stride:
        raise ConfigError(
            f"image_size_px: {height_px} x {width_px} px is smaller than the coarsest stride, {coarsest_stride} px; "
            "use larger images or fewer stages of stride 2"
        )


def squeeze_width(hidden_width: int) -> int:
    """Bottleneck of a squeeze-excite gate: a quarter, rounded to a multiple of 8, at least 90 % of it."""
    target = hidden_width // 4
    width = max(8, (target + 4) // 8 * 8)
    return width + 8 if width < 0.9 * target else width


@lru_cache(maxsize=1 << 16)
def _stage(gene: "StageGene", in_width: int, in_size_px: int, head_size: int, gated: bool) -> Cost:
    shapes = gene.shapes(in_width, in_size_px)
    # The modules after the first block (and after the down-sampling module before it) are alike.
    num_different = 1 if gene.downsampling == "block" else 2
    total = _MODULE_COSTS[gene.operator](shapes[-1], head_size, gated) * (len(shapes) - num_different)
    for shape in shapes[:num_different]:
        total += _MODULE_COSTS[shape.operator](shape, head_size, gated)
    return total


def _conv(in_width: int, out_width: int, kernel: int, out_size_px: int, *, bias: bool, depthwise: bool = False) -> Cost:
    weights = kernel * kernel * out_width * (1 if depthwise else in_width)
    return Cost(weights + (out_width if bias else 0), weights * out_size_px * out_size_px)


def _linear(in_width: int, out_width: int, num_rows: int) -> Cost:
    return Cost((in_width + 1) * out_width, in_width * out_width * num_rows)


def _mlp(in_width: int, hidden_width: int, out_width: int, num_rows: int) -> Cost:
    return _linear(in_width, hidden_width, num_rows) + _linear(hidden_width, out_width, num_rows)


def _batch_norm(width: int, size_px: int) -> Cost:
    return Cost(2 * width, 0, 2 * width * size_px * size_px)


def _layer_norm(width: int, num_tokens: int) -> Cost:
    return Cost(2 * width, 0, 5 * width * num_tokens)


def _shortcut(block: "BlockShape") -> Cost:
    return _conv(block.in_width, block.out_width, 1, block.out_size_px, bias=True) if block.is_transition else Cost()


def _gate(width: int, size_px: int, gated: bool) -> Cost:
    if not gated:
        return Cost()
    squeezed = squeeze_width(width)
    pooling = Cost(0, 0, width * size_px * size_px)
    return pooling + _conv(width, squeezed, 1, 1, bias=True) + _conv(squeezed, width, 1, 1, bias=True)


def _mbconv(block: "BlockShape", head_size: int, gated: bool) -> Cost:
    width, hidden, in_size, out_size = block.in_width, block.hidden_width, block.in_size_px, block.out_size_px
    cost = _shortcut(block)
    if width != hidden or block.stride != 1:
        cost += _batch_norm(width, in_size) + _conv(width, hidden, 1, in_size, bias=False)
        cost += _batch_norm(hidden, in_size)
    cost += _conv(hidden, hidden, 3, out_size, bias=False, depthwise=True) + _batch_norm(hidden, out_size)
    cost += _gate(hidden, out_size, gated)
    return cost + _conv(hidden, block.out_width, 1, out_size, bias=True) + _batch_norm(block.out_width, out_size)


def _fused_mbconv(block: "BlockShape", head_size: int, gated: bool) -> Cost:
    width, hidden, size = block.in_width, block.hidden_width, block.out_size_px
    cost = _shortcut(block) + _batch_norm(block.out_width, size)
    if width == hidden:  # The gate comes first, on the map before the stride.
        return cost + _gate(hidden, block.in_size_px, gated) + _conv(hidden, block.out_width, 3, size, bias=True)
    cost += _batch_norm(width, block.in_size_px) + _conv(width, hidden, 3, size, bias=False)
    cost += _batch_norm(hidden, size) + _gate(hidden, size, gated)
    return cost + _conv(hidden, block.out_width, 1, size, bias=True)


def _attention(block: "BlockShape", head_size: int, gated: bool) -> Cost:
    # Both products, q with k and the weights with v: N x N x head_size a head for self-attention,
    # head_size x head_size x N for cross-covariance.
    width, num_tokens, in_size = block.in_width, block.out_size_px**2, block.in_size_px
    if block.operator == "attention":
        products = Cost(0, 2 * num_tokens * num_tokens * width)
    else:
        products = Cost(width // head_size, 2 * num_tokens * head_size * width)
    cost = _conv(width, width, 3, in_size, bias=True, depthwise=True) + _layer_norm(width, in_size**2) + products
    cost += _linear(width, 3 * width, num_tokens) + _linear(width, block.out_width, num_tokens)
    cost += Cost(block.out_width)  # LayerScale of the attention branch
    if block.is_transition:
        return cost + _shortcut(block)
    return cost + _layer_norm(width, num_tokens) + _mlp(width, block.hidden_width, width, num_tokens) + Cost(width)


def _mixer(block: "BlockShape", head_size: int, gated: bool) -> Cost:
    width, out_width = block.in_width, block.out_width
    num_in, num_out = block.in_size_px**2, block.out_size_px**2
    cost = _layer_norm(width, num_in) + _mlp(num_in, 2 * num_in, num_out, width)
    cost += _layer_norm(width, num_out) + _mlp(width, block.hidden_width, out_width, num_out)
    if not block.is_transition:
        return cost + Cost(2 * out_width)
    shortcut_channels = _conv(width, out_width, 1, block.out_size_px, bias=True)
    return cost + _conv(width, width, 1, block.out_size_px, bias=True) + shortcut_channels


def _local(block: "BlockShape", head_size: int, gated: bool) -> Cost:
    return _downsampling_shortcut(block) + _local_path(block)


def _global(block: "BlockShape", head_size: int, gated: bool) -> Cost:
    width, out_width = block.in_width, block.out_width
    num_in, num_out = block.in_size_px**2, block.out_size_px**2
    query = _local_path(block) if block.operator == "local_global" else _downsampling_shortcut(block)
    cost = _downsampling_shortcut(block) + query + _layer_norm(out_width, num_out) + _layer_norm(width, num_in)
    cost += Cost(0, 2 * num_out * num_in * out_width)
    return cost + _linear(width, 2 * out_width, num_in) + _linear(out_width, out_width, num_out)


def _downsampling_shortcut(block: "BlockShape") -> Cost:
    return _conv(block.in_width, block.out_width, 1, block.out_size_px, bias=True)


def _local_path(block: "BlockShape") -> Cost:
    width, size = block.in_width, block.out_size_px
    cost = _conv(width, width, 3, size, bias=True, depthwise=True) + _batch_norm(width, size)
    return cost + _conv(width, block.out_width, 1, size, bias=True)


_MODULE_COSTS: dict[str, Callable[["BlockShape", int, bool], Cost]] = {
    "mbconv": _mbconv,
    "fused_mbconv": _fused_mbconv,
    "attention": _attention,
    "cross_covariance": _attention,
    "mixer": _mixer,
    "local": _local,
    "local_global": _global,
    "global": _global,
}
