"""``intern data dedup``: duplicates out of a manifest, and what benchmark sets have too."""

from pathlib import Path
from typing import Annotated, Any

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir
from intern_vision.stage_command import reaching, run_to_ref


def register(app: typer.Typer) -> None:
    """Adds the command to ``intern data``."""
    app.command(name="dedup")(dedup)


def dedup(
    manifest: Annotated[Path, typer.Argument(help="File with the Ref of a manifest.", metavar="REF")],
    out: Annotated[Path, typer.Option("--out", help="File for the Ref of the manifest that remains.")],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="File with the Ref of a prepared dataset or manifest to share no image with."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="File with the Ref of weights: neighbours of their image vectors count too."),
    ] = None,
    measure: Annotated[
        int, typer.Option("--measure", min=0, help="Images on which recall and false positives are measured.")
    ] = 0,
    override: Annotated[str, typer.Option("--override", help="Further settings as a JSON object.")] = "{}",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Keep one image of each group of duplicates, and none that the sets given with --against have."""
    with reporting_errors(debug, as_json), reaching(state_dir, [manifest, *(against or []), model]):
        from intern_vision.config import parse_json_object
        from intern_vision.stages.base import read_record
        from intern_vision.stages.dedup import Config
        from intern_vision.store import open_store

        config = Config(name=out.stem, num_measured=measure).with_overrides(
            parse_json_object(override, "--override"), at="dedup"
        )
        inputs = {"manifest": [manifest], "against": against or [], "model": [model] if model else []}
        ref = run_to_ref("dedup", config, inputs, out, state_dir=state_dir, quiet=as_json)
        store = open_store(ref.uri)
        facts = read_record(store, ref.uri).facts
        leaks = _leaks(store, ref.uri)
        show({"ref": ref.to_dict(), **facts, "leaks": leaks}, _lines(facts, leaks, ref.uri), as_json)


def _leaks(store: Any, uri: str) -> list[dict[str, Any]]:
    import json

    from intern_vision.data.duplicates.removal import LEAKS_FILE
    from intern_vision.store import join_uri

    return json.loads(store.read(join_uri(uri, LEAKS_FILE)))


def _lines(facts: dict[str, Any], leaks: list[dict[str, Any]], uri: str) -> list[str]:
    num_left = facts["num_in"] - facts["num_duplicate"] - facts["num_leak"] - facts["num_unreadable"]
    lines = [f"{num_left} of {facts['num_in']} images left"]
    conflicts = f", {facts['num_conflicts']} of them with other labels" if facts["num_conflicts"] else ""
    lines.append(f"duplicates {facts['num_duplicate']} in {facts['num_groups']} groups{conflicts}")
    lines.append(f"leaks      {facts['num_leak']}")
    if leaks:
        width = max(len(_set_name(leak)) for leak in leaks)
        lines.append(f"           {'set':<{width}}  {'images':>8}  {'leaks':>6}  by method")
    for leak in leaks:
        methods = ", ".join(f"{count} {method}" for method, count in sorted(leak["by_method"].items())) or "none"
        numbers = f"{leak['num_images']:>8}  {leak['num_leaks']:>6}"
        lines.append(f"           {_set_name(leak):<{width}}  {numbers}  {methods}")
    for fact, words in (("num_unreadable", "unreadable"), ("num_plain", "too plain"), ("num_crowded", "crowded")):
        if facts[fact]:
            lines.append(f"{words:<10} {facts[fact]}")
    return [*lines, f"manifest   {uri}"]


def _set_name(leak: dict[str, Any]) -> str:
    return f"{leak['dataset']}/{leak['split']}" if leak["split"] else leak["dataset"]
