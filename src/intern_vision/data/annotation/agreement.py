"""What votes come to: decisions, how far annotators agree, and which of them the audits speak against."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.annotation.answers import Asked, Vote
from intern_vision.data.annotation.settings import VoteConfig
from intern_vision.data.annotation.tasks import UNSURE, Question
from intern_vision.data.manifest import ManifestBox

ABSENT = "absent"
"""Rating of a box that an annotator did not draw."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Decision:
    """What the votes on an item come to.

    Attributes:
        outcome: ``labelled``, ``rejected`` (not what was proposed, nobody said what), ``unsure``, ``disputed`` (one
            vote more than is needed, and no majority) or ``open`` (more votes are needed).
        label: of a labelled image.
        boxes: of an image labelled with boxes, each the mean of those that agree.
    """

    outcome: str
    label: str = ""
    boxes: tuple[ManifestBox, ...] = ()


def decide(votes: Sequence[Vote], question: Question, config: VoteConfig) -> Decision:
    """Two equal votes decide; two that differ are settled by a third, and no more are asked for.

    Args:
        votes: of different annotators.
        question: what was asked.
        config: number of votes (two where the above says so), and from which overlap boxes are the same.
    """
    groups: list[list[Vote]] = []
    for vote in votes:
        for group in groups:
            if _equal(group[0], vote, question, config.min_iou):
                group.append(vote)
                break
        else:
            groups.append([vote])
    groups.sort(key=len, reverse=True)
    has_majority = len(groups) == 1 or (len(groups) > 1 and len(groups[0]) > len(groups[1]))
    if groups and has_majority and len(groups[0]) >= config.num_votes:
        return _decision(groups[0], question, config.min_iou)
    if len(votes) <= config.num_votes:
        return Decision(outcome="open")
    if question == "box" and all(vote.verdict != UNSURE for vote in votes):
        return _decision(votes, question, config.min_iou)
    return Decision(outcome="disputed")


def audit_is_right(
    vote: Vote, asked: Asked, known_boxes: Sequence[ManifestBox], question: Question, iou: float
) -> bool:
    """Whether a vote on an audit is the known answer."""
    if question == "label":
        return vote.verdict == asked.known
    return vote.verdict != UNSURE and _same_boxes(vote.boxes, known_boxes, iou)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa of two annotators' ratings of the same items, in [-1, 1]; 1 where both always say one thing.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    pairs, left, right = Counter(zip(first, second, strict=True)), Counter(first), Counter(second)
    observed = sum(pairs[name, name] for name in left) / len(first)
    expected = sum(left[name] * right[name] for name in left) / len(first) ** 2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(counts_NK: NDArray[np.int64]) -> float:
    """Fleiss' kappa of items with equally many ratings, in [-1, 1]; 1 where every rating is of one category.

    Source: Fleiss 1971, "Measuring nominal scale agreement among many raters".

    Args:
        counts_NK: ratings of item N in category K; every row has the same sum, 2 or more.
    """
    num_ratings = counts_NK.sum(1)[0]
    observed = ((counts_NK * (counts_NK - 1)).sum(1) / (num_ratings * (num_ratings - 1))).mean()
    expected = ((counts_NK.sum(0) / counts_NK.sum()) ** 2).sum()
    return 1.0 if expected == 1 else float((observed - expected) / (1 - expected))


class Ballot:
    """All votes of a round.

    Attributes:
        annotators: by name: ``num_votes``, ``num_audits``, ``audit_accuracy`` (0 without audits), ``is_left_out``.
        decisions: by item, questions alone.

    Args:
        votes: by item, see ``answers.latest``.
        asked: all items of the round.
        known_boxes: boxes of the audits by item.
        question: what was asked.
        config: when answers count.
    """

    def __init__(
        self,
        votes: Mapping[str, Sequence[Vote]],
        asked: Mapping[str, Asked],
        known_boxes: Mapping[str, Sequence[ManifestBox]],
        question: Question,
        config: VoteConfig,
    ) -> None:
        self.question, self.config = question, config
        self.annotators = self._judge(votes, asked, known_boxes)
        out = {name for name, facts in self.annotators.items() if facts["is_left_out"]}
        self.votes = {item: [vote for vote in own if vote.annotator not in out] for item, own in votes.items()}
        self.decisions = {
            item: decide(self.votes.get(item, ()), question, config)
            for item, one in asked.items()
            if one.role == "question"
        }
        self._asked = asked

    def _judge(
        self,
        votes: Mapping[str, Sequence[Vote]],
        asked: Mapping[str, Asked],
        known_boxes: Mapping[str, Sequence[ManifestBox]],
    ) -> dict[str, dict[str, Any]]:
        num_votes, num_audits, num_right = Counter(), Counter(), Counter()
        for item, own in votes.items():
            for vote in own:
                num_votes[vote.annotator] += 1
                if asked[item].role == "audit":
                    known = known_boxes.get(item, ())
                    num_audits[vote.annotator] += 1
                    num_right[vote.annotator] += audit_is_right(
                        vote, asked[item], known, self.question, self.config.min_iou
                    )
        judged = {}
        for name in sorted(num_votes):
            accuracy = num_right[name] / num_audits[name] if num_audits[name] else 0.0
            is_known = num_audits[name] >= self.config.min_audits
            judged[name] = {
                "num_votes": num_votes[name],
                "num_audits": num_audits[name],
                "audit_accuracy": round(accuracy, 4),
                "is_left_out": is_known and accuracy < self.config.min_accuracy,
            }
        return judged

    def summary(self) -> dict[str, Any]:
        """What ``agreement.json`` holds: counts of decisions, agreement and the annotators one by one.

        Kappa is over the verdicts of labels; over boxes each box that anybody drew is an item, rated by its label
        or ``absent``. Audits and annotators that are left out do not count.
        """
        ratings = self._ratings()
        outcomes = Counter(decision.outcome for decision in self.decisions.values())
        pairs = [rated for rated in ratings if len(rated) >= 2]
        is_agreed = [len(set(rated.values())) == 1 for rated in pairs]
        facts: dict[str, Any] = {"question": self.question, "num_items": len(self.decisions)}
        facts |= {f"num_{name}": outcomes[name] for name in ("labelled", "rejected", "unsure", "disputed", "open")}
        facts |= {"num_rated_twice": len(pairs), "agreed_share": float(np.mean(is_agreed)) if is_agreed else 0.0}
        # Kappa needs as many ratings of each item: the first ones, of as many annotators as decide.
        num_ratings = max(2, self.config.num_votes)
        full = [list(rated.values())[:num_ratings] for rated in ratings if len(rated) >= num_ratings]
        if full:
            names = sorted({name for rated in full for name in rated})
            counts_NK = np.array([[rated.count(name) for name in names] for rated in full])
            facts["fleiss_kappa"] = round(fleiss_kappa(counts_NK), 4)
        facts["pairs"] = _pairs(ratings)
        return facts | {"annotators": self.annotators}

    def _ratings(self) -> list[dict[str, str]]:
        """Rating by annotator of everything that was rated."""
        own = [self.votes.get(item, []) for item in self.decisions]
        if self.question == "label":
            return [{vote.annotator: vote.verdict for vote in votes} for votes in own if votes]
        return [rated for votes in own for rated in _box_ratings(votes, self.config.min_iou)]


def _pairs(ratings: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Cohen's kappa of every two annotators who rated the same things."""
    both: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for rated in ratings:
        for first, second in itertools.combinations(sorted(rated), 2):
            both.setdefault((first, second), []).append((rated[first], rated[second]))
    return [
        {
            "first": first,
            "second": second,
            "num_items": len(rows),
            "cohen_kappa": round(cohen_kappa([a for a, _ in rows], [b for _, b in rows]), 4),
        }
        for (first, second), rows in sorted(both.items())
    ]


def _equal(first: Vote, second: Vote, question: Question, min_iou: float) -> bool:
    if UNSURE in (first.verdict, second.verdict):
        return first.verdict == second.verdict
    if question == "box":
        return _same_boxes(first.boxes, second.boxes, min_iou)
    return first.label == second.label


def _decision(votes: Sequence[Vote], question: Question, min_iou: float) -> Decision:
    first = votes[0]
    if first.verdict == UNSURE:
        return Decision(outcome="unsure")
    if question == "label":
        return Decision(outcome="labelled" if first.label else "rejected", label=first.label)
    kept = [group for group in _box_groups(votes, min_iou) if 2 * len(group) > len(votes)]
    return Decision(outcome="labelled", boxes=tuple(_mean_box([box for _, box in group]) for group in kept))


def _box_groups(votes: Sequence[Vote], min_iou: float) -> list[list[tuple[str, ManifestBox]]]:
    """Boxes that are the same one, with who drew them; of an annotator at most one each."""
    groups: list[list[tuple[str, ManifestBox]]] = []
    for vote in votes:
        drawn = list(vote.boxes)
        before = list(groups)
        fits = sorted(
            ((_iou(group[0][1], box), g, b) for g, group in enumerate(before) for b, box in enumerate(drawn)
             if group[0][1].label == box.label),
            key=lambda fit: (-fit[0], fit[1], fit[2]),
        )  # fmt: skip
        taken_groups, taken_boxes = set(), set()
        for iou, g, b in fits:
            if iou >= min_iou and g not in taken_groups and b not in taken_boxes:
                before[g].append((vote.annotator, drawn[b]))
                taken_groups.add(g)
                taken_boxes.add(b)
        groups += [[(vote.annotator, box)] for b, box in enumerate(drawn) if b not in taken_boxes]
    return groups


def _box_ratings(votes: Sequence[Vote], min_iou: float) -> list[dict[str, str]]:
    sure = [vote for vote in votes if vote.verdict != UNSURE]
    names = [vote.annotator for vote in sure]
    found = []
    for group in _box_groups(sure, min_iou):
        drawn = {annotator: box.label for annotator, box in group}
        found.append({name: drawn.get(name, ABSENT) for name in names})
    return found


def _same_boxes(first: Sequence[ManifestBox], second: Sequence[ManifestBox], min_iou: float) -> bool:
    pair = [Vote(item="", annotator=str(n), verdict="", boxes=tuple(boxes)) for n, boxes in enumerate((first, second))]
    return len(first) == len(second) == len(_box_groups(pair, min_iou))


def _mean_box(boxes: Sequence[ManifestBox]) -> ManifestBox:
    means = {name: float(np.mean([getattr(box, name) for box in boxes])) for name in ("x0", "y0", "x1", "y1")}
    return replace(boxes[0], **means)


def _iou(a: ManifestBox, b: ManifestBox) -> float:
    width = max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0))
    height = max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))
    shared = width * height
    return shared / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - shared)
