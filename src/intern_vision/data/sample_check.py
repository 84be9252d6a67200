"""What is wrong with a sample under the tasks of its dataset."""

from typing import TYPE_CHECKING

import numpy as np

from intern_vision.data.sample import BOX_ATTRIBUTES, IGNORE_LABEL, Sample

if TYPE_CHECKING:
    from intern_vision.data.shard import DatasetInfo


def sample_fault(sample: Sample, info: "DatasetInfo") -> str | None:
    """One line that says what is wrong with a sample under the dataset's tasks, or ``None``."""
    if sample.image.ndim != 3 or sample.image.shape[2] != 3 or sample.image.dtype != np.uint8 or not sample.image.size:
        return f"image: expected (height, width, 3) uint8, got {sample.image.shape} {sample.image.dtype}"
    height, width = sample.image.shape[:2]
    for name, values in (("mask", sample.mask), ("depth", sample.depth)):
        if values is not None and values.shape != (height, width):
            return f"{name}: expected {(height, width)} as the image, got {values.shape}"
    num_classes = {family: task.num_classes for family, task in info.tasks.items()}
    label_limit = num_classes.get("classify", 2**31)
    if sample.label is not None and not 0 <= sample.label < label_limit:
        return f"label: expected 0..{label_limit - 1}, got {sample.label}"
    concept_limit = len(info.concept_names) or num_classes.get("multilabel", 2**31)
    if sample.concepts and not (min(sample.concepts) >= 0 and max(sample.concepts) < concept_limit):
        return f"concepts: expected 0..{concept_limit - 1}, got {sample.concepts}"
    if sample.mask is not None:
        mask_limit = num_classes.get("segment", IGNORE_LABEL)
        largest = int(np.where(sample.mask == IGNORE_LABEL, 0, sample.mask).max())
        if largest >= mask_limit:
            return f"mask: expected 0..{mask_limit - 1} or {IGNORE_LABEL}, got {largest}"
    return _box_fault(sample, num_classes.get("detect", 2**31))


def _box_fault(sample: Sample, num_classes: int) -> str | None:
    if sample.boxes is None:
        beside = "box_labels" if sample.box_labels is not None else "box_attributes" if sample.box_attributes else ""
        return f"{beside}: given without boxes" if beside else None
    height, width = sample.image.shape[:2]
    if sample.boxes.ndim != 2 or sample.boxes.shape[1] != 4:
        return f"boxes: expected shape (num_boxes, 4), got {sample.boxes.shape}"
    if sample.box_labels is None or sample.box_labels.shape != (len(sample.boxes),):
        return f"box_labels: expected {len(sample.boxes)} labels, one a box"
    for name, values in sample.box_attributes.items():
        if name not in BOX_ATTRIBUTES:
            return f"box_attributes: unknown name {name!r}; known: {', '.join(BOX_ATTRIBUTES)}"
        if values.shape != (len(sample.boxes),):
            return f"box_attributes: {name}: expected {len(sample.boxes)} values, one a box, got shape {values.shape}"
    if not len(sample.boxes):
        return None
    x0, y0, x1, y1 = sample.boxes.T
    if not ((x0 >= 0) & (y0 >= 0) & (x1 > x0) & (y1 > y0) & (x1 <= width) & (y1 <= height)).all():
        return f"boxes: expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, got {sample.boxes.tolist()}"
    if sample.box_labels.min() < 0 or sample.box_labels.max() >= num_classes:
        return f"box_labels: expected 0..{num_classes - 1}, got {sample.box_labels.tolist()}"
    return None
