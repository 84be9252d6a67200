"""The text tower of an open_clip file: its sizes, and its weights under our names.

The tower is CLIP's (arXiv 2103.00020, section 2.4): a causal transformer whose state at the end of a text is
projected into the space shared with images. Its names stand at the top of a file or, in files of open_clip's newer
class, below ``text.``.

CLIP fills up with id 0, which is a word too. Here 0 is padding and nothing else, so every word has an id one larger;
a hidden word, which CLIP lacks, comes before start and end, as in DeCLIP's vocabulary. ``Tokenizer.from_clip`` numbers
in the same way.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from intern_vision.errors import CheckpointError
from intern_vision.models.public_backbones import OPEN_CLIP_NAMES, PublicBackbone, own_name, read_public_tensors
from intern_vision.models.tensors import check_tensors
from intern_vision.models.vision import TextSpec, TextTower

HEAD_WIDTH = 64
"""Channels of an attention head in every published text tower."""
NUM_ENDS = 2
"""Start and end of a text, CLIP's last ids."""
_NAMES = (*OPEN_CLIP_NAMES, (r"^token_embedding\.", "token."), (r"^ln_final\.", "norm."))
# Beside the tower: constants of OpenAI's archives, and the offset of a sigmoid loss, which no cosine needs.
_LEFT_OUT = ("input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias", "logit_scale")
_BLOCK = "transformer.resblocks."


def read_public_text(path: Path, backbone: PublicBackbone, num_heads: int = 0) -> tuple[TextSpec, dict[str, Tensor]]:
    """An open_clip file's text tower: its sizes and its weights under the names of ``TextTower``.

    Args:
        path: as for ``read_public_tensors``.
        backbone: the file's image tower; its ``quick_gelu`` is the text tower's too.
        num_heads: attention heads a block; 0: one for 64 channels, as in all published ones.

    Raises:
        CheckpointError: the file cannot be read, or has no text tower.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in read_public_tensors(path).items()}
    shared = ("logit_scale",) if backbone.is_resnet else ("logit_scale", "visual.proj")
    below = {name.removeprefix("text."): value for name, value in tensors.items() if name.startswith("text.")}
    tower = below or {name: value for name, value in tensors.items() if not name.startswith("visual.")}
    tower = {name: value.float() for name, value in tower.items() if name not in _LEFT_OUT}
    needed = ("token_embedding.weight", "positional_embedding", "text_projection")
    missing = [name for name in needed if name not in tower or tower[name].ndim != 2]
    missing += [name for name in shared if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{path}: no text tower of CLIP's kind (missing or misshapen: {', '.join(missing)}); "
            "leave vocabulary out, which takes the image tower alone"
        )
    token_VW, projection_WD = tower.pop("token_embedding.weight"), tower.pop("text_projection")
    width, out_width = projection_WD.shape
    spec = TextSpec(
        vocab_size=len(token_VW) + 2,
        context_length=len(tower["positional_embedding"]),
        width=width,
        num_blocks=len({name.split(".")[2] for name in tower if name.startswith(_BLOCK)}),
        num_heads=num_heads or max(1, width // HEAD_WIDTH),
        pooling="end",
        embedding_width=out_width,
        quick_gelu=backbone.quick_gelu,
    )
    # The attention pool of CLIP's ResNets projects already.
    to_shared_DV = torch.eye(out_width) if backbone.is_resnet else tensors["visual.proj"].float().T
    return spec, {
        "encoder.token.weight": _renumbered(token_VW),
        "encoder.projection.weight": projection_WD.T,
        "encoder.projection.bias": torch.zeros(out_width),
        "projection.weight": to_shared_DV,
        "log_scale": tensors["logit_scale"].float().reshape(1),
        **{f"encoder.{own_name(name, _NAMES)}": value for name, value in tower.items()},
    }


def load_public_text(tower: TextTower, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Takes the weights of ``read_public_text``; CheckpointError names what is missing, unknown or misshapen."""
    check_tensors(dict(tensors), {name: tensor.shape for name, tensor in tower.state_dict().items()}, source=source)
    tower.load_state_dict(dict(tensors))


def _renumbered(token_VW: Tensor) -> Tensor:
    """A row of zeros for padding, the words, a row of zeros for the hidden word, start and end."""
    blank_1W = token_VW.new_zeros(1, token_VW.shape[1])
    return torch.cat([blank_1W, token_VW[:-NUM_ENDS], blank_1W, token_VW[-NUM_ENDS:]])
