"""``intern data run``: the data pipeline on this machine, from folders to a dataset and a page about it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from intern_vision.config import parse_json_object, text_digest
from intern_vision.console import reporting_errors, show
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir

PIPELINE = "data"
PAGE, SUMMARY = "report.html", "summary.json"


def register(data_app: typer.Typer) -> None:
    """Adds the command to ``intern data``."""
    data_app.command(name="run")(run)


def run(
    sources: Annotated[
        list[str],
        typer.Argument(help="Folders, archives or lists, on this machine or at s3:// addresses.", metavar="SOURCE..."),
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the dataset's Ref, or a list of Refs with --by-source.")],
    report: Annotated[Path | None, typer.Option("--report", help="Folder that the page is copied to as well.")] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against", help="File with the Ref of a benchmark set, whose images must not be in the dataset."
        ),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option("--rule", help="Rule of the filter, for example size:min_px=64; in this order.")
    ] = None,
    layout: Annotated[list[str] | None, typer.Option("--layout", help="As of intern data ingest.")] = None,
    name: Annotated[list[str] | None, typer.Option("--name", help="As of intern data ingest.")] = None,
    licence: Annotated[list[str] | None, typer.Option("--licence", help="As of intern data ingest.")] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="As of intern data ingest.")] = None,
    model: Annotated[
        str,
        typer.Option("--model", help="Weights for embeddings, image-text scores and proposals: models:/NAME@ALIAS."),
    ] = "",
    amateur: Annotated[
        str, typer.Option("--amateur", help="Amateur whose text tower proposes matches of class names: likewise.")
    ] = "",
    question: Annotated[
        str, typer.Option("--question", help="label or box: what people are to verify of images without labels.")
    ] = "",
    by_source: Annotated[
        bool, typer.Option("--by-source", help="A dataset a source, for sources that differ.")
    ] = False,
    override: Annotated[
        str, typer.Option("--override", help='JSON object of the stages\' settings: {"shard": {"name": "birds"}}.')
    ] = "",
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Refuse (or accept) a changed config.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the embedded servers running.")] = False,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a dataset of sources as a pipeline: ingest, duplicates and leaks out, label, filter, shard, report."""
    with reporting_errors(debug, as_json):
        from intern_pipelines.runner import check_run_name, run_pipeline
        from intern_vision.ingest_commands import source_settings

        run_name = f"{PIPELINE}-{out.stem}"
        check_run_name(run_name)
        given = source_settings(sources, {"layout": layout, "name": name, "licence": licence, "split": split})
        arguments = {
            "sources": json.dumps(given),
            "against": json.dumps(_addresses(against or ())),
            "rules": json.dumps(rule or []),
            "model": model,
            "amateur": amateur,
            "question": question,
            "settings": json.dumps(_settings(override, out.stem, given, by_source)),
        }
        local_run = run_pipeline(
            PIPELINE,
            run_name,
            arguments,
            arguments | {"settings": parse_json_object(override, "--override") if override.strip() else {}},
            state_dir=state_dir,
            num_ranks=1,
            resume=resume,
            keep=keep,
            quiet=as_json,
        )
        tasks = _tasks(local_run, out.with_name(f"{out.stem}-tasks")) if question else []
        value, lines = _summary(local_run, out, report, tasks)
        show(value, lines, as_json)


def _settings(override: str, name: str, sources: Sequence[dict[str, Any]], by_source: bool) -> dict[str, Any]:
    """The stages' settings: what the command knows under those of the person."""
    from intern_vision.address import listing_digest

    own = parse_json_object(override, "--override") if override.strip() else {}
    local = [Path(source["uri"]) for source in sources if "://" not in source["uri"]]
    # Files that changed are looked at again; where none did, an interrupted run goes on where it was.
    version = text_digest("".join(listing_digest(path) for path in local if path.exists()))
    given: dict[str, Any] = {"ingest": {"name": name, "version": version}}
    if by_source:
        given["shard"] = {"by_source": True}
    return own | {stage: values | own.get(stage, {}) for stage, values in given.items()}


def _addresses(files: Sequence[Path]) -> list[str]:
    from intern_vision.stage_command import read_ref_file

    return [ref.uri for path in files for ref in read_ref_file(path, "--against")]


def _tasks(local_run: Any, folder: Path) -> list[Path]:
    """The tasks for people that the run's questions came to, copied into a folder."""
    from intern_vision.data.annotation.files import LABELLING_FILE, TASKS_FILE

    folder.mkdir(parents=True, exist_ok=True)
    found = local_run.results((TASKS_FILE, LABELLING_FILE), "annotate")
    return [Path(shutil.copyfile(path, folder / path.name)) for path in found]


def _summary(local_run: Any, out: Path, report: Path | None, tasks: list[Path]) -> tuple[dict[str, Any], list[str]]:
    from intern_vision.data.summary import ManifestSummary
    from intern_vision.stages.base import read_refs

    refs = local_run.run_dir / "refs" / "shard.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(refs, out)
    page, summary_path = local_run.results((PAGE, SUMMARY), "data_report")
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        page = Path(shutil.copyfile(page, report / PAGE))
    summary = ManifestSummary.from_json(summary_path.read_text(encoding="utf-8"), at=str(summary_path))
    statuses = summary.total("statuses")
    reasons = ", ".join(f"{item.num_rows} {item.kind}" for item in summary.reasons)
    datasets = read_refs(out)
    lines = [f"images     {statuses.get('ok', 0)} of {sum(statuses.values())} usable"]
    lines += [f"taken out  {reasons}"] if reasons else []
    lines += [f"dataset    {ref.name}: {ref.uri}" for ref in datasets]
    lines += [f"{path.name:10} {path}" for path in tasks]
    lines += [f"report     {page}", f"Refs       {refs.parent}"]
    value = {"report": str(page), "datasets": [ref.to_dict() for ref in datasets], "summary": summary.to_dict()}
    value["tasks"] = list(map(str, tasks))
    return value, lines
