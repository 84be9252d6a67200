"""What ``intern data label`` does: class lists to files in a folder, or a manifest's rows to their concepts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.console import show
from intern_vision.errors import ConfigError, DataError

if TYPE_CHECKING:
    from intern_vision.data.labels.merge import Merged
    from intern_vision.data.labels.output import LocalInputs
    from intern_vision.stages.label import Config

DEFAULT_OUT = Path("labels")
APPLY = "apply"


def label_lists(names: list[str], out: Path | None, *, taxonomy: str, amateur: Path | None, as_json: bool) -> None:
    """Merges class lists, or takes the decisions of an edited review over.

    Args:
        names: shipped lists and files; or ``apply`` and a ``review.csv``.
        out: folder that the files go to; ``labels``, or that of the ``review.csv``.
        taxonomy: label system to merge into; empty for none.
        amateur: folder of an amateur whose text tower proposes matches.
        as_json: print one JSON object.

    Raises:
        ConfigError: no such list, or options that do not go with ``apply``.
        DataError: a list, a taxonomy or a row of the review that cannot be taken.
    """
    from intern_vision.data.labels.embedding import amateur_embedding
    from intern_vision.data.labels.output import write_labels

    if names[0] == APPLY:
        if len(names) != 2 or taxonomy or amateur:
            given = " ".join(names[1:]) or "none"
            raise ConfigError(f"{APPLY}: expected one review.csv and no option but --out, got {given}")
        review = Path(names[1])
        inputs, out = _reviewed(review), out or review.parent
    else:
        if amateur is not None and not amateur.is_dir():
            raise ConfigError(f"--amateur: {amateur} is no folder; for class lists give the folder of the weights")
        inputs, out = _named(names, taxonomy, amateur), out or DEFAULT_OUT
    embed = amateur_embedding(Path(inputs.amateur)) if inputs.amateur else None
    out.mkdir(parents=True, exist_ok=True)
    _show_merged(write_labels(inputs, out, embed=embed), out, as_json)


def manifest_ref(name: str) -> Path | None:
    """The path, where it is a file that holds a Ref of kind ``manifest``; None for any other argument."""
    path = Path(name)
    if path.suffix == ".txt" or not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return path if isinstance(values, dict) and values.get("kind") == "manifest" and "digest" in values else None


def label_manifest(
    manifest: Path,
    names: list[str],
    out: Path | None,
    *,
    taxonomy: str,
    amateur: Path | None,
    review: Path | None,
    state_dir: Path,
    as_json: bool,
) -> None:
    """Fills in a manifest's concepts and shows what is left to decide.

    Args:
        manifest: file with its Ref.
        names: further class lists, merged after the manifest's own.
        out: file for the labelled manifest's Ref.
        taxonomy: as of the stage ``label``; empty for none.
        amateur: file with the Ref of an amateur.
        review: an edited ``review.csv`` of an earlier labelling of this manifest.
        state_dir: folder for everything local.
        as_json: print one JSON object.

    Raises:
        ConfigError: ``out`` is missing, or ``amateur`` is no file.
        DataError: a list, a taxonomy or a row of the review that cannot be taken.
    """
    from intern_vision.data.labels.output import REVIEW_FILE, TREE_FILE
    from intern_vision.stage_command import run_to_ref
    from intern_vision.stages.base import read_record
    from intern_vision.store import join_uri, open_store

    if out is None:
        raise ConfigError("--out: give a file for the labelled manifest's Ref")
    if amateur is not None and not amateur.is_file():
        raise ConfigError(f"--amateur: {amateur} is no file; for a manifest give the file with the amateur's Ref")
    config = _config(manifest, names, out.stem, taxonomy, review)
    inputs = {"manifest": [manifest], "amateur": [amateur] if amateur else []}
    ref = run_to_ref("label", config, inputs, out, state_dir=state_dir, quiet=as_json)
    facts = read_record(open_store(ref.uri), ref.uri).facts
    lines = [
        f"{facts['num_classes']} classes, {facts['num_concepts']} concepts; {facts['num_labelled']} rows with concepts"
    ]
    if facts["num_classes"]:
        lines.append(f"tree       {join_uri(ref.uri, TREE_FILE)}")
    if facts["num_uncertain"]:
        lines.append(
            f"review     {join_uri(ref.uri, REVIEW_FILE)}: {facts['num_uncertain']} to decide; "
            f"{facts['num_uncertain_labels']} labels and boxes wait for it"
        )
        lines.append(f"next       intern data label {manifest} --review EDITED_COPY.csv --out {out}")
    show({"ref": ref.to_dict(), **facts}, lines, as_json)


def _config(manifest: Path, names: list[str], name: str, taxonomy: str, review: Path | None) -> "Config":
    from intern_vision.data.labels.output import LabelInputs, taxonomy_file
    from intern_vision.data.labels.vocabulary import dataset_vocabularies, read_vocabulary
    from intern_vision.data.manifest_store import manifest_info
    from intern_vision.stages.base import read_ref
    from intern_vision.stages.label import Config
    from intern_vision.store import file_sha256

    lists = tuple(map(read_vocabulary, names))
    known: dict[str, Any] = {"name": name, "vocabularies": lists}
    if taxonomy:
        file = taxonomy_file(taxonomy)
        if not file.is_file():
            raise ConfigError(f"--taxonomy: {file} is no file; give a label system's JSON or WordNet's folder dict/")
        known |= {"taxonomy": str(Path(taxonomy).absolute()), "taxonomy_sha256": file_sha256(file)}
    if review:
        sources = manifest_info(read_ref(manifest)).sources
        own = [vocabulary for source in sources for vocabulary in dataset_vocabularies(source)]
        known["decisions"] = LabelInputs(vocabularies=(*own, *lists)).with_review(review).decisions
    return Config(**known)


def _named(vocabularies: list[str], taxonomy: str, amateur: Path | None) -> "LocalInputs":
    from intern_vision.data.labels.output import LocalInputs
    from intern_vision.data.labels.vocabulary import read_vocabulary

    return LocalInputs(
        vocabularies=tuple(map(read_vocabulary, vocabularies)),
        taxonomy=str(Path(taxonomy).absolute()) if taxonomy else "",
        amateur=str(amateur.absolute()) if amateur else "",
    )


def _reviewed(review: Path) -> "LocalInputs":
    from intern_vision.data.labels.output import INPUTS_FILE, LocalInputs

    path = review.parent / INPUTS_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file; {APPLY} needs it beside the review.csv, as intern data label wrote it")
    return LocalInputs.from_json(path.read_text(encoding="utf-8"), at=str(path)).with_review(review)


def _show_merged(merged: "Merged", out: Path, as_json: bool) -> None:
    from intern_vision.data.labels.output import REVIEW_FILE, TREE_FILE, summary_lines
    from intern_vision.data.labels.tree import merge_rows

    num_uncertain = sum(mapping.is_uncertain for mapping in merged.mappings)
    value = {
        "out": str(out),
        "num_concepts": len(merged.system),
        "num_classes": len(merged.mappings),
        "num_uncertain": num_uncertain,
        "vocabularies": merge_rows(merged),
    }
    lines = [*summary_lines(merged), "", f"{len(merged.mappings)} classes, {len(merged.system)} concepts"]
    lines.append(f"tree       {out / TREE_FILE}")
    if num_uncertain:
        review = out / REVIEW_FILE
        lines.append(f"review     {review}: {num_uncertain} to decide (same, new or a concept's id)")
        lines.append(f"next       intern data label apply {review}")
    show(value, lines, as_json)
