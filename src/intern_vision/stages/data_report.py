"""Data report (GV-D): what the images of a manifest went through and what is left, as one page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.errors import ConfigError, DataError, MissingObjectError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, Record, StageContext, read_record
from intern_vision.stages.report import REPORT_FILE
from intern_vision.store import Store, join_uri

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from intern_vision.bench.data_report import DataReportContent, Gallery, OpenMember, Reason
    from intern_vision.data.manifest import ManifestInfo
    from intern_vision.data.summary import ManifestSummary

FIRST_STAGE = "ingest"
SUMMARY_FILE = "summary.json"
DUPLICATES_FILE, LEAKS_FILE, CURVE_PICTURE = "duplicates.parquet", "leaks.json", "curve.svg"
FILTERS_FILE, AGREEMENT_FILE = "filters.json", "agreement.json"
LABELS_FILE, TREE_FILE = "labels.json", "tree.html"


class Config(base.Config):
    """How much the page shows.

    Attributes:
        title: heading; the manifest's name where empty.
        num_images: pictures of each source, concept and reason.
        max_concepts: concepts (or classes, without a label system) shown with pictures, those with the most images.
        max_groups: groups of duplicates of each method, and leaked images of each benchmark set.
        max_sources: sources shown with pictures.
    """

    title: str = ""
    num_images: int = Field(default=6, ge=1, le=64)
    max_concepts: int = Field(default=12, ge=0, le=200)
    max_groups: int = Field(default=8, ge=0, le=100)
    max_sources: int = Field(default=24, ge=1, le=200)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Reads the input ``manifest`` (a manifest, or a dataset made of one) and the steps before it; writes the page.

    The input ``data`` may hold the datasets that were made of the manifest.

    Raises:
        ConfigError: the input is of another kind.
        DataError: it was made of no manifest, or a file cannot be read.
    """
    from intern_vision.bench.data_report import build_data_report
    from intern_vision.data.manifest_store import load_manifest
    from intern_vision.data.summary import summarise

    chain = manifest_chain(context.store, inputs.one("manifest"))
    last = next(record for record in chain if record.ref.kind == "manifest")
    info, path = load_manifest(context, last.ref, context.scratch_dir)
    summary = summarise(path)
    context.progress.say(f"{info.num_rows} rows, {info.num_ok} usable, {len(chain)} steps")
    content = _content(config, context, chain, info, path, summary)
    page = build_data_report(content)
    (context.output_dir / REPORT_FILE).write_text(page, encoding="utf-8")
    (context.output_dir / SUMMARY_FILE).write_text(summary.to_json() + "\n", encoding="utf-8")
    context.tracker.log_artifact(context.output_dir / REPORT_FILE)
    context.facts |= {"num_rows": info.num_rows, "num_ok": info.num_ok, "num_steps": len(info.steps)}
    return context.commit("report", "data_report")


def manifest_chain(store: Store, ref: Ref) -> list[Record]:
    """The records of an output and of the manifests that it was made from, back to the ingest; newest first.

    Raises:
        ConfigError: the output is neither a manifest nor a dataset.
        DataError: a dataset that was made from no manifest.
    """
    if ref.kind not in ("manifest", "dataset"):
        raise ConfigError(f"manifest: expected a manifest or a dataset, got the {ref.kind} {ref.name}")
    chain = [read_record(store, ref.uri)]
    while chain[-1].stage != FIRST_STAGE and chain[-1].inputs.get("manifest"):
        try:
            chain.append(read_record(store, chain[-1].inputs["manifest"][0]))
        except MissingObjectError:
            break  # an earlier step may have been deleted: the page shows what there is
    if all(record.ref.kind != "manifest" for record in chain):
        raise DataError(
            f"{ref.uri}: was made from no manifest; give the output of intern data ingest or of a later step"
        )
    return chain


def _content(
    config: Config,
    context: StageContext,
    chain: Sequence[Record],
    info: "ManifestInfo",
    path: Path,
    summary: "ManifestSummary",
) -> "DataReportContent":
    from intern_vision.bench.data_report import MAX_NAMES, DataReportContent, read_duplicates
    from intern_vision.data.manifest_store import fetch_file

    shown = _shown(summary, concept_names(context.store, chain, context.scratch_dir), MAX_NAMES)
    with_file = _newest(chain, DUPLICATES_FILE)
    duplicates = None
    if with_file:
        table = fetch_file(context.store, with_file.ref, DUPLICATES_FILE, context.scratch_dir)
        duplicates = read_duplicates(table, path, info.sources, config.max_groups, _open_member(context))
    return DataReportContent(
        title=config.title or info.name,
        info=info,
        summary=summary,
        samples=_samples(config, path, info, summary),
        concepts=_concepts(config, path, info, shown[: config.max_concepts]),
        names=[(item.title, item.num_images) for item in shown],
        tree_html=_read_text(context, chain, TREE_FILE),
        duplicates=duplicates,
        leaks=_read_json(context, chain, LEAKS_FILE) or (),
        curves_svg=_read_text(context, chain, CURVE_PICTURE),
        filters=[rule for record in reversed(chain) for rule in _read_json(context, [record], FILTERS_FILE) or ()],
        reasons=_reasons(config, path, info, summary),
        agreement=_read_json(context, chain, AGREEMENT_FILE),
        datasets=_dataset_facts(context, [chain[0].ref, *context.inputs.many("data")]),
        stages=[(record.ref.name, record.wall_s, record.ref.uri) for record in reversed(chain)],
    )


def _newest(chain: Sequence[Record], name: str) -> Record | None:
    return next((record for record in chain if name in record.files), None)


def _read_text(context: StageContext, chain: Sequence[Record], name: str) -> str:
    """The newest file of this name; empty where no step wrote one."""
    record = _newest(chain, name)
    return "" if record is None else context.store.read(join_uri(record.ref.uri, name)).decode()


def _read_json(context: StageContext, chain: Sequence[Record], name: str) -> Any:
    text = _read_text(context, chain, name)
    return json.loads(text) if text else None


def _open_member(context: StageContext) -> "OpenMember":
    """Opens images of prepared datasets, through the verified copies that the search for leaks left in the cache."""
    from intern_vision.data.loader import ShardSource

    def open_member(uri: str) -> "NDArray[np.uint8] | str":
        root, _, member = uri.partition("/shards/")
        key = member.rpartition("/")[2].partition(".")[0]
        try:
            source = ShardSource(context.store, root, cache_dir=context.cache_dir / "shards", fields=(), keys=(key,))
            return source[0].image
        except (DataError, ConfigError, ValueError) as error:
            return " ".join(str(error).split())

    return open_member


def concept_names(store: Store, chain: Sequence[Record], folder: Path) -> dict[str, str]:
    """Name of each concept by its id, of the newest label system in a chain; empty where no step made one.

    Args:
        store: the bytes.
        chain: as of ``manifest_chain``.
        folder: local folder that the system's file goes below.
    """
    from intern_vision.data.labels.public import read_label_system
    from intern_vision.data.manifest_store import fetch_file

    record = _newest(chain, LABELS_FILE)
    if record is None:
        return {}
    system = read_label_system(fetch_file(store, record.ref, LABELS_FILE, folder))
    return {id: system[id].name for id in system.ids}


def _samples(config: Config, path: Path, info: "ManifestInfo", summary: "ManifestSummary") -> "list[Gallery]":
    from intern_vision.bench.data_pictures import make_cards
    from intern_vision.bench.data_report import Gallery
    from intern_vision.data.summary import rows_by_group

    counts = {source.name: source.statuses.get("ok", 0) for source in summary.sources}
    names = sorted(counts, key=lambda name: (-counts[name], name))[: config.max_sources]
    found = rows_by_group(path, "source", names, config.num_images)
    return [
        Gallery(title=name, note=f"{counts[name]:,} images", cards=make_cards(rows, info.sources))
        for name, rows in found.items()
    ]


@dataclass(frozen=True, slots=True)
class _Shown:
    """Something that images show: which column says so, by what name or id, how it is called, and in how many."""

    by: Literal["concept", "label", "box"]
    name: str
    title: str
    num_images: int


def _shown(summary: "ManifestSummary", names: dict[str, str], num: int) -> list[_Shown]:
    """The most frequent concepts; before the label step the sources' own classes."""
    has_concepts = bool(summary.most_frequent("concept", 1))
    titles = {"concept": "{}"} if has_concepts else {"label": "{}", "box": "{} (boxes)"}
    found = [
        _Shown(by, name, title.format(names.get(name, name)), count)  # type: ignore[arg-type]
        for by, title in titles.items()
        for name, count in summary.most_frequent(by, num)
    ]
    return sorted(found, key=lambda item: -item.num_images)[:num]


def _concepts(config: Config, path: Path, info: "ManifestInfo", shown: Sequence[_Shown]) -> "list[Gallery]":
    from intern_vision.bench.data_pictures import make_cards
    from intern_vision.bench.data_report import Gallery
    from intern_vision.data.summary import rows_by_group

    columns = {item.by for item in shown}
    found = {
        by: rows_by_group(path, by, [item.name for item in shown if item.by == by], config.num_images)
        for by in sorted(columns)
    }
    return [
        Gallery(
            title=item.title,
            note=f"{item.num_images:,} images",
            cards=make_cards(found[item.by].get(item.name, []), info.sources),
        )
        for item in shown
    ]


def _reasons(config: Config, path: Path, info: "ManifestInfo", summary: "ManifestSummary") -> "list[Reason]":
    from intern_vision.bench.data_pictures import make_cards
    from intern_vision.bench.data_report import Reason
    from intern_vision.data.summary import rows_by_group

    found = rows_by_group(path, "reason", [item.kind for item in summary.reasons], config.num_images)
    reasons = []
    for item in summary.reasons:
        rows = found.get(item.kind, [])
        # What is quarantined cannot be shown: its words are listed. What a step took out can.
        shown = [row | {"note": row["reason"]} for row in rows] if item.status == "removed" else []
        examples = rows if item.status == "quarantined" else []
        reasons.append(Reason(summary=item, examples=examples, cards=make_cards(shown, info.sources)))
    return reasons


def _dataset_facts(context: StageContext, refs: Sequence[Ref]) -> list[tuple[str, str]]:
    from intern_vision.data.loader import load_info

    facts = []
    for ref in refs:
        if ref.kind == "dataset":
            info = load_info(context.store, ref.uri)
            splits = f"{info.num_train:,} train, {info.num_val:,} val, {info.num_test:,} test images"
            shards = f"{len(info.shards):,} shards of {info.num_bytes / 1e6:,.1f} MB in all"
            facts.append((f"dataset {info.name}", f"{', '.join(info.tasks) or 'no task'}; {splits}; {shards}"))
    return facts
