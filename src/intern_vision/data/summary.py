"""What a manifest holds in numbers, and rows of it to look at; queried with Daft, whatever the number of rows."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intern_vision.config import Config
from intern_vision.data.manifest import Status, read_manifest, use_daft

if TYPE_CHECKING:
    import daft

ANNOTATIONS = ("caption", "labels", "boxes", "mask", "depth", "concepts")
"""Columns of supervision; null where an image was never annotated."""
NO_SPLIT, NO_LICENCE = "none", "none stated"
Grouping = Literal["source", "reason", "concept", "label", "box"]
"""What rows are grouped by: their source, the kind of their reason, or each concept, label or box that they have."""


class SourceSummary(Config):
    """Rows of one source.

    Attributes:
        name: the source's.
        statuses: rows by status.
        num_bytes: size of the usable images.
        splits: usable rows by split.
        licences: usable rows by licence.
        annotated: usable rows by what is annotated, of ``ANNOTATIONS``.
    """

    name: str
    statuses: dict[str, int] = {}
    num_bytes: int = 0
    splits: dict[str, int] = {}
    licences: dict[str, int] = {}
    annotated: dict[str, int] = {}


class ReasonSummary(Config):
    """Rows that were taken out for one kind of reason."""

    kind: str
    status: Status
    num_rows: int


class NameCount(Config):
    """Usable images of a source that show a class or concept; ``by`` says which column names it."""

    by: Literal["concept", "label", "box"]
    source: str
    name: str
    num_images: int


class ManifestSummary(Config):
    """Counts of a manifest's rows.

    Attributes:
        sources: by name.
        reasons: most frequent first.
        names: concepts, labels and box labels, most images first.
    """

    sources: tuple[SourceSummary, ...] = ()
    reasons: tuple[ReasonSummary, ...] = ()
    names: tuple[NameCount, ...] = ()

    def total(self, field: Literal["statuses", "splits", "licences", "annotated"]) -> dict[str, int]:
        """The counts of all sources together, by name in order of first occurrence."""
        counts: Counter[str] = Counter()
        for source in self.sources:
            counts.update(getattr(source, field))
        return dict(counts)

    def most_frequent(self, by: str, num: int) -> list[tuple[str, int]]:
        """The names with the most images over all sources, with that number."""
        counts: Counter[str] = Counter()
        for item in self.names:
            if item.by == by:
                counts[item.name] += item.num_images
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:num]


def summarise(path: Path) -> ManifestSummary:
    """Counts the rows of a ``manifest.parquet``."""
    table = read_manifest(path)
    names = [count for by in ("concept", "label", "box") for count in _name_counts(table, by)]
    return ManifestSummary(
        sources=_source_summaries(table),
        reasons=_reason_summaries(table),
        names=tuple(sorted(names, key=lambda item: (-item.num_images, item.by, item.name, item.source))),
    )


def rows_by_group(path: Path, by: Grouping, groups: Sequence[str], num_rows: int) -> dict[str, list[dict[str, Any]]]:
    """Some rows of each group, the same ones in every run: those with the smallest digests of bytes.

    A SHA-256 is as good as a draw, and does not depend on the order of the rows or the number of workers.

    Args:
        path: a ``manifest.parquet``.
        by: what makes a group; by ``reason`` rows that were taken out, else usable rows.
        groups: names of the groups asked for.
        num_rows: rows of a group at most.

    Returns:
        Rows as plain dicts by group, in the order of ``groups``; groups without rows are left out.
    """
    if not groups:
        return {}
    daft = use_daft()
    table = read_manifest(path)
    grouped = _grouped(table, by).where(daft.col("group").is_in(list(groups)))
    order = daft.Window().partition_by("group").order_by("digest", "key")
    ranked = grouped.with_column("rank", daft.functions.row_number().over(order))
    chosen = ranked.where(daft.col("rank") <= num_rows).select("group", "rank", "key")
    # The wide columns are read for the chosen rows alone.
    rows = chosen.join(table, on="key").sort(["group", "rank"]).to_pylist()
    found: dict[str, list[dict[str, Any]]] = {group: [] for group in groups}
    for row in rows:
        found[row.pop("group")].append({name: value for name, value in row.items() if name != "rank"})
    return {group: items for group, items in found.items() if items}


def find_rows(
    path: Path, *, key: str = "", status: str = "", source: str = "", reason: str = "", num_rows: int = 20
) -> list[dict[str, Any]]:
    """Rows that fulfil every condition given, in order of their keys.

    Args:
        path: a ``manifest.parquet``.
        key: the row's key.
        status: its status.
        source: its source.
        reason: the kind of its reason.
        num_rows: at most.
    """
    daft = use_daft()
    table = read_manifest(path)
    for name, value in (("key", key), ("status", status), ("source", source)):
        if value:
            table = table.where(daft.col(name) == value)
    if reason:
        table = table.where(_kind(daft) == reason)
    return table.sort("key").limit(num_rows).to_pylist()


def _kind(daft: Any) -> "daft.Expression":
    return daft.functions.split_part(daft.col("reason"), ":", 1)


def _grouped(table: "daft.DataFrame", by: Grouping) -> "daft.DataFrame":
    """``key``, ``digest``, ``source`` and ``group``: a row for each group that an image is in."""
    daft = use_daft()
    if by == "reason":
        taken_out = table.where(daft.col("status") != "ok")
        return taken_out.select("key", "digest", "source", "status", _kind(daft).alias("group"))
    usable = table.where(daft.col("status") == "ok")
    if by == "source":
        return usable.select("key", "digest", "source", daft.col("source").alias("group"))
    column = {"concept": "concepts", "label": "labels", "box": "boxes"}[by]
    usable = usable.where(daft.col(column).not_null())
    exploded = usable.select("key", "digest", "source", daft.col(column).explode().alias("group"))
    exploded = exploded.where(daft.col("group").not_null())
    if by == "box":
        exploded = exploded.select("key", "digest", "source", daft.col("group")["label"].alias("group"))
    # An image with three dogs shows a dog once.
    return exploded.distinct()


def _name_counts(table: "daft.DataFrame", by: Any) -> Iterable[NameCount]:
    daft = use_daft()
    counts = _grouped(table, by).groupby("source", "group").agg(daft.col("key").count().alias("num_images"))
    for row in counts.to_pylist():
        yield NameCount(by=by, source=row["source"], name=row["group"], num_images=row["num_images"])


def _reason_summaries(table: "daft.DataFrame") -> tuple[ReasonSummary, ...]:
    daft = use_daft()
    counts = _grouped(table, "reason").groupby("group", "status").agg(daft.col("key").count().alias("num_rows"))
    found = [ReasonSummary(kind=r["group"], status=r["status"], num_rows=r["num_rows"]) for r in counts.to_pylist()]
    return tuple(sorted(found, key=lambda item: (-item.num_rows, item.kind)))


def _source_summaries(table: "daft.DataFrame") -> tuple[SourceSummary, ...]:
    daft = use_daft()
    counted = [daft.col(name).count().alias(name) for name in ANNOTATIONS]
    groups = table.groupby("source", "status", "split", "licence").agg(
        daft.col("key").count().alias("num_rows"), daft.col("num_bytes").sum().alias("num_bytes"), *counted
    )
    found: dict[str, dict[str, Any]] = {}
    for row in groups.sort(["source", "status", "split", "licence"]).to_pylist():
        source = found.setdefault(
            row["source"],
            {"num_bytes": 0} | {name: Counter() for name in ("statuses", "splits", "licences", "annotated")},
        )
        source["statuses"][row["status"]] += row["num_rows"]
        if row["status"] == "ok":
            source["num_bytes"] += row["num_bytes"]
            source["splits"][row["split"] or NO_SPLIT] += row["num_rows"]
            source["licences"][row["licence"] or NO_LICENCE] += row["num_rows"]
            source["annotated"].update({name: row[name] for name in ANNOTATIONS if row[name]})
    return tuple(
        SourceSummary(name=name, **{key: dict(v) if isinstance(v, Counter) else v for key, v in values.items()})
        for name, values in found.items()
    )
