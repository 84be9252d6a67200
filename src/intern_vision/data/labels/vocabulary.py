"""Vocabularies: the class names of one dataset in index order; those of public benchmarks are shipped."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from intern_vision.config import Config
from intern_vision.data.manifest import SourceInfo
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Family

LISTS = files("intern_vision.data.labels.lists")
SYNONYMS_FILE = "synonyms.json"

About = Literal["things", "actions", "attributes", "symbols"]
"""What kind of word a class name is: *punch* the action is not *punch* the drink."""


class VocabularyClass(Config):
    """A class of a dataset.

    Attributes:
        name: as the dataset spells it.
        synonyms: other names of the same class.
        concept: id of the concept it is known to be, for example of its WordNet synset; empty where nobody said.
        unlike: ids of concepts of the same name that it is not: COCO's *kite* is not the bird.
        parent: name of a more general concept; empty for the vocabulary's.
        number: what the dataset's files call the class where this is not its index.
    """

    name: str = Field(min_length=1)
    synonyms: tuple[str, ...] = ()
    concept: str = ""
    unlike: tuple[str, ...] = ()
    parent: str = ""
    number: int | None = None


class Vocabulary(Config):
    """The classes of a dataset.

    Attributes:
        name: short name; the dataset's own where it is a prepared one.
        classes: in index order; in JSON a plain text stands for a class of that name.
        family: what the classes label.
        about: what kind of words they are.
        parent: name of a concept above all classes without a ``parent``; empty for none.
        title: name for people.
        source: where the list comes from.
        licence: licence of the dataset.
        certainty: ``official`` (the dataset's own words), ``usual`` (it has numbers only) or ``own``.
        num_classes: number of classes, as a check; 0 = unchecked.
    """

    name: str = Field(min_length=1)
    classes: tuple[VocabularyClass, ...] = Field(min_length=1)
    family: Family = "classify"
    about: About = "things"
    parent: str = ""
    title: str = ""
    source: str = ""
    licence: str = ""
    certainty: Literal["official", "usual", "own"] = "own"
    num_classes: int = Field(default=0, ge=0)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, at: str = "") -> Self:
        """As for every ``Config``; a plain text among ``classes`` becomes a class of that name."""
        classes = values.get("classes")
        if isinstance(classes, list):
            named = [{"name": item} if isinstance(item, str) else item for item in classes]
            values = {**values, "classes": named}
        return super().from_dict(values, at=at)

    def faults(self) -> list[str]:
        """As many classes as stated."""
        if self.num_classes and self.num_classes != len(self.classes):
            return [f"num_classes: expected {len(self.classes)} as there are classes, got {self.num_classes}"]
        return []


def shipped_names() -> tuple[str, ...]:
    """Names of the lists that come with the package."""
    names = (entry.name for entry in LISTS.iterdir() if entry.name.endswith(".json") and entry.name != SYNONYMS_FILE)
    return tuple(sorted(name.removesuffix(".json") for name in names))


def shipped_vocabulary(name: str) -> Vocabulary:
    """A list that comes with the package; ConfigError names the known ones."""
    if name not in shipped_names():
        raise ConfigError(f"vocabulary: expected a file or one of {', '.join(shipped_names())}, got {name!r}")
    return Vocabulary.from_json((LISTS / f"{name}.json").read_text(encoding="utf-8"), at=name)


def shipped_synonyms() -> tuple[tuple[str, ...], ...]:
    """Groups of names that mean the same."""
    return tuple(map(tuple, json.loads((LISTS / SYNONYMS_FILE).read_text(encoding="utf-8"))["groups"]))


def read_vocabulary(name_or_path: str) -> Vocabulary:
    """A shipped list by name; else a file: ``.json`` as the shipped ones, or text with a class name a line.

    Raises:
        ConfigError: neither a shipped list nor a file.
        DataError: the file is no vocabulary; the line is named.
    """
    path = Path(name_or_path)
    if not path.is_file():
        return shipped_vocabulary(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return Vocabulary.from_json(text, at=str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    except ConfigError as error:
        raise DataError(str(error)) from None
    classes = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            raise DataError(f"{path}:{number}: expected a class name, got an empty line; remove it")
        classes.append({"name": line.strip()})
    try:
        return Vocabulary.from_dict({"name": path.stem, "classes": classes}, at=str(path))
    except ConfigError as error:
        raise DataError(str(error)) from None


def dataset_vocabularies(info: DatasetInfo | SourceInfo) -> tuple[Vocabulary, ...]:
    """One vocabulary for each family of a prepared dataset, or of a manifest's source, that has classes."""
    return tuple(
        Vocabulary(
            name=info.name,
            family=family,
            classes=tuple(VocabularyClass(name=name) for name in task.class_names),
            source=info.uri if isinstance(info, SourceInfo) else info.source,
            licence=info.licence,
        )
        for family, task in info.tasks.items()
        if task.class_names
    )
