"""``intern data filter``: rows of a manifest taken out by rules."""

from pathlib import Path
from typing import Annotated

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir
from intern_vision.stage_command import reaching, run_to_ref


def register(app: typer.Typer) -> None:
    """Adds the command to ``intern data``."""
    app.command(name="filter")(filter_rows)


def filter_rows(
    manifest: Annotated[Path, typer.Argument(help="File with the Ref of a manifest.", metavar="REF")],
    rule: Annotated[
        list[str],
        typer.Option(
            "--rule",
            help="text, size, score, cap, share or cluster; with settings as name:field=value,field=value or as JSON. "
            "Several are applied in their order.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the Ref of the filtered manifest.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="File with the Ref of the weights that score and cluster see with.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="File with the Ref of a labelling, whose concepts cap counts.")
    ] = None,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take rows out of a manifest by rules on captions, sizes, scores, concepts, sources and likeness."""
    with reporting_errors(debug, as_json), reaching(state_dir, [manifest, model, labels]):
        import json

        from intern_vision.data.filters.rules import parse_rule
        from intern_vision.stages.filter import FILTERS_FILE, Config
        from intern_vision.store import join_uri, open_store

        config = Config(name=out.stem, rules=tuple(map(parse_rule, rule)))
        inputs = {"manifest": [manifest], "model": [model] if model else [], "labels": [labels] if labels else []}
        ref = run_to_ref("filter", config, inputs, out, state_dir=state_dir, quiet=as_json)
        rules = json.loads(open_store(ref.uri).read(join_uri(ref.uri, FILTERS_FILE)))
        lines = [f"{'RULE':10}{'IN':>12}{'OUT':>12}  FIRST TAKEN OUT"]
        lines += [
            f"{done['rule']:10}{done['num_in']:>12,}{done['num_out']:>12,}  {', '.join(done['examples'][:3])}".rstrip()
            for done in rules
        ]
        lines += [f"manifest   {ref.uri}", f"next       intern data show {out} --status removed"]
        show({"ref": ref.to_dict(), "rules": rules}, lines, as_json)
