"""One label space for several datasets: the union of their concepts, and which of these each dataset annotates.

A class that a dataset does not annotate is unknown there, not absent: an image of a set without *lamp* may show one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from intern_vision.config import Config, parse_json_object
from intern_vision.data.labels.concept import LabelSystem
from intern_vision.data.labels.merge import ClassMapping
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Family, Task

if TYPE_CHECKING:
    from intern_vision.heads import HeadConfig
    from intern_vision.models.vision import HeadSpec


class LabelUnion(Config):
    """The label space of a head over several datasets.

    Attributes:
        task: family and class names of the union.
        concepts: concept ids of these classes.
        sources: the classes that each dataset annotates, by dataset, as ``HeadSpec.sources`` takes them.
        renamed: each dataset's classes in its own index order, in the words of the union; two classes of one concept
            have one name.
    """

    task: Task
    concepts: tuple[str, ...]
    sources: dict[str, tuple[str, ...]]
    renamed: dict[str, tuple[str, ...]]

    def head_spec(self, config: "HeadConfig | None" = None) -> "HeadSpec":
        """A head of the union that knows what each dataset annotates."""
        from intern_vision.heads import HeadConfig
        from intern_vision.models.vision import HeadSpec

        return HeadSpec(task=self.task, config=config or HeadConfig(), sources=self.sources)

    def rename(self, info: DatasetInfo) -> DatasetInfo:
        """A dataset's description with its classes of the union's family in the union's words; the data stays.

        Raises:
            DataError: the dataset is not in the union, or has other classes than it had when the union was made.
        """
        names, own = self.renamed.get(info.name), info.tasks.get(self.task.family)
        if names is None or own is None:
            raise DataError(f"dataset {info.name}: not in the {self.task.family} union of {', '.join(self.renamed)}")
        if len(names) != own.num_classes:
            raise DataError(
                f"dataset {info.name}: {own.num_classes} {self.task.family} classes, and {len(names)} when its labels "
                "were merged; merge them again"
            )
        renamed = own.model_copy(update={"class_names": names})
        changes: dict[str, object] = {"tasks": {**info.tasks, self.task.family: renamed}}
        if self.task.family == "multilabel":
            changes["concept_names"] = names
        return info.model_copy(update=changes)


def read_unions(path: Path) -> dict[Family, LabelUnion]:
    """The unions by family that labelling wrote; DataError where the file holds something else."""
    try:
        values = parse_json_object(path.read_text(encoding="utf-8"), str(path))
        return {family: LabelUnion.from_dict(value, at=f"{path}: {family}") for family, value in values.items()}  # type: ignore[misc]
    except ConfigError as error:
        raise DataError(str(error)) from None


def label_unions(mappings: Iterable[ClassMapping], system: LabelSystem) -> dict[Family, LabelUnion]:
    """The union of each family that has classes."""
    by_family: dict[Family, list[ClassMapping]] = {}
    for mapping in mappings:
        by_family.setdefault(mapping.family, []).append(mapping)  # type: ignore[arg-type]
    names = _distinct_names({mapping.concept for own in by_family.values() for mapping in own}, system)
    return {family: _union(family, own, names) for family, own in by_family.items()}


def _union(family: Family, mappings: list[ClassMapping], names: Mapping[str, str]) -> LabelUnion:
    renamed: dict[str, list[str]] = {}
    for mapping in sorted(mappings, key=lambda mapping: mapping.index):
        renamed.setdefault(mapping.vocabulary, []).append(names[mapping.concept])
    concepts = tuple(dict.fromkeys(mapping.concept for mapping in mappings))
    order = tuple(dict.fromkeys(mapping.vocabulary for mapping in mappings))
    return LabelUnion(
        task=Task(family=family, class_names=tuple(names[concept] for concept in concepts)),
        concepts=concepts,
        sources={name: tuple(dict.fromkeys(renamed[name])) for name in order},
        renamed={name: tuple(renamed[name]) for name in order},
    )


def _distinct_names(concepts: Iterable[str], system: LabelSystem) -> dict[str, str]:
    """Names that tell concepts apart: of two *mouse* each carries its id."""
    names = {id: system[id].name for id in concepts}
    uses = Counter(names.values())
    return {id: name if uses[name] == 1 else f"{name} ({id})" for id, name in names.items()}
