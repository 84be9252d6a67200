"""What the upstream stages share: reading the upstream dataset and starting from earlier weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from intern_vision.data.augment import Augment
from intern_vision.data.loader import ShardSource, load_info
from intern_vision.data.mixture import MixtureSource
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.data.settings import AugmentConfig, MixtureConfig
from intern_vision.data.shard import DatasetInfo
from intern_vision.data.text import Tokenizer
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads import HeadConfig
from intern_vision.models.genotype import NANO, Genotype
from intern_vision.models.vision import HeadSpec
from intern_vision.stages.amateur import captioned_uri
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.stages.search import GENOTYPE_FILE
from intern_vision.store import join_uri
from intern_vision.task import Family, Task
from intern_vision.train.workspace import Workspace

HeadChoice = Literal["per_source", "unified", "both"]
FIELDS_OF_FAMILY: dict[Family, tuple[str, ...]] = {
    "classify": ("label",),
    "multilabel": ("concepts",),
    "detect": ("boxes", "box_labels"),
    "segment": ("mask",),
    "depth": ("depth",),
}


def fields_of(families: Sequence[Family]) -> tuple[str, ...]:
    """Sample fields that these families learn from."""
    return tuple(field for family in families for field in FIELDS_OF_FAMILY[family])


def upstream_infos(workspace: Workspace, fields: Sequence[str]) -> tuple[DatasetInfo, ...]:
    """The datasets of the input ``data`` that have one of the fields, in the order that ``source_B`` counts them.

    With the input ``labels`` their classes have the names of the label system, so that equal names mean one class.
    One dataset, or several of which none has a field, are given as they are.
    """
    return tuple(info for _, info in _used_data(workspace, fields))


def upstream_source(
    workspace: Workspace, fields: Sequence[str], mixture: MixtureConfig | None = None
) -> ShardSource | MixtureSource:
    """Training samples of ``upstream_infos``, mixed where these are several.

    Args:
        workspace: holds the input.
        fields: ``Sample`` fields besides the image.
        mixture: how several datasets are mixed.

    Raises:
        ConfigError: there is no input ``data``.
        DataError: no dataset has one of the fields.
    """
    used = _used_data(workspace, fields)
    missing = sorted(set(fields).difference(*(info.fields for _, info in used)))
    if missing:
        names = ", ".join(info.name for _, info in used)
        raise DataError(f"inputs.data: no field {missing[0]} in {names}; add a dataset that has it")
    sources = [
        ShardSource(
            workspace.store,
            uri,
            cache_dir=workspace.cache_dir,
            split="train",
            fields=[field for field in fields if field in info.fields],
        )
        for uri, info in used
    ]
    return sources[0] if len(sources) == 1 else MixtureSource(sources, fields, mixture or MixtureConfig())


def _used_data(workspace: Workspace, fields: Sequence[str]) -> list[tuple[str, DatasetInfo]]:
    refs = workspace.inputs.many("data") or (workspace.inputs.one("data"),)
    renamed = _renamer(workspace)
    data = [(ref.uri, renamed(load_info(workspace.store, ref.uri))) for ref in refs]
    return [(uri, info) for uri, info in data if set(fields) & set(info.fields)] or data


def _renamer(workspace: Workspace) -> Callable[[DatasetInfo], DatasetInfo]:
    """Puts a dataset's classes into the words of the input ``labels`` (a label stage's output), where it is given."""
    ref = workspace.inputs.optional("labels")
    if ref is None:
        return lambda info: info
    from intern_vision.data.labels.output import UNIONS_FILE
    from intern_vision.data.labels.union import read_unions
    from intern_vision.data.manifest_store import fetch_file

    # Of a labelled manifest, the table of all its rows is not needed here.
    unions = read_unions(fetch_file(workspace.store, ref, UNIONS_FILE, workspace.scratch_dir / "inputs"))

    def renamed(info: DatasetInfo) -> DatasetInfo:
        for family in info.tasks:
            info = unions[family].rename(info) if family in unions else info
        return info

    return renamed


def upstream_augment(
    info: DatasetInfo | Sequence[DatasetInfo],
    config: AugmentConfig,
    tokenizer: Tokenizer | None = None,
    context_length: int = 2,
    mask_share: float = 0.0,
) -> Augment:
    """The training transform for one or several upstream datasets; the last three as for ``Augment``."""
    infos = (info,) if isinstance(info, DatasetInfo) else info
    synonyms = {word: other for each in infos for word, other in each.synonyms.items()}
    return Augment(
        config,
        tokenizer=tokenizer,
        context_length=context_length,
        num_concepts=max(len(each.concept_names) for each in infos),
        synonyms=synonyms,
        mask_share=mask_share,
    )


def dataset_tokenizer(workspace: Workspace) -> Tokenizer:
    """The tokenizer learned from the captions of the input ``data``, the first one's where several have some."""
    uri = captioned_uri(workspace.store, workspace.inputs)
    folder = workspace.scratch_dir / "tokenizer"
    folder.mkdir(exist_ok=True)
    path = folder / f"{Path(uri).name}-{workspace.process_name}.json"
    workspace.store.get(join_uri(uri, TOKENIZER_FILE), path)
    return Tokenizer.load(path)


def chosen_genotype(workspace: Workspace) -> Genotype:
    """The genotype of the input ``genotype`` (a search's result); the nano one where there is none."""
    ref = workspace.inputs.optional("genotype")
    if ref is None:
        return NANO
    path = workspace.fetch(ref) / GENOTYPE_FILE
    return Genotype.from_json(path.read_text(), at=ref.uri)


def head_specs(
    info: DatasetInfo | Sequence[DatasetInfo],
    families: Sequence[Family],
    config: HeadConfig,
    heads: HeadChoice = "both",
    relative_depth: Sequence[str] = (),
) -> dict[str, HeadSpec]:
    """The heads for the datasets' own tasks by name.

    A family that one dataset annotates has one head of the family's name. For several there is a head a dataset,
    ``<family>@<dataset>``, and a unified one of the family's name over the union of the class names (equal names mean
    the same class); the largest depth of a unified depth head is the largest of all.

    Args:
        info: one dataset or several.
        families: the task families.
        config: sizes and loss weights.
        heads: which of the heads of several datasets there shall be.
        relative_depth: datasets whose depth has no metric scale: their heads take the loss that is blind to scale and
            shift, and they teach no unified head.

    Raises:
        ConfigError: a unified depth head alone, and no dataset with metric depth; a unified segmentation head of more
            classes than a mask can hold.
        DataError: a family that no dataset annotates, or a dataset's name that cannot name a head.
    """
    infos = (info,) if isinstance(info, DatasetInfo) else tuple(info)
    missing = [family for family in families if not any(family in each.tasks for each in infos)]
    if missing:
        has = dict.fromkeys(family for each in infos for family in each.tasks)
        raise DataError(
            f"dataset {', '.join(each.name for each in infos)} has no task {', '.join(missing)}; it has "
            f"{', '.join(has)}: choose among these or prepare another dataset"
        )
    if len(infos) == 1:
        return {
            family: HeadSpec(task=infos[0].tasks[family], config=_depth_config(config, infos[0].name in relative_depth))
            for family in families
        }
    specs: dict[str, HeadSpec] = {}
    for family in families:
        tasks = {each.name: each.tasks[family] for each in infos if family in each.tasks}
        if heads != "unified" or len(tasks) == 1:
            specs |= _source_heads(family, tasks, config, relative_depth)
        if heads != "per_source" and len(tasks) > 1:
            specs |= _unified_head(family, tasks, config, relative_depth, required=heads == "unified")
    return specs


def _source_heads(
    family: Family, tasks: dict[str, Task], config: HeadConfig, relative_depth: Sequence[str]
) -> dict[str, HeadSpec]:
    specs = {}
    for source, task in tasks.items():
        if "." in source:
            raise DataError(f"dataset {source}: a name with a dot cannot name a head; prepare it under another name")
        own_config = _depth_config(_config_for(task, config), source in relative_depth)
        name = family if len(tasks) == 1 else f"{family}@{source}"
        specs[name] = HeadSpec(task=task, config=own_config, sources={source: task.class_names})
    return specs


def _unified_head(
    family: Family, tasks: dict[str, Task], config: HeadConfig, relative_depth: Sequence[str], *, required: bool
) -> dict[str, HeadSpec]:
    if family == "depth":
        tasks = {source: task for source, task in tasks.items() if source not in relative_depth}
    if not tasks:
        if required:
            raise ConfigError(
                "relative_depth: it names every dataset; a unified depth head needs one with metric depth"
            )
        return {}
    names = dict.fromkeys(name for task in tasks.values() for name in task.class_names)
    if family == "segment" and len(names) > IGNORE_LABEL:
        raise ConfigError(
            f"heads: the datasets have {len(names)} segment classes together and a mask holds {IGNORE_LABEL}; "
            "use heads per_source"
        )
    union = Task(family=family, class_names=tuple(names), max_depth_m=max(task.max_depth_m for task in tasks.values()))
    sources = {source: task.class_names for source, task in tasks.items()}
    return {family: HeadSpec(task=union, config=_config_for(union, config), sources=sources)}


def _config_for(task: Task, config: HeadConfig) -> HeadConfig:
    """The settings less the background classes that one dataset's task does not have."""
    background = [name for name in config.background_classes if name in task.class_names]
    return config.with_overrides({"background_classes": background})


def _depth_config(config: HeadConfig, is_relative: bool) -> HeadConfig:
    return config.with_overrides({"depth_loss": "affine"}) if is_relative else config
