"""ResNet and CLIP's modified ResNet as backbones.

B batch, C channels, H W height and width, N positions, D vector width.

Sources: arXiv 1512.03385 with the stride in the 3x3 convolution as torchvision has it; for CLIP
arXiv 2103.00020, section 2.4: a stem of three 3x3 convolutions, average pooling before every
strided 1x1 convolution, and attention pooling. Modules carry the names of the public state dicts.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from intern_vision.models.features import Features
from intern_vision.models.public_backbones import PublicBackbone
from intern_vision.models.vit import resized_position

STRIDES = (4, 8, 16, 32)


class ResNet(nn.Module):
    """Four stages of residual blocks; map k has stride ``4 * 2**k``.

    Args:
        spec: sizes; of kind ``resnet`` or ``clip_resnet``.

    Attributes:
        channels: channels of the four maps.
        strides: 4, 8, 16, 32.
        vector_width: width of the pooled vector: the last map's mean, or CLIP's attention pool.
    """

    def __init__(self, spec: PublicBackbone) -> None:
        super().__init__()
        self.is_clip = spec.kind == "clip_resnet"
        growth = 4 if spec.bottleneck else 1
        self.strides = STRIDES
        self.channels = tuple(spec.width * growth * 2**stage for stage in range(4))
        self._num_blocks = spec.num_blocks
        if self.is_clip:
            half = spec.width // 2
            self.conv1, self.bn1 = nn.Conv2d(3, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half)
            self.conv2, self.bn2 = nn.Conv2d(half, half, 3, 1, 1, bias=False), nn.BatchNorm2d(half)
            self.conv3, self.bn3 = nn.Conv2d(half, spec.width, 3, 1, 1, bias=False), nn.BatchNorm2d(spec.width)
            self.pool_stem: nn.Module = nn.AvgPool2d(2, ceil_mode=True)
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, spec.width, 7, 2, 3, bias=False), nn.BatchNorm2d(spec.width)
            self.pool_stem = nn.MaxPool2d(3, 2, 1)
        in_width = spec.width
        for stage, num_blocks in enumerate(spec.num_blocks):
            blocks = []
            for number in range(num_blocks):
                stride = 2 if stage and not number else 1
                blocks.append(ResidualBlock(in_width, spec.width * 2**stage, stride, spec.bottleneck, self.is_clip))
                in_width = self.channels[stage]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.vector_width = spec.vector_width if self.is_clip else self.channels[-1]
        if self.is_clip:
            self.attnpool = AttentionPool(
                spec.position_size_px // STRIDES[-1], self.channels[-1], spec.num_heads, spec.vector_width
            )

    def forward(self, x_BCHW: Tensor) -> Features:
        """Features of normalised RGB images of any size; map k is ``ceil(H / strides[k])`` high."""
        maps = tuple(self.levels(x_BCHW))
        return Features(maps, self.pool(maps[-1]))

    def levels(self, x_BCHW: Tensor, fuse: Callable[[int, Tensor], Tensor] | None = None) -> Iterator[Tensor]:
        """Yields the maps fine to coarse; ``fuse`` is given each and what it returns is used instead."""
        x_BCHW = self.bn1(self.conv1(x_BCHW)).relu()
        if self.is_clip:
            x_BCHW = self.bn2(self.conv2(x_BCHW)).relu()
            x_BCHW = self.bn3(self.conv3(x_BCHW)).relu()
        x_BCHW = self.pool_stem(x_BCHW)
        for level in range(len(self.strides)):
            x_BCHW = self.get_submodule(f"layer{level + 1}")(x_BCHW)
            if fuse is not None:
                x_BCHW = fuse(level, x_BCHW)
            yield x_BCHW

    def pool(self, map_BCHW: Tensor) -> Tensor:
        """The image vector ``(B, D)`` of the coarsest map."""
        return self.attnpool(map_BCHW) if self.is_clip else map_BCHW.mean((2, 3))

    @property
    def num_layers(self) -> int:
        """Depths that a layer-wise learning-rate decay tells apart: stem, every block, pool."""
        return sum(self._num_blocks) + 2

    def layer_index(self, name: str) -> int:
        """Depth of a parameter, 0 (stem) to ``num_layers - 1`` (attention pool)."""
        part, *rest = name.split(".")
        if part == "attnpool":
            return self.num_layers - 1
        if not part.startswith("layer"):
            return 0
        stage = int(part.removeprefix("layer")) - 1
        return 1 + sum(self._num_blocks[:stage]) + int(rest[0])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1, added to the input; CLIP pools instead of striding.

    Args:
        in_width: channels in.
        width: channels of the 3x3 convolution.
        stride: 1 or 2.
        bottleneck: three convolutions; channels out are then ``4 * width``.
        is_clip: averages 2x2 cells where the other has a stride.
    """

    def __init__(self, in_width: int, width: int, stride: int, bottleneck: bool, is_clip: bool) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        out_width = 4 * width if bottleneck else width
        conv_stride = 1 if is_clip else stride
        if bottleneck:
            self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, conv_stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, out_width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_width)
        else:
            self.conv1 = nn.Conv2d(in_width, width, 3, conv_stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.avgpool: nn.Module = nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if is_clip and stride > 1:
            self.avgpool = nn.AvgPool2d(stride, ceil_mode=True)
        if stride > 1 or in_width != out_width:
            conv = nn.Conv2d(in_width, out_width, 1, conv_stride, bias=False)
            self.downsample = nn.Sequential()
            # CLIP's state dicts number the convolution 0 and its norm 1; the pooling has no weights.
            self.downsample.extend([conv, nn.BatchNorm2d(out_width)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shortcut plus branch, then ReLU."""
        y_BCHW = self.bn1(self.conv1(x_BCHW)).relu()
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        if self.bottleneck:
            y_BCHW = self.bn3(self.conv3(self.avgpool(y_BCHW.relu())))
        shortcut_BCHW = self.downsample(self.avgpool(x_BCHW))
        return (y_BCHW + shortcut_BCHW).relu()


class AttentionPool(nn.Module):
    """One attention step whose query is the mean position; CLIP's pooling.

    Args:
        grid_size: height and width, in cells, that the position embedding is made for.
        width: channels of the map.
        num_heads: attention heads.
        out_width: D.
    """

    def __init__(self, grid_size: int, width: int, num_heads: int, out_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(grid_size**2 + 1, width) / width**0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, out_width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The pooled vectors ``(B, D)``."""
        x_BNC = x_BCHW.flatten(2).transpose(1, 2)
        x_BNC = torch.cat([x_BNC.mean(1, keepdim=True), x_BNC], 1)
        position_NC = resized_position(self.positional_embedding, x_BCHW.shape[-2:])
        x_BNC = x_BNC + position_NC.to(x_BNC.dtype)
        q, k, v = self.q_proj(x_BNC[:, :1]), self.k_proj(x_BNC), self.v_proj(x_BNC)
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = functional.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), -1)
        return self.c_proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)).squeeze(1)
