"""Commands on data that need no pipeline: ``intern data label`` and ``intern data show``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intern_vision import (
    annotate_commands,
    data_report_commands,
    dedup_commands,
    filter_commands,
    ingest_commands,
    shard_commands,
)
from intern_vision.console import reporting_errors, show
from intern_vision.errors import ConfigError, DataError
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir
from intern_vision.stage_command import reaching

if TYPE_CHECKING:
    from intern_vision.data.labels.concept import LabelSystem

DEFAULT_OUT = Path("labels")
MAX_SHOWN = 12
"""Children and datasets listed of a concept; the rest is counted."""

data_app = typer.Typer(help="Prepare data: merge label vocabularies and look at what came of it.", no_args_is_help=True)


@data_app.command(name="label")
def label(
    vocabularies: Annotated[
        list[str],
        typer.Argument(
            help="Shipped class lists and files (a class name a line, or JSON), in the order they are merged in; "
            "a file with a manifest's Ref, whose rows get their concepts; or the word apply and an edited review.csv.",
            metavar="VOCABULARY...",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for labels.json, review.csv and the other files; labels, or that of the review.csv. "
            "Of a manifest: file for the new one's Ref.",
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
        typer.Option(
            "--amateur", help="Folder of an amateur (for a manifest, file with its Ref), whose text tower helps."
        ),
    ] = None,
    review: Annotated[
        Path | None, typer.Option("--review", help="Edited review.csv of an earlier labelling of the same manifest.")
    ] = None,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Merge class lists of datasets into one label system; apply takes the decisions of an edited review.csv over."""
    with reporting_errors(debug, as_json):
        from intern_vision.label_commands import label_lists, label_manifest, manifest_ref

        manifests = [path for path in map(manifest_ref, vocabularies) if path]
        if len(manifests) > 1:
            raise ConfigError(f"label: expected one manifest, got {', '.join(map(str, manifests))}; ingest into one")
        if review and not manifests:
            raise ConfigError(f"--review: goes with a manifest; without one, the words are apply {review}")
        if not manifests:
            label_lists(vocabularies, out, taxonomy=taxonomy, amateur=amateur, as_json=as_json)
            return
        names = [name for name in vocabularies if Path(name) != manifests[0]]
        settings = {"taxonomy": taxonomy, "amateur": amateur, "review": review, "state_dir": state_dir}
        with reaching(state_dir, [manifests[0], amateur]):
            label_manifest(manifests[0], names, out, **settings, as_json=as_json)


@data_app.command(name="show")
def show_concept(
    concept: Annotated[
        str, typer.Argument(help="Id of a concept or one of its names; or a file with the Ref of a manifest.")
    ],
    key: Annotated[str, typer.Argument(help="Key of the manifest's row to show whole; empty for some rows.")] = "",
    labels: Annotated[
        Path, typer.Option("--labels", help="A labels.json, or the folder that intern data label wrote.")
    ] = DEFAULT_OUT,
    status: Annotated[str, typer.Option("--status", help="Only rows that are ok, removed or quarantined.")] = "",
    source: Annotated[str, typer.Option("--source", help="Only rows of this source.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Only rows taken out for this kind of reason.")] = "",
    num_rows: Annotated[int, typer.Option("--num-rows", min=1, help="Rows shown at most.")] = 20,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a concept (its names, what is above and below it, which datasets have it), or rows of a manifest."""
    if Path(concept).is_file():
        with reporting_errors(debug, as_json), reaching(state_dir, [Path(concept)]):
            conditions = {"status": status, "source": source, "reason": reason}
            data_report_commands.show_rows(Path(concept), key, conditions, num_rows, as_json)
        return
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


annotate_commands.register(data_app)
data_report_commands.register(data_app)
ingest_commands.register(data_app)
filter_commands.register(data_app)
shard_commands.register(data_app)
dedup_commands.register(data_app)
