"""How much memory a training takes on each GPU, in closed form: weights and optimizer by ZeRO stage, and activations.

The trainer keeps float32 weights and computes under bfloat16 autocast, so its bookkeeping is not
that of a half-precision engine. A parameter costs, in bytes (n ranks):

    stage 0   4 weight + 4 gradient + 8 AdamW
    stage 1   4 weight + 4 gradient + (4 master + 8 AdamW) / n
    stage 2   4 weight + (4 gradient + 4 master + 8 AdamW) / n
    stage 3   (4 weight + 4 gradient + 4 master + 8 AdamW) / n

Autocast adds a bfloat16 copy of every weight until the end of the forward pass (2 bytes, in every
stage); stages 1 and 2 a bucket of at most 5e8 reduced elements; stage 3 the gathered weights, of
which DeepSpeed keeps up to 1e9; an average of the weights 4 bytes, split over the ranks in stage 3.

Activations are what autograd keeps for the backward pass, block by block, counted from the
operators' formulas; see ``block_bytes``. Gradients in flight, fragments and workspaces are not
counted: keep ``HEADROOM`` free.
"""

from dataclasses import dataclass

from intern_vision.models.genotype import BlockShape, Genotype

HEADROOM = 0.2
BUCKET_ELEMENTS = 500_000_000
LIVE_ELEMENTS = 1_000_000_000
FLOAT32, BFLOAT16, INT64 = 4, 2, 8


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that one image's forward pass keeps.

    Attributes:
        whole: without activation checkpointing.
        checkpointed: with it: the input of every block, and the inside of the dearest one.
    """

    whole: int
    checkpointed: int

    def __add__(self, other: "Activations") -> "Activations":
        """Sums both."""
        return Activations(self.whole + other.whole, self.checkpointed + other.checkpointed)

    def __mul__(self, times: int) -> "Activations":
        """For several images."""
        return Activations(self.whole * times, self.checkpointed * times)


def state_bytes(num_parameters: int, num_ranks: int, *, average: bool = False, bf16: bool = True) -> dict[int, int]:
    """Bytes a GPU for weights, gradients, optimizer and copies, by ZeRO stage.

    Args:
        num_parameters: trained parameters.
        num_ranks: GPUs.
        average: whether a moving average of the weights is kept.
        bf16: whether autocast makes bfloat16 copies.
    """
    n, p = num_ranks, num_parameters
    copies = BFLOAT16 * p if bf16 else 0
    bucket = FLOAT32 * min(p, BUCKET_ELEMENTS) if n > 1 else 0
    gathered = FLOAT32 * min(p, LIVE_ELEMENTS)
    mean = FLOAT32 * p if average else 0
    return {
        0: 16 * p + copies + mean,
        1: 8 * p + 12 * p // n + copies + bucket + mean,
        2: 4 * p + 16 * p // n + copies + bucket + mean,
        3: 20 * p // n + copies + gathered + mean // n,
    }


def backbone_activations(genotype: Genotype, image_size_px: int, *, bf16: bool = True) -> Activations:
    """What a MetaNet keeps of one square image."""
    element = BFLOAT16 if bf16 else FLOAT32
    blocks = [block_bytes(block, genotype, bf16=bf16) for block in genotype.blocks(image_size_px)]
    inputs = [_input_bytes(block, bf16=bf16) for block in genotype.blocks(image_size_px)]
    shapes = list(genotype.blocks(image_size_px))
    stem_size, last_size = shapes[0].in_size_px, shapes[-1].out_size_px
    # The image, and what BatchNorm and activation keep.
    edges = 3 * (2 * stem_size) ** 2 * element + 2 * genotype.stem_width * stem_size**2 * element
    edges += (genotype.stages[-1].width + 2 * genotype.head_width) * last_size**2 * element
    return Activations(sum(blocks) + edges, sum(inputs) + max(blocks, default=0) + edges)


def block_bytes(block: BlockShape, genotype: Genotype, *, bf16: bool = True) -> int:
    """Bytes that a block keeps of one image: each tensor that one of its operators needs again, counted once."""
    half = BFLOAT16 if bf16 else FLOAT32
    if block.operator in ("mbconv", "fused_mbconv"):
        return _convolution_elements(block, genotype) * half + _pool_indices(block)
    if block.operator in ("attention", "cross_covariance"):
        return _attention_bytes(block, genotype, half)
    # Mixers and down-sampling modules: norms, both hidden maps before and after the activation.
    num_in, num_out = block.in_size_px**2, block.out_size_px**2
    tokens = 2 * block.in_width * (2 * FLOAT32 + half) * num_in
    return tokens + 4 * half * num_in * block.in_width + 2 * half * num_out * block.hidden_width + _pool_indices(block)


def text_activations(width: int, num_blocks: int, num_heads: int, num_tokens: int, *, bf16: bool = True) -> Activations:
    """What a transformer over ``num_tokens`` tokens with four times wider MLPs keeps of one text."""
    if not num_blocks:
        return Activations(FLOAT32 * width * num_tokens, FLOAT32 * width * num_tokens)
    half = BFLOAT16 if bf16 else FLOAT32
    inside = num_tokens * (width * (2 * FLOAT32 + 6 * half) + 2 * 4 * width * half)
    inside += num_heads * num_tokens**2 * (FLOAT32 + (half if bf16 else 0))
    # The text tower has no switch for activation checkpointing.
    return Activations(num_blocks * inside, num_blocks * inside)


def contrast_bytes(num_pairs: int, num_contrasts: int) -> int:
    """What contrasts keep on every rank: float32 logits and log-probabilities both ways, of all pairs of a batch."""
    return 3 * FLOAT32 * num_pairs**2 * num_contrasts


def text_parameters(width: int, num_blocks: int, vocab_size: int, context_length: int, embedding_width: int) -> int:
    """Learned parameters of the text tower, without the image projection."""
    block = 12 * width**2 + 13 * width
    norm = 2 * width if num_blocks else 0
    return (vocab_size + context_length) * width + num_blocks * block + norm + (width + 1) * embedding_width


def text_macs(width: int, num_blocks: int, num_tokens: int, embedding_width: int) -> int:
    """Multiply-adds of one text's forward pass."""
    return num_blocks * num_tokens * (12 * width**2 + 2 * num_tokens * width) + width * embedding_width


def transfer_parameters(source: tuple[int, ...], target: tuple[int, ...]) -> int:
    """Learned parameters of one transfer module, from the channels of both experts' finer maps."""
    total = 0
    for level, out_width in enumerate(target):
        for finer, in_width in enumerate(source[: level + 1]):
            kernel = 1 if finer == level else 9
            inner = max(0, level - finer - 1) * (9 * in_width**2 + 2 * in_width)
            total += inner + kernel * in_width * out_width + 2 * out_width
    return total


def _convolution_elements(block: BlockShape, genotype: Genotype) -> int:
    in_map, out_map = block.in_size_px**2, block.out_size_px**2
    hidden = block.hidden_width * out_map
    gate = hidden if genotype.squeeze_excite else 0
    shortcut = block.in_width * out_map if block.is_transition else 0
    kept = block.in_width * in_map + block.out_width * out_map + shortcut
    if block.operator == "fused_mbconv":
        if block.in_width == block.hidden_width:
            return kept + (block.in_width * in_map if genotype.squeeze_excite else 0)
        return kept + block.in_width * in_map + 3 * hidden + gate
    if block.in_width != block.hidden_width or block.stride != 1:
        kept += block.in_width * in_map + 3 * block.hidden_width * in_map
    return kept + 3 * hidden + gate


def _attention_bytes(block: BlockShape, genotype: Genotype, half: int) -> int:
    width, out_width, num_tokens, num_in = block.in_width, block.out_width, block.out_size_px**2, block.in_size_px**2
    is_bf16 = half == BFLOAT16
    # Position convolution, norm, q k v, projection, LayerScale.
    kept = num_in * width * (half + FLOAT32) + num_tokens * (width * 5 * half + out_width * half)
    if block.operator == "attention":
        kept += width // genotype.head_size * num_tokens**2 * (FLOAT32 + (half if is_bf16 else 0))
    else:
        # q and k are scaled to unit length in float32: their copies, and the results.
        kept += 2 * width * num_tokens * (FLOAT32 + half)
    if block.is_transition:
        normed = num_in * width * FLOAT32
        return kept + normed + out_width * num_tokens * half + 2 * _pool_indices(block)
    return kept + num_tokens * (width * (FLOAT32 + 2 * half) + 2 * block.hidden_width * half)


def _pool_indices(block: BlockShape) -> int:
    return block.in_width * block.out_size_px**2 * INT64 if block.is_transition else 0


def _input_bytes(block: BlockShape, *, bf16: bool) -> int:
    is_stream = block.operator in ("attention", "cross_covariance")
    element = FLOAT32 if is_stream or not bf16 else BFLOAT16
    return block.in_width * block.in_size_px**2 * element
