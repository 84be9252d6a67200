"""Commands on data that need no pipeline: ``intern data label`` and ``intern data show``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.errors import ConfigError, DataError
from intern_vision.options import AsJson, Debug

if TYPE_CHECKING:
    from intern_vision.data.labels.concept import LabelSystem
    from intern_vision.data.labels.merge import Merged
    from intern_vision.data.labels.output import LocalInputs

DEFAULT_OUT = Path("labels")
APPLY = "apply"
MAX_SHOWN = 12
"""Children and datasets listed of a concept; the rest is counted."""

data_app = typer.Typer(help="Prepare data: merge label vocabularies and look at what came of it.", no_args_is_help=True)


@data_app.command(name="label")
def label(
    vocabularies: Annotated[
        list[str],
        typer.Argument(
            help="Shipped class lists and files (a class name a line, or JSON), in the order they are merged in; "
            "or the word apply and an edited review.csv.",
            metavar="VOCABULARY...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for labels.json, review.csv and the other files; labels, or that of the review.csv."
        ),
    ] = None,
    taxonomy: Annotated[
        str,
        typer.Option(
            "--taxonomy",
            help="Label system to merge into: its JSON, a folder of an earlier merge, or WordNet's folder dict/.",
        ),
    ] = "",
    amateur: Annotated[
        Path | None,
        typer.Option("--amateur", help="Folder of an amateur, whose text tower proposes matches.", file_okay=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Merge class lists of datasets into one label system; apply takes the decisions of an edited review.csv over."""
    with reporting_errors(debug, as_json):
        from intern_vision.data.labels.embedding import amateur_embedding
        from intern_vision.data.labels.output import write_labels

        if vocabularies[0] == APPLY:
            if len(vocabularies) != 2 or taxonomy or amateur:
                given = " ".join(vocabularies[1:]) or "none"
                raise ConfigError(f"{APPLY}: expected one review.csv and no option but --out, got {given}")
            review = Path(vocabularies[1])
            inputs, out = _reviewed(review), out or review.parent
        else:
            inputs, out = _named(vocabularies, taxonomy, amateur), out or DEFAULT_OUT
        embed = amateur_embedding(Path(inputs.amateur)) if inputs.amateur else None
        out.mkdir(parents=True, exist_ok=True)
        _show_merged(write_labels(inputs, out, embed=embed), out, as_json)


@data_app.command(name="show")
def show_concept(
    concept: Annotated[str, typer.Argument(help="Id of a concept, or one of its names.")],
    labels: Annotated[
        Path, typer.Option("--labels", help="A labels.json, or the folder that intern data label wrote.")
    ] = DEFAULT_OUT,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a concept: its names, what it is, what is below it and which datasets have it."""
    with reporting_errors(debug, as_json):
        from intern_vision.data.labels.output import LABELS_FILE
        from intern_vision.data.labels.public import read_label_system

        path = labels / LABELS_FILE if labels.is_dir() else labels
        system = read_label_system(path)
        ids = (concept,) if concept in system else system.find(concept)
        if not ids:
            raise DataError(f"{path}: no concept {concept!r} among {len(system)}; give an id or another of its names")
        facts = [_facts(system, id) for id in ids]
        lines = [line for fact in facts for line in _concept_lines(fact)]
        show({"concepts": facts}, lines, as_json)


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


def _facts(system: "LabelSystem", id: str) -> dict[str, Any]:
    concept = system[id]
    return {
        "id": id,
        "names": dict(concept.names),
        "descriptions": dict(concept.descriptions),
        "visual": concept.visual,
        "common": concept.common,
        "sources": list(concept.sources),
        "parents": {parent: system[parent].name for parent in system.parents(id)},
        "path": [system[step].name for step in system.path_up(id)],
        "children": {child: system[child].name for child in system.children(id)},
        "num_ancestors": len(system.ancestors(id)),
        "num_descendants": len(system.descendants(id)),
    }


def _concept_lines(facts: dict[str, Any]) -> list[str]:
    words = {None: "unknown", True: "yes", False: "no"}
    lines = [f"{facts['id']}  {' < '.join(facts['path'])}"]
    lines += [f"  names      {code}: {', '.join(names)}" for code, names in facts["names"].items()]
    lines += [f"  meaning    {code}: {text}" for code, text in facts["descriptions"].items()]
    lines.append(f"  visual     {words[facts['visual']]}, common {words[facts['common']]}")
    lines.append(f"  datasets   {_some(facts['sources'])}")
    lines.append(f"  parents    {_some(facts['parents'].values())}; {facts['num_ancestors']} above in all")
    lines.append(f"  children   {_some(facts['children'].values())}; {facts['num_descendants']} below in all")
    return lines


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more if names else "none"
