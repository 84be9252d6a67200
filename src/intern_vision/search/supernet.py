"""A weight-sharing supernet: one set of weights from which every genotype of a space takes slices.

Widths and expansions are leading slices of the widest weights (slimmable networks, arXiv 1812.08928), depths leave
out the last blocks (once-for-all, arXiv 1908.09791), and every operator of a stage has weights of its own, of which a
path uses one (single-path one-shot, arXiv 1904.00420). A candidate runs through the very ``MetaNet`` that would be
trained for it: only its weights come from here.

B batch, C channels, H W height and width, D vector width.
"""

import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from intern_vision.errors import ConfigError
from intern_vision.models.cost import STEM_STRIDE
from intern_vision.models.features import Features
from intern_vision.models.genotype import BlockShape, Genotype, StageGene, num_macs
from intern_vision.models.layers import init_weights
from intern_vision.models.metanet import BLOCKS, MetaNet
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.search.reward import Reward
from intern_vision.search.space import WIDTH_UNIT, Space
from intern_vision.train.objective import Batch, Losses, MultiTaskObjective

SUPERNET_FILE = "supernet.safetensors"
MAX_PATH_DRAWS = 2_000
_STACKED = {"qkv": 3, "key_value": 2}
"""Linears whose output is several vectors one after the other, each of which is sliced."""


class SuperNet(nn.Module):
    """A backbone that is any genotype of a space; ``use`` says which.

    Its maps have the widest widths: a narrower genotype's maps and vector end in zeros, so that one head fits all.

    Attributes:
        genotype: the genotype in use.
        channels: channels of the feature maps, fine to coarse.
        strides: strides of the feature maps.
        vector_width: width of the pooled image vector.
        stem: shared stem.
        blocks: the widest block of each stage, operator and position by name.
        head: shared head; empty when ``head_width`` is 0.
    """

    def __init__(self, space: Space) -> None:
        """Builds the widest block of every kind with fresh weights."""
        super().__init__()
        widest = widest_genotype(space)
        self.channels, self.strides, self.vector_width = widest.channels, widest.strides, widest.vector_width
        self.blocks = nn.ModuleDict(
            {name: BLOCKS[shape.operator](shape, widest) for name, shape in _widest_shapes(space).items()}
        )
        self.blocks.apply(init_weights)
        outer = MetaNet(widest)
        self.stem, self.head = outer.stem, outer.head
        self.use(space.template)

    def use(self, genotype: Genotype) -> None:
        """Takes a genotype with fresh BatchNorm statistics."""
        self.genotype = genotype
        # In a tuple, so that this net without weights is no part of the module.
        self._in_use = (_empty_net(genotype),)
        device = self.stem[0].weight.device
        self._statistics = {
            name: (torch.ones_like if name.endswith("running_var") else torch.zeros_like)(buffer, device=device)
            for name, buffer in self._in_use[0].named_buffers()
        }

    def forward(self, x_BCHW: Tensor) -> Features:
        """Features of the genotype in use, padded with zeros to ``channels`` and ``vector_width``.

        The vector is standardised for each image, which the genotype's own network does not do.
        """
        (net,) = self._in_use
        net.train(self.training)
        features = functional_call(net, self.weights() | self._statistics, (x_BCHW,))
        maps = tuple(
            F.pad(map_BCHW, (0, 0, 0, 0, 0, width - map_BCHW.shape[1]))
            for map_BCHW, width in zip(features.maps, self.channels, strict=True)
        )
        # Operators and widths leave vectors of very different scales, which no shared head could learn from.
        vector_BD = F.layer_norm(features.vector_BD, features.vector_BD.shape[1:])
        if not self.genotype.head_width:
            # Mean and maximum lie one after the other: each is padded.
            parts_B2D = vector_BD.unflatten(1, (2, -1))
            vector_BD = F.pad(parts_B2D, (0, self.channels[-1] - parts_B2D.shape[2])).flatten(1)
        return Features(maps, vector_BD)

    def weights(self) -> dict[str, Tensor]:
        """The parameters of the genotype in use by their names in its ``MetaNet``, as slices of the shared ones."""
        taken: dict[str, Tensor] = {}
        (net,) = self._in_use
        sources: dict[nn.Module, nn.Module] = {net.stem: self.stem, net.head: self.head}
        modules = itertools.chain.from_iterable(net.segments)
        for name, module in zip(_block_names(self.genotype), modules, strict=True):
            sources[module] = self.blocks[name]
        for path, module in net.named_modules():
            if module in sources:
                shared = sources[module]
                for name, parameter in module.named_parameters():
                    taken[f"{path}.{name}"] = _cut(shared.get_parameter(name), parameter.shape, name)
        return taken

    @torch.no_grad()
    def recalibrate(self, images: Iterable[Tensor]) -> None:
        """Gives the genotype in use BatchNorm statistics of its own: the average over batches of normalised images."""
        norms = [module for module in self._in_use[0].modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        self.train()
        for norm in norms:
            norm.momentum = None  # a plain average over all batches
        for x_BCHW in images:
            self(x_BCHW)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.eval()


class SupernetObjective(MultiTaskObjective):
    """Trains the shared weights: every step takes paths drawn uniformly among those within the cap.

    Args:
        model: its backbone is a ``SuperNet``.
        space: where paths are drawn.
        reward: its cap.
        num_paths: paths a step, each on the whole batch.
        seed: of the draws.
    """

    def __init__(self, model: VisionModel, space: Space, reward: Reward, *, num_paths: int, seed: int) -> None:
        """Starts at the first step."""
        super().__init__(model)
        self._space, self._reward, self._seed = space, reward, seed
        self.passes_per_sample = num_paths
        # Steps done, kept with the weights so that a resumed training draws the paths that are due; the device is
        # asked once.
        self.register_buffer("num_steps_done", torch.zeros(1, dtype=torch.long))
        self._num_steps_done: int | None = None

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``; the mean over the paths."""
        if self._num_steps_done is None:
            self._num_steps_done = int(self.num_steps_done)
        total: Losses = {}
        for genotype in self._paths(self._num_steps_done):
            self.model.backbone.use(genotype)
            losses, _ = super().forward(batch)
            total = {name: total.get(name, 0.0) + loss / self.passes_per_sample for name, loss in losses.items()}
        self._num_steps_done += 1
        self.num_steps_done += 1
        return total, {}

    def save(self, folder: Path) -> None:
        """Writes the shared weights and the heads; a supernet has no genotype, hence no model file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(tensors, folder / SUPERNET_FILE)

    def _paths(self, step: int) -> Iterator[Genotype]:
        # The same on every rank, or ranks would reduce gradients of different weights.
        rng = random.Random(self._seed * 1_000_003 + step)
        for _ in range(self.passes_per_sample):
            for _ in range(MAX_PATH_DRAWS):
                choices = tuple(rng.randrange(len(decision.options)) for decision in self._space.decisions)
                genotype = self._space.decode(choices)
                if self._reward.fits(num_macs(genotype, genotype.image_size_px)):
                    yield genotype
                    break
            else:
                raise ConfigError(
                    f"max_macs_ratio: none of {MAX_PATH_DRAWS} random candidates costs at most "
                    f"{self._reward.max_ratio:g} times the template; raise it or give smaller choices"
                )


def supernet_model(space: Space, heads: dict[str, HeadSpec]) -> VisionModel:
    """A model whose backbone is a fresh supernet and whose heads fit its widest maps."""
    widest = widest_genotype(space)
    model = VisionModel(ModelSpec(genotype=widest, image_size_px=widest.image_size_px, heads=heads))
    model.backbone = SuperNet(space)
    return model


def load_supernet(model: VisionModel, path: Path) -> None:
    """Takes the weights that ``SupernetObjective.save`` wrote for the same space."""
    model.load_tensors(load_file(path), source=str(path))


def widest_genotype(space: Space) -> Genotype:
    """The template with every stage as wide as any genotype of the space has it, in whole heads, and one block each.

    Heads are built for it: what they read does not depend on the depth.
    """
    stages = [
        gene.to_dict() | {"width": _widest(space, stage), "num_blocks": 1}
        for stage, gene in enumerate(space.template.stages)
    ]
    return Genotype.from_dict(space.template.to_dict() | {"stages": stages})


def _widest(space: Space, stage: int) -> int:
    """Rounded up to whole heads from what rounding to ``WIDTH_UNIT`` or to heads may give."""
    head_size = space.template.head_size
    width = space.template.stages[stage].width * max(space.options("width_factor", stage))
    return math.ceil(max(width, math.floor(width / WIDTH_UNIT + 0.5) * WIDTH_UNIT) / head_size) * head_size


def _widest_shapes(space: Space) -> dict[str, BlockShape]:
    """Every kind of block that the space has, at its widest, by the name of its shared weights."""
    shapes: dict[str, BlockShape] = {}
    in_width, in_size_px = space.template.stem_width, -(-space.template.image_size_px // STEM_STRIDE)
    for stage, gene in enumerate(space.template.stages):
        width = _widest(space, stage)
        widths = [(in_width, width)]
        if gene.stride == 1:
            # Without stride, a first block changes the width or keeps it: both kinds are needed.
            kept = min(in_width, width) if stage else in_width
            widths = [(kept, kept), (in_width, width if width != in_width else width + space.template.head_size)]
        expansions = space.options("expansion", stage)
        for operator, downsampling, expansion, (before, after) in itertools.product(
            space.options("operator", stage),
            space.options("downsampling", stage),
            {max(expansions), min(expansions)} if min(expansions) == 1 else {max(expansions)},
            widths,
        ):
            widest = StageGene(
                operator=operator,
                expansion=expansion,
                width=after,
                num_blocks=gene.num_blocks + max(space.options("block_offset", stage)),
                stride=gene.stride,
                downsampling=downsampling,
            )
            for name, shape in _named_shapes(stage, widest, widest.shapes(before, in_size_px)):
                shapes[name] = _union(shapes.get(name, shape), shape)
        in_width, in_size_px = width, -(-in_size_px // gene.stride)
    return shapes


def _named_shapes(stage: int, gene: StageGene, shapes: Iterable[BlockShape]) -> Iterator[tuple[str, BlockShape]]:
    """A stage's blocks with the names of their shared weights: operator, position and what makes their structure."""
    counts: dict[str, int] = {}
    for shape in shapes:
        position = counts[shape.operator] = counts.get(shape.operator, -1) + 1
        # Blocks that change the shape, and convolutions without expansion, are made of other layers.
        is_first = shape.is_transition and shape.operator == gene.operator
        is_flat = shape.operator in ("mbconv", "fused_mbconv") and shape.hidden_width == shape.in_width
        kind = ("-first" if is_first else "") + ("-flat" if is_flat else "")
        yield f"stage{stage}-{shape.operator}-{position}{kind}", shape


def _block_names(genotype: Genotype) -> list[str]:
    """Names of the shared weights of all blocks, fine to coarse."""
    names: list[str] = []
    for stage, shapes in itertools.groupby(genotype.blocks(genotype.image_size_px), lambda shape: shape.stage):
        names += [name for name, _ in _named_shapes(stage, genotype.stages[stage], shapes)]
    return names


def _union(first: BlockShape, second: BlockShape) -> BlockShape:
    fields = ("in_width", "out_width", "hidden_width")
    return replace(first, **{name: max(getattr(first, name), getattr(second, name)) for name in fields})


@functools.lru_cache(maxsize=64)
def _empty_net(genotype: Genotype) -> MetaNet:
    with torch.device("meta"):
        return MetaNet(genotype)


def _cut(shared: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The leading slice of a shared parameter."""
    parts = _STACKED.get(name.split(".")[-2] if "." in name else "", 1)
    if parts > 1:
        rows = shared.unflatten(0, (parts, -1))[:, : shape[0] // parts]
        return (rows[..., : shape[1]] if len(shape) > 1 else rows).flatten(0, 1)
    return shared[tuple(slice(size) for size in shape)]
