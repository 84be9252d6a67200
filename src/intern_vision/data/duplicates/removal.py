"""Duplicates and leaks taken out of a manifest, with the tables that say what went and why. N usable rows."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.duplicates.find import ImageSet
from intern_vision.data.duplicates.groups import (
    METHODS,
    Links,
    best_of_groups,
    group_numbers,
    joined_links,
    keep_orders,
)
from intern_vision.data.manifest import MANIFEST_NAME, StepInfo, manifest_writer
from intern_vision.data.tables import ROWS_PER_GROUP, TableWriter

if TYPE_CHECKING:
    import pyarrow as pa

DUPLICATES_FILE, LEAKS_FILE = "duplicates.parquet", "leaks.json"
STEP_NAME = "dedup"
_RULE_COLUMNS = ("status", "split", "width_px", "height_px", "caption", "labels", "boxes", "mask", "depth")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A split of a dataset that the manifest must not share an image with.

    Attributes:
        name: ``<dataset>/<split>``.
        dataset: name of its Ref.
        split: ``train``, ``val``, ``test`` or empty.
        images: what it holds.
    """

    name: str
    dataset: str
    split: str
    images: ImageSet

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.images.prints)


@dataclass(frozen=True, slots=True)
class Leak:
    """Rows that a benchmark set has too.

    Attributes:
        benchmark: the set's name.
        links: for each row (``first``) its surest and nearest image there; ``second`` is the number of that.
        keys: of these images.
        uris: of these images.
    """

    benchmark: str
    links: Links
    keys: list[str]
    uris: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was taken out.

    Attributes:
        num_in: rows with status ``ok`` before.
        counts: rows taken out, by kind of reason.
        num_groups: groups of duplicates.
        num_conflicts: duplicates whose labels are not those of the row that is kept.
        leaks: entries of ``leaks.json``.
    """

    num_in: int
    counts: dict[str, int]
    num_groups: int
    num_conflicts: int
    leaks: list[dict[str, Any]]

    def step(self, settings: dict[str, Any]) -> StepInfo:
        """What the manifest says of the step."""
        num_out = self.num_in - sum(self.counts.values())
        return StepInfo(name=STEP_NAME, settings=settings, num_in=self.num_in, num_out=num_out, counts=self.counts)

    def facts(self) -> dict[str, int]:
        """Small results for the record."""
        taken = {f"num_{kind}": self.counts.get(kind, 0) for kind in ("duplicate", "leak", "unreadable")}
        return {"num_in": self.num_in, "num_groups": self.num_groups, "num_conflicts": self.num_conflicts} | taken


class Removal:
    """Decides row by row, and writes the manifest that remains.

    Args:
        path: the ``manifest.parquet``.
        images: its rows with status ``ok``, in order.
        protected_splits: rows of these are kept before others.
    """

    def __init__(self, path: Path, images: ImageSet, protected_splits: tuple[str, ...]) -> None:
        self._path = path
        self._images = images
        self._rows = images.prints.rows
        self._links = images.links()
        self._groups_N = group_numbers(len(self._rows), self._links)
        self._kept = best_of_groups(self._groups_N, *_keep_orders(path, protected_splits))
        self._leaks: list[Leak] = []
        self._table: list[dict[str, Any]] = []
        self._surest: dict[int, tuple[int, float]] = {}
        self._reason_N = np.full(len(self._rows), "", object)
        for number in np.flatnonzero(self._rows["fault"].to_numpy() != ""):
            self._reason_N[number] = f"unreadable: {self._rows['fault'][int(number)].as_py()}"

    def compare(self, benchmark: Benchmark) -> None:
        """Marks the rows that a benchmark set has too, and their own duplicates."""
        links = self._with_group(self._images.links_to(benchmark.images).best_by_first())
        theirs = benchmark.images.prints.rows.take(links.second)
        leak = Leak(benchmark.name, links, theirs["key"].to_pylist(), theirs["uri"].to_pylist())
        self._leaks.append(leak)
        methods = Counter(METHODS[method] for method in links.methods.tolist())
        entry = {"dataset": benchmark.dataset, "split": benchmark.split, "num_images": benchmark.num_images}
        self._table.append(entry | {"num_leaks": len(links), "by_method": dict(methods)})

    def write(self, folder: Path) -> Outcome:
        """Writes ``manifest.parquet``, ``duplicates.parquet`` and ``leaks.json``."""
        num_groups, num_conflicts = len(self._kept), 0
        self._mark_leaks()
        with TableWriter(folder / DUPLICATES_FILE, _duplicates_schema()) as table:
            num_conflicts = self._mark_duplicates(table)
            self._write_leaks(table)
        (folder / LEAKS_FILE).write_text(json.dumps(self._table, indent=1), encoding="utf-8")
        counts = Counter(reason.partition(":")[0] for reason in self._reason_N.tolist() if reason)
        self._write_manifest(folder / MANIFEST_NAME)
        return Outcome(len(self._rows), dict(sorted(counts.items())), num_groups, num_conflicts, self._table)

    def _with_group(self, links: Links) -> Links:
        """Also the duplicates of rows that leak: they show the same; found as surely as the surest of their group."""
        groups = self._groups_N[links.first]
        order = np.lexsort((links.first, links.distances, links.methods, groups))
        known, firsts = np.unique(groups[order], return_index=True)
        best = order[firsts]
        is_mate = np.isin(self._groups_N, known[known >= 0])
        is_mate[links.first] = False
        mates = np.flatnonzero(is_mate)
        chosen = best[np.searchsorted(known, self._groups_N[mates])]
        found = Links(mates, links.second[chosen], links.methods[chosen], links.distances[chosen])
        return joined_links(links, found).best_by_first()

    def _mark_leaks(self) -> None:
        """The reason names the surest leak."""
        for leak in reversed(self._leaks):
            for number, at in enumerate(leak.links.first.tolist()):
                rank = int(leak.links.methods[number]), float(leak.links.distances[number])
                if rank <= self._surest.get(at, rank):
                    self._surest[at] = rank
                    self._reason_N[at] = f"leak: {leak.benchmark} {leak.keys[number]} ({_how(*rank)})"

    def _mark_duplicates(self, table: TableWriter) -> int:
        """Marks all but one of every group that is left; the number whose labels differ from those of that one."""
        is_left = (self._groups_N >= 0) & (self._reason_N == "")
        members = np.flatnonzero(is_left)
        kept_of = dict(zip(self._groups_N[self._kept].tolist(), self._kept.tolist(), strict=True))
        best = self._links.both_ways().best_by_first()
        found = {row: at for at, row in enumerate(best.first.tolist())}
        labels = _label_sets(self._path, members)
        num_conflicts = 0
        for at in members[np.argsort(self._groups_N[members], kind="stable")].tolist():
            kept, link = kept_of[int(self._groups_N[at])], found[at]
            method, distance = int(best.methods[link]), float(best.distances[link])
            row = {"group": int(self._groups_N[at]), "key": self._key(at), "uri": self._rows["uri"][at].as_py()}
            row |= {"kept": at == kept, "method": METHODS[method], "distance": distance}
            table.add(row | {"against": "", "against_uri": ""})
            if at != kept:
                differs = bool(labels[at] and labels[kept] and labels[at] != labels[kept])
                num_conflicts += differs
                note = "; its labels differ" if differs else ""
                self._reason_N[at] = f"duplicate: of {self._key(kept)} ({_how(method, distance)}){note}"
        return num_conflicts

    def _write_leaks(self, table: TableWriter) -> None:
        for leak in self._leaks:
            for number, at in enumerate(leak.links.first.tolist()):
                row = {"group": -1, "key": self._key(at), "uri": self._rows["uri"][at].as_py(), "kept": False}
                row |= {"method": METHODS[leak.links.methods[number]], "distance": float(leak.links.distances[number])}
                table.add(row | {"against": leak.benchmark, "against_uri": leak.uris[number]})

    def _write_manifest(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        num_seen = 0
        with pq.ParquetFile(self._path) as file, manifest_writer(path) as writer:
            for batch in file.iter_batches(ROWS_PER_GROUP):
                status, reason = batch["status"].to_pylist(), batch["reason"].to_pylist()
                for at, word in enumerate(status):
                    if word == "ok":
                        new = self._reason_N[num_seen]
                        num_seen += 1
                        if new:
                            status[at] = "quarantined" if new.startswith("unreadable") else "removed"
                            reason[at] = new
                table = pa.Table.from_batches([batch])
                for name, values in (("status", status), ("reason", reason)):
                    table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
                writer.add_table(table)

    def _key(self, at: int) -> str:
        return self._rows["key"][at].as_py()


def _how(method: int, distance: float) -> str:
    return METHODS[method] if METHODS[method] == "exact" else f"{METHODS[method]}, distance {distance:.4f}"


def _keep_orders(path: Path, protected_splits: tuple[str, ...]) -> list[NDArray[np.int64]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts = [keep_orders(_empty_table(), protected_splits)]
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=list(_RULE_COLUMNS)):
            table = pa.Table.from_batches([batch])
            parts.append(keep_orders(table.filter(pc.equal(table["status"], "ok")), protected_splits))
    return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def _empty_table() -> "pa.Table":
    from intern_vision.data.manifest import manifest_schema

    return manifest_schema().empty_table()


def _label_sets(path: Path, members: NDArray[np.int64]) -> dict[int, frozenset[str]]:
    """The names of all classes that these rows are annotated with; empty for none."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: dict[int, frozenset[str]] = {}
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=["status", "labels", "boxes"]):
            usable = batch.filter(pc.equal(batch["status"], "ok"))
            own = members[np.searchsorted(members, start) : np.searchsorted(members, start + len(usable))]
            for at, row in zip(own.tolist(), usable.take(own - start).to_pylist(), strict=True):
                boxes = [box["label"] for box in row["boxes"] or ()]
                found[at] = frozenset([*(row["labels"] or ()), *boxes])
            start += len(usable)
    return found


def _duplicates_schema() -> "pa.Schema":
    import pyarrow as pa

    columns = [("group", pa.int64()), ("key", pa.string()), ("uri", pa.string()), ("kept", pa.bool_())]
    columns += [("method", pa.string()), ("distance", pa.float64())]
    return pa.schema([*columns, ("against", pa.string()), ("against_uri", pa.string())])
