"""``intern data shard``: a manifest to the datasets that trainings read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.errors import ConfigError
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir
from intern_vision.stage_command import reaching, run_to_ref

if TYPE_CHECKING:
    from intern_vision.ref import Ref

MEBIBYTE = 2**20


def register(app: typer.Typer) -> None:
    """Adds the command to ``intern data``."""
    app.command(name="shard")(shard)


def shard(
    manifest: Annotated[Path, typer.Argument(help="File with the Ref of a manifest.", metavar="REF")],
    out: Annotated[
        Path, typer.Option("--out", help="File for the dataset's Ref; with --by-source for the Refs of all of them.")
    ],
    source: Annotated[str, typer.Option("--source", help="Only rows of this source.")] = "",
    by_source: Annotated[
        bool, typer.Option("--by-source", help="Write a dataset for each source, as their classes differ.")
    ] = False,
    name: Annotated[
        str, typer.Option("--name", help="Name of the dataset; that of its only source, or of the manifest.")
    ] = "",
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="File with the Ref of a labelling that gives the sources' classes common names."),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            help="NUMBER, or SOURCE=NUMBER for each source with --by-source: share of a mixture with others, in "
            "the ratio of their weights.",
        ),
    ] = None,
    val_share: Annotated[float, typer.Option("--val-share", help="Share drawn as val where no row is; 0: none.")] = 0.1,
    test_share: Annotated[
        float, typer.Option("--test-share", help="Share drawn as test where no row is; 0: none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Which of the possible draws.")] = 0,
    max_shard_mib: Annotated[int, typer.Option("--max-shard-mib", min=1, help="Largest shard in MiB.")] = 64,
    override: Annotated[str, typer.Option("--override", help="Further settings as a JSON object.")] = "{}",
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the usable rows of a manifest as tar shards with an index; a killed run goes on after its last shard."""
    with reporting_errors(debug, as_json), reaching(state_dir, [manifest, labels]):
        from intern_vision.config import parse_json_object
        from intern_vision.stages.shard import Config

        if by_source and (source or name or labels):
            raise ConfigError("--by-source: every dataset has its source's name and classes; leave out the other three")
        names = _sources(manifest) if by_source else (source,)
        weights = _weights(weight or [], names if by_source else ())
        split = {"val_share": val_share, "test_share": test_share, "seed": seed}
        values = {"name": name, "split": split, "max_shard_bytes": max_shard_mib * MEBIBYTE}
        inputs = {"manifest": [manifest], "labels": [labels] if labels else []}
        refs = []
        for each in names:
            own = {"source": each, "weight": weights.get(each if by_source else "", 0.0)}
            config = Config.from_dict(values | own, at="shard")
            config = config.with_overrides(parse_json_object(override, "--override"), at="shard")
            own_out = out.with_name(f"{out.stem}-{each}{out.suffix}") if by_source else out
            refs.append(
                run_to_ref("shard", config, inputs, own_out, state_dir=state_dir, name=each or "shard", quiet=as_json)
            )
        if by_source:
            out.write_text(json.dumps([ref.to_dict() for ref in refs], indent=1) + "\n", encoding="utf-8")
        _show(refs, as_json)


def _weights(texts: list[str], sources: tuple[str, ...]) -> dict[str, float]:
    """Weight by source; of one dataset under the empty name."""
    found = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if not 0 < found[name] < float("inf") or name not in (sources or ("",)):
            form = f"one of {', '.join(sources)}, = and a number above 0" if sources else "a number above 0"
            raise ConfigError(f"--weight: expected {form}, got {text!r}")
    return found


def _sources(manifest: Path) -> tuple[str, ...]:
    from intern_vision.data.manifest_store import manifest_info
    from intern_vision.stages.base import read_ref

    if not manifest.is_file():
        raise ConfigError(f"manifest: {manifest} is no file; give the one that --out of an earlier step wrote")
    return tuple(source.name for source in manifest_info(read_ref(manifest)).sources)


def _show(refs: "list[Ref]", as_json: bool) -> None:
    from intern_vision.data.loader import load_info
    from intern_vision.store import open_store

    lines = [f"{'DATASET':20}{'TRAIN':>10}{'VAL':>10}{'TEST':>10}{'SHARDS':>8}  LICENCE"]
    found: list[dict[str, Any]] = []
    for ref in refs:
        info = load_info(open_store(ref.uri), ref.uri)
        counts = {"num_train": info.num_train, "num_val": info.num_val, "num_test": info.num_test}
        found.append(
            {"ref": ref.to_dict(), "name": info.name, **counts, "num_shards": len(info.shards), "licence": info.licence}
        )
        numbers = "".join(f"{count:>10,}" for count in counts.values())
        lines.append(f"{info.name:20}{numbers}{len(info.shards):>8}  {info.licence or 'not stated'}")
    lines += [f"dataset    {ref.uri}" for ref in refs]
    show({"datasets": found}, lines, as_json)
