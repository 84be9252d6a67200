"""The ``intern`` command. Commands that run pipelines are added by the entry-point group ``intern_vision.commands``."""

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from intern_vision import __version__
from intern_vision.console import reporting_errors, show
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir

app = typer.Typer(
    name="intern",
    help="INTERN (arXiv 2111.08687): train a generalist vision model, adapt it with few labels, compare and serve it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Prints the version where asked."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def up(state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False) -> None:
    """Start the embedded object store and MLflow server and leave them running."""
    from intern_vision import services

    with reporting_errors(debug, as_json):
        started = services.up(state_dir, keep=True)
        addresses = {"s3": started.s3_endpoint, "store": started.store_uri, "mlflow": started.mlflow_uri}
        lines = [f"{name:7} {address}" for name, address in addresses.items()]
        show(addresses, [*lines, f"stop them with: intern down --state-dir {state_dir}"], as_json)


@app.command()
def down(state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False) -> None:
    """Stop the embedded servers; their data stays."""
    from intern_vision import services

    with reporting_errors(debug, as_json):
        stopped = services.down(state_dir)
        show({"stopped": stopped}, ["stopped" if stopped else "nothing was running"], as_json)


@app.command()
def doctor(state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check this machine and its servers; exit code 2 where something must be mended."""
    from intern_vision import services

    with reporting_errors(debug, as_json):
        checks = services.doctor(state_dir)
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
        if not check.ok and check.fix:
            lines.append(f"     fix: {check.fix}")
    results = [{"name": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix} for c in checks]
    show({"checks": results}, lines, as_json)
    if not all(check.ok for check in checks):
        raise typer.Exit(2)


@app.command()
def plan(
    preset: Annotated[str, typer.Argument(help="Name of a preset.")],
    override: Annotated[str, typer.Option("--override", help="JSON object of changes to the preset.")] = "",
    num_gpus: Annotated[int, typer.Option("--num-gpus", help="GPUs that train together.")] = 8,
    gpu_memory_gb: Annotated[float, typer.Option("--gpu-memory-gb", help="Memory of one GPU, 1e9 bytes.")] = 80.0,
    flops_per_s: Annotated[float, typer.Option("--flops-per-s", help="Peak of one GPU in bfloat16.")] = 3.12e14,
    efficiency: Annotated[float, typer.Option("--efficiency", help="Share of the peak that is reached.")] = 0.4,
    num_classes: Annotated[int, typer.Option("--num-classes", help="Labels of classification heads.")] = 1_000,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a run will cost: parameters, memory a GPU, storage, image passes, FLOPs, GPU-hours."""
    with reporting_errors(debug, as_json):
        from intern_vision.plan import Machine, plan, to_json, to_lines
        from intern_vision.presets import resolve

        machine = Machine.from_dict(
            {
                "num_gpus": num_gpus,
                "gpu_memory_gb": gpu_memory_gb,
                "flops_per_s": flops_per_s,
                "efficiency": efficiency,
                "num_classes": num_classes,
            }
        )
        rows = plan(resolve(preset, override), machine)
        show(to_json(rows), to_lines(rows, machine), as_json)


@app.command()
def models(state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the registered models with their aliases and scores."""
    from intern_vision import registry

    with reporting_errors(debug, as_json), _servers(state_dir):
        found = registry.list_models()
        lines = [f"{'NAME':26} {'VERSION':>7}  {'ALIASES':12} ERROR @ % OF THE LABELS"]
        for model in found:
            scores = {
                key.removeprefix("intern.metric.").removesuffix("/error"): float(value)
                for key, value in model.tags.items()
                if key.startswith("intern.metric.") and key.endswith("/error")
            }
            errors = ", ".join(f"{100 * error:.1f} % @{labels}" for labels, error in scores.items())
            lines.append(f"{model.name:26} {model.version:>7}  {', '.join(model.aliases):12} {errors}")
        rows = [{"name": m.name, "version": m.version, "aliases": m.aliases, "tags": m.tags} for m in found]
        show({"models": rows}, lines if found else ["no model is registered yet; try: intern run"], as_json)


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS, or an address on the store.")] = "intern-generalist",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a model was made from: images, shards, checkpoints, scores."""
    from intern_vision import registry
    from intern_vision.lineage import render_text, trace
    from intern_vision.store import open_store

    with reporting_errors(debug, as_json), _servers(state_dir):
        uri = registry.weights_uri(model)
        traced = trace(open_store(uri), uri)
        nodes = [{"uri": n.uri, "name": n.name, "stage": n.stage, "facts": n.facts} for n in traced.nodes.values()]
        show({"uri": traced.uri, "nodes": nodes, "edges": traced.edges}, [render_text(traced)], as_json)


@app.command()
def table(
    runs: Annotated[list[str], typer.Argument(help="Names of finished runs, or paths of their folders or table.json.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for seeds.json, seeds.txt and seeds.html; without it nothing is written."),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare runs that differ in their seeds: mean, standard deviation and every value of each error and reduction."""
    with reporting_errors(debug, as_json):
        from intern_vision.bench import seeds

        joined = seeds.combine(seeds.read_tables(runs, state_dir))
        text = seeds.render_text(joined)
        lines = [text.rstrip()]
        if out is not None:
            files = {"seeds.json": joined.to_json(), "seeds.txt": text, "seeds.html": seeds.render_page(joined)}
            out.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (out / name).write_text(content, encoding="utf-8")
            lines += ["", f"page       {out / 'seeds.html'}"]
        show(joined.to_dict(), lines, as_json)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="NAME or NAME@ALIAS of a registered model.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures with the answer drawn on them.")] = Path(
        "predictions"
    ),
    head: Annotated[str, typer.Option("--head", help="One head of the generalist; empty for all.")] = "",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Ask a registered model about pictures and draw its answers."""
    with reporting_errors(debug, as_json), _servers(state_dir):
        from intern_vision.predict import predict_files

        rows = predict_files(model, images, out, head or None)
        lines = [f"{row['image']} {row['head']}: {row['text']} -> {row['drawn']}" for row in rows]
        show({"predictions": rows}, lines, as_json)


class _servers:  # noqa: N801 - reads as a phrase
    """The embedded servers for the length of a command, with their addresses in the environment."""

    def __init__(self, state_dir: Path) -> None:
        from intern_vision import services

        self._running = services.running(state_dir)

    def __enter__(self) -> None:
        os.environ.update(self._running.__enter__().environment())

    def __exit__(self, *exc: object) -> None:
        self._running.__exit__(*exc)


def _add_commands() -> None:
    for entry in sorted(entry_points(group="intern_vision.commands"), key=lambda entry: entry.name):
        entry.load()(app)


_add_commands()


def app_main() -> None:
    """Runs the command line."""
    app()
