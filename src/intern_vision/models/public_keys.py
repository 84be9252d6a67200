"""Weights of public MetaNet and UniNet checkpoints under our names, key by key.

The names are those of the released definitions: gv-benchmark repository, ``metanet.py`` (MN-B4,
MN-B15), UniNet repository, ``uninet.py``, and United Perception repository (MN-B7, Mixer blocks).
No released file could be read, so these are uncertain: that a whole mmlab model's keys begin with
``backbone.`` and a parallel one's with ``module.``, that its tensors lie below ``state_dict`` or
``model``, and that nothing else stands beside them. The names themselves are certain, but for the
global down-sampling module, which is ours and follows the local-global one. Public and our shapes
are equal, tensor for tensor: gates and shortcuts are 1x1 convolutions in both.

=========================  ==================================================================
ours                       public
=========================  ==================================================================
``stem.i``                 ``stem.i``
``segments.k.j``           ``blocks.n``, counted through all stages; a down-sampling module counts
``shortcut.i``             ``residual.i``
``branch.i``               ``b1.i`` for the expansion (4 layers), then ``b2.i - 4``, or all ``b2.i``
``squeeze``, ``excite``    ``fc1``, ``fc2``
``position``               ``pos_embed``
``norm_attention``         ``norm1``
``attention.qkv``          ``attn.qkv``
``attention.projection``   ``attn.proj``
``attention.temperature``  ``attn.temperature``
``norm_mlp``               ``norm2``
``mlp.0``, ``mlp.2``       ``mlp.fc1``, ``mlp.fc2``
``scale_attention``        ``gamma_1``
``scale_mlp``              ``gamma_2``
``norm_tokens``            ``norm1`` (Mixer, as the rest of its names: ``mlp_tokens``, ``r1`` ...)
``local.i``                ``downsample.i`` (local module)
``query.i``                ``q.i`` (local-global and global module)
``norm_query``             ``q_norm``
``norm_key``               ``kv_norm``
``key_value``              ``kv``
``projection``             ``proj``
``head.i``                 ``head.i``
none                       ``classifier``, in UniNet files: not loaded, a head is ours
=========================  ==================================================================
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Size, Tensor

from intern_vision.errors import CheckpointError
from intern_vision.models.genotype import BlockShape, Genotype
from intern_vision.models.metanet import MetaNet
from intern_vision.models.tensors import check_tensors

_NAMES = {
    "shortcut": "residual",
    "position": "pos_embed",
    "norm_attention": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.projection": "attn.proj",
    "attention.temperature": "attn.temperature",
    "norm_mlp": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "scale_attention": "gamma_1",
    "scale_mlp": "gamma_2",
    "norm_tokens": "norm1",
    "norm_channels": "norm2",
    "mlp_tokens.0": "mlp_tokens.fc1",
    "mlp_tokens.2": "mlp_tokens.fc2",
    "mlp_channels.0": "mlp_channels.fc1",
    "mlp_channels.2": "mlp_channels.fc2",
    "scale_tokens": "gamma_1",
    "scale_channels": "gamma_2",
    "shortcut_tokens": "r1",
    "shortcut_channels": "r2",
    "local": "downsample",
    "query": "q",
    "norm_query": "q_norm",
    "norm_key": "kv_norm",
    "key_value": "kv",
    "projection": "proj",
}
_GATE_NAMES = {"squeeze": "fc1", "excite": "fc2"}
_NUM_EXPANSION_LAYERS = 4
_COUNTER = "num_batches_tracked"


def public_names(genotype: Genotype) -> dict[str, str]:
    """The public name of every tensor of a MetaNet's state dict."""
    return _names(_meta_net(genotype))


def public_state_dict(genotype: Genotype) -> dict[str, Size]:
    """Names and shapes of a public checkpoint of this genotype, without classifier, in the order of ours."""
    net = _meta_net(genotype)
    names = _names(net)
    return {names[name]: tensor.shape for name, tensor in net.state_dict().items()}


def load_public(source: Path | Mapping[str, Tensor], genotype: Genotype) -> dict[str, Tensor]:
    """A public checkpoint's weights under our names, for ``MetaNet.load_state_dict``.

    BatchNorm's batch counters may be missing (some trainers did not save them); they are 0 then.

    Args:
        source: a ``.safetensors`` file, a file that ``torch.save`` wrote (only tensors are read
            from it, no code), or the tensors.
        genotype: what the weights were trained with.

    Returns:
        Our name to tensor, complete, with the file's dtypes.

    Raises:
        CheckpointError: the file cannot be read, or tensors are missing, unknown or of another
            shape; the line has the first public names and the number of the others.
    """
    where = str(source) if isinstance(source, Path) else "public checkpoint"
    tensors = _own_part(_read(source) if isinstance(source, Path) else source)
    shapes = public_state_dict(genotype)
    counters = {name: torch.tensor(0) for name in shapes if name.endswith(_COUNTER)}
    tensors = counters | tensors
    check_tensors(tensors, shapes, source=where)
    return {name: tensors[public] for name, public in public_names(genotype).items()}


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{path}: cannot be read as weights ({reason}); save its tensors as safetensors"
        ) from None
    for name in ("state_dict", "model"):
        if isinstance(values, Mapping) and isinstance(values.get(name), Mapping):
            values = values[name]
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{path}: expected tensors by name, got {type(values).__name__}; save a state dict")
    return values


def _own_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    prefix = "backbone."
    if any(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}


def _meta_net(genotype: Genotype) -> MetaNet:
    with torch.device("meta"):
        return MetaNet(genotype)


def _names(net: MetaNet) -> dict[str, str]:
    shapes = list(net.genotype.blocks(net.genotype.image_size_px))
    starts = [0]
    for segment in net.segments:
        starts.append(starts[-1] + len(segment))
    names = {}
    for name in net.state_dict():
        part, *rest = name.split(".")
        if part == "segments":
            index = starts[int(rest[0])] + int(rest[1])
            names[name] = f"blocks.{index}." + _name_in_block(rest[2:], shapes[index])
        else:
            names[name] = name
    return names


def _name_in_block(parts: list[str], shape: BlockShape) -> str:
    if parts[0] == "branch":
        return _name_in_branch(parts[1:], shape)
    for length in (2, 1):
        ours = ".".join(parts[:length])
        if ours in _NAMES:
            return ".".join([_NAMES[ours], *parts[length:]])
    raise AssertionError(f"no public name for {'.'.join(parts)} in {shape}")


def _name_in_branch(parts: list[str], shape: BlockShape) -> str:
    # A fused block expands whenever it has an expansion, a separable one at every stride of 2 too.
    expands = shape.in_width != shape.hidden_width or (shape.operator == "mbconv" and shape.stride != 1)
    index = int(parts[0])
    rest = [_GATE_NAMES.get(part, part) for part in parts[1:]]
    if expands and index < _NUM_EXPANSION_LAYERS:
        return ".".join(["b1", str(index), *rest])
    return ".".join(["b2", str(index - _NUM_EXPANSION_LAYERS * expands), *rest])
