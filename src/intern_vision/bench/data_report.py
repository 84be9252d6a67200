"""The page about a manifest: what came in, what was taken out and why, and what is left, with pictures.

Self-contained like the benchmark's report (``intern_vision.bench.report``), whose style it shares.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.bench.data_pictures import Card, make_cards
from intern_vision.bench.report import format_fact, page_environment
from intern_vision.data.manifest import ManifestInfo, SourceInfo, StepInfo, read_manifest, use_daft
from intern_vision.data.summary import ANNOTATIONS, NO_SPLIT, ManifestSummary, ReasonSummary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEMPLATE_NAME = "data_report.html.j2"
OpenMember = Callable[[str], "NDArray[np.uint8] | str"]
"""An address below a dataset's shards to pixels ``(H, W, 3)``, or to what is wrong."""
SHARD_SUFFIX = ".tar/"
DUPLICATE_METHODS = ("exact", "perceptual", "embedding")
SPLITS = ("train", "val", "test", NO_SPLIT)
MAX_GROUP_IMAGES = 6
"""Images shown of one group of duplicates; the rest is counted."""
MAX_NAMES = 40
"""Classes and concepts listed with their counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Cards under a title; ``note`` stands beside it."""

    title: str
    note: str = ""
    cards: Sequence[Card] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why rows were taken out, with some of them."""

    summary: ReasonSummary
    examples: Sequence[Mapping[str, Any]] = ()
    cards: Sequence[Card] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """What was found to be the same image.

    Attributes:
        counts: rows taken out inside the manifest, by method.
        groups: some groups, the most doubtful of each method first.
        pairs: some images beside those of a benchmark set that they are, by set.
    """

    counts: Mapping[str, int]
    groups: Sequence[Gallery] = ()
    pairs: Sequence[Gallery] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReportContent:
    """Everything the page shows; empty parts are left out of it.

    Attributes:
        title: heading.
        info: what the manifest is and which steps made it.
        summary: its counts.
        samples: usable images by source.
        concepts: usable images by what they show.
        names: what the images show, with the number of images, most frequent first.
        tree_html: the label system as ``intern_vision.data.labels.tree`` draws it, put into the page as it is.
        duplicates: groups and leaks as pictures; ``None`` where no step looked for them.
        leaks: entries of ``leaks.json``: ``dataset``, ``split``, ``num_images``, ``num_leaks``, ``by_method``.
        curves_svg: SVG text of measured curves of recall and false positives, put into the page as it is.
        filters: entries of ``filters.json``: ``rule``, ``num_in``, ``num_out``, ``settings``.
        reasons: why rows were taken out, most frequent first.
        agreement: what ``agreement.json`` says of the annotators.
        datasets: what was written as shards, as name and text.
        stages: name, seconds and address of each step's output.
    """

    title: str
    info: ManifestInfo
    summary: ManifestSummary
    samples: Sequence[Gallery] = ()
    concepts: Sequence[Gallery] = ()
    names: Sequence[tuple[str, int]] = ()
    tree_html: str = ""
    duplicates: Duplicates | None = None
    leaks: Sequence[Mapping[str, Any]] = ()
    curves_svg: str = ""
    filters: Sequence[Mapping[str, Any]] = ()
    reasons: Sequence[Reason] = ()
    agreement: Mapping[str, Any] | None = None
    datasets: Sequence[tuple[str, str]] = ()
    stages: Sequence[tuple[str, float, str]] = ()


@dataclass(frozen=True, slots=True)
class FunnelRow:
    """What one step left: its name, rows in and out, what it took out, and its settings as text."""

    name: str
    num_in: int
    num_out: int
    counts: Mapping[str, int]
    settings: str

    def share(self, of: int) -> float:
        """Rows left, in % of ``of``."""
        return 100 * self.num_out / max(1, of)


def build_data_report(content: DataReportContent) -> str:
    """Renders the page as HTML text."""
    summary = content.summary
    statuses = summary.total("statuses")
    return (
        page_environment()
        .get_template(TEMPLATE_NAME)
        .render(
            content=content,
            summary=summary,
            sources={source.name: source for source in content.info.sources},
            statuses=statuses,
            num_rows=sum(statuses.values()),
            splits=[name for name in SPLITS if name in summary.total("splits")],
            licences=licence_rows(summary),
            annotated=[name for name in ANNOTATIONS if name in summary.total("annotated")],
            funnel=funnel_rows(content.info.steps),
            num_leaks=sum(leak["num_leaks"] for leak in content.leaks),
            leak_methods=[m for m in DUPLICATE_METHODS if any(m in leak["by_method"] for leak in content.leaks)],
            agreement=flat_facts(content.agreement or {}),
            annotators=annotator_rows(content.agreement or {}),
            max_names=MAX_NAMES,
            size_text=size_text,
            compact=compact,
        )
    )


def funnel_rows(steps: Sequence[StepInfo]) -> list[FunnelRow]:
    """A row a step, in order."""
    return [
        FunnelRow(step.name, step.num_in, step.num_out, step.counts, compact(step.settings) if step.settings else "")
        for step in steps
    ]


def licence_rows(summary: ManifestSummary) -> list[tuple[str, int, list[str]]]:
    """Each licence with its usable images and the sources that have it, most images first."""
    rows = [
        (licence, count, [source.name for source in summary.sources if licence in source.licences])
        for licence, count in summary.total("licences").items()
    ]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def flat_facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Plain values as text by name; those that hold others are left out."""
    return {
        name.removeprefix("num_").replace("_", " "): format_fact(value)
        for name, value in values.items()
        if isinstance(value, str | int | float)
    }


def annotator_rows(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """A table's rows of the first mapping or list of mappings that describes annotators one by one."""
    found = values.get("annotators", {})
    rows = [{"annotator": name} | row for name, row in found.items()] if isinstance(found, dict) else found
    facts = [flat_facts(row) for row in rows]
    # Who was given no audit item has no accuracy.
    columns = dict.fromkeys(name for row in facts for name in row)
    return [{name: row.get(name, "") for name in columns} for row in facts]


def size_text(num_bytes: int) -> str:
    """A size in the unit that keeps it short."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def compact(value: Any) -> str:
    """JSON text in one line."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def read_duplicates(
    path: Path, manifest: Path, sources: Sequence[SourceInfo], max_groups: int, open_member: OpenMember
) -> Duplicates:
    """Chooses groups and pairs of a ``duplicates.parquet`` and draws them.

    Args:
        path: the table.
        manifest: the ``manifest.parquet``, whose columns the pictures' words come from.
        sources: of the manifest.
        max_groups: groups of each method, and pairs of each benchmark set.
        open_member: opens the image of a prepared dataset by its address.
    """
    daft = use_daft()
    table = daft.read_parquet(str(path))
    own, leaked = table.where(daft.col("against") == ""), table.where(daft.col("against") != "")
    dropped = own.where(~daft.col("kept"))
    counted = dropped.groupby("method").agg(daft.col("key").count().alias("num_rows")).to_pylist()
    counts = {row["method"]: row["num_rows"] for row in counted}
    groups: dict[int, str] = {}
    for method in DUPLICATE_METHODS:
        if counts.get(method):
            largest = (
                dropped.where(daft.col("method") == method)
                .groupby("group")
                .agg(daft.col("distance").max())
                .sort(["distance", "group"], desc=[True, False])
            )
            for row in largest.limit(max_groups).to_pylist():
                groups.setdefault(row["group"], method)
    names = sorted(row["against"] for row in leaked.select("against").distinct().to_pylist())
    return Duplicates(
        counts={method: counts[method] for method in DUPLICATE_METHODS if method in counts},
        groups=_group_galleries(own, groups, sources, manifest) if groups else [],
        pairs=[_pair_gallery(leaked, name, max_groups, open_member) for name in names],
    )


def _group_galleries(
    own: Any, groups: Mapping[int, str], sources: Sequence[SourceInfo], manifest: Path
) -> list[Gallery]:
    daft = use_daft()
    columns = ("key", "source", "labels", "boxes", "caption", "width_px", "height_px")
    chosen = own.where(daft.col("group").is_in(list(groups))).join(read_manifest(manifest).select(*columns), on="key")
    rows = chosen.sort(["group", "kept", "key"], desc=[False, True, False]).to_pylist()
    found = []
    for group, method in groups.items():
        members = [row for row in rows if row["group"] == group]
        for row in members:
            far = "" if row["method"] == "exact" else f", distance {row['distance']:.3g}"
            row |= {"note": "kept" if row["kept"] else f"taken out: {row['method']}{far}"}
            row |= {"tone": "gain" if row["kept"] else "loss"}
        more = f", {len(members) - MAX_GROUP_IMAGES} not shown" if len(members) > MAX_GROUP_IMAGES else ""
        cards = make_cards(members[:MAX_GROUP_IMAGES], sources)
        found.append(Gallery(title=method, note=f"{len(members)} images{more}", cards=cards))
    return found


def _pair_gallery(leaked: Any, against: str, max_pairs: int, open_member: OpenMember) -> Gallery:
    daft = use_daft()
    rows = leaked.where(daft.col("against") == against).sort(["distance", "key"], desc=[True, False]).limit(max_pairs)
    sides: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        far = "" if row["method"] == "exact" else f", distance {row['distance']:.3g}"
        sides.append({"key": row["key"], "uri": row["uri"], "note": f"taken out: {row['method']}{far}", "tone": "loss"})
        theirs = {"key": row["against_uri"].rsplit("/", 1)[-1], "uri": row["against_uri"], "note": f"of {against}"}
        is_member = SHARD_SUFFIX in row["against_uri"]
        sides.append(theirs | ({"image": open_member(row["against_uri"])} if is_member else {}))
    return Gallery(title=against, cards=make_cards(sides))
