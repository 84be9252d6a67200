"""``intern data annotate``: which images people should look at next, and what their answers come to."""

from pathlib import Path
from typing import Annotated, Any

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.errors import ConfigError
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir
from intern_vision.stage_command import reaching, run_to_ref


def register(app: typer.Typer) -> None:
    """Adds the command to ``intern data``."""
    app.command(name="annotate")(annotate)


def annotate(
    manifest: Annotated[
        Path,
        typer.Argument(
            help="File with the Ref of a manifest; with --answers that of the round the answers are to.", metavar="REF"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the Ref of the resulting manifest.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="File with the Ref of weights, which propose answers.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="File with the Ref of a label system: images count for the concepts above."),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option("--answers", help="JSON export of Label Studio to take up; may be given more than once."),
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", help="Folder for tasks.json and labelling.xml; <--out without suffix>-tasks if empty."),
    ] = None,
    question: Annotated[str, typer.Option("--question", help="label or box: what annotators verify.")] = "label",
    num_tasks: Annotated[int, typer.Option("--num-tasks", min=1, help="Images to ask about.")] = 500,
    override: Annotated[str, typer.Option("--override", help="Further settings as a JSON object.")] = "{}",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose images that people should look at, as Label Studio tasks; or take the answers up into the manifest."""
    with reporting_errors(debug, as_json), reaching(state_dir, [manifest, model, labels]):
        from intern_vision.config import parse_json_object
        from intern_vision.stages.annotate import Config
        from intern_vision.stages.base import read_record
        from intern_vision.store import open_store

        if bool(model) == bool(answers):
            raise ConfigError("annotate: give --model to ask, or --answers to take answers up, and not both")
        values: dict[str, Any] = {"name": out.stem, "question": question, "selection": {"num_tasks": num_tasks}}
        values["answers"] = [_answer_file(path) for path in answers or ()]
        config = Config.from_dict(values, at="annotate").with_overrides(
            parse_json_object(override, "--override"), at="annotate"
        )
        inputs = {"manifest": [manifest]}
        if not answers:
            inputs |= {name: [path] for name, path in (("model", model), ("labels", labels)) if path}
        ref = run_to_ref("annotate", config, inputs, out, state_dir=state_dir, quiet=as_json)
        folder = tasks or out.with_name(f"{out.stem}-tasks")
        copied = copy_tasks(ref.uri, folder)
        facts = read_record(open_store(ref.uri), ref.uri).facts
        lines = [_answered(facts) if answers else _asked(facts), f"manifest   {ref.uri}"]
        lines += [f"{path.name:10} {path}" for path in copied]
        show({"ref": ref.to_dict(), "tasks": str(folder), **facts}, lines, as_json)


def _answer_file(path: Path) -> dict[str, str]:
    from intern_vision.store import file_sha256

    if not path.is_file():
        raise ConfigError(f"--answers: {path} is no file; give a JSON export of Label Studio")
    return {"uri": f"file://{path.absolute()}", "sha256": file_sha256(path)}


def copy_tasks(uri: str, folder: Path) -> list[Path]:
    """Brings what a person uploads from the store to a local folder; gives the paths."""
    from intern_vision.data.annotation.files import LABELLING_FILE, TASKS_FILE
    from intern_vision.stages.base import read_record
    from intern_vision.store import join_uri, open_store

    store = open_store(uri)
    files = read_record(store, uri).files
    paths = []
    for name in (TASKS_FILE, LABELLING_FILE):
        store.get(join_uri(uri, name), folder / name, sha256=files[name])
        paths.append(folder / name)
    return paths


def _asked(facts: dict[str, Any]) -> str:
    from intern_vision.data.annotation.rectify import KINDS

    outside = ", ".join(f"{facts[f'num_{kind}']} {kind.replace('_', ' ')}" for kind in KINDS)
    return f"{facts['num_asked']} of {facts['num_pool']} pool images to ask about; taken out: {outside}"


def _answered(facts: dict[str, Any]) -> str:
    kinds = ("labelled", "rejected", "unsure", "disputed", "open")
    kappa = f"; Fleiss' kappa {facts['fleiss_kappa']:.2f}" if "fleiss_kappa" in facts else ""
    return ", ".join(f"{facts[f'num_{kind}']} {kind}" for kind in kinds) + kappa
