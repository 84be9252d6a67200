"""Rows of a manifest as the samples of a dataset: which rows, in which split, in which numbering of the classes.

N boxes of an image.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.bench.protocol import rarest_classes
from intern_vision.data.codec import decode_image, decode_labels, decode_map, exif_orientation
from intern_vision.data.labels.union import LabelUnion
from intern_vision.data.manifest import ManifestInfo, Quarantined, SourceInfo
from intern_vision.data.manifest_store import map_in_order, read_bytes
from intern_vision.data.reading import draw_missing_splits
from intern_vision.data.sample import IGNORE_LABEL, Sample, Split
from intern_vision.data.settings import SplitRule
from intern_vision.data.shard import DatasetInfo
from intern_vision.data.tables import iter_rows
from intern_vision.errors import ConfigError, DataError
from intern_vision.task import Family, Task

MIN_DEPTH_UNIT_M = 0.001
MAX_DEPTH_UNITS = 65_000
_NUM_SHOWN = 6
_PLAN_COLUMNS = ("key", "digest", "source", "licence", "split", "caption", "labels", "boxes", "mask", "depth", "status")


def depth_unit_m(depth: Task | None) -> float:
    """Metres a unit of a dataset's 16-bit depth images: a millimetre, or more where the farthest point asks for it."""
    return max(MIN_DEPTH_UNIT_M, depth.max_depth_m / MAX_DEPTH_UNITS) if depth else MIN_DEPTH_UNIT_M


@dataclass(slots=True, kw_only=True)
class PlannedRow:
    """A row that becomes a sample.

    Attributes:
        key: its key.
        split: as named by the row, then as drawn.
        stratum: the class that draws are balanced over: of those that the image shows the one that the fewest have.
        twin: key of the first row with the same bytes; empty where there is none before.
        source: number of its source in ``DatasetInfo.sources``.
    """

    key: str
    split: Split | None
    stratum: str
    twin: str
    source: int


class ManifestDataset:
    """The samples that a manifest's rows of status ``ok`` give, in the manifest's order.

    A row is taken where it has what a training needs to be told: an annotation of a family of its dataset, and the
    boxes and concepts where the dataset has these families, for there is no value that means unknown. A dataset
    without families takes all rows or, where any has a caption, those with one. A source without annotations and
    captions gives nothing to a dataset of others that have some, such as a pool that people are still asked about.

    Attributes:
        info: the dataset's description, still without counts.
        rows: the rows taken.
        num_unlabelled: rows left out because they lack the annotation.
        drawn: splits that no row names and that were drawn.

    Args:
        path: the manifest's table.
        manifest: what it is.
        name: the dataset's name; by default that of its only source, else the manifest's.
        source: rows of this source only; empty takes all.
        unions: label spaces of several sources by family; classes get the names that they have there.
        rule: of splits that the rows do not name; a share of 0 draws none.
        weight: as of ``DatasetInfo``.

    Raises:
        ConfigError: the manifest has no such source.
        DataError: no row can be used, or the sources differ in what they annotate.
    """

    def __init__(
        self,
        path: Path,
        manifest: ManifestInfo,
        *,
        name: str = "",
        source: str = "",
        unions: Mapping[Family, LabelUnion] | None = None,
        rule: SplitRule | None = None,
        weight: float = 0.0,
    ) -> None:
        self._path = path
        known = {each.name: each for each in manifest.sources}
        if source and source not in known:
            raise ConfigError(f"source: the manifest has {', '.join(known) or 'none'}, not {source!r}")
        present = [known[source]] if source else _present(path, known)
        mute = _mute(path, present)
        self._mute = {each.name for each in mute} if len(mute) < len(present) else set()
        self._sources = [each for each in present if each.name not in self._mute]
        self.tasks, self._indices = _joined_tasks(self._sources, unions or {})
        self.num_unlabelled = 0
        self.rows, origins = self._plan()
        if not self.rows:
            raise DataError(
                f"{path.name}: no row with status ok{f' of source {source}' if source else ''} has a label to learn "
                f"from ({self.num_unlabelled} without); give a manifest with some"
            )
        splits, self.drawn = draw_missing_splits(self.rows, rule or SplitRule())
        for row in self.rows:
            row.split = splits[row.key]
        multilabel = self.tasks.get("multilabel")
        self.info = DatasetInfo(
            name=name or (self._sources[0].name if len(self._sources) == 1 else manifest.name),
            tasks=self.tasks,
            licence=_licences(origins),
            source=", ".join(dict.fromkeys(each.uri for each in origins)),
            sources=origins,
            weight=weight,
            concept_names=multilabel.class_names if multilabel else (),
            depth_scale=depth_unit_m(self.tasks.get("depth")),
        )

    def samples(self, start: int = 0, num_threads: int = 1) -> Iterator[Sample | Quarantined]:
        """Opens the images of ``rows[start:]``, a bounded number at a time; one that cannot be used is quarantined.

        Raises:
            AccessError: credentials or permissions do not suffice for an image.
            RetryableError: the server of an image does not answer.
        """
        taken = islice(self.rows, start, None)
        first = next(taken, None)
        if first is None:
            return
        pairs = self._paired(first, taken)
        yield from map_in_order(lambda pair: self._opened(*pair), pairs, num_threads)

    def _paired(self, first: PlannedRow, taken: Iterator[PlannedRow]) -> Iterator[tuple[dict[str, Any], PlannedRow]]:
        wanted: PlannedRow | None = first
        for row in iter_rows(self._path):
            if wanted is None:
                return
            if row["key"] == wanted.key:
                yield row, wanted
                wanted = next(taken, None)

    def _plan(self) -> tuple[list[PlannedRow], tuple[SourceInfo, ...]]:
        by_name = {source.name: source for source in self._sources}
        origins: dict[tuple[str, str], int] = {}
        counts: Counter[int] = Counter()
        first: dict[bytes, str] = {}
        rows: list[PlannedRow] = []
        classes: list[tuple[int, ...]] = []
        caption_only = not self.tasks and bool(_captioned(self._path) & by_name.keys())
        for row in iter_rows(self._path, _PLAN_COLUMNS):
            if row["status"] != "ok" or row["source"] not in by_name.keys() | self._mute:
                continue
            if row["source"] in self._mute or not self._is_labelled(row, caption_only):
                self.num_unlabelled += 1
                continue
            origin = (row["source"], row["licence"] or by_name[row["source"]].licence)
            number = origins.setdefault(origin, len(origins))
            counts[number] += 1
            digest = bytes.fromhex(row["digest"])[:16]
            twin = first.setdefault(digest, row["key"]) if digest and row["split"] in ("", "train") else row["key"]
            rows.append(
                PlannedRow(
                    key=row["key"],
                    split=row["split"] or None,
                    stratum="",
                    twin="" if twin == row["key"] else twin,
                    source=number,
                )
            )
            classes.append(self._classes(row))
        for planned, (family, index) in zip(rows, self._rarest(classes), strict=True):
            planned.stratum = self.tasks[family].class_names[index] if family else ""
        infos = tuple(
            by_name[name].model_copy(update={"licence": licence, "num_rows": counts[number], "tasks": {}})
            for (name, licence), number in origins.items()
        )
        return rows, infos

    def _is_labelled(self, row: Mapping[str, Any], caption_only: bool) -> bool:
        if not self.tasks:
            return bool(row["caption"]) or not caption_only
        if ("detect" in self.tasks and row["boxes"] is None) or ("multilabel" in self.tasks and row["labels"] is None):
            return False
        columns = {"classify": "labels", "multilabel": "labels", "detect": "boxes", "segment": "mask", "depth": "depth"}
        return any(row[columns[family]] is not None for family in self.tasks)

    def _classes(self, row: Mapping[str, Any]) -> tuple[int, ...]:
        """Classes that the image shows, numbered over the label families one after the other."""
        indices = self._indices[row["source"]]
        found: set[int] = set()
        start = 0
        for family in ("classify", "multilabel", "detect"):
            names = row["labels"] if family != "detect" else [box["label"] for box in row["boxes"] or ()]
            known = indices.get(family, {})
            found |= {start + known[name] for name in names or () if name in known}
            start += self.tasks[family].num_classes if family in self.tasks else 0
            if found:
                break
        return tuple(found)

    def _rarest(self, classes: Sequence[tuple[int, ...]]) -> Iterator[tuple[str, int]]:
        for number in rarest_classes(classes):
            family = ""
            for family in ("classify", "multilabel", "detect") if number >= 0 else ():
                size = self.tasks[family].num_classes if family in self.tasks else 0
                if number < size:
                    break
                number -= size
            yield family, number

    def _opened(self, row: Mapping[str, Any], planned: PlannedRow) -> Sample | Quarantined:
        try:
            data = read_bytes(row["uri"])
            if row["digest"] and hashlib.sha256(data).hexdigest() != row["digest"]:
                raise ValueError("changed: its bytes are no longer those that were taken up, ingest it again")
            sample = Sample(
                key=row["key"],
                split=planned.split or "train",
                image=decode_image(data),
                caption=row["caption"] or None,
                stratum=planned.stratum,
                # Supervision refers to upright pixels, and readers of a shard take them as they are stored.
                encoded=data if exif_orientation(data) == 1 else None,
                source=planned.source,
            )
            self._annotate(sample, row)
        except (ValueError, DataError, ConfigError) as error:
            return Quarantined(key=row["key"], uri=row["uri"], reason=" ".join(str(error).split()))
        return sample

    def _annotate(self, sample: Sample, row: Mapping[str, Any]) -> None:
        indices = self._indices[row["source"]]
        if "classify" in indices and row["labels"] is not None:
            named = [name for name in row["labels"] if "multilabel" not in indices or name in indices["classify"]]
            if len(set(named)) != 1:
                raise ValueError(f"labels: expected one class, got {row['labels']}")
            sample.label = _index(indices["classify"], named[0], "labels")
        if "multilabel" in indices and row["labels"] is not None:
            named = [name for name in row["labels"] if "classify" not in indices or name in indices["multilabel"]]
            sample.concepts = tuple(sorted({_index(indices["multilabel"], name, "labels") for name in named}))
        if "detect" in indices and row["boxes"] is not None:
            _set_boxes(sample, row["boxes"], indices["detect"])
        if "segment" in indices and row["mask"]:
            sample.mask = _renumbered(decode_labels(read_bytes(row["mask"])), list(indices["segment"].values()))
        if "depth" in self.tasks and row["depth"]:
            depth = depth_m(row["depth"], row["depth_scale"])
            limit_m = self.tasks["depth"].max_depth_m
            sample.depth = np.where((depth > 0) & (depth <= limit_m), depth, np.float32(0))


def _present(path: Path, known: Mapping[str, SourceInfo]) -> list[SourceInfo]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: set[str] = set()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(2**16, columns=["source", "status"]):
            found |= set(pc.unique(batch["source"].filter(pc.equal(batch["status"], "ok"))).to_pylist())
    strange = sorted(found - known.keys())
    if strange:
        raise DataError(f"{path.name}: rows of source {strange[0]!r}, which manifest.json does not list; ingest anew")
    return [source for name, source in known.items() if name in found]


def _captioned(path: Path) -> set[str]:
    """Names of the sources of which a usable row has a caption."""
    rows = iter_rows(path, ("caption", "source", "status"))
    return {row["source"] for row in rows if row["caption"] and row["status"] == "ok"}


def _mute(path: Path, sources: Sequence[SourceInfo]) -> list[SourceInfo]:
    """Those from which nothing can be learned: they have neither annotations nor captions."""
    found = [source for source in sources if not source.tasks]
    captioned = _captioned(path) if found else set()
    return [source for source in found if source.name not in captioned]


def _joined_tasks(
    sources: Sequence[SourceInfo], unions: Mapping[Family, LabelUnion]
) -> tuple[dict[str, Task], dict[str, dict[str, dict[str, int]]]]:
    """The dataset's tasks; by source and family the index there of each of the source's own class names, in order."""
    joined: dict[str, Task] = {}
    renamed = {}
    for number, source in enumerate(sources):
        info = DatasetInfo(name=source.name, tasks=source.tasks)
        for family in source.tasks:
            if family in unions and source.name in unions[family].renamed:
                info = unions[family].rename(info)
        renamed[source.name] = info.tasks
        tasks = {
            family: task.model_copy(update={"class_names": tuple(dict.fromkeys(task.class_names))})
            for family, task in info.tasks.items()
        }
        if not number:
            joined = tasks
        _require_equal(sources[0].name, joined, source.name, tasks)
        if "depth" in joined:
            joined["depth"] = max(joined["depth"], tasks["depth"], key=lambda task: task.max_depth_m)
    indices = {
        source.name: {
            family: {
                own: joined[family].class_names.index(name)
                for own, name in zip(task.class_names, renamed[source.name][family].class_names, strict=True)
            }
            for family, task in source.tasks.items()
        }
        for source in sources
    }
    return joined, indices


def _require_equal(first: str, expected: Mapping[str, Task], name: str, tasks: Mapping[str, Task]) -> None:
    differing = sorted(expected.keys() ^ tasks.keys())
    what = f"the task {differing[0]}" if differing else ""
    for family in () if differing else expected:
        odd = sorted(set(expected[family].class_names) ^ set(tasks[family].class_names))
        if odd and not what:
            what = f"the {family} classes {', '.join(odd[:_NUM_SHOWN])}{', ...' if len(odd) > _NUM_SHOWN else ''}"
    if what:
        raise DataError(
            f"sources {first} and {name} do not both annotate {what}: in one dataset what a source never annotated "
            "would count as absent; write one dataset a source (--by-source) and train on all of them with labels"
        )


def _licences(origins: Sequence[SourceInfo]) -> str:
    names: dict[str, list[str]] = {}
    for origin in origins:
        names.setdefault(origin.licence or "not stated", []).append(origin.name)
    if len(names) == 1:
        return next(iter(names)) if origins[0].licence else ""
    return ", ".join(f"{licence} ({' and '.join(own)})" for licence, own in names.items())


def _index(indices: Mapping[str, int], name: str, column: str) -> int:
    if name not in indices:
        raise ValueError(f"{column}: {name!r} is no class of its source")
    return indices[name]


def _set_boxes(sample: Sample, boxes: Sequence[Mapping[str, Any]], indices: Mapping[str, int]) -> None:
    corners = [[box[name] for name in ("x0", "y0", "x1", "y1")] for box in boxes]
    sample.boxes = np.array(corners, np.float32).reshape(-1, 4)
    sample.box_labels = np.array([_index(indices, box["label"], "boxes") for box in boxes], np.int64)
    for name in ("difficult", "ignored"):
        flags_N = np.array([bool(box[name]) for box in boxes], np.float32)
        if flags_N.any():
            sample.box_attributes[name] = flags_N


def _renumbered(mask: NDArray[Any], order: Sequence[int]) -> NDArray[np.uint8]:
    largest = int(np.where(mask == IGNORE_LABEL, 0, mask).max(initial=0))
    if largest >= len(order):
        raise ValueError(f"mask: expected 0..{len(order) - 1} or {IGNORE_LABEL}, got {largest}")
    table = np.full(IGNORE_LABEL + 1, IGNORE_LABEL, np.uint8)
    table[: len(order)] = order
    return table[mask]


def depth_m(uri: str, scale: float) -> NDArray[np.float32]:
    """The depth map at an address, ``(height, width)`` in metres; 0 where unknown.

    Args:
        uri: of a 16-bit PNG or ``.npy``, as in a row.
        scale: metres a unit.

    Raises:
        DataError: nothing lies there.
        ValueError: it is no depth map.
    """
    data = read_bytes(uri)
    if uri.endswith(".npy"):
        units = np.load(BytesIO(data), allow_pickle=False).astype(np.float32)
        return np.nan_to_num(units, posinf=0.0, neginf=0.0) * np.float32(scale)
    return decode_map(data) * np.float32(scale)
