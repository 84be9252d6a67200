"""Answers from Label Studio's JSON exports as votes, one an annotator and item.

N boxes.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intern_vision.data.annotation.tasks import BOXES, CORRECTION, RIGHT, UNSURE, VERDICT, VERDICTS, WRONG, Question
from intern_vision.data.manifest import ManifestBox
from intern_vision.errors import DataError


@dataclass(slots=True, frozen=True, kw_only=True)
class Vote:
    """What one annotator says about one item.

    Attributes:
        item: which.
        annotator: who: Label Studio's number of the user.
        verdict: one of ``VERDICTS``; for boxes ``unsure`` or empty.
        label: the label that it shows, where the annotator named one: the proposed or a corrected one.
        boxes: in pixels of the upright image; of a question about boxes.
        updated: when it was last changed, as Label Studio writes it.
    """

    item: str
    annotator: str
    verdict: str
    label: str = ""
    boxes: tuple[ManifestBox, ...] = ()
    updated: str = ""


@dataclass(slots=True, frozen=True, kw_only=True)
class Asked:
    """What is known of an item when its answers come back; the fields are those of ``tasks.Item``."""

    key: str
    role: str
    proposed: str
    known: str
    width_px: int
    height_px: int


def read_votes(text: str, at: str, asked: Mapping[str, Asked], question: Question) -> Iterator[Vote]:
    """The votes of an export, tasks of other rounds and skipped ones left out.

    Args:
        text: the export.
        at: what messages call it.
        asked: items by name.
        question: what was asked.

    Raises:
        DataError: it is no export, or an answer cannot be understood; it names the task.
    """
    try:
        tasks = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{at}: expected a JSON export of Label Studio: {error}") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "annotations" in task for task in tasks):
        raise DataError(f"{at}: expected a list of tasks with annotations; export as JSON, not as JSON-MIN")
    for task in tasks:
        data = task.get("data")
        name = data.get("item") if isinstance(data, dict) else None
        item = asked.get(str(name))
        if item is None:
            continue
        for annotation in task["annotations"]:
            if annotation.get("was_cancelled"):
                continue
            place = f"{at}: task {task.get('id')}, annotation {annotation.get('id')}"
            try:
                yield _vote(annotation, str(name), item, question, place)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise DataError(f"{place}: not as Label Studio exports it: {type(error).__name__} {error}") from None


def latest(votes: Sequence[Vote]) -> dict[str, list[Vote]]:
    """Votes by item, each annotator's last one, in the order in which annotators first answered."""
    found: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        place = (vote.item, vote.annotator)
        if place not in found or vote.updated >= found[place].updated:
            found[place] = vote
    by_item: dict[str, list[Vote]] = {}
    for vote in sorted(found.values(), key=lambda vote: (vote.item, vote.updated, vote.annotator)):
        by_item.setdefault(vote.item, []).append(vote)
    return by_item


def _vote(annotation: Mapping[str, Any], name: str, item: Asked, question: Question, place: str) -> Vote:
    by = annotation["completed_by"]
    fields = {"item": name, "annotator": str(by["id"] if isinstance(by, Mapping) else by)}
    fields["updated"] = str(annotation.get("updated_at") or annotation.get("created_at") or "")
    results = annotation["result"]
    chosen = {each["from_name"]: each["value"]["choices"][0] for each in results if each["type"] == "choices"}
    verdict = chosen.get(VERDICT, "")
    if question == "box":
        regions = [each for each in results if each["type"] == "rectanglelabels" and each["from_name"] == BOXES]
        boxes = tuple(_box(region, item, place) for region in regions)
        return Vote(**fields, verdict=verdict, boxes=() if verdict == UNSURE else boxes)
    if verdict not in VERDICTS:
        raise DataError(f"{place}: expected the verdict {', '.join(VERDICTS)}, got {verdict!r}; answer the task again")
    correction = chosen.get(CORRECTION, "") if verdict == WRONG else ""
    if verdict == WRONG and correction == item.proposed:
        raise DataError(f"{place}: calls {item.proposed!r} wrong and right; answer the task again")
    return Vote(**fields, verdict=verdict, label=item.proposed if verdict == RIGHT else correction)


def _box(region: Mapping[str, Any], item: Asked, place: str) -> ManifestBox:
    value = region["value"]
    place = f"{place}, region {region.get('id')}"
    if value.get("rotation"):
        raise DataError(f"{place}: is turned by {value['rotation']} degrees; draw it upright")
    x, y, width, height = (float(value[name]) / 100 for name in ("x", "y", "width", "height"))
    corners = (x * item.width_px, y * item.height_px, (x + width) * item.width_px, (y + height) * item.height_px)
    limits = (item.width_px, item.height_px) * 2
    x0, y0, x1, y1 = (min(max(corner, 0.0), float(limit)) for corner, limit in zip(corners, limits, strict=True))
    if not all(map(math.isfinite, corners)) or x1 <= x0 or y1 <= y0:
        raise DataError(f"{place}: lies outside its image or has no area; draw it again")
    return ManifestBox(label=str(value["rectanglelabels"][0]), x0=x0, y0=y0, x1=x1, y1=y1)
