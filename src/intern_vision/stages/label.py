"""Labels (GV-D): the vocabularies of datasets and benchmarks to one label system, with a table to review."""

from intern_vision.data.labels.output import LabelInputs, taxonomy_file, write_labels
from intern_vision.errors import ConfigError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.store import file_sha256


class Config(LabelInputs):
    """What is merged besides the input datasets' own classes.

    Attributes:
        name: what the result is called.
        shipped: names of shipped class lists, merged after the input datasets and ``vocabularies``.
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
    """Merges the classes of the input ``data``, the config's vocabularies and the shipped lists.

    With an input ``amateur``, its text tower proposes matches for names that are spelled differently.

    Raises:
        ConfigError: nothing to merge, or a taxonomy of another digest.
        DataError: a dataset or taxonomy that cannot be read, or parents that form a cycle.
    """
    from intern_vision.data.labels.embedding import amateur_embedding
    from intern_vision.data.labels.vocabulary import dataset_vocabularies, shipped_vocabulary
    from intern_vision.data.loader import load_info, read_index

    _check_taxonomy(config)
    vocabularies, images = [], {}
    for ref in inputs.many("data"):
        info = load_info(context.store, ref.uri)
        vocabularies += dataset_vocabularies(info)
        if "classify" in info.tasks:
            labels = read_index(context.store, ref.uri, info)["label"].value_counts().to_pylist()
            images |= {(info.name, "classify", row["values"]): row["counts"] for row in labels}
    vocabularies += [*config.vocabularies, *map(shipped_vocabulary, config.shipped)]
    amateur = inputs.optional("amateur")
    embed = amateur_embedding(context.fetch(amateur)) if amateur else None
    known = {field: getattr(config, field) for field in LabelInputs.model_fields}
    merged = write_labels(
        LabelInputs(**known | {"vocabularies": tuple(vocabularies)}), context.output_dir, embed=embed, images=images
    )
    num_uncertain = sum(mapping.is_uncertain for mapping in merged.mappings)
    context.facts |= {
        "num_concepts": len(merged.system),
        "num_classes": len(merged.mappings),
        "num_uncertain": num_uncertain,
    }
    context.progress.say(f"{len(merged.mappings)} classes, {len(merged.system)} concepts, {num_uncertain} to review")
    return context.commit("report", config.name)


def _check_taxonomy(config: Config) -> None:
    if not config.taxonomy:
        return
    path = taxonomy_file(config.taxonomy)
    if not path.is_file():
        raise ConfigError(f"label.taxonomy: {path} is no file; give a label system's JSON or WordNet's folder dict/")
    digest = file_sha256(path)
    if digest != config.taxonomy_sha256:
        raise ConfigError(f"label.taxonomy_sha256: {path} has {digest}, not {config.taxonomy_sha256}; check the file")
