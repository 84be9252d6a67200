"""Commands that run or compile pipelines: ``intern run`` and ``compile``, and those of the modules beside this one."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from intern_pipelines import adapt_commands, benchmark_commands, cluster_commands, data_run_commands, submit_commands
from intern_vision.console import reporting_errors, show
from intern_vision.data_commands import data_app
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir, Where

Preset = Annotated[str, typer.Option("--preset", help="smoke, nano or small.")]
Override = Annotated[str, typer.Option("--override", help="JSON object of changes to the preset.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Refuse (or accept) a changed config.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the embedded servers running.")]
Ranks = Annotated[int, typer.Option("--num-ranks", min=1, help="Training processes.")]
PlatformFile = Annotated[
    Path | None,
    typer.Option("--platform", help="JSON file of a cluster's settings, see docs/compile.md.", dir_okay=False),
]
DEFAULT_RANKS = min(2, os.cpu_count() or 1)
LONGEST_TABLE = 80
"""Lines of a table that are printed whole."""


def register(app: typer.Typer) -> None:
    """Adds this module's commands; the entry point."""
    app.command()(run)
    adapt_commands.register(app)
    app.command(name="compile")(compile_)
    benchmark_commands.register(app)
    cluster_commands.register(app)
    submit_commands.register(app)
    data_run_commands.register(data_app)


def run(
    preset: Preset = "nano",
    override: Override = "",
    name: Annotated[str, typer.Option("--name", help="Name of the run; the preset's where empty.")] = "",
    where: Where = "process",
    num_ranks: Ranks = DEFAULT_RANKS,
    resume: Resume = True,
    keep: Keep = False,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run INTERN end to end on this machine: data, search, amateur, experts, generalist, adaptation, report."""
    from intern_pipelines.runner import check_run_name, run_pipeline
    from intern_vision.presets import resolve

    with reporting_errors(debug, as_json):
        config = resolve(preset, override)
        check_run_name(name or preset)
        arguments = {"preset": preset, "overrides": override}
        local_run = run_pipeline(
            "intern",
            name or preset,
            arguments,
            config.to_dict(),
            state_dir=state_dir,
            num_ranks=num_ranks,
            resume=resume,
            keep=keep,
            quiet=as_json,
            where=where,
        )
        value, lines = _summary(local_run, keep)
        show(value, lines, as_json)


def compile_(
    out: Annotated[Path, typer.Option("--out", help="Folder for the YAML files.")] = Path("compiled"),
    platform: PlatformFile = None,
    objects: Annotated[
        bool, typer.Option("--objects", help="Also write Pipeline and PipelineVersion objects, to OUT/kubernetes.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write every pipeline as YAML for a Kubeflow Pipelines cluster."""
    with reporting_errors(debug, as_json):
        from intern_pipelines.compiled import write_all
        from intern_pipelines.platform import read_platform

        written = write_all(out, read_platform(platform), objects=objects)
        show({"files": [str(path) for path in written]}, [str(path) for path in written], as_json)


def _summary(local_run: Any, keep: bool) -> tuple[dict[str, Any], list[str]]:
    """The table, where the report lies, and what to do next."""
    files = local_run.results(("report.html", "table.json", "table.txt"), "report")
    (registered_path,) = local_run.results(("registered.json",), "export")
    registered = json.loads(registered_path.read_text())
    report, table, text = files
    names = [f"{model['name']}@{model['alias']}" for model in registered]
    state = "" if str(local_run.state_dir) == str(DEFAULT_STATE) else f" --state-dir {local_run.state_dir}"
    lines = [printable(text), "", f"report     {report}"]
    lines.append(f"models     {', '.join(names) or 'none registered'}")
    up = f"intern up{' --where docker' if local_run.where == 'docker' else ''}{state}"
    lines.append(f"MLflow     {local_run.servers.mlflow_uri if keep else f'{up} shows its address'}")
    if names and local_run.where == "docker" and not keep:
        lines.append(f"servers    {up} first: what this run made lies in theirs")
    if names:
        lines.append(f"next       intern predict {names[-1]} PICTURE.jpg{state}")
        lines.append(f"           intern lineage {names[0]}{state}")
    value = {"report": str(report), "table": json.loads(table.read_text()), "models": registered}
    return value, lines


def printable(path: Path) -> str:
    """The table's text; of a long one the family means, and where the rest is."""
    from intern_vision.bench.table_text import SETS_HEADING

    text = path.read_text().rstrip()
    means, cut, _ = text.partition(SETS_HEADING)
    if not cut or len(text.splitlines()) <= LONGEST_TABLE:
        return text
    return f"{means.rstrip()}\n\nthe table by set: {path}"
