"""Down-sampling modules of UniNet: what changes width and stride when no block does.

B batch, C channels, H W height and width, N tokens out, M tokens in, G heads, S head size.

Source: UniNet repository, ``uninet.py`` (local and local-global). Its paper (arXiv 2110.04035)
names a third, global kind whose definition is not public: ``GlobalDownsampling`` is ours, a guess.
Every module maps ``(B, C, H, W)`` to ``(B, C', ceil(H / stride), ceil(W / stride))`` and adds a
shortcut: 3x3 max-pooling at stride 2 only, then a 1x1 convolution.
"""

from torch import Tensor, nn

from intern_vision.models.genotype import BlockShape, Genotype
from intern_vision.models.layers import attend, to_map, to_tokens


class LocalDownsampling(nn.Module):
    """Depthwise 3x3 convolution at the stride, BatchNorm, 1x1 convolution.

    Args:
        shape: widths and stride.
        genotype: not read; every module of a network is built alike.
    """

    def __init__(self, shape: BlockShape, genotype: Genotype):
        """Builds the module of a shape."""
        super().__init__()
        self.shortcut = _pooled(shape)
        self.local = _local(shape)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shortcut plus local path."""
        return self.shortcut(x_BCHW) + self.local(x_BCHW)


class LocalGlobalDownsampling(nn.Module):
    """Cross-attention: what the local path gives queries all tokens of the map.

    Args:
        shape: widths and stride; the output width must be a multiple of the head size.
        genotype: gives the head size.
    """

    def __init__(self, shape: BlockShape, genotype: Genotype):
        """Builds the module of a shape."""
        super().__init__()
        width, out_width = shape.in_width, shape.out_width
        self.head_size = genotype.head_size
        self.shortcut = _pooled(shape)
        self.query = self.make_query(shape)
        self.norm_query = nn.LayerNorm(out_width)
        self.norm_key = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * out_width)
        self.projection = nn.Linear(out_width, out_width)

    @staticmethod
    def make_query(shape: BlockShape) -> nn.Module:
        """The path from the map to the queries, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return _local(shape)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shortcut plus attention."""
        q_BCHW = self.query(x_BCHW)
        q_BGNS = self._heads(self.norm_query(to_tokens(q_BCHW)))
        k_BMC, v_BMC = self.key_value(self.norm_key(to_tokens(x_BCHW))).chunk(2, dim=-1)
        mixed_BGNS = attend(q_BGNS, self._heads(k_BMC), self._heads(v_BMC))
        mixed_BNC = self.projection(mixed_BGNS.transpose(1, 2).flatten(2))
        return self.shortcut(x_BCHW) + to_map(mixed_BNC, q_BCHW.shape[-2:])

    def _heads(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.unflatten(2, (-1, self.head_size)).transpose(1, 2)


class GlobalDownsampling(LocalGlobalDownsampling):
    """The local-global module without its local filter: max-pooled tokens query all tokens.

    Our definition, not a published one: the queries take the path of the shortcut, with weights of
    their own.
    """

    @staticmethod
    def make_query(shape: BlockShape) -> nn.Module:
        """Max-pooling at the stride and a 1x1 convolution."""
        return _pooled(shape)


def _local(shape: BlockShape) -> nn.Sequential:
    width = shape.in_width
    return nn.Sequential(
        nn.Conv2d(width, width, 3, shape.stride, 1, groups=width),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, shape.out_width, 1),
    )


def _pooled(shape: BlockShape) -> nn.Sequential:
    pool: list[nn.Module] = [nn.MaxPool2d(3, shape.stride, 1)] if shape.stride != 1 else []
    return nn.Sequential(*pool, nn.Conv2d(shape.in_width, shape.out_width, 1))
