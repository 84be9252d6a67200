"""Backbones of public weights: their sizes, and their files' names turned into ours.

Files come as torchvision, timm and open_clip publish them: a state dict in safetensors, or in a
``.pt`` that holds tensors only. Sizes: He et al. (arXiv 1512.03385) for ResNet, Dosovitskiy et al.
(arXiv 2010.11929) for ViT, Radford et al. (arXiv 2103.00020) for CLIP's changes to both.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from intern_vision.config import Config
from intern_vision.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

Rgb = tuple[float, float, float]
Kind = Literal["resnet", "clip_resnet", "vit", "clip_vit"]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
HALF: Rgb = (0.5, 0.5, 0.5)
CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)


class PublicBackbone(Config):
    """A public architecture in place of a genotype.

    Attributes:
        kind: ``resnet`` (torchvision), ``clip_resnet`` (three-convolution stem, average-pooled
            strides, attention pool), ``vit`` (timm) or ``clip_vit`` (a norm before the blocks).
        num_blocks: blocks of each of a ResNet's four stages, or all blocks of a ViT.
        width: channels of a ResNet's first stage inside a block, or of a ViT's tokens.
        bottleneck: three convolutions a ResNet block instead of two; CLIP has no other.
        num_heads: attention heads of a ViT's blocks or of CLIP's attention pool.
        patch_size_px: side of a ViT's patch.
        vector_width: width of CLIP's attention-pooled vector; 0 where the vector's width follows.
        position_size_px: image side that the position embedding in the file was made at.
        quick_gelu: ``x * sigmoid(1.702 x)``, as in OpenAI's own ViT weights, instead of GELU.
        mean: RGB mean, 0 to 1, that the images had subtracted.
        std: RGB deviation, 0 to 1, that they were divided by.
    """

    kind: Kind
    num_blocks: tuple[int, ...]
    width: int = Field(ge=8)
    bottleneck: bool = True
    num_heads: int = Field(default=0, ge=0)
    patch_size_px: int = Field(default=16, ge=2)
    vector_width: int = Field(default=0, ge=0)
    position_size_px: int = Field(default=224, ge=16)
    quick_gelu: bool = False
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD

    def faults(self) -> list[str]:
        """A ResNet has four stages, a ViT one list entry; heads divide widths."""
        faults = []
        wanted = 4 if self.is_resnet else 1
        if len(self.num_blocks) != wanted or min(self.num_blocks, default=0) < 1:
            faults.append(f"num_blocks: expected {wanted} positive numbers for {self.kind}, got {self.num_blocks}")
        split = {"clip_resnet": 32 * self.width, "vit": self.width, "clip_vit": self.width}.get(self.kind)
        if split and (not self.num_heads or split % self.num_heads):
            faults.append(f"num_heads: expected a divisor of {split} for {self.kind}, got {self.num_heads}")
        if self.kind == "clip_resnet" and (not self.vector_width or not self.bottleneck):
            faults.append("clip_resnet needs bottleneck blocks and vector_width")
        if self.kind in ("vit", "clip_vit") and sum(self.num_blocks) < 4:
            faults.append(f"num_blocks: a ViT's four maps need four blocks or more, got {self.num_blocks}")
        return faults

    @property
    def is_resnet(self) -> bool:
        """Whether it is a convolution network."""
        return self.kind in ("resnet", "clip_resnet")

    @property
    def is_clip(self) -> bool:
        """Whether it is an image tower of CLIP's, which has a text tower beside it."""
        return self.kind in ("clip_resnet", "clip_vit")


def _resnet(num_blocks: tuple[int, ...], *, bottleneck: bool = True) -> PublicBackbone:
    return PublicBackbone(kind="resnet", num_blocks=num_blocks, width=64, bottleneck=bottleneck)


def _clip_resnet(num_blocks: tuple[int, ...], width: int, vector_width: int, size_px: int) -> PublicBackbone:
    return PublicBackbone(
        kind="clip_resnet",
        num_blocks=num_blocks,
        width=width,
        num_heads=width // 2,
        vector_width=vector_width,
        position_size_px=size_px,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    )


def _vit(num_blocks: int, width: int, patch_size_px: int, size_px: int = 224, **changes: Any) -> PublicBackbone:
    return PublicBackbone(
        num_blocks=(num_blocks,),
        width=width,
        num_heads=width // 64,
        patch_size_px=patch_size_px,
        position_size_px=size_px,
        **{"kind": "vit", "mean": HALF, "std": HALF} | changes,
    )


_CLIP: dict[str, Any] = {"kind": "clip_vit", "mean": CLIP_MEAN, "std": CLIP_STD}

PUBLIC_BACKBONES: dict[str, PublicBackbone] = {
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
    "resnet50": _resnet((3, 4, 6, 3)),
    "resnet101": _resnet((3, 4, 23, 3)),
    "clip_rn50": _clip_resnet((3, 4, 6, 3), 64, 1024, 224),
    "clip_rn101": _clip_resnet((3, 4, 23, 3), 64, 512, 224),
    "clip_rn50x4": _clip_resnet((4, 6, 10, 6), 80, 640, 288),
    "clip_rn50x16": _clip_resnet((6, 8, 18, 8), 96, 768, 384),
    "vit_tiny_16": _vit(12, 192, 16),
    "vit_small_16": _vit(12, 384, 16),
    "vit_base_16": _vit(12, 768, 16),
    "vit_large_16": _vit(24, 1024, 16),
    "clip_vit_base_32": _vit(12, 768, 32, **_CLIP),
    "clip_vit_base_16": _vit(12, 768, 16, **_CLIP),
    "clip_vit_large_14": _vit(24, 1024, 14, **_CLIP),
}
"""Sizes by name. timm's ViTs trained on ImageNet-21k take mean and deviation 0.5; others may differ: set the fields."""

TIMM_NAMES = (
    (r"^patch_embed\.proj\.", "patch."),
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "position"),
    (r"^norm\.", "norm_out."),
    (r"\.norm1\.", ".norm_attention."),
    (r"\.norm2\.", ".norm_mlp."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
)
OPEN_CLIP_NAMES = (
    (r"^conv1\.", "patch."),
    (r"^class_embedding$", "class_token"),
    (r"^positional_embedding$", "position"),
    (r"^ln_pre\.", "norm_in."),
    (r"^ln_post\.", "norm_out."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_1\.", ".norm_attention."),
    (r"\.ln_2\.", ".norm_mlp."),
    (r"\.attn\.in_proj_", ".attention.qkv."),
    (r"\.attn\.out_proj\.", ".attention.projection."),
    (r"\.mlp\.c_fc\.", ".mlp.0."),
    (r"\.mlp\.c_proj\.", ".mlp.2."),
)
_CLASSIFIERS = {
    "resnet": re.compile(r"^fc\."),
    "clip_resnet": re.compile(r"^$"),
    "vit": re.compile(r"^head\."),
    "clip_vit": re.compile(r"^proj$"),
}


def make_public_backbone(spec: PublicBackbone) -> "nn.Module":
    """The network with fresh weights; gives ``Features`` as every backbone does."""
    if spec.is_resnet:
        from intern_vision.models.resnet import ResNet

        return ResNet(spec)
    from intern_vision.models.vit import VisionTransformer

    return VisionTransformer(spec)


def backbone_tensors(tensors: Mapping[str, "Tensor"], spec: PublicBackbone) -> dict[str, "Tensor"]:
    """A public file's weights under the names of ``make_public_backbone``'s network.

    Of an open_clip file only the image tower (``visual.``) is taken, and a classifier or CLIP's
    final projection is left out.

    Args:
        tensors: weights by their public names.
        spec: the architecture.
    """
    names = {name: name.removeprefix("module.") for name in tensors}
    if any(name.startswith("visual.") for name in names.values()):
        names = {key: name.removeprefix("visual.") for key, name in names.items() if name.startswith("visual.")}
    found: dict[str, Tensor] = {}
    for key, name in names.items():
        if _CLASSIFIERS[spec.kind].match(name):
            continue
        name = own_name(name, {"vit": TIMM_NAMES, "clip_vit": OPEN_CLIP_NAMES}.get(spec.kind, ()))
        tensor = tensors[key]
        if name in ("class_token", "position"):
            tensor = tensor.reshape(-1, tensor.shape[-1])
        found[name] = tensor
    return found


def own_name(name: str, patterns: Sequence[tuple[str, str]]) -> str:
    """A public name with every pattern of ``OPEN_CLIP_NAMES`` and its kind replaced by our words."""
    for pattern, ours in patterns:
        name = re.sub(pattern, ours, name)
    return name


def load_public_backbone(network: "nn.Module", path: Path, spec: PublicBackbone) -> None:
    """Takes a public file's weights into a network of ``make_public_backbone``.

    Raises:
        CheckpointError: the file cannot be read, or has missing or unknown weights; names the first.
    """
    from intern_vision.models.tensors import check_tensors

    found = backbone_tensors(read_public_tensors(path), spec)
    own = network.state_dict()
    # Files of old versions lack the count of batches, which changes nothing at a fixed momentum.
    for name in own:
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, own[name])
    check_tensors(found, {name: tensor.shape for name, tensor in own.items()}, source=str(path))
    network.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}
    )


def read_public_tensors(path: Path) -> dict[str, "Tensor"]:
    """The state dict in a file; no code in it is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).split("\n")[0][:120]
        raise CheckpointError(
            f"{path}: cannot be read as plain tensors ({reason}); save the model's state_dict() as safetensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(torch.is_tensor(value) for value in found.values()):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(found).__name__}; save a state_dict()")
    return found


def public_backbone(name: str) -> PublicBackbone:
    """The architecture of that name; ConfigError names the known ones."""
    if name not in PUBLIC_BACKBONES:
        raise ConfigError(f"architecture: expected one of {', '.join(PUBLIC_BACKBONES)}, got {name!r}")
    return PUBLIC_BACKBONES[name]
