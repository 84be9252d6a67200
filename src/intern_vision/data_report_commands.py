"""Commands that look at manifests: ``intern data report``, ``stats`` and the rows of ``show``."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intern_vision.console import reporting_errors, show
from intern_vision.errors import DataError
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir
from intern_vision.stage_command import reaching, read_ref_file, run_to_ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from intern_vision.data.manifest import ManifestInfo
    from intern_vision.data.summary import ManifestSummary

STAGE = "data_report"
REF_FILE = "ref.json"
MAX_NAMES = 12
"""Classes and concepts listed by stats; the rest is counted."""
RefFile = Annotated[Path, typer.Argument(help="File with the Ref of a manifest, or of a dataset made of one.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(name="report")(report)
    app.command(name="stats")(stats)


def report(
    ref: RefFile,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html, summary.json and the report's Ref.")],
    title: Annotated[str, typer.Option("--title", help="Heading; the manifest's name where empty.")] = "",
    num_images: Annotated[int, typer.Option("--num-images", help="Pictures of each source, concept and reason.")] = 6,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a page about a manifest: steps, samples, duplicates, leaks, filters, licences and what was taken out."""
    with reporting_errors(debug, as_json), reaching(state_dir, [ref]):
        from intern_vision.stages.data_report import REPORT_FILE, SUMMARY_FILE, Config
        from intern_vision.store import join_uri, open_store

        config = Config.from_dict({"title": title, "num_images": num_images}, at=STAGE)
        made = run_to_ref(STAGE, config, {"manifest": [ref]}, out / REF_FILE, state_dir=state_dir, quiet=as_json)
        for name in (REPORT_FILE, SUMMARY_FILE):
            open_store(made.uri).get(join_uri(made.uri, name), out / name)
        page = out / REPORT_FILE
        show({"report": str(page), "ref": made.to_dict()}, [f"report     {page}"], as_json)


def stats(ref: RefFile, state_dir: StateDir = DEFAULT_STATE, as_json: AsJson = False, debug: Debug = False) -> None:
    """Count a manifest's rows by source, licence, split, annotation and the reason they were taken out for."""
    with reporting_errors(debug, as_json), reaching(state_dir, [ref]), opened(ref) as found:
        from intern_vision.data.summary import summarise

        summary = summarise(found.table)
        value = {"manifest": found.info.to_dict(), "summary": summary.to_dict()}
        value["concept_names"] = found.names(item.name for item in summary.names if item.by == "concept")
        show(value, stats_lines(found.info, summary, value["concept_names"]), as_json)


def show_rows(ref: Path, key: str, conditions: dict[str, str], num_rows: int, as_json: bool) -> None:
    """Prints rows of a manifest, or all that is known of one.

    Args:
        ref: file with the manifest's Ref.
        key: the row's key; empty for rows that fulfil the conditions.
        conditions: values by column, for ``intern_vision.data.summary.find_rows``.
        num_rows: at most.
        as_json: print one JSON object.

    Raises:
        DataError: there is no such row.
    """
    with opened(ref) as found:
        from intern_vision.data.summary import find_rows

        rows, info = find_rows(found.table, key=key, num_rows=num_rows, **conditions), found.info
        names = found.names(id for row in rows for id in row["concepts"] or ())
    wanted = " ".join(f"{name} {value}" for name, value in ({"key": key} | conditions).items() if value)
    if not rows and wanted:
        raise DataError(f"{ref}: no row with {wanted} among {info.num_rows}; intern data stats {ref} counts them")
    lines = _row_lines(rows[0], names) if key and rows else _table_lines(rows, info.num_rows)
    show({"rows": rows, "concept_names": names}, lines, as_json)


@dataclass(frozen=True, slots=True)
class OpenedManifest:
    """A manifest on this machine.

    Attributes:
        info: what it is.
        table: a copy of its table.
        concept_names: name by id of the label system that its concepts are of.
    """

    info: "ManifestInfo"
    table: Path
    concept_names: dict[str, str]

    def names(self, ids: "Iterable[str]") -> dict[str, str]:
        """Names of these concepts by id, of those that have one."""
        return {id: self.concept_names[id] for id in dict.fromkeys(ids) if id in self.concept_names}


@contextmanager
def opened(ref: Path) -> "Iterator[OpenedManifest]":
    """The manifest that a file's Ref stands for, with the label system beside it, while the block runs."""
    from intern_vision.data.manifest_store import load_manifest
    from intern_vision.stages.data_report import concept_names, manifest_chain
    from intern_vision.store import open_store

    (found,) = read_ref_file(ref, "manifest")[:1]
    store = open_store(found.uri)
    chain = manifest_chain(store, found)
    last = next(record.ref for record in chain if record.ref.kind == "manifest")
    with tempfile.TemporaryDirectory() as folder:
        names = concept_names(store, chain, Path(folder))
        yield OpenedManifest(*load_manifest(store, last, Path(folder)), names)


def stats_lines(info: "ManifestInfo", summary: "ManifestSummary", names: Mapping[str, str]) -> list[str]:
    """The counts as tables for people; concepts with their names, by id."""
    heads = ("SOURCE", "offered", "usable", "removed", "quarantined", "MB")
    rows = [
        (
            source.name or "(no name)",
            sum(source.statuses.values()),
            *(source.statuses.get(status, 0) for status in ("ok", "removed", "quarantined")),
            f"{source.num_bytes / 1e6:.1f}",
        )
        for source in summary.sources
    ]
    lines = [f"{name!s:24}" + "".join(f"{cell!s:>13}" for cell in cells) for name, *cells in (heads, *rows)]
    lines += ["", f"{info.name}: {info.num_ok} of {info.num_rows} rows are usable"]
    for step in info.steps:
        counts = _counts(step.counts)
        lines.append(f"step       {step.name}: {step.num_in} -> {step.num_out}" + (f" ({counts})" if counts else ""))
    reasons = {f"{item.kind} ({item.status})": item.num_rows for item in summary.reasons}
    parts = {name: summary.total(name) for name in ("splits", "licences", "annotated")} | {"reasons": reasons}
    lines += [f"{name:10} {_counts(counts)}" for name, counts in parts.items() if counts]
    for by, word in (("concept", "concepts"), ("label", "labels"), ("box", "boxes")):
        frequent = summary.most_frequent(by, len(summary.names))
        if frequent:
            more = f" and {len(frequent) - MAX_NAMES} more" if len(frequent) > MAX_NAMES else ""
            counts = {_named(name, names) if by == "concept" else name: num for name, num in frequent[:MAX_NAMES]}
            lines.append(f"{word:10} {_counts(counts)}{more}")
    return lines


def _named(concept: str, names: Mapping[str, str]) -> str:
    """The name with the id, since several concepts may have one name."""
    return f"{names[concept]} ({concept})" if concept in names else concept


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _table_lines(rows: Sequence[dict[str, Any]], num_rows: int) -> list[str]:
    from intern_vision.bench.data_pictures import row_lines

    lines = []
    for row in rows:
        words = [row["reason"]] if row["reason"] else row_lines(row)
        lines.append(f"{row['key']:32} {row['status']:12} {row['split'] or '-':6} {'; '.join(words)}")
    return [*lines, f"{len(rows)} of {num_rows} rows; give a key for all of one"]


def _row_lines(row: dict[str, Any], names: Mapping[str, str]) -> list[str]:
    lines = []
    for name, value in row.items():
        if name == "boxes" and value is not None:
            corners = ("x0", "y0", "x1", "y1")
            texts = [f"{box['label']} {' '.join(f'{box[corner]:g}' for corner in corners)}" for box in value]
        elif name == "concepts" and value is not None:
            texts = [_named(concept, names) for concept in value]
        else:
            texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        # Null is what was never annotated, an empty list an annotation that there is nothing.
        lines.append(f"{name:12} {'-' if value is None else ', '.join(texts) or 'none'}")
    return lines
