"""What labelling writes: the label system, every mapping, the table for review, the unions and the tree."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from pydantic import Field

from intern_vision.config import Config
from intern_vision.data.labels.concept import LabelSystem
from intern_vision.data.labels.merge import Embed, MergeConfig, Merged, merge
from intern_vision.data.labels.public import label_system_json, read_label_system
from intern_vision.data.labels.review import ClassKey, mappings_csv, read_decisions, review_csv
from intern_vision.data.labels.tree import tree_html
from intern_vision.data.labels.union import label_unions
from intern_vision.data.labels.vocabulary import Vocabulary
from intern_vision.data.labels.wordnet import DATA_FILE, read_wordnet
from intern_vision.errors import ConfigError

LABELS_FILE = "labels.json"
MAPPINGS_FILE = "mappings.csv"
REVIEW_FILE = "review.csv"
UNIONS_FILE = "unions.json"
TREE_FILE = "tree.html"
INPUTS_FILE = "inputs.json"


class Decision(Config):
    """What a person decided on a class.

    Attributes:
        vocabulary: the vocabulary's name.
        family: its family.
        index: the class's index.
        concept: ``new``, or the id of the concept that the class belongs to.
    """

    vocabulary: str
    family: str
    index: int = Field(ge=0)
    concept: str


class LabelInputs(Config):
    """All that decides the files, besides an embedding.

    Attributes:
        vocabularies: in the order they are merged in.
        taxonomy: a label system that is there beforehand: its JSON file, a folder that labelling wrote, or a folder
            of WordNet's dictionary files; empty for none.
        merge: when a match counts.
        decisions: of a person.
    """

    vocabularies: tuple[Vocabulary, ...] = ()
    taxonomy: str = ""
    merge: MergeConfig = MergeConfig()
    decisions: tuple[Decision, ...] = ()

    def with_review(self, path: Path) -> Self:
        """The same with the decisions of an edited review table instead; DataError names a wrong row."""
        decided = read_decisions(path, self.vocabularies)
        decisions = tuple(
            Decision(vocabulary=name, family=family, index=index, concept=concept)
            for (name, family, index), concept in decided.items()
        )
        return self.model_copy(update={"decisions": decisions})


class LocalInputs(LabelInputs):
    """What a person merges on one machine.

    Attributes:
        amateur: folder of an amateur whose text tower proposes matches; empty for none.
    """

    amateur: str = ""


def write_labels(
    inputs: LabelInputs,
    out_dir: Path,
    *,
    embed: Embed | None = None,
    count: Callable[[Merged], Mapping[str, int]] | None = None,
) -> Merged:
    """Merges the vocabularies and writes ``labels.json``, ``mappings.csv``, ``review.csv`` and what is drawn from them.

    Equal inputs give equal bytes; with the decisions of the ``review.csv`` written, the same one is written again.

    Args:
        inputs: the vocabularies and what was decided.
        out_dir: an existing folder.
        embed: of names; without it nothing is matched by embedding.
        count: called with what was merged; gives the images of each concept or one below it, for ``labels.json`` and
            the tree.

    Raises:
        ConfigError: no vocabulary, or a taxonomy that would be overwritten.
        DataError: as for ``merge``, or the taxonomy cannot be read.
    """
    if not inputs.vocabularies:
        raise ConfigError("vocabularies: expected 1 or more, got none; name a shipped list or a file")
    if inputs.taxonomy and taxonomy_file(inputs.taxonomy).resolve() == (out_dir / LABELS_FILE).resolve():
        # It would be overwritten, and a review applied to another taxonomy than it was made with.
        raise ConfigError(f"taxonomy: {inputs.taxonomy} is in the output folder; name another output folder")
    base, senses, exceptions = _taxonomy(inputs.taxonomy)
    merged = merge(
        inputs.vocabularies,
        base=base,
        config=inputs.merge,
        decisions={(item.vocabulary, item.family, item.index): item.concept for item in inputs.decisions},
        senses=senses,
        exceptions=exceptions,
        embed=embed,
    )
    num_images = count(merged) if count else {}
    unions = {family: union.to_dict() for family, union in label_unions(merged.mappings, merged.system).items()}
    texts = {
        LABELS_FILE: label_system_json(merged.system, num_images),
        MAPPINGS_FILE: mappings_csv(merged.mappings, merged.system),
        REVIEW_FILE: review_csv(merged.mappings, merged.system),
        UNIONS_FILE: json.dumps(unions, ensure_ascii=False, indent=1) + "\n",
        TREE_FILE: tree_html(merged, num_images),
        INPUTS_FILE: inputs.to_json() + "\n",
    }
    for name, text in texts.items():
        (out_dir / name).write_text(text, encoding="utf-8")
    return merged


def taxonomy_file(path: str) -> Path:
    """The file that a taxonomy is read from: of a folder its ``labels.json`` where it has one, else ``data.noun``."""
    found = Path(path)
    if not found.is_dir():
        return found
    return found / LABELS_FILE if (found / LABELS_FILE).is_file() else found / DATA_FILE


def summary_lines(merged: Merged) -> list[str]:
    """A table for people: by vocabulary how many classes were matched in which way."""
    kinds = ("id", "exact", "lemma", "synonym", "embedding", "decided", "new")
    from intern_vision.data.labels.tree import merge_rows

    rows = [[row["name"], *(row["counts"][kind] for kind in kinds), row["num_uncertain"]] for row in merge_rows(merged)]
    total = ["total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
    head = ["VOCABULARY", *kinds, "review"]
    return [f"{name!s:18}" + "".join(f"{cell!s:>10}" for cell in cells) for name, *cells in (head, *rows, total)]


def _taxonomy(
    path: str,
) -> tuple[LabelSystem | None, Mapping[str, tuple[str, ...]], Mapping[str, tuple[str, ...]]]:
    """The system that is there beforehand, senses by name and irregular plurals."""
    if not path:
        return None, {}, {}
    file = taxonomy_file(path)
    if file.name == DATA_FILE:
        wordnet = read_wordnet(file.parent)
        return wordnet.system, wordnet.senses, wordnet.exceptions
    return read_label_system(file), {}, {}


def rolled_up_classes(merged: Merged, images: Mapping[ClassKey, int]) -> dict[str, int]:
    """Images of each concept or one below it, where every image has one label.

    Args:
        merged: the label system and its mappings.
        images: number of images by class.
    """
    counts: dict[str, int] = {}
    for mapping in merged.mappings:
        num_images = images.get((mapping.vocabulary, mapping.family, mapping.index), 0)
        for id in merged.system.ancestors(mapping.concept) | {mapping.concept} if num_images else ():
            counts[id] = counts.get(id, 0) + num_images
    return counts
