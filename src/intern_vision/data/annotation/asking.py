"""A round of questions: the pool is described, rectified and scored, and what is chosen becomes Label Studio tasks.

D feature width, K classes, N images.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.annotation.files import (
    LABELLING_FILE,
    ROUND_FILE,
    SCORES_FILE,
    SELECTION_FILE,
    TASKS_FILE,
    Round,
    scores_schema,
    selection_schema,
    write_tasks,
)
from intern_vision.data.annotation.proposals import BATCH_IMAGES, ImageEncoder, fit_probabilities
from intern_vision.data.annotation.rectify import KINDS, MEANINGS, Described, Kind, Rectifier, probability_of_any
from intern_vision.data.annotation.rows import Rows, label_counts, main_label
from intern_vision.data.annotation.selection import box_uncertainty, choose, uncertainty
from intern_vision.data.annotation.settings import PictureConfig, SelectionConfig
from intern_vision.data.annotation.spoil import STATISTICS, unusable, without_object
from intern_vision.data.annotation.tasks import (
    Item,
    Pictures,
    Question,
    audit_items,
    item_name,
    labelling_config,
    task,
)
from intern_vision.data.manifest import ManifestBox
from intern_vision.data.manifest_store import open_images
from intern_vision.data.tables import TableWriter
from intern_vision.errors import DataError
from intern_vision.events import Progress

if TYPE_CHECKING:
    from intern_vision.data.labels.concept import LabelSystem
    from intern_vision.heads.base import Prediction

MAX_THREADS = 8
_PROGRESS_EVERY = 16 * BATCH_IMAGES
_MAX_FLOAT16 = 65_504.0


@dataclass(slots=True, kw_only=True)
class Pool:
    """The pool as the model sees it.

    Attributes:
        rows: of the manifest.
        described: vectors (float16, on disk) and statistics.
        class_names: the classes that may be proposed.
        proposed_N: index of the class that each row is taken to show.
        informativeness_N: how unsure the model is, in [0, 1].
        confidence_N: of the proposal, in [0, 1].
        faults: rows whose image cannot be read, with what is wrong.
    """

    rows: Rows
    described: Described
    class_names: tuple[str, ...]
    proposed_N: NDArray[np.int64]
    informativeness_N: NDArray[np.float32]
    confidence_N: NDArray[np.float32]
    faults: dict[int, str]


class Questions:
    """Chooses images and writes the files of a round.

    Args:
        question: what is asked.
        config: which images.
        pictures: how tasks refer to them.
        scratch_dir: folder for the pool's vectors.
        progress: where images done are reported.
    """

    def __init__(
        self,
        question: Question,
        config: SelectionConfig,
        pictures: PictureConfig,
        scratch_dir: Path,
        progress: Progress,
    ) -> None:
        self.question, self.config, self.progress = question, config, progress
        self._pictures = Pictures(pictures)
        self._scratch_dir = scratch_dir
        self._num_threads = min(os.cpu_count() or 1, MAX_THREADS)

    def ask(
        self, labelled: Rows, rows: Rows, weights: Path, system: "LabelSystem | None", out: Path
    ) -> tuple[dict[int, dict[str, Any]], dict[str, float]]:
        """Writes the round's files.

        Args:
            labelled: rows to learn from.
            rows: the pool.
            weights: folder of the model.
            system: concepts whose images count for the concepts above them.
            out: folder for the files.

        Returns:
            Changes of the manifest by position, and facts.

        Raises:
            DataError: an empty pool, or too few labelled rows.
            ConfigError: the model has no fitting head, or an image does not lie where tasks can refer to it.
        """
        if not len(rows):
            raise DataError("annotate: no row without an annotation is left in the pool; ingest more images")
        labels = [main_label(row, self.question) for row in labelled]
        encoder = ImageEncoder.load(weights, self.question, self.config.head, labels)
        known, own_labels, empty, spoiled = self._describe_labelled(encoder, labelled, labels)
        names, numbers_N = np.unique(own_labels, return_inverse=True)
        rectifier = Rectifier(known, numbers_N, empty, spoiled, self.config.max_loss, self.config.seed)
        pool = self._describe_pool(encoder, rows, known, names, numbers_N)
        scores = rectifier.score(pool.described)
        kinds_N = rectifier.kinds_of(scores)
        taken = self._choose(pool, scores, kinds_N, label_counts(labels, pool.class_names, system))
        self._write(encoder, labelled, pool, scores, kinds_N, taken, out)
        facts: dict[str, float] = {"num_pool": len(rows), "num_asked": len(taken), "num_unreadable": len(pool.faults)}
        for index, kind in enumerate(KINDS):
            facts |= {f"num_{kind}": int((kinds_N == index).sum()), f"{kind}_recall": rectifier.recalls[kind]}
        return self._changes(pool, scores, kinds_N), facts

    def _describe_labelled(
        self, encoder: ImageEncoder, labelled: Rows, labels: list[str]
    ) -> tuple[Described, list[str], Described, Described]:
        """Labelled images with their labels, copies without the object, and spoiled copies, in one order."""
        rng = np.random.default_rng(self.config.seed)
        drawn = np.sort(rng.permutation(len(labelled))[: self.config.max_labelled])
        found: list[list[Described]] = [[] for _ in range(1 + 2 * self.config.num_copies)]
        kept: list[str] = []
        for rows, images, _ in self._batches(labelled.take(drawn), "labelled images"):
            kept += [labels[drawn[row]] for row in rows]
            found[0].append(encoder.describe(images))
            for copy in range(self.config.num_copies):
                found[1 + 2 * copy].append(encoder.describe([without_object(image, rng) for image in images]))
                found[2 + 2 * copy].append(encoder.describe([unusable(image, rng) for image in images]))
        if not kept:
            raise DataError("annotate: no labelled image to learn from; label a few images of each class first")
        parts = [joined(each) for each in found]
        return parts[0], kept, joined(parts[1::2]), joined(parts[2::2])

    def _describe_pool(
        self, encoder: ImageEncoder, rows: Rows, known: Described, names: NDArray[Any], numbers_N: NDArray[np.int64]
    ) -> Pool:
        num = len(rows)
        path = self._scratch_dir / "pool-vectors.npy"
        vectors = np.lib.format.open_memmap(path, "w+", np.float16, (num, encoder.width))
        pool = Pool(
            rows=rows,
            described=Described(vectors_ND=vectors, statistics_NS=np.zeros((num, len(STATISTICS)), np.float32)),
            class_names=encoder.class_names or tuple(map(str, names)),
            proposed_N=np.zeros(num, np.int64),
            informativeness_N=np.zeros(num, np.float32),
            confidence_N=np.zeros(num, np.float32),
            faults={},
        )
        probe = None if encoder.head else fit_probabilities(known.vectors_ND, numbers_N, len(names))
        for places, images, faults in self._batches(rows, "pool images"):
            pool.faults |= faults
            described, said = encoder.look(images)
            vectors[places] = np.clip(described.vectors_ND, -_MAX_FLOAT16, _MAX_FLOAT16)
            pool.described.statistics_NS[places] = described.statistics_NS
            if self.question == "box":
                _note_boxes(pool, places, said)
            elif images:
                asked = probe(described.vectors_ND) if probe else np.stack([each.scores for each in said])
                pool.proposed_N[places] = asked.argmax(1)
                pool.confidence_N[places] = asked.max(1)
                pool.informativeness_N[places] = uncertainty(asked, self.config.measure)
        return pool

    def _choose(
        self, pool: Pool, scores: dict[Kind, NDArray[np.float32]], kinds_N: NDArray[np.int64], counts_K: list[int]
    ) -> NDArray[np.int64]:
        stays = kinds_N < 0
        stays[list(pool.faults)] = False
        rows = np.flatnonzero(stays)
        if not len(rows):
            raise DataError(
                f"annotate: all {len(stays)} pool rows were taken for outsiders; "
                "label more images, or lower selection.max_loss"
            )
        values = pool.informativeness_N * (1 - probability_of_any(scores))
        taken = choose(
            pool.described.vectors_ND[rows],
            values[rows],
            pool.proposed_N[rows],
            counts_K,
            self.config.num_tasks,
            self.config.breadth,
            self.config.seed,
        )
        return rows[taken]

    def _write(
        self,
        encoder: ImageEncoder,
        labelled: Rows,
        pool: Pool,
        scores: dict[Kind, NDArray[np.float32]],
        kinds_N: NDArray[np.int64],
        taken: NDArray[np.int64],
        out: Path,
    ) -> None:
        p_ood_N = probability_of_any(scores)

        def figures(row: int) -> dict[str, float]:
            own = {kind: float(scores[kind][row]) for kind in KINDS}
            return own | {"informativeness": float(pool.informativeness_N[row]), "p_ood": float(p_ood_N[row])}

        with TableWriter(out / SCORES_FILE, scores_schema()) as table:
            for row, key in enumerate(pool.rows.column("key")):
                kind = KINDS[kinds_N[row]] if kinds_N[row] >= 0 else ""
                table.add(
                    {"key": key, "proposed": pool.class_names[pool.proposed_N[row]], "kind": kind, **figures(row)}
                )
        asked = {key: figures(int(row)) for row, key in zip(taken, pool.rows.take(taken).column("key"), strict=True)}
        audits = self._audits(labelled, pool.class_names, len(taken))
        schema = selection_schema()
        with TableWriter(out / SELECTION_FILE, schema) as table:

            def noted() -> Iterator[dict[str, Any]]:
                for item, picture in self._items(encoder, pool, taken, audits):
                    values = {name: value for name, value in asdict(item).items() if name in schema.names}
                    none = dict.fromkeys((*KINDS, "informativeness", "p_ood"), 0.0)
                    table.add(values | asked.get(item.key, none))
                    yield task(item, self.question, picture)

            write_tasks(noted(), out / TASKS_FILE)
        (out / LABELLING_FILE).write_text(labelling_config(self.question, pool.class_names), encoding="utf-8")
        about = Round(question=self.question, class_names=pool.class_names)
        (out / ROUND_FILE).write_text(about.to_json() + "\n", encoding="utf-8")

    def _audits(self, labelled: Rows, class_names: tuple[str, ...], num_asked: int) -> list[Item]:
        rng = np.random.default_rng(self.config.seed + 1)
        num_audits = min(round(self.config.audit_share * num_asked), len(labelled))
        drawn = labelled.take(np.sort(rng.permutation(len(labelled))[:num_audits]))
        return audit_items(list(drawn), self.question, class_names, self.config.seed)

    def _items(
        self, encoder: ImageEncoder, pool: Pool, taken: NDArray[np.int64], audits: list[Item]
    ) -> Iterator[tuple[Item, str]]:
        """Items in the order of their names, which says nothing of which are audits, with their pictures."""
        chosen = pool.rows.take(taken)
        by_name: dict[str, tuple[dict[str, Any], Item | int]] = {
            item.item: ({"uri": item.uri, "key": item.key}, item) for item in audits
        }
        for place, row in zip(taken.tolist(), chosen, strict=True):
            by_name[item_name(row["key"], self.config.seed)] = (row, place)
        names = sorted(by_name)
        opened = open_images((by_name[name][0] for name in names), self._num_threads)
        for name, (row, image) in zip(names, opened, strict=True):
            if isinstance(image, str):
                continue  # it was readable a moment ago: what lies there was changed
            known = by_name[name][1]
            item = known if isinstance(known, Item) else self._item(encoder, pool, known, row, image)
            yield item, self._pictures.address(row["uri"], image)

    def _item(
        self, encoder: ImageEncoder, pool: Pool, place: int, row: Mapping[str, Any], image: NDArray[np.uint8]
    ) -> Item:
        height_px, width_px = image.shape[:2]
        fields = {"item": item_name(row["key"], self.config.seed), "key": row["key"], "uri": row["uri"]}
        fields |= {"width_px": width_px, "height_px": height_px}
        proposed = pool.class_names[pool.proposed_N[place]]
        if self.question == "label":
            return Item(**fields, proposed=proposed, scores=(float(pool.confidence_N[place]),))
        (said,) = encoder.look([image])[1]
        shown = said.scores >= self.config.min_score
        boxes = tuple(
            ManifestBox(label=pool.class_names[label], x0=float(x0), y0=float(y0), x1=float(x1), y1=float(y1))
            for label, (x0, y0, x1, y1) in zip(said.labels[shown], said.boxes[shown], strict=True)
        )
        return Item(**fields, proposed=proposed, boxes=boxes, scores=tuple(said.scores[shown].tolist()))

    def _changes(
        self, pool: Pool, scores: dict[Kind, NDArray[np.float32]], kinds_N: NDArray[np.int64]
    ) -> dict[int, dict[str, Any]]:
        changes: dict[int, dict[str, Any]] = {}
        statuses = pool.rows.column("status")
        for row, position in enumerate(pool.rows.positions_N.tolist()):
            if row in pool.faults:
                changes[position] = {"status": "quarantined", "reason": f"image: {pool.faults[row]}"}
            elif kinds_N[row] >= 0:
                kind = KINDS[kinds_N[row]]
                reason = f"{kind}: {MEANINGS[kind]}, probability {scores[kind][row]:.2f}"
                changes[position] = {"status": "removed", "reason": reason}
            elif statuses[row] != "ok":
                changes[position] = {"status": "ok", "reason": ""}
        return changes

    def _batches(self, rows: Rows, what: str) -> Iterator[tuple[list[int], list[NDArray[np.uint8]], dict[int, str]]]:
        """Places and images of rows a batch at a time, and what is wrong with those that cannot be read."""
        places: list[int] = []
        images: list[NDArray[np.uint8]] = []
        faults: dict[int, str] = {}
        self.progress.restart_clock()
        for place, (_, image) in enumerate(open_images(rows, self._num_threads)):
            if isinstance(image, str):
                faults[place] = image
            else:
                places.append(place)
                images.append(image)
            if len(images) == BATCH_IMAGES or place + 1 == len(rows):
                yield places, images, faults
                places, images, faults = [], [], {}
            if (place + 1) % _PROGRESS_EVERY == 0 or place + 1 == len(rows):
                self.progress.step(place + 1, len(rows), what)


def joined(parts: Iterable[Described]) -> Described:
    """Described images one after the other."""
    parts = list(parts)
    return Described(
        vectors_ND=np.concatenate([part.vectors_ND for part in parts]),
        statistics_NS=np.concatenate([part.statistics_NS for part in parts]),
    )


def _note_boxes(pool: Pool, places: list[int], said: "list[Prediction]") -> None:
    for place, prediction in zip(places, said, strict=True):
        scores = prediction.scores
        pool.informativeness_N[place] = box_uncertainty(scores)
        if len(scores):
            pool.proposed_N[place] = prediction.labels[0]
            pool.confidence_N[place] = scores[0]
