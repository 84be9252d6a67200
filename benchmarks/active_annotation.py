"""Labels needed for an accuracy: active annotation against random choice on a pool of which 30 % shows something else.

The made world's flower species: of 102, some are the concepts; the pool's outsiders are the other species (semantic
shift), concepts that nobody could tell (covariate shift: tiny, shaken, covered, overexposed) and scenes without any
flower (noise), a third each. Both arms start from the same labelled images and ask the same number of questions a
round; a simulated annotator names the concept, or says that there is none. Frozen features of a given model, a ridge
probe on the labels so far, accuracy on test images of the concepts.

    python -m benchmarks.active_annotation --model FOLDER_OF_WEIGHTS --out FOLDER
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import hardware
from intern_vision.data.annotation.asking import joined
from intern_vision.data.annotation.proposals import ImageEncoder, fit_probabilities
from intern_vision.data.annotation.rectify import KINDS, Described, Rectifier, probability_of_any
from intern_vision.data.annotation.selection import choose, uncertainty
from intern_vision.data.annotation.spoil import unusable, without_object
from intern_vision.data.world import DOWNSTREAM, render
from intern_vision.data.world_names import BACKGROUNDS
from intern_vision.data.world_scene import GROUND_PATTERNS, PALETTES, expose, outdoor_camera, outdoors

SIDE_PX = 64
OUTSIDER_SHARE = 0.3
TARGET = 2 / 3
MAX_LOSS = 0.05
BREADTH = 4.0
ACTIVE, RANDOM = "active", "random"
RECTIFIED, UNRECTIFIED = "rectified random", "unrectified active"
ARMS = (ACTIVE, RANDOM, RECTIFIED, UNRECTIFIED)
SIZES = {"num_concepts": "species to learn", "num_asked": "questions a round", "num_test": "test images a species"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is simulated.

    Attributes:
        num_concepts: species to learn.
        num_pool: images in the pool.
        num_start: labelled images a concept at the start.
        num_asked: questions a round.
        num_rounds: rounds.
        num_test: test images a concept.
    """

    num_concepts: int = 50
    num_pool: int = 2400
    num_start: int = 3
    num_asked: int = 100
    num_rounds: int = 8
    num_test: int = 30


@dataclass(slots=True, kw_only=True)
class Pool:
    """A pool with its truth.

    Attributes:
        images: each ``(H, W, 3)`` uint8.
        described: the same as the detectors see them.
        truth_N: concept, or -1 for an outsider.
        outsider_N: index in ``KINDS``, or -1.
    """

    images: list[NDArray[np.uint8]]
    described: Described
    truth_N: NDArray[np.int64]
    outsider_N: NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class Curve:
    """What an arm reached: questions asked, labels they gave, test accuracy, one entry a round from the start on."""

    asked: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


class Flowers:
    """All species, rendered and encoded once; each seed draws its concepts and outsiders from them."""

    def __init__(self, encoder: ImageEncoder, scale: Scale) -> None:
        num_classes = len(DOWNSTREAM["species"].tasks["classify"].class_names)
        # Enough that the concepts fill their part of the pool and the start.
        each = scale.num_start + int(np.ceil((1 - OUTSIDER_SHARE + 0.1) * scale.num_pool / scale.num_concepts))
        world_set = replace(
            DOWNSTREAM["species"], num_train=num_classes * each, num_test=num_classes * scale.num_test
        )  # fmt: skip
        train = render(world_set, 0, "train", range(world_set.num_train), SIDE_PX)
        test = render(world_set, 0, "test", range(world_set.num_test), SIDE_PX)
        self.num_classes = num_classes
        self.images = [sample.image for sample in train]
        self.labels_N = np.array([sample.label for sample in train])
        self.described = encoder.describe(self.images)
        self.test = encoder.describe([sample.image for sample in test])
        self.test_labels_N = np.array([sample.label for sample in test])


def blemished(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A concept that nobody could tell, by other faults than the detectors learn from."""
    fault = int(rng.integers(4))
    if fault == 0:
        canvas = plain_ground(rng)
        side = int(rng.integers(7, 11))
        y, x = rng.integers(0, SIDE_PX - side, 2)
        canvas[y : y + side, x : x + side] = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        return canvas
    if fault == 1:
        length = int(rng.integers(25, 40))
        turn = cv2.getRotationMatrix2D((length / 2, length / 2), float(rng.uniform(0, 180)), 1)
        line = np.zeros((length, length), np.float32)
        line[length // 2] = 1
        line = cv2.warpAffine(line, turn, (length, length))
        return cv2.filter2D(image, -1, line / line.sum(), borderType=cv2.BORDER_REFLECT)
    if fault == 2:
        covered = image.copy()
        covered[6:-6, 6:-6] = rng.integers(0, 256, 3)
        return covered
    return np.clip(image.astype(np.float32) * 3 + 120, 0, 255).astype(np.uint8)


def plain_ground(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A colour that drifts into another, with grain."""
    ramp = np.linspace(0, 1, SIDE_PX, dtype=np.float32)[:, None, None]
    image = (1 - ramp) * rng.uniform(0.1, 0.9, 3).astype(np.float32) + ramp * rng.uniform(0.1, 0.9, 3)
    return expose(rng, np.repeat(image, SIDE_PX, 1).astype(np.float32), 0.04, 0.05)


def no_object(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A plain ground, or a place outdoors with nothing in it."""
    if rng.random() < 0.5:
        return plain_ground(rng)
    palette = PALETTES[BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]]
    pattern = GROUND_PATTERNS[int(rng.integers(len(GROUND_PATTERNS)))]
    frame = outdoors(rng, outdoor_camera(rng, SIDE_PX), palette, pattern)
    return expose(rng, frame.image_HWC, 0.03, 0.05)


def make_pool(
    flowers: Flowers, encoder: ImageEncoder, scale: Scale, seed: int
) -> tuple[Pool, Pool, Described, NDArray[np.int64]]:
    """The pool, the labelled start, and the test images with their concepts."""
    rng = np.random.default_rng(seed)
    species = rng.permutation(flowers.num_classes)
    concepts = species[: scale.num_concepts]
    place = {int(label): index for index, label in enumerate(concepts)}
    inside = np.array([place.get(int(label), -1) for label in flowers.labels_N])
    per_concept = [rng.permutation(np.flatnonzero(inside == k)) for k in range(scale.num_concepts)]
    start = np.concatenate([rows[: scale.num_start] for rows in per_concept])
    rest = rng.permutation(np.concatenate([rows[scale.num_start :] for rows in per_concept]))
    num_kind = round(OUTSIDER_SHARE * scale.num_pool / len(KINDS))
    num_inside = scale.num_pool - num_kind * len(KINDS)
    own, spoiled = rest[:num_inside], rest[num_inside : num_inside + num_kind]
    others = rng.permutation(np.flatnonzero(inside < 0))[:num_kind]
    made = [no_object(rng) for _ in range(num_kind)]
    made += [blemished(flowers.images[row], rng) for row in spoiled]
    kinds = np.repeat([-1, 2, 0, 1], [len(own), len(others), num_kind, len(spoiled)])
    drawn = np.concatenate([own, others])
    described = joined([flowers.described[drawn], encoder.describe(made)])
    truth = np.concatenate([inside[own], np.full(len(kinds) - len(own), -1)])
    images = [flowers.images[row] for row in drawn] + made
    pool = Pool(images=images, described=described, truth_N=truth, outsider_N=kinds)
    begin = Pool(
        images=[flowers.images[row] for row in start],
        described=flowers.described[start],
        truth_N=inside[start],
        outsider_N=np.full(len(start), -1),
    )
    tested = np.array([place.get(int(label), -1) for label in flowers.test_labels_N])
    return pool, begin, flowers.test[tested >= 0], tested[tested >= 0]


class Simulation:
    """One arm on one pool.

    Args:
        arm: how questions are chosen.
        flowers: rendered images.
        encoder: images to vectors.
        scale: how much is simulated.
        seed: of the pool and of the choice.
    """

    def __init__(self, arm: str, flowers: Flowers, encoder: ImageEncoder, scale: Scale, seed: int) -> None:
        self.arm, self.encoder, self.scale, self.seed = arm, encoder, scale, seed
        self.pool, start, self.test, self.test_labels_N = make_pool(flowers, encoder, scale, seed)
        self.rng = np.random.default_rng(1000 + seed)
        self.labelled, self.labels_N = start.described, start.truth_N
        self.empty, self.spoiled = self._copies(start.images)
        self.open_N = np.ones(len(self.pool.images), bool)
        self.found: dict[str, float] = {}
        self.num_asked = 0

    def run(self) -> Curve:
        """Asks round after round."""
        curve = Curve()
        for _ in range(self.scale.num_rounds + 1):
            probabilities = fit_probabilities(self.labelled.vectors_ND, self.labels_N, self.scale.num_concepts)
            hits = probabilities(self.test.vectors_ND).argmax(1) == self.test_labels_N
            curve.asked.append(self.num_asked)
            curve.labels.append(len(self.labels_N))
            curve.accuracy.append(float(hits.mean()))
            self._answer(self._chosen(probabilities))
        return curve

    def _chosen(self, probabilities: Any) -> NDArray[np.int64]:
        open_M = np.flatnonzero(self.open_N)
        if self.arm == RANDOM:
            return self.rng.permutation(open_M)[: self.scale.num_asked]
        pool = self.pool.described[open_M]
        guesses = probabilities(pool.vectors_ND)
        values, stays = uncertainty(guesses, "margin"), np.ones(len(open_M), bool)
        if self.arm != UNRECTIFIED:
            rectifier = Rectifier(
                self.labelled, self.labels_N, self.empty, self.spoiled, max_loss=MAX_LOSS, seed=self.seed
            )
            scores = rectifier.score(pool)
            stays = rectifier.kinds_of(scores) < 0
            values = values * (1 - probability_of_any(scores))
            self._note(open_M, stays)
        rows = np.flatnonzero(stays)
        if self.arm == RECTIFIED:
            return open_M[self.rng.permutation(rows)[: self.scale.num_asked]]
        counts = np.bincount(self.labels_N, minlength=self.scale.num_concepts)
        shown, wanted = guesses[rows].argmax(1), self.scale.num_asked
        taken = choose(pool.vectors_ND[rows], values[rows], shown, counts, wanted, BREADTH, self.seed)
        return open_M[rows[taken]]

    def _note(self, open_M: NDArray[np.int64], stays: NDArray[np.bool_]) -> None:
        kinds = self.pool.outsider_N[open_M]
        self.found = {kind: float((~stays)[kinds == k].mean()) for k, kind in enumerate(KINDS) if (kinds == k).any()}
        self.found["lost"] = float((~stays)[kinds < 0].mean())

    def _answer(self, rows: NDArray[np.int64]) -> None:
        self.num_asked += len(rows)
        self.open_N[rows] = False
        known = rows[self.pool.truth_N[rows] >= 0]
        self.labelled = joined([self.labelled, self.pool.described[known]])
        self.labels_N = np.concatenate([self.labels_N, self.pool.truth_N[known]])
        if self.arm in (ACTIVE, RECTIFIED):
            empty, spoiled = self._copies([self.pool.images[row] for row in known])
            self.empty, self.spoiled = joined([self.empty, empty]), joined([self.spoiled, spoiled])

    def _copies(self, images: list[NDArray[np.uint8]]) -> tuple[Described, Described]:
        empty = self.encoder.describe([without_object(image, self.rng) for image in images])
        return empty, self.encoder.describe([unusable(image, self.rng) for image in images])


def asked_for(curve: Curve, accuracy: float) -> float:
    """Questions after which an arm has reached an accuracy, between rounds by a straight line; infinite if never."""
    best = np.maximum.accumulate(curve.accuracy)
    if best[-1] < accuracy:
        return float("inf")
    later = int(np.argmax(best >= accuracy))
    if later == 0:
        return float(curve.asked[0])
    share = (accuracy - best[later - 1]) / (best[later] - best[later - 1])
    return curve.asked[later - 1] + share * (curve.asked[later] - curve.asked[later - 1])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds, round by round."""
    return Curve(
        asked=curves[0].asked,
        labels=np.mean([curve.labels for curve in curves], 0).round().astype(int).tolist(),
        accuracy=np.mean([curve.accuracy for curve in curves], 0).tolist(),
    )


def ratios(curves: dict[str, list[Curve]], arm: str = ACTIVE) -> list[tuple[float, float, float]]:
    """Accuracy that random choice reaches after each round of its second half, its questions, and an arm's share."""
    random = mean_curve(curves[RANDOM])
    best = np.maximum.accumulate(random.accuracy)
    found = []
    for number in range(len(best) // 2, len(best)):
        if best[number] > best[number - 1]:
            asked = asked_for(mean_curve(curves[arm]), float(best[number]))
            found.append((float(best[number]), float(random.asked[number]), asked / random.asked[number]))
    return found


def draw(curves: dict[str, list[Curve]], path: Path) -> None:
    """The curves of all arms: the mean, and the range over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for arm, own in curves.items():
        mean, all_of_it = mean_curve(own), np.array([curve.accuracy for curve in own])
        (line,) = axes.plot(mean.asked, mean.accuracy, marker="o", markersize=3, label=arm)
        axes.fill_between(mean.asked, all_of_it.min(0), all_of_it.max(0), color=line.get_color(), alpha=0.15)
    axes.set(xlabel="questions asked", ylabel="test accuracy", title="30 % of the pool shows something else")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(options: Sequence[str] | None = None) -> None:
    """Runs the arms, prints a table and the ratio, draws the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of weights, as a training stage wrote it")
    parser.add_argument("--out", type=Path, help="folder for curves.json and curves.svg")
    parser.add_argument("--seeds", type=int, default=3, help="pools")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=(ACTIVE, RANDOM), help="ways to choose")
    for name, words in SIZES.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(Scale(), name), help=words)
    arguments = parser.parse_args(options)
    scale = Scale(**{name: getattr(arguments, name) for name in SIZES})
    encoder = ImageEncoder.load(arguments.model)
    flowers = Flowers(encoder, scale)
    curves: dict[str, list[Curve]] = {}
    for arm in arguments.arms:
        for seed in range(arguments.seeds):
            simulation = Simulation(arm, flowers, encoder, scale, seed)
            curves.setdefault(arm, []).append(simulation.run())
            found = ", ".join(f"{name} {share:.0%}" for name, share in simulation.found.items())
            print(f"{arm}, seed {seed}: accuracy {curves[arm][-1].accuracy[-1]:.3f}; {found}", flush=True)
        mean = mean_curve(curves[arm])
        for asked, labels, accuracy in zip(mean.asked, mean.labels, mean.accuracy, strict=True):
            print(f"{arm:20} {asked:5} asked {labels:5} labels  accuracy {accuracy:.3f}", flush=True)
    if ACTIVE in curves and RANDOM in curves:
        for accuracy, asked, share in ratios(curves):
            verdict = "pass" if share <= TARGET else "MISS"
            print(f"accuracy {accuracy:.3f}: random asks {asked:.0f}, active {share:.2f} of that ({verdict})")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        plain = {arm: [asdict(curve) for curve in own] for arm, own in curves.items()}
        (arguments.out / "curves.json").write_text(json.dumps(plain, indent=1) + "\n")
        draw(curves, arguments.out / "curves.svg")
    print(hardware())


if __name__ == "__main__":
    main()
