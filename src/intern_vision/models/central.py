"""The generalist's central model: experts joined by zero-initialised transfer modules.

Source: gv-benchmark repository, ``central_model.py``; the central model and knowledge transfer of
INTERN's Up-G stage (arXiv 2111.08687). B batch, C channels, H W height and width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from intern_vision.errors import ConfigError
from intern_vision.models.features import Features
from intern_vision.models.metanet import MetaNet


class TransferPath(nn.Sequential):
    """Brings one source level to one target level: ``T`` from level j to level k >= j.

    The same level takes a 1x1 convolution; each level further down takes a 3x3 stride-2
    convolution, the last of which changes the width. The last BatchNorm starts at scale 0 and
    bias 0, so a fresh path gives 0.

    Args:
        source_width: channels of the source level.
        target_width: channels of the target level.
        num_halvings: levels between them, ``k - j``.
    """

    def __init__(self, source_width: int, target_width: int, num_halvings: int):
        """Builds the convolutions, all near zero."""
        layers: list[nn.Module] = []
        for _ in range(num_halvings - 1):
            layers += [
                nn.Conv2d(source_width, source_width, 3, 2, 1, bias=False),
                nn.BatchNorm2d(source_width),
                nn.ReLU(inplace=True),
            ]
        kernel, stride, padding = (3, 2, 1) if num_halvings else (1, 1, 0)
        layers += [
            nn.Conv2d(source_width, target_width, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(target_width),
        ]
        super().__init__(*layers)
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=1e-3)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.zeros_(layer.weight)


class Transfer(nn.Module):
    """All paths from one source backbone into one target backbone.

    Level k of the target receives source levels 0 to k, never a coarser one.

    Args:
        source_channels: widths of the source's levels that are read, fine to coarse.
        target_channels: widths of the target's levels that receive, as many.
    """

    def __init__(self, source_channels: Sequence[int], target_channels: Sequence[int]):
        """Builds a path for every pair of levels."""
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(
                TransferPath(source_width, target_width, level - source_level)
                for source_level, source_width in enumerate(source_channels[: level + 1])
            )
            for level, target_width in enumerate(target_channels)
        )

    def forward(self, level: int, source_maps: Sequence[Tensor]) -> Tensor:
        """What target level ``level`` receives, ``(B, C, H, W)`` of that level."""
        paths = self.levels[level]
        total_BCHW = paths[0](source_maps[0])
        for path, map_BCHW in zip(paths[1:], source_maps[1 : level + 1], strict=True):
            total_BCHW = total_BCHW + path(map_BCHW)
        return total_BCHW


class SwitchableBatchNorm2d(nn.Module):
    """Several BatchNorms of which one is active; each has its own scale, bias and statistics.

    Args:
        norm: what every set starts as a copy of.
        names: names of the sets; the first is active.
    """

    def __init__(self, norm: nn.BatchNorm2d, names: Sequence[str]):
        """Copies ``norm`` once a name."""
        super().__init__()
        self.sets = nn.ModuleDict({name: _copy_norm(norm) for name in names})
        self.active = names[0]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalises with the active set."""
        return self.sets[self.active](x_BCHW)


class CentralView(nn.Module):
    """One main expert that reads the others: the backbone that a task of its kind sees and deploys.

    Shares every parameter with the ``CentralModel`` it comes from, and holds only what its own
    forward pass needs.

    Attributes:
        channels: the main expert's.
        strides: the main expert's.
        vector_width: the main expert's.
        bn_sets: names that ``use_bn_set`` takes; empty when the main expert has plain BatchNorms.
    """

    def __init__(self, experts: nn.ModuleDict, transfers: nn.ModuleDict, main: str):
        """Takes shared modules: nothing is copied."""
        super().__init__()
        self.experts = experts
        self.transfers = transfers
        self.main = main
        net = experts[main]
        self.channels, self.strides, self.vector_width = net.channels, net.strides, net.vector_width
        self.training = net.training  # only this module's own flag: the shared parts keep theirs

    def forward(self, x_BCHW: Tensor) -> Features:
        """Runs the sources as far as they are read, then the main expert with their transfers added.

        Sources are read-only: no gradient, no DropPath, no BatchNorm statistics change.

        Args:
            x_BCHW: normalised RGB images, floating point.
        """
        num_levels = len(self.channels) - 1
        source_maps = {}
        for name in self.transfers:
            with _read_only(self.experts[name]), torch.no_grad():
                source_maps[name] = tuple(islice(self.experts[name].levels(x_BCHW), num_levels))

        def fuse(level: int, map_BCHW: Tensor) -> Tensor:
            if level < num_levels:
                for name, transfer in self.transfers.items():
                    map_BCHW = map_BCHW + transfer(level, source_maps[name])
            return map_BCHW

        net = self.experts[self.main]
        maps = tuple(net.levels(x_BCHW, fuse))
        return Features(maps, net.pool(maps[-1]))

    @property
    def bn_sets(self) -> tuple[str, ...]:
        """Names of the main expert's BatchNorm sets."""
        norms = [module for module in self.experts[self.main].modules() if isinstance(module, SwitchableBatchNorm2d)]
        return tuple(norms[0].sets) if norms else ()

    def use_bn_set(self, name: str) -> None:
        """Activates a BatchNorm set in the main expert and in the transfers into it.

        Raises:
            ConfigError: the main expert has no set of that name.
        """
        if name not in self.bn_sets:
            known = ", ".join(self.bn_sets) or "none"
            raise ConfigError(f"bn_set: expert {self.main!r} has no set {name!r}; its sets: {known}")
        for part in (self.experts[self.main], self.transfers):
            _activate(part, name)

    @property
    def num_layers(self) -> int:
        """Depths that a layer-wise learning-rate decay tells apart: the deepest expert's."""
        return max(net.num_layers for net in self.experts.values())

    def layer_index(self, name: str) -> int:
        """Depth of a parameter within its expert; transfers are new and count as the last layer.

        Args:
            name: as ``named_parameters`` gives it.
        """
        part, *rest = name.split(".")
        if part == "experts":
            return self.experts[rest[0]].layer_index(".".join(rest[1:]))
        return self.num_layers - 1


class CentralModel(nn.Module):
    """Experts with transfer modules for every ordered pair; two experts are the published model.

    Each expert learns from its own losses as the main one and is a read-only source for the others.
    At the start the output equals the main expert's bit for bit in evaluation mode.

    Args:
        experts: backbones by name, 2 to 4, with equal strides. The model takes them over.
        main: the expert whose features ``forward`` gives.
        bn_sets: for an expert that serves several kinds of tasks as the main one, the names of
            its BatchNorm sets, for example ``("classify", "dense")``; the first is active at the
            start, and is the one used whenever the expert is a source.

    Raises:
        ConfigError: the number of experts, their strides or a name does not fit.
    """

    def __init__(self, experts: Mapping[str, MetaNet], main: str, bn_sets: Mapping[str, Sequence[str]] | None = None):
        """Builds fresh transfers around the experts."""
        super().__init__()
        if not 2 <= len(experts) <= 4:
            raise ConfigError(f"experts: expected 2 to 4, got {len(experts)}")
        strides = {name: net.strides for name, net in experts.items()}
        if len(set(strides.values())) > 1:
            raise ConfigError(f"experts: expected equal strides, got {strides}")
        self.experts = nn.ModuleDict(experts)
        self.transfers = nn.ModuleDict(
            {
                target: nn.ModuleDict(
                    {
                        source: Transfer(experts[source].channels[:-1], experts[target].channels[:-1])
                        for source in experts
                        if source != target
                    }
                )
                for target in experts
            }
        )
        for name, names in (bn_sets or {}).items():
            self._check_expert("bn_sets", name)
            if not names:
                raise ConfigError(f"bn_sets.{name}: expected at least one name, got none; leave the expert out")
            _make_switchable(self.experts[name], names)
            _make_switchable(self.transfers[name], names)
        self._check_expert("main", main)
        self.main = main

    def view(self, main: str) -> CentralView:
        """The model with another expert as the main one; parameters are shared, nothing is copied.

        Raises:
            ConfigError: there is no such expert.
        """
        self._check_expert("main", main)
        return CentralView(self.experts, self.transfers[main], main)

    def forward(self, x_BCHW: Tensor, main: str = "") -> Features:
        """Features of the main expert with the transfers added.

        Args:
            x_BCHW: normalised RGB images, floating point.
            main: another main expert for this call; empty for the model's own.
        """
        return self.view(main or self.main)(x_BCHW)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the main expert's feature maps."""
        return self.experts[self.main].channels

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the main expert's feature maps."""
        return self.experts[self.main].strides

    @property
    def vector_width(self) -> int:
        """Width of the main expert's image vector."""
        return self.experts[self.main].vector_width

    @property
    def bn_sets(self) -> tuple[str, ...]:
        """Names of the main expert's BatchNorm sets."""
        return self.view(self.main).bn_sets

    def use_bn_set(self, name: str) -> None:
        """Activates a BatchNorm set of the main expert; see ``CentralView.use_bn_set``."""
        self.view(self.main).use_bn_set(name)

    @property
    def num_layers(self) -> int:
        """Depths that a layer-wise learning-rate decay tells apart: the deepest expert's."""
        return self.view(self.main).num_layers

    def layer_index(self, name: str) -> int:
        """Depth of a parameter; see ``CentralView.layer_index``."""
        return self.view(self.main).layer_index(name)

    def _check_expert(self, field: str, name: str) -> None:
        if name not in self.experts:
            raise ConfigError(f"{field}: expected one of {', '.join(self.experts)}, got {name!r}")


@contextmanager
def _read_only(net: MetaNet) -> Iterator[None]:
    # Evaluation mode and the first BatchNorm set, then everything as it was, module by module:
    # a caller may have frozen some parts in evaluation mode while others train.
    modes = [(module, module.training) for module in net.modules()]
    active = [(norm, norm.active) for norm, _ in modes if isinstance(norm, SwitchableBatchNorm2d)]
    net.eval()
    for norm, _ in active:
        norm.active = next(iter(norm.sets))
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, name in active:
            norm.active = name


def _activate(module: nn.Module, name: str) -> None:
    for norm in module.modules():
        if isinstance(norm, SwitchableBatchNorm2d):
            norm.active = name


def _make_switchable(module: nn.Module, names: Sequence[str]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SwitchableBatchNorm2d(child, names))


def _copy_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    copy = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, device=norm.weight.device)
    copy.load_state_dict(norm.state_dict())
    return copy
