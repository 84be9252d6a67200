"""The lists of images that every protocol uses, published as counts and digests (``splits.json`` beside this file).

GV-B's own lists were never published (gv-benchmark, issue 7), so its protocol could not be repeated. Here a list
follows from keys, classes and a seed (``intern_vision.bench.protocol``), and its digest says whether two people have
the same one. Digests of official datasets need a copy: ``intern benchmark splits --write --data-root DIR`` fills them
in.
"""

import dataclasses
import json
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from intern_vision.bench.protocol import NUM_SHOT_SEEDS, SHARES, SHOTS, SPLIT_SEED, share_name, shot_name, split_digests
from intern_vision.bench.suite import SUITE, SuiteRow
from intern_vision.config import Config, parse_json_object
from intern_vision.errors import ConfigError, DataError

SPLITS_PATH = Path(__file__).with_name("splits.json")
WORLD_PRESETS = ("smoke", "nano")
"""Presets whose training sets of the made world are published; ``small`` has those of ``nano``."""
_SHOWN_DIGITS = 12
# Keys and labels do not depend on the size that images are drawn at.
_SMALL_PX = 16
Source = Literal["made world", "scikit-learn", "official"]


class ListDigest(Config):
    """One list of images.

    Attributes:
        num_images: its length; ``None`` where a copy of the dataset must be counted.
        digest: SHA-256 of the sorted keys as canonical JSON; ``None`` where it is unpublished.
    """

    num_images: int | None = Field(default=None, ge=0)
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class SplitRow(Config):
    """The lists of one training set.

    Attributes:
        dataset: its name.
        source: who makes the images.
        num_train: training images.
        seed: of the draw rule; few-shot draw s uses this plus s.
        lists: by protocol.
    """

    dataset: str
    source: Source
    num_train: int = Field(ge=0)
    seed: int = SPLIT_SEED
    lists: dict[str, ListDigest]

    @property
    def name(self) -> str:
        """The dataset with its size, which tells the rows of one dataset apart."""
        return f"{self.dataset} ({self.num_train:,} images)"

    @property
    def identity(self) -> tuple[str, int]:
        """Tells whether two rows are of one training set: a made one by its size, of an official one there is one."""
        return self.dataset, 0 if self.source == "official" else self.num_train


class SplitFile(Config):
    """The JSON of ``splits.json``.

    Attributes:
        rule: how a list is drawn.
        rows: one a training set.
    """

    rule: str
    rows: tuple[SplitRow, ...]


RULE = (
    "A class's images are ordered by SHA-256 of '<seed>:<key>'. N percent: of each class the first "
    "max(1, round_half_up(N/100 * images of the class)); 100: all. kshot.s: the first k of each class with seed + s. "
    "What counts as a class: the label; for other tasks the stratum that the dataset states (the rarest class of an "
    "image, the drive or scene), and all images as one class where it states none. Few-shot lists are for "
    "classification. Digest: SHA-256 of the sorted keys as canonical JSON."
)


def read_splits(path: Path = SPLITS_PATH) -> tuple[SplitRow, ...]:
    """Every training set of the suite and of the made world, with the digests that are published."""
    found: dict[tuple[str, int], SplitRow] = {}
    expected = (*_world_rows(), *map(_official_row, SUITE))
    if path.exists():
        values = parse_json_object(path.read_text(encoding="utf-8"), str(path))
        found = {row.identity: row for row in SplitFile.from_dict(values, at=str(path)).rows}
    return tuple(found.get(row.identity, row) for row in expected)


def selected_rows(rows: Sequence[SplitRow], datasets: Sequence[str]) -> tuple[SplitRow, ...]:
    """The rows of these datasets, all where none is named; ConfigError names the known datasets."""
    known = dict.fromkeys(row.dataset for row in rows)
    for name in datasets:
        if name not in known:
            raise ConfigError(f"--datasets: expected names among {', '.join(known)}, got {name!r}")
    return tuple(row for row in rows if not datasets or row.dataset in datasets)


def compute(rows: Sequence[SplitRow], data_root: Path | None = None) -> tuple[SplitRow, ...]:
    """Recomputes what can be: the made world's lists, and those of the official datasets below ``data_root``.

    Raises:
        DataError: a copy that cannot be read.
    """
    found = []
    for row in rows:
        if row.source != "official":
            found.append(_with_digests(row, *_world_keys(row.dataset, row.num_train)))
        elif data_root is not None and (data_root / row.dataset).is_dir():
            found.append(_with_digests(row, *official_keys(row.dataset, data_root)))
        else:
            found.append(row)
    return tuple(found)


def check(published: Iterable[SplitRow], found: Iterable[SplitRow]) -> None:
    """Compares recomputed lists with the published ones; what is unpublished is not compared.

    Raises:
        DataError: the first list that differs.
    """
    known = {row.identity: row.lists for row in published}
    for row in found:
        for protocol, ours in row.lists.items():
            other = known.get(row.identity, {}).get(protocol, ListDigest())
            if other.digest is None or other.digest == ours.digest:
                continue
            raise DataError(
                f"splits: {row.name} @{protocol}: published {_shown(other)}, recomputed {_shown(ours)}; "
                "the copy has other images, keys or classes than the published one"
            )


def merged(published: Sequence[SplitRow], found: Sequence[SplitRow]) -> tuple[SplitRow, ...]:
    """The published rows with the lists that were unpublished; DataError where a published one differs."""
    check(published, found)
    recomputed = {row.identity: row for row in found}
    return tuple(recomputed.get(row.identity, row) for row in published)


def to_text(rows: Sequence[SplitRow]) -> str:
    """The JSON of ``splits.json``; a list a line, so that a difference is readable."""
    blocks = []
    for row in rows:
        values = row.to_dict()
        lists = values.pop("lists")
        lines = [f"   {json.dumps(protocol)}: {json.dumps(each)}" for protocol, each in lists.items()]
        blocks.append(json.dumps(values)[:-1] + ', "lists": {\n' + ",\n".join(lines) + "}}")
    return f'{{"rule": {json.dumps(RULE)},\n "rows": [\n  ' + ",\n  ".join(blocks) + "]}\n"


def to_lines(rows: Sequence[SplitRow], published: Sequence[SplitRow]) -> list[str]:
    """A line a list: dataset, protocol, images, the digest's beginning, and whether it is published."""
    known = {(*row.identity, protocol): each for row in published for protocol, each in row.lists.items()}
    lines = []
    for row in rows:
        for protocol, each in row.lists.items():
            is_new = each.digest is not None and known[*row.identity, protocol].digest is None
            note = "  not published: compare it with other people's" if is_new else ""
            lines.append(f"{row.name:34} @{protocol:9} {_shown(each)}{note}")
    return lines


def official_keys(dataset: str, data_root: Path) -> tuple[list[str], list[Hashable]]:
    """Keys and strata of the training images of a person's copy; no image is opened."""
    from intern_vision.data.official import read_official

    items = [item for item in read_official(dataset, data_root).items if item.split == "train"]
    return [item.key for item in items], ["" if item.stratum is None else str(item.stratum) for item in items]


def _world_rows() -> list[SplitRow]:
    """The made world's training sets at the sizes that ``WORLD_PRESETS`` draw them in and at their own, each once."""
    from intern_vision.data.world import DOWNSTREAM
    from intern_vision.presets import resolve
    from intern_vision.run_config import MORE_SETS
    from intern_vision.stages.prepare import REAL_SET

    runs = [resolve(preset) for preset in WORLD_PRESETS]
    sizes = [(dataset, run.downstream.num_train) for run in runs for dataset in run.downstream_sets]
    sizes += [(dataset, runs[-1].downstream.num_train) for dataset in MORE_SETS]
    sizes += [(dataset, own.num_train) for dataset, own in DOWNSTREAM.items()]
    rows = {}
    for dataset, num_train in sizes:
        own = DOWNSTREAM[dataset]
        is_real = dataset == REAL_SET
        row = SplitRow(
            dataset=dataset,
            source="scikit-learn" if is_real else "made world",
            num_train=min(num_train, own.num_train) if is_real else num_train,
            lists=dict.fromkeys(_protocols("classify" in own.tasks), ListDigest()),
        )
        rows[row.identity] = row
    return list(rows.values())


def _official_row(row: SuiteRow) -> SplitRow:
    counts = {share_name(0.1): row.ten_percent, share_name(1.0): row.num_train}
    counts |= {shot_name(shots, draw): shots * row.num_classes for shots in SHOTS for draw in range(NUM_SHOT_SEEDS)}
    lists = {name: ListDigest(num_images=counts[name]) for name in _protocols(row.family == "classify")}
    return SplitRow(dataset=row.name, source="official", num_train=row.num_train, lists=lists)


def _protocols(has_shots: bool) -> list[str]:
    names = [shot_name(shots, draw) for shots in SHOTS for draw in range(NUM_SHOT_SEEDS)]
    return [*map(share_name, SHARES), *(names if has_shots else ())]


def _world_keys(dataset: str, num_train: int) -> tuple[list[str], list[Hashable] | None]:
    """Keys and labels of a made training set at the presets' seed."""
    from intern_vision.data.world import DOWNSTREAM, render

    own = dataclasses.replace(DOWNSTREAM[dataset], num_train=num_train)
    samples = render(own, 0, "train", range(num_train), _SMALL_PX)
    return [sample.key for sample in samples], [s.label for s in samples] if "classify" in own.tasks else None


def _with_digests(row: SplitRow, keys: Sequence[str], strata: Sequence[Hashable] | None) -> SplitRow:
    found = split_digests(keys, strata, row.seed)
    lists = {
        name: ListDigest(num_images=int(found[name]["num"]), digest=str(found[name]["digest"])) for name in row.lists
    }
    return row.model_copy(update={"num_train": len(keys), "lists": lists})


def _shown(each: ListDigest) -> str:
    count = "?" if each.num_images is None else f"{each.num_images:,}"
    return f"{count:>9} images  {each.digest[:_SHOWN_DIGITS] if each.digest else 'unpublished'}"
