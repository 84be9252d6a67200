"""``intern data ingest``: images and labels as they are, to a manifest."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.data.ingest import AUTO, LAYOUTS
from intern_vision.errors import ConfigError
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir
from intern_vision.stage_command import reaching, run_to_ref

_ONE_OR_EACH = "Once for all sources, or once for each in their order."


def register(app: typer.Typer) -> None:
    """Adds the command to ``intern data``."""
    app.command(name="ingest")(ingest)


def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders, archives or files with lists, on this machine or at s3:// addresses.", metavar="SOURCE..."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="File for the manifest's Ref; where it exists, only new and failed images are opened."
        ),
    ],
    layout: Annotated[
        list[str] | None, typer.Option("--layout", help=f"{AUTO}, {', '.join(LAYOUTS)}. {_ONE_OR_EACH}")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="What rows call their source, one a source; else its file name.")
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option("--licence", help=f"Licence of images that state none. {_ONE_OR_EACH}")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help=f"train, val or test, for images in none. {_ONE_OR_EACH}")
    ] = None,
    private_urls: Annotated[
        bool, typer.Option("--private-urls", help="Take addresses of this machine and the local network too.")
    ] = False,
    afresh: Annotated[bool, typer.Option("--afresh", help="Open every image, whatever --out holds.")] = False,
    override: Annotated[str, typer.Option("--override", help="Further settings as a JSON object.")] = "{}",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take images and their labels up into a manifest; what cannot be used is set apart with its reason."""
    with reporting_errors(debug, as_json), reaching(state_dir, [out]):
        from intern_vision.config import parse_json_object, text_digest
        from intern_vision.stages.base import read_record
        from intern_vision.stages.ingest import Config
        from intern_vision.store import open_store

        given = source_settings(sources, {"layout": layout, "name": name, "licence": licence, "split": split})
        attempt = state_dir / "ingest" / f"{text_digest(f'{out.absolute()} {afresh}')[:16]}.txt"
        values = {"name": out.stem, "sources": given, "version": _version(attempt)}
        config = Config.from_dict({**values, "fetch": {"private_urls": private_urls}}, at="ingest")
        config = config.with_overrides(parse_json_object(override, "--override"), at="ingest")
        attempt.parent.mkdir(parents=True, exist_ok=True)
        attempt.write_text(config.version, encoding="utf-8")
        inputs = {"manifest": [out] if out.is_file() and not afresh else []}
        ref = run_to_ref("ingest", config, inputs, out, state_dir=state_dir, quiet=as_json)
        attempt.unlink()
        facts = read_record(open_store(ref.uri), ref.uri).facts
        lines = [
            f"{facts['num_ok']} of {facts['num_rows']} images usable, {facts['num_taken_over']} as before",
            f"manifest   {ref.uri}",
        ]
        if facts["num_quarantined"]:
            lines.append(f"next       intern data show {out} --status quarantined")
        show({"ref": ref.to_dict(), **facts}, lines, as_json)


def source_settings(sources: Sequence[str], fields: Mapping[str, Sequence[str] | None]) -> list[dict[str, Any]]:
    """The sources as the stage takes them; local paths are made absolute.

    Args:
        sources: paths and addresses.
        fields: values of options by field, one for all sources or one a source.

    Raises:
        ConfigError: another number of values.
    """
    given = {field: _each(field, values or [], len(sources)) for field, values in fields.items()}
    return [
        {"uri": _address(uri), **{field: values[index] for field, values in given.items() if values}}
        for index, uri in enumerate(sources)
    ]


def _version(attempt: Path) -> str:
    """That of an attempt which was interrupted, else a new one: sources may have changed since the last ingest."""
    return attempt.read_text(encoding="utf-8") if attempt.is_file() else str(time.time_ns())


def _each(field: str, values: Sequence[str], num_sources: int) -> list[str]:
    """A value for every source; empty where none was given."""
    if len(values) not in (0, 1, num_sources) or (field == "name" and values and len(values) != num_sources):
        expected = f"{num_sources}" if field == "name" else f"1 or {num_sources}"
        raise ConfigError(f"--{field}: expected {expected} for {num_sources} sources, got {len(values)}")
    return list(values) * num_sources if len(values) == 1 else list(values)


def _address(uri: str) -> str:
    """The address, a local path made absolute."""
    return uri if "://" in uri else str(Path(uri).absolute())
