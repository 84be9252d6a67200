"""The generalist's central model: experts joined by zero-initialised transfer modules.

Source: gv-benchmark repository, ``central_model.py``; the central model and knowledge transfer of
INTERN's Up-G stage (arXiv 2111.08687). B batch, C channels, H W height and width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Self

import torch
from torch import Tensor, nn

from intern_vision.errors import ConfigError
from intern_vision.models.features import Features
from intern_vision.models.metanet import MetaNet
from intern_vision.task import View


class TransferPath(nn.Sequential):
    """Brings one source level to one target level: ``T`` from level j to level k >= j.

    The same level takes a 1x1 convolution; each level further down takes a 3x3 stride-2
    convolution, the last of which changes the width. The last BatchNorm starts at scale 0 and
    bias 0, so a fresh path gives 0. Those before it start at scale 1: behind a zero scale and a
    ReLU no gradient would ever reach them, and a path of two halvings could not learn.

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
        nn.init.zeros_(self[-1].weight)


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


class CentralModel(nn.Module):
    """Experts with transfer modules for every ordered pair; two experts are the published model.

    Each expert learns from its own losses as the main one and is a read-only source for the others.
    At the start the output equals the main expert's bit for bit in evaluation mode.

    Args:
        experts: backbones by name, at least 2, with equal strides. The model takes them over.
        main: the expert whose features ``forward`` gives where no view is asked for.
        bn_sets: for an expert that serves several kinds of tasks as the main one, the names of
            its BatchNorm sets, for example ``("classify", "dense")``; the first is the one used
            whenever the expert is a source.
        mains: the experts that can be the main one, which alone have transfers into them; empty
            for all. An expert that is none of them only ever is a source.

    Attributes:
        attached: whether the main expert's losses reach its sources too; the published model's
            sources are detached. A source stays in evaluation mode either way.

    Raises:
        ConfigError: the number of experts, their strides or a name does not fit.
    """

    def __init__(
        self,
        experts: Mapping[str, MetaNet],
        main: str,
        bn_sets: Mapping[str, Sequence[str]] | None = None,
        mains: Sequence[str] = (),
    ):
        """Builds fresh transfers around the experts."""
        super().__init__()
        if len(experts) < 2:
            raise ConfigError(f"experts: expected at least 2, got {len(experts)}")
        strides = {name: net.strides for name, net in experts.items()}
        if len(set(strides.values())) > 1:
            raise ConfigError(f"experts: expected equal strides, got {strides}")
        self.attached = False
        self.experts = nn.ModuleDict(experts)
        targets = tuple(mains) or tuple(experts)
        for name in targets:
            self._check_expert("mains", name)
        self.transfers = nn.ModuleDict(
            {
                target: nn.ModuleDict(
                    {
                        source: Transfer(experts[source].channels[:-1], experts[target].channels[:-1])
                        for source in experts
                        if source != target
                    }
                )
                for target in targets
            }
        )
        self.bn_sets = {name: tuple(names) for name, names in (bn_sets or {}).items()}
        for name, names in self.bn_sets.items():
            self._check_main("bn_sets", name)
            if not names:
                raise ConfigError(f"bn_sets.{name}: expected at least one name, got none; leave the expert out")
            _make_switchable(self.experts[name], names)
            _make_switchable(self.transfers[name], names)
        self._check_main("main", main)
        self.main = main

    def forward(self, x_BCHW: Tensor, view: View | None = None) -> Features:
        """Features of one main expert with the transfers added.

        Args:
            x_BCHW: normalised RGB images, floating point.
            view: which main expert and BatchNorm set; None for the model's own main expert and its first set.
        """
        return self.forward_views(x_BCHW, [view or View(main=self.main)])[0]

    def forward_views(self, x_BCHW: Tensor, views: Sequence[View]) -> list[Features]:
        """Features of several views; a source that several of them read runs once.

        Args:
            x_BCHW: normalised RGB images, floating point.
            views: an empty BatchNorm set stands for the main expert's first one.

        Raises:
            ConfigError: a view's main expert or BatchNorm set does not exist.
        """
        for view in views:
            self._check_view(view)
        # Before any main expert: what a source gives must not depend on the order of the views.
        source_maps = {name: self._source_maps(name, x_BCHW) for name in self.sources(views)}
        return [self._fused(view, x_BCHW, source_maps) for view in views]

    def sources(self, views: Sequence[View]) -> tuple[str, ...]:
        """The experts that one of these views reads."""
        return tuple(name for name in self.experts if any(view.main != name for view in views))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As for any module, but an expert that is never the main one stays frozen: no loss of its own moves it."""
        super().requires_grad_(requires_grad)
        for name, net in self.experts.items():
            if name not in self.transfers:
                net.requires_grad_(False)
        return self

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

    def _source_maps(self, name: str, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """A source's maps as far as they are read; no DropPath, no BatchNorm statistics change."""
        net = self.experts[name]
        if name in self.bn_sets:
            _activate(net, self.bn_sets[name][0])
        with _evaluating(net), torch.set_grad_enabled(self.attached and torch.is_grad_enabled()):
            return tuple(islice(net.levels(x_BCHW), len(net.channels) - 1))

    def _fused(self, view: View, x_BCHW: Tensor, source_maps: Mapping[str, Sequence[Tensor]]) -> Features:
        net, transfers = self.experts[view.main], self.transfers[view.main]
        if view.main in self.bn_sets:
            for part in (net, transfers):
                _activate(part, view.bn_set or self.bn_sets[view.main][0])
        num_levels = len(net.channels) - 1

        def fuse(level: int, map_BCHW: Tensor) -> Tensor:
            if level < num_levels:
                for name, transfer in transfers.items():
                    map_BCHW = map_BCHW + transfer(level, source_maps[name])
            return map_BCHW

        maps = tuple(net.levels(x_BCHW, fuse))
        return Features(maps, net.pool(maps[-1]))

    def _check_expert(self, field: str, name: str) -> None:
        if name not in self.experts:
            raise ConfigError(f"{field}: expected one of {', '.join(self.experts)}, got {name!r}")

    def _check_main(self, field: str, name: str) -> None:
        if name not in self.transfers:
            raise ConfigError(f"{field}: expected one of {', '.join(self.transfers)}, got {name!r}")

    def _check_view(self, view: View) -> None:
        self._check_main("view.main", view.main)
        known = self.bn_sets.get(view.main, ())
        if view.bn_set and view.bn_set not in known:
            raise ConfigError(
                f"view.bn_set: expert {view.main!r} has no set {view.bn_set!r}; its sets: {', '.join(known) or 'none'}"
            )


def view_tensors(tensors: Mapping[str, Tensor], view: View, bn_sets: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """A central model's weights as those of the model that serves one view alone, with plain BatchNorms.

    Args:
        tensors: by name as ``CentralModel.state_dict`` gives them.
        view: the main expert, whose transfers are kept, and its BatchNorm set.
        bn_sets: the central model's sets by expert; a source keeps its first.
    """
    wanted = {name: names[0] for name, names in bn_sets.items()}
    if view.bn_set:
        wanted[view.main] = view.bn_set
    kept = {}
    for name, tensor in tensors.items():
        part, owner, _ = name.split(".", 2)
        if part == "transfers" and owner != view.main:
            continue
        before, switchable, after = name.partition(".sets.")
        bn_set, _, rest = after.partition(".")
        if not switchable:
            kept[name] = tensor
        elif bn_set == wanted[owner]:
            kept[f"{before}.{rest}"] = tensor
    return kept


@contextmanager
def _evaluating(net: MetaNet) -> Iterator[None]:
    # Module by module: a caller may have frozen some parts in evaluation mode while others train.
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
