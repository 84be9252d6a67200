"""The tasks that a source's rows can serve: what its files state, and else what its usable rows show."""

from collections.abc import Mapping

from intern_vision.data.ingest.offer import Offers
from intern_vision.data.ingest.opening import Opened
from intern_vision.task import Task


class SeenTasks:
    """Class names and ranges in the rows of a source, gathered while they are made.

    Args:
        known: the source's tasks in an earlier manifest: rows that are taken over are not opened again.
    """

    def __init__(self, known: Mapping[str, Task]) -> None:
        self._known = known
        self._labels: set[str] = set()
        self._box_labels: set[str] = set()
        self._several_labels = self._has_mask = self._has_depth = False
        self._num_mask_classes = 0
        self._max_depth_m = 0.0

    def add(self, opened: Opened) -> None:
        """Takes a row; one that is not usable does not count."""
        row, facts = opened.row, opened.facts
        if row.status != "ok" or facts is None:
            return
        if row.labels is not None:
            self._labels.update(row.labels)
            self._several_labels |= len(row.labels) != 1
        if row.boxes is not None:
            self._box_labels.update(box.label for box in row.boxes)
        if row.mask is not None:
            self._has_mask = True
            known = self._known["segment"].num_classes if opened.taken_over and "segment" in self._known else 0
            self._num_mask_classes = max(self._num_mask_classes, facts.num_mask_classes, known)
        if row.depth is not None:
            self._has_depth = True
            known_m = self._known["depth"].max_depth_m if opened.taken_over and "depth" in self._known else 0.0
            self._max_depth_m = max(self._max_depth_m, facts.max_depth_m, known_m)

    def tasks(self, offers: Offers) -> dict[str, Task]:
        """Family to task; classes that the source lists come in its order, others in that of the alphabet.

        Masks of which no names are known have the classes ``class_0`` up to the largest index found.
        """
        tasks = dict(offers.tasks)
        if self._labels and "classify" not in tasks:
            family = "multilabel" if self._several_labels or offers.several_labels else "classify"
            tasks[family] = Task(family=family, class_names=tuple(sorted(self._labels)))
        if self._box_labels and "detect" not in tasks:
            tasks["detect"] = Task(family="detect", class_names=tuple(sorted(self._box_labels)))
        if self._has_mask and "segment" not in tasks:
            names = tuple(f"class_{index}" for index in range(self._num_mask_classes))
            tasks["segment"] = Task(family="segment", class_names=names)
        if self._has_depth and self._max_depth_m > 0:
            tasks["depth"] = Task(family="depth", max_depth_m=self._max_depth_m)
        return dict(sorted(tasks.items()))
