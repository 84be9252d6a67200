"""What the upstream stages share: reading the upstream dataset and starting from earlier weights."""

from collections.abc import Sequence
from pathlib import Path

from intern_vision.data.augment import Augment
from intern_vision.data.loader import ShardSource, load_info
from intern_vision.data.settings import AugmentConfig
from intern_vision.data.shard import DatasetInfo
from intern_vision.data.text import Tokenizer
from intern_vision.errors import DataError
from intern_vision.heads import HeadConfig
from intern_vision.models.genotype import NANO, Genotype
from intern_vision.models.vision import HeadSpec, read_spec
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.stages.search import GENOTYPE_FILE
from intern_vision.store import join_uri
from intern_vision.task import Family
from intern_vision.train.workspace import Workspace

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


def upstream_source(workspace: Workspace, fields: Sequence[str]) -> ShardSource:
    """Training samples of the input ``data``."""
    uri = workspace.inputs.one("data").uri
    return ShardSource(workspace.store, uri, cache_dir=workspace.cache_dir, split="train", fields=fields)


def upstream_augment(
    info: DatasetInfo, config: AugmentConfig, tokenizer: Tokenizer | None = None, context_length: int = 2
) -> Augment:
    """The training transform for an upstream dataset."""
    return Augment(config, tokenizer=tokenizer, context_length=context_length, num_concepts=len(info.concept_names))


def dataset_tokenizer(workspace: Workspace) -> Tokenizer:
    """The tokenizer learned from the captions of the input ``data``."""
    uri = workspace.inputs.one("data").uri
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


def genotype_of(folder: Path) -> Genotype:
    """The genotype of saved weights."""
    return read_spec(folder).genotype


def head_specs(info: DatasetInfo, families: Sequence[Family], config: HeadConfig) -> dict[str, HeadSpec]:
    """One head a family, named after it, for the dataset's own tasks; DataError where it has no such task."""
    missing = [family for family in families if family not in info.tasks]
    if missing:
        raise DataError(
            f"dataset {info.name} has no task {', '.join(missing)}; it has {', '.join(info.tasks)}: "
            "choose among these or prepare another dataset"
        )
    return {family: HeadSpec(task=info.tasks[family], config=config) for family in families}


def upstream_info(workspace: Workspace) -> DatasetInfo:
    """What the input ``data`` holds."""
    return load_info(workspace.store, workspace.inputs.one("data").uri)
