"""Vision transformer as a backbone. B batch, C channels, H W height and width, N tokens, D vector width, P patch size.

Sources: arXiv 2010.11929, and arXiv 2103.00020 for CLIP's norm before the blocks. A ViT has one
resolution; its four maps are the tokens after each quarter of the blocks, resampled bilinearly to
strides 4, 8, 16 and 32, so that heads and distillation take it as they take a pyramid. The fine
maps hold no finer information than the patch.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from intern_vision.errors import ConfigError
from intern_vision.models.features import Features
from intern_vision.models.layers import SelfAttention, to_tokens
from intern_vision.models.public_backbones import PublicBackbone

NUM_MAPS = 4
STRIDES = (4, 8, 16, 32)


class QuickGelu(nn.Module):
    """``x * sigmoid(1.702 x)``, CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class VisionTransformer(nn.Module):
    """Patches, a class token, and pre-norm blocks of attention and MLP.

    Args:
        spec: sizes; of kind ``vit`` or ``clip_vit``.

    Attributes:
        channels: the token width, four times.
        strides: 4, 8, 16, 32.
        vector_width: width of the class token after the last norm.
        checkpoint_activations: whether training computes every block again in the backward pass.
    """

    def __init__(self, spec: PublicBackbone) -> None:
        super().__init__()
        width = spec.width
        is_clip = spec.kind == "clip_vit"
        eps = 1e-5 if is_clip else 1e-6
        self.channels, self.strides, self.vector_width = (width,) * NUM_MAPS, STRIDES, width
        self.checkpoint_activations = False
        self.patch_size_px = spec.patch_size_px
        (num_blocks,) = spec.num_blocks
        self._taps = [num_blocks * (k + 1) // NUM_MAPS for k in range(NUM_MAPS)]
        self.patch = nn.Conv2d(3, width, self.patch_size_px, self.patch_size_px, bias=not is_clip)
        self.class_token = nn.Parameter(torch.zeros(1, width))
        num_positions = (spec.position_size_px // spec.patch_size_px) ** 2 + 1
        self.position = nn.Parameter(torch.randn(num_positions, width) * 0.02)
        self.norm_in = nn.LayerNorm(width, eps) if is_clip else nn.Identity()
        self.blocks = nn.ModuleList(VisionBlock(width, spec.num_heads, eps, spec.quick_gelu) for _ in range(num_blocks))
        self.norm_out = nn.LayerNorm(width, eps)

    def forward(self, x_BCHW: Tensor) -> Features:
        """Features of normalised RGB images of any size; map k is ``ceil(H / strides[k])`` high."""
        return self._features(x_BCHW)

    def levels(self, x_BCHW: Tensor, fuse: Callable[[int, Tensor], Tensor] | None = None) -> Iterator[Tensor]:
        """Yields the maps fine to coarse; ConfigError for ``fuse``: the maps are views of tokens, not steps of them."""
        if fuse is not None:
            raise ConfigError("experts: a vision transformer cannot be joined by transfer modules; use MetaNets")
        yield from self._features(x_BCHW).maps

    def _features(self, x_BCHW: Tensor) -> Features:
        size_HW = x_BCHW.shape[-2:]
        # Whole patches: zeros, the mean colour, at the right and the bottom.
        padding = [-size % self.patch_size_px for size in size_HW]
        patches_BCHW = self.patch(functional.pad(x_BCHW, (0, padding[1], 0, padding[0])))
        grid_HW = patches_BCHW.shape[-2:]
        tokens_BNC = to_tokens(patches_BCHW)
        class_B1C = self.class_token.to(tokens_BNC.dtype).expand(tokens_BNC.shape[0], 1, -1)
        position_NC = resized_position(self.position, grid_HW).to(tokens_BNC.dtype)
        tokens_BNC = self.norm_in(torch.cat([class_B1C, tokens_BNC], 1) + position_NC)
        maps: list[Tensor] = []
        for number, block in enumerate(self.blocks, 1):
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens_BNC = checkpoint(block, tokens_BNC, use_reentrant=False)
            else:
                tokens_BNC = block(tokens_BNC)
            for _ in range(self._taps.count(number)):
                stride = self.strides[len(maps)]
                map_BCHW = tokens_BNC[:, 1:].transpose(1, 2).unflatten(2, grid_HW)
                wanted = tuple(-(-size // stride) for size in size_HW)
                maps.append(_resized(map_BCHW, wanted))
        return Features(tuple(maps), self.norm_out(tokens_BNC)[:, 0])

    @property
    def num_layers(self) -> int:
        """Depths that a layer-wise learning-rate decay tells apart: embedding, every block, last norm."""
        return len(self.blocks) + 2

    def layer_index(self, name: str) -> int:
        """Depth of a parameter, 0 (embedding) to ``num_layers - 1`` (last norm)."""
        part, *rest = name.split(".")
        if part == "blocks":
            return 1 + int(rest[0])
        return self.num_layers - 1 if part == "norm_out" else 0


class VisionBlock(nn.Module):
    """Attention and a four times wider MLP, each after a norm and added to the stream.

    Args:
        width: token width, a multiple of ``num_heads``.
        num_heads: attention heads.
        eps: of the norms.
        quick_gelu: CLIP's approximation of GELU.
    """

    def __init__(self, width: int, num_heads: int, eps: float, quick_gelu: bool) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps)
        self.attention = SelfAttention(width, width, width // num_heads)
        self.norm_mlp = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), QuickGelu() if quick_gelu else nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Mixes tokens, then channels."""
        x_BNC = x_BNC + self.attention(self.norm_attention(x_BNC))
        return x_BNC + self.mlp(self.norm_mlp(x_BNC))


def resized_position(position_NC: Tensor, grid_HW: torch.Size) -> Tensor:
    """A position embedding, class token first, for another grid.

    Args:
        position_NC: one row for the class token and one for each cell of a square grid.
        grid_HW: the wanted height and width in cells.

    Returns:
        ``(H * W + 1, C)``; bicubic, and the input itself where the grid is the same.
    """
    side = round((len(position_NC) - 1) ** 0.5)
    if tuple(grid_HW) == (side, side):
        return position_NC
    grid_1CHW = position_NC[1:].float().T.unflatten(1, (side, side))[None]
    resized_1CHW = functional.interpolate(grid_1CHW, size=tuple(grid_HW), mode="bicubic", antialias=True)
    return torch.cat([position_NC[:1].float(), resized_1CHW[0].flatten(1).T])


def _resized(map_BCHW: Tensor, size_HW: tuple[int, ...]) -> Tensor:
    if tuple(map_BCHW.shape[-2:]) == size_HW:
        return map_BCHW
    return functional.interpolate(map_BCHW, size=size_HW, mode="bilinear", antialias=False)
