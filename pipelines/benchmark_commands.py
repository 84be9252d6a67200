"""``intern benchmark``: a model and a baseline on many datasets, and the published lists of its protocols."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.errors import ConfigError, InternError
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir

DEFAULT_MODEL = "models:/intern-generalist@candidate"
PIPELINE = "benchmark"
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder with a folder a dataset; the made world's sets without it.")
]
Datasets = Annotated[str, typer.Option("--datasets", help="Names with commas between them; all without it.")]


def register(app: typer.Typer) -> None:
    """Adds ``intern benchmark`` and ``intern benchmark splits``."""
    group = typer.Typer(invoke_without_command=True, no_args_is_help=False)
    group.callback()(benchmark)
    group.command()(splits)
    app.add_typer(group, name=PIPELINE)


def benchmark(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Registered model, or weights on the store.")] = DEFAULT_MODEL,
    data_root: DataRoot = None,
    datasets: Datasets = "",
    protocol: Annotated[
        str, typer.Option("--protocol", help="Such as 10%,100%,10%+ft,4shot,knn,zero-shot.")
    ] = "10%,100%",
    baseline: Annotated[
        str, typer.Option("--baseline", help="Model compared with: a registered one, or a file of public weights.")
    ] = "",
    baseline_architecture: Annotated[
        str, typer.Option("--baseline-architecture", help="Of such a file, for example clip_rn50x16.")
    ] = "",
    gate: Annotated[
        str, typer.Option("--gate", help="JSON object of what the model must reach to become the champion.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Name of the run.")] = PIPELINE,
    preset: Annotated[str, typer.Option("--preset", help="Its settings of adaptation and scoring.")] = "nano",
    override: Annotated[str, typer.Option("--override", help="JSON object of changes to the preset.")] = "",
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Refuse (or accept) changed settings.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the embedded servers running.")] = False,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score a model on the 26 datasets of GV-B that are in a folder, or on the made world's; one table."""
    if context.invoked_subcommand:
        return
    from intern_pipelines.runner import check_run_name, run_pipeline
    from intern_vision import benchmark as library
    from intern_vision.presets import resolve

    with reporting_errors(debug, as_json):
        check_run_name(name)
        config = resolve(preset, override)
        root = str(data_root.absolute()) if data_root else ""
        protocols = library.parse_protocols(protocol)
        selected = library.selected_sets(config, datasets, root)
        library.present_sets(selected, root)
        arguments = {
            "model": model,
            "baseline": _baseline(baseline, baseline_architecture),
            "architecture": baseline_architecture,
            "data_root": root,
            "datasets": ",".join(selected),
            "protocols": ",".join(protocols),
            "preset": preset,
            "overrides": override,
            "gate": _gate(gate),
        }
        # Further datasets and protocols may be added to a run: what is committed is taken from the store.
        identity = {"adapt": config.adapt.to_dict(), "model": model, "baseline": arguments["baseline"]}
        local_run = run_pipeline(
            PIPELINE,
            name,
            arguments,
            identity,
            state_dir=state_dir,
            num_ranks=1,
            resume=resume,
            keep=keep,
            quiet=as_json,
        )
        value, lines = _summary(local_run)
        show(value, lines, as_json)
    # For machines the failure is in the table's gaps, so nothing more is printed to standard output.
    with reporting_errors(debug):
        _raise_failed(value["table"]["gaps"])


def splits(
    verify: Annotated[bool, typer.Option("--verify", help="Recompute and compare with the published digests.")] = False,
    data_root: DataRoot = None,
    datasets: Datasets = "",
    write: Annotated[bool, typer.Option("--write", help="Fill in the digests that are unpublished.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="File to write to; the package's own without it.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show, recompute or fill in the digests of the lists of images that each protocol uses."""
    from intern_vision.bench import splits as library

    with reporting_errors(debug, as_json):
        names = tuple(name.strip() for name in datasets.split(",") if name.strip())
        published = library.read_splits()
        wanted = library.selected_rows(published, names)
        found = library.compute(wanted, data_root) if verify or write else wanted
        lines = library.to_lines(found, published)
        if verify:
            library.check(published, found)
        if write:
            target = out or library.SPLITS_PATH
            target.write_text(library.to_text(library.merged(published, found)), encoding="utf-8")
            lines.append(f"written    {target}")
        show({"splits": [row.to_dict() for row in found]}, lines, as_json)


def _gate(gate: str) -> str:
    """The gate as it was given, after its fields were checked."""
    from intern_vision.config import parse_json_object
    from intern_vision.promotion import Gate

    if gate:
        Gate.from_dict(parse_json_object(gate, "--gate"))
    return gate


def _baseline(baseline: str, architecture: str) -> str:
    """The baseline as the steps need it: a file by its whole path."""
    if not baseline or baseline.startswith(("models:/", "s3://", "file://")):
        if architecture:
            raise ConfigError("--baseline-architecture: is for a file of weights; give --baseline FILE or leave it out")
        return baseline
    path = Path(baseline)
    if not path.is_file():
        raise ConfigError(f"--baseline: {path} is no file; give models:/NAME@ALIAS or the path of downloaded weights")
    return str(path.absolute())


def _summary(local_run: Any) -> tuple[dict[str, Any], list[str]]:
    """The table and where the report lies."""
    from intern_pipelines.commands import printable

    report, table, text = local_run.results(("report.html", "table.json", "table.txt"), "report")
    lines = [printable(text), "", f"report     {report}"]
    return {"report": str(report), "table": json.loads(table.read_text())}, lines


def _raise_failed(gaps: list[dict[str, Any]]) -> None:
    """After the table is shown, ends with the code of the first failure, so that a script notices it."""
    failed = [gap for gap in gaps if gap["status"] == "failed"]
    if failed:
        kind = ConfigError if failed[0]["exit_code"] == ConfigError.exit_code else InternError
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise kind(f"{failed[0]['dataset']}: {failed[0]['text']}{more}; the other datasets are in the table")
