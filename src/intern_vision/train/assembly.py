"""What a generalist is put together from: the amateur, the experts and their heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from intern_vision.config import changed_fields
from intern_vision.errors import ConfigError
from intern_vision.models.merge import Tensors, average, task_vector
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel, read_spec, read_tensors
from intern_vision.ref import Ref
from intern_vision.task import Family
from intern_vision.train.upstream import chosen_genotype, fields_of, head_specs, upstream_infos
from intern_vision.train.workspace import Workspace

if TYPE_CHECKING:
    from intern_vision.stages.generalist import Config

BACKBONE = "backbone."
NUM_CHANGES_IN_ERROR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Saved models that a generalist starts from.

    Attributes:
        base: spec of one backbone, without heads.
        amateurs: folder of each amateur's weights by address; the first is the start.
        experts: folder of the expert's weights by family, in the order of the config's families; an expert of several
            families comes several times.
        joined: name of the expert whose backbone is joined, matched or merged, by the families that it serves; an
            expert is named after the first of these.
        starts: address of the amateur that each family's expert was trained from; empty where that is not known.
        heads: the heads by name, those of the experts or new ones.
    """

    base: ModelSpec
    amateurs: dict[str, Path]
    experts: dict[Family, Path]
    joined: dict[Family, Family]
    starts: dict[Family, str]
    heads: dict[str, HeadSpec]

    @property
    def teachers(self) -> dict[Family, Path]:
        """Folder of every joined expert by its name."""
        return {name: self.experts[name] for name in dict.fromkeys(self.joined.values())}

    def backbones(self) -> list[dict[str, Tensor]]:
        """Weights of the joined experts' backbones."""
        return [backbone_tensors(folder) for folder in self.teachers.values()]

    def task_vectors(self) -> list[dict[str, Tensor]]:
        """What each joined expert changed, measured from its own amateur where that is among the inputs."""
        first = next(iter(self.amateurs.values()))
        starts = [self.amateurs.get(self.starts[name], first) for name in self.teachers]
        return [
            task_vector(backbone_tensors(start), trained)
            for start, trained in zip(starts, self.backbones(), strict=True)
        ]


def gather_parts(config: "Config", workspace: Workspace) -> Parts:
    """Reads the inputs ``amateur``, ``experts``, ``genotype`` and ``data`` and checks that they fit each other.

    Raises:
        ConfigError: an expert is missing, or has another architecture or other labels; no amateur to start from.
    """
    amateurs = {ref.uri: workspace.fetch(ref) for ref in workspace.inputs.many("amateur")}
    found = _experts(workspace.inputs.many("experts"), workspace)
    experts = {family: found[family] for family in config.families if family in found}
    if config.needs_amateur and not amateurs:
        raise ConfigError(f"generalist.mode {config.mode}: no input amateur to start from; give one")
    missing = [family for family in config.joined_families if family not in experts]
    if missing:
        raise ConfigError(f"generalist.mode {config.mode}: no expert for {', '.join(missing)}; train it first")
    base = base_spec(config, [*amateurs.values(), *(folder for folder, _ in experts.values())], workspace)
    folders = {family: folder for family, (folder, _) in experts.items()}
    for family, folder in folders.items():
        _check_architecture(family, read_spec(folder), base)
    heads = _heads(config, folders if config.heads_from_experts else {}, workspace)
    return Parts(
        base=base,
        amateurs=amateurs,
        experts=folders,
        joined=_joined(config.experts or tuple(folders), folders),
        starts={
            family: next((uri for uri in ref.parents if uri in amateurs), "") for family, (_, ref) in experts.items()
        },
        heads=heads,
    )


def starting_model(config: "Config", parts: Parts) -> VisionModel:
    """The generalist before training: its backbone, and its heads from the experts or afresh."""
    spec = parts.base.to_dict() | {"heads": {name: head.to_dict() for name, head in parts.heads.items()}}
    if config.mode == "central":
        views = {family: view.to_dict() for family, view in config.resolved_views(parts.joined).items()}
        spec |= {"experts": list(parts.teachers), "main": config.main, "views": views}
        model = VisionModel(ModelSpec.from_dict(spec))
        for name, folder in parts.teachers.items():
            _load_expert(model, name, folder)
    else:
        model = VisionModel(ModelSpec.from_dict(spec))
        if config.init == "amateur" and parts.amateurs:
            model.load_part(next(iter(parts.amateurs.values())), "backbone")
        elif config.init == "average":
            load_backbone(model, average(parts.backbones()), source="the experts' average")
    if config.heads_from_experts:
        for family, folder in parts.experts.items():
            for name in _heads_of(folder, family):
                model.load_part(folder, f"heads.{name}")
    return model


def base_spec(config: "Config", folders: Sequence[Path], workspace: Workspace) -> ModelSpec:
    """One backbone without heads: that of the first of these saved models, else the input ``genotype``'s."""
    if not folders:
        return ModelSpec(genotype=chosen_genotype(workspace), image_size_px=config.augment.image_size_px)
    base = read_spec(folders[0]).to_dict()
    return ModelSpec.from_dict(base | {"heads": {}, "text": None, "image_size_px": config.augment.image_size_px})


def load_backbone(model: VisionModel, tensors: Tensors, *, source: str) -> None:
    """Takes these weights for the whole backbone; CheckpointError where they do not fit."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(BACKBONE)}
    model.load_tensors(own | {BACKBONE + name: value for name, value in tensors.items()}, source=source)


def backbone_tensors(folder: Path) -> dict[str, Tensor]:
    """Weights of a saved model's backbone, by name below it."""
    tensors = read_tensors(folder).items()
    return {name.removeprefix(BACKBONE): value for name, value in tensors if name.startswith(BACKBONE)}


def _load_expert(model: VisionModel, family: Family, folder: Path) -> None:
    # Every BatchNorm set starts as the expert's own BatchNorm.
    name = f"{BACKBONE}experts.{family}."
    trained = backbone_tensors(folder)
    own = model.state_dict()
    for key in own:
        if key.startswith(name):
            before, _, after = key.removeprefix(name).partition(".sets.")
            own[key] = trained[f"{before}.{after.partition('.')[2]}" if after else before]
    model.load_tensors(own, source=str(folder))


def _experts(refs: Sequence[Ref], workspace: Workspace) -> dict[Family, tuple[Path, Ref]]:
    found: dict[Family, tuple[Path, Ref]] = {}
    for ref in refs:
        folder = workspace.fetch(ref)
        for head in read_spec(folder).heads.values():
            found[head.task.family] = (folder, ref)
    return found


def _joined(names: Sequence[Family], folders: Mapping[Family, Path]) -> dict[Family, Family]:
    owners = {folders[name]: name for name in reversed(names) if name in folders}
    return {family: owners[folder] for family, folder in folders.items() if folder in owners}


def _heads_of(folder: Path, family: Family) -> dict[str, HeadSpec]:
    return {name: head for name, head in read_spec(folder).heads.items() if head.task.family == family}


def _heads(config: "Config", experts: Mapping[Family, Path], workspace: Workspace) -> dict[str, HeadSpec]:
    """The experts' heads, and new ones for the families without an expert, in the order of the families."""
    infos = upstream_infos(workspace, fields_of(config.families))
    heads: dict[str, HeadSpec] = {}
    for family in config.families:
        fresh = head_specs(infos, (family,), config.head, config.heads)
        if family not in experts:
            heads |= fresh
            continue
        own = _heads_of(experts[family], family)
        if len(infos) == 1:  # Several datasets have their labels renumbered for each head, with errors of their own.
            for head in own.values():
                _check_labels(family, head, fresh[family])
        heads |= own
    return heads


def _check_architecture(family: Family, spec: ModelSpec, base: ModelSpec) -> None:
    same = {"heads": {}, "text": None, "image_size_px": base.image_size_px}
    changes = changed_fields(base.to_dict(), spec.to_dict() | same)
    if changes:
        shown = "; ".join(changes[:NUM_CHANGES_IN_ERROR])
        raise ConfigError(f"experts.{family}: another architecture than the start ({shown}); train it from the amateur")


def _check_labels(family: Family, own: HeadSpec, data: HeadSpec) -> None:
    if own.task != data.task:
        names = sorted(set(own.task.class_names) ^ set(data.task.class_names))
        shown = ", ".join(names[:NUM_CHANGES_IN_ERROR]) or "their order or the largest depth"
        raise ConfigError(f"experts.{family}: other labels than the data's (differing: {shown}); train it on this data")
