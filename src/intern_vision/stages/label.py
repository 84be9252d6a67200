"""Labels (GV-D): the vocabularies of datasets and benchmarks to one label system, with a table to review."""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from intern_vision.data.labels.output import LabelInputs, taxonomy_file
from intern_vision.data.manifest import MANIFEST_NAME
from intern_vision.errors import ConfigError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.store import file_sha256

if TYPE_CHECKING:
    from intern_vision.data.labels.merge import Merged
    from intern_vision.data.labels.review import ClassKey
    from intern_vision.data.labels.vocabulary import Vocabulary
    from intern_vision.data.manifest import ManifestInfo


class Config(LabelInputs):
    """What is merged besides the input datasets' own classes.

    Attributes:
        name: what the result is called.
        shipped: names of shipped class lists, merged after the inputs and ``vocabularies``.
        taxonomy_sha256: digest of the taxonomy's file; of a folder, of its ``labels.json`` or ``data.noun``.
    """

    name: str = "labels"
    shipped: tuple[str, ...] = ()
    taxonomy_sha256: str = ""

    def faults(self) -> list[str]:
        """A taxonomy is found again by its digest."""
        if bool(self.taxonomy) != bool(self.taxonomy_sha256):
            return ["give taxonomy and taxonomy_sha256, or neither"]
        return []


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Merges the classes of the inputs ``data`` and ``manifest``, the config's vocabularies and the shipped lists.

    With an input ``amateur``, its text tower proposes matches for names that are spelled differently. With an input
    ``manifest`` the output is that manifest with the column ``concepts`` filled from labels and boxes; a class that a
    person has still to decide on gives no concept. A manifest of captions alone is passed on as it is.

    Raises:
        ConfigError: nothing to merge, or a taxonomy of another digest.
        DataError: a dataset or taxonomy that cannot be read, or parents that form a cycle.
    """
    from intern_vision.data.labels.embedding import amateur_embedding
    from intern_vision.data.labels.output import rolled_up_classes, write_labels
    from intern_vision.data.labels.vocabulary import dataset_vocabularies, shipped_vocabulary
    from intern_vision.data.manifest_store import load_manifest

    _check_taxonomy(config)
    vocabularies, images = _datasets(inputs, context)
    given = inputs.optional("manifest")
    manifest, path = load_manifest(context, given, context.scratch_dir / "inputs") if given else (None, None)
    for source in manifest.sources if manifest else ():
        vocabularies += dataset_vocabularies(source)
    vocabularies += [*config.vocabularies, *map(shipped_vocabulary, config.shipped)]
    if manifest and path and not vocabularies:
        context.progress.say("no source has classes: nothing to merge")
        counted = ("concepts", "classes", "uncertain", "labelled", "uncertain_labels", "unknown_labels")
        context.facts |= {f"num_{what}": 0 for what in counted}
        shutil.copy(path, context.output_dir / MANIFEST_NAME)
        return _commit_labelled(config, manifest, context)
    amateur = inputs.optional("amateur")
    embed = amateur_embedding(context.fetch(amateur)) if amateur else None

    def count(merged: "Merged") -> Mapping[str, int]:
        counts = Counter(rolled_up_classes(merged, images))
        if path is not None:
            counts.update(_label_rows(path, merged, context))
        return counts

    known = {field: getattr(config, field) for field in LabelInputs.model_fields}
    merged = write_labels(
        LabelInputs(**known | {"vocabularies": tuple(vocabularies)}), context.output_dir, embed=embed, count=count
    )
    num_uncertain = sum(mapping.is_uncertain for mapping in merged.mappings)
    context.facts |= {
        "num_concepts": len(merged.system),
        "num_classes": len(merged.mappings),
        "num_uncertain": num_uncertain,
    }
    context.progress.say(f"{len(merged.mappings)} classes, {len(merged.system)} concepts, {num_uncertain} to review")
    return _commit_labelled(config, manifest, context) if manifest else context.commit("report", config.name)


def _datasets(inputs: Inputs, context: StageContext) -> "tuple[list[Vocabulary], dict[ClassKey, int]]":
    """Vocabularies of the prepared datasets, and their images with a single label by class."""
    from intern_vision.data.labels.vocabulary import dataset_vocabularies
    from intern_vision.data.loader import load_info, read_index

    vocabularies: list[Vocabulary] = []
    images: dict[ClassKey, int] = {}
    for ref in inputs.many("data"):
        info = load_info(context.store, ref.uri)
        vocabularies += dataset_vocabularies(info)
        if "classify" in info.tasks:
            labels = read_index(context.store, ref.uri, info)["label"].value_counts().to_pylist()
            images |= {(info.name, "classify", row["values"]): row["counts"] for row in labels}
    return vocabularies, images


def _label_rows(path: Path, merged: "Merged", context: StageContext) -> dict[str, int]:
    """Writes the manifest with its concepts and gives the images of each concept or one below it."""
    from intern_vision.data.labels.rows import RowConcepts, count_concepts, write_concepts

    concepts = RowConcepts(merged)
    target = context.output_dir / MANIFEST_NAME
    write_concepts(path, target, concepts)
    context.facts |= {
        "num_labelled": concepts.num_labelled,
        "num_uncertain_labels": concepts.num_uncertain,
        "num_unknown_labels": concepts.num_unknown,
    }
    left_out = concepts.num_uncertain + concepts.num_unknown
    context.progress.say(f"{concepts.num_labelled} rows have concepts, {left_out} labels and boxes were left out")
    return count_concepts(target, merged)


def _commit_labelled(config: Config, manifest: "ManifestInfo", context: StageContext) -> Ref:
    from intern_vision.data.manifest import StepInfo
    from intern_vision.data.manifest_store import commit_manifest

    step = StepInfo(name="label", settings=config.to_dict(), num_in=manifest.num_ok, num_out=manifest.num_ok)
    return commit_manifest(context, manifest.model_copy(update={"steps": (*manifest.steps, step)}), config.name)


def _check_taxonomy(config: Config) -> None:
    if not config.taxonomy:
        return
    path = taxonomy_file(config.taxonomy)
    if not path.is_file():
        raise ConfigError(f"label.taxonomy: {path} is no file; give a label system's JSON or WordNet's folder dict/")
    digest = file_sha256(path)
    if digest != config.taxonomy_sha256:
        raise ConfigError(f"label.taxonomy_sha256: {path} has {digest}, not {config.taxonomy_sha256}; check the file")
