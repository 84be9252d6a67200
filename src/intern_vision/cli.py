"""The ``intern`` command. Commands that run pipelines are added by the entry-point group ``intern_vision.commands``."""

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from intern_vision import __version__
from intern_vision.console import reporting_errors, show, show_checks
from intern_vision.data_commands import data_app
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir, Where

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
def up(
    where: Where = "process", state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Start the embedded object store and MLflow server and leave them running."""
    from intern_vision import containers, services

    with reporting_errors(debug, as_json):
        started = containers.up(state_dir) if where == "docker" else services.up(state_dir, keep=True)
        addresses = {"s3": started.s3_endpoint, "store": started.store_uri, "mlflow": started.mlflow_uri}
        lines = [f"{name:7} {address}" for name, address in addresses.items()]
        how = f"intern down{' --where docker' if where == 'docker' else ''} --state-dir {state_dir}"
        show(addresses, [*lines, f"stop them with: {how}"], as_json)


@app.command()
def down(
    where: Where = "process", state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Stop the embedded servers; their data stays."""
    from intern_vision import containers, services

    with reporting_errors(debug, as_json):
        stopped = containers.down(state_dir) if where == "docker" else services.down(state_dir)
        show({"stopped": stopped}, ["stopped" if stopped else "nothing was running"], as_json)


@app.command()
def doctor(state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check this machine and its servers; exit code 2 where something must be mended."""
    from intern_vision import services

    with reporting_errors(debug, as_json):
        checks = services.doctor(state_dir)
    show_checks(checks, as_json)


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
    images: Annotated[
        list[str], typer.Argument(help="Pictures: files, folders, http(s):// or s3:// addresses.", metavar="IMAGES...")
    ],
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


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="NAME or NAME@ALIAS of a registered model.")],
    port: Annotated[int, typer.Option("--port", help="Port to listen at; 0 takes a free one.")] = 5010,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen at; any other than this one opens the model to the network."),
    ] = "127.0.0.1",
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", help="What rows may name: urls (the default), private_urls, s3, files or none."),
    ] = None,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Answer JSON over HTTP with a registered model, until Ctrl-C."""
    with reporting_errors(debug, as_json):
        from intern_vision import registry
        from intern_vision import serve as serving

        serving.allow(allow or [])
        held = serving.bind(host, port)
        with _servers(state_dir):
            found = registry.find_model(*registry.split_name(model))
            loaded = registry.load_model(found)

        def ready(address: str) -> None:
            lines = [f"{found.name} version {found.version} answers at {address}; Ctrl-C ends it"]
            if serving.is_open(held):
                lines.append("there is no login: whoever reaches that address can ask it")
            lines += ["ask it:", f"  {serving.curl_line(address)}"]
            show({"url": address, "model": found.name, "version": found.version}, lines, as_json)
            sys.stdout.flush()

        serving.run(loaded, held, ready)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="NAME or NAME@ALIAS of a registered model, or a store address.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="File to write, for example model.onnx.", dir_okay=False)],
    head: Annotated[str, typer.Option("--head", help="One head of the generalist; empty for all.")] = "",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a model as ONNX, compared with itself under onnxruntime."""
    with reporting_errors(debug, as_json), _servers(state_dir):
        from intern_vision.models.onnx_export import export_onnx
        from intern_vision.predict import load_weights

        written = export_onnx(load_weights(model), onnx, head)
        shapes = {name: list(shape) for name, shape in written.outputs.items()}
        size = f"{written.num_bytes / 1e6:.1f} MB, operator set {written.opset}"
        lines = [f"{onnx}: {size}, within {written.max_difference:.1g} of torch on random images"]
        lines.append(f"  image_BCHW: uint8, B x 3 x {written.image_size_px} x {written.image_size_px}")
        lines += [f"  {name}: float32, {' x '.join(map(str, ['B', *shape]))}" for name, shape in shapes.items()]
        facts = {"opset": written.opset, "num_bytes": written.num_bytes, "max_difference": written.max_difference}
        show({"path": str(onnx), "outputs": shapes} | facts, lines, as_json)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="NAME or NAME@ALIAS of a registered model; NAME means its candidate.")],
    baseline: Annotated[
        str, typer.Option("--baseline", help="NAME@ALIAS to compare with; empty for NAME@champion, if there is one.")
    ] = "",
    gate: Annotated[
        str,
        typer.Option("--gate", help='JSON: {"tolerance": 0.01, "minimum": {"10/top1": 0.9}, "maximum": {}}.'),
    ] = "{}",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a version the champion of its name where its scores pass the gate; exit code 2 where one falls short."""
    with reporting_errors(debug, as_json), _servers(state_dir):
        from intern_vision import promotion

        verdict = promotion.promote(model, promotion.Gate.from_json(gate, at="gate"), baseline=baseline)
        promotion.check_passed(verdict)
        show(verdict.to_dict(), [verdict.to_line()], as_json)


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


app.add_typer(data_app, name="data")
_add_commands()


def app_main() -> None:
    """Runs the command line."""
    app()
