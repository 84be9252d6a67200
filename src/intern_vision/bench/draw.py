"""Pictures with what is known or said about them: boxes, masks, depth, labels and captions; OpenCV only.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with any of the common colour vision
deficiencies tell apart; right and wrong differ in blue and vermilion and in the word as well. Depth uses cividis
(Nunez et al., PLOS ONE 2018), for the same reason. Images are ``(height, width, 3)`` uint8 RGB throughout.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.codec import encode_png
from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.errors import DataError
from intern_vision.task import Family, Task

if TYPE_CHECKING:
    from intern_vision.heads.base import Prediction

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

MIN_CELL_PX = 160
# Weaker boxes are kept for the score's sake and would only hide the picture.
MIN_SHOWN_SCORE = 0.3

_CELL_PX = MIN_CELL_PX
_GRID_WIDTH_PX = 1200
# Two grids of predictions stand side by side in the report, where the text must stay readable.
_PREDICTIONS_WIDTH_PX = 700
_GAP_PX = 10
_LINE_PX = 15
_MAX_TEXT_LINES = 3
_MAX_LEGEND_LINES = 4
_CHAR_PX = 6.6
_WHITE: Colour = (255, 255, 255)
_BLACK: Colour = (20, 20, 20)
_GREY: Colour = (110, 110, 110)
_RIGHT: Colour = (0, 90, 160)
_WRONG: Colour = (200, 70, 0)
_OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_Text = tuple[str, Colour]
T = TypeVar("T")


def class_colour(index: int) -> Colour:
    """RGB of a class: seven hues, then the same darker, then lighter."""
    base = np.array(_OKABE_ITO[index % len(_OKABE_ITO)], np.float32)
    shift = (index // len(_OKABE_ITO)) % 3
    mixed = (base, base * 0.55, base * 0.5 + 127)[shift]
    return (int(mixed[0]), int(mixed[1]), int(mixed[2]))


def draw_samples(samples: Sequence[Sample], tasks: Mapping[Family, Task]) -> bytes:
    """A grid of samples with everything annotated on them: boxes, mask, depth, and captions and labels as text.

    Args:
        samples: at least one; images of any size.
        tasks: label names by family.

    Returns:
        PNG bytes.

    Raises:
        DataError: there is no sample.
    """
    cards = [_card(sample_panels(sample, tasks), _sample_text(sample, tasks)) for sample in samples]
    return _grid_png(cards, _GRID_WIDTH_PX)


def sample_panels(sample: Sample, tasks: Mapping[Family, Task]) -> list[Image]:
    """The image with its boxes, its mask over it and its depth, as far as they are annotated, each a panel."""
    image = sample.image
    if sample.boxes is not None and len(sample.boxes) and sample.box_labels is not None:
        panels = [_boxes_panel(image, sample.boxes, sample.box_labels, None, tasks.get("detect"))]
    else:
        panels = [_fit(image)]
    if sample.mask is not None and (sample.mask != IGNORE_LABEL).any():
        panels.append(_mask_panel(image, sample.mask))
    if sample.depth is not None and (sample.depth > 0).any():
        panels.append(_depth_panel(sample.depth, _depth_range(sample.depth)))
    return panels


def draw_predictions(
    samples: Sequence[Sample], predictions: Sequence[Prediction], task: Task, width_px: int = _PREDICTIONS_WIDTH_PX
) -> bytes:
    """A grid of pictures with the truth beside what a model says.

    Args:
        samples: at least one, with the field that the family needs.
        predictions: one a sample, in the same order; boxes and maps in the pixels of the sample's image.
        task: the family and its label names.
        width_px: of the grid at most; one card may be wider.

    Returns:
        PNG bytes.

    Raises:
        DataError: no sample, another number of predictions, or a field of the family is missing.
    """
    if len(samples) != len(predictions):
        raise DataError(f"predictions: expected {len(samples)}, one a sample, got {len(predictions)}")
    compare = {
        "classify": _compare_label,
        "multilabel": _compare_concepts,
        "detect": _compare_boxes,
        "segment": _compare_mask,
        "depth": _compare_depth,
    }[task.family]
    cards = [compare(sample, prediction, task) for sample, prediction in zip(samples, predictions, strict=True)]
    return _grid_png(cards, width_px)


def draw_prediction(image: Image, prediction: Prediction, task: Task) -> Image:
    """One picture with what a model says, and the words for it below.

    Args:
        image: of any size; it is enlarged to at least ``MIN_CELL_PX`` a side, never made smaller.
        prediction: boxes and maps in the image's pixels.
        task: the family and its label names.

    Raises:
        DataError: the prediction lacks the family's field.
    """
    side_px = max(*image.shape[:2], MIN_CELL_PX)
    if task.family in ("classify", "multilabel"):
        return _card([_fit(image, side_px)], _score_lines(prediction, task))
    if task.family == "detect":
        boxes, labels = _need(prediction.boxes, "boxes"), _need(prediction.labels, "labels")
        panel = _boxes_panel(image, boxes, labels, prediction.scores, task, side_px)
        return _card([panel], [(_count_text(prediction, boxes), _BLACK)])
    if task.family == "segment":
        mask = _need(prediction.mask, "mask")
        return _card([_mask_panel(image, mask, side_px)], _legend(mask, task))
    depth = _need(prediction.depth, "depth")
    limits_m = _depth_range(depth)
    text = f"depth {limits_m[0]:.1f} m (dark) to {limits_m[1]:.1f} m (light)"
    return _card([_fit(image, side_px), _depth_panel(depth, limits_m, side_px)], [(text, _BLACK)])


def _compare_label(sample: Sample, prediction: Prediction, task: Task) -> Image:
    truth, label = _need(sample.label, f"{sample.key}: label"), _need(prediction.label, "label")
    right = truth == label
    score = "" if prediction.scores is None else f" {prediction.scores[label]:.2f}"
    verdict = (f"says {_name(task, label)}{score} {'(right)' if right else '(wrong)'}", _RIGHT if right else _WRONG)
    return _card([_fit(sample.image)], [(f"is {_name(task, truth)}", _BLACK), verdict])


def _compare_concepts(sample: Sample, prediction: Prediction, task: Task) -> Image:
    truth = set(_need(sample.concepts, f"{sample.key}: concepts"))
    said = set(np.flatnonzero(_need(prediction.scores, "scores") > 0.5).tolist())
    lines: list[_Text] = [("is " + ", ".join(_name(task, index) for index in sorted(truth)), _BLACK)]
    for word, found, colour in (("right", said & truth, _RIGHT), ("wrong", said - truth, _WRONG)):
        if found:
            lines.append((f"{word}: " + ", ".join(_name(task, index) for index in sorted(found)), colour))
    return _card([_fit(sample.image)], lines)


def _compare_boxes(sample: Sample, prediction: Prediction, task: Task) -> Image:
    truth = _need(sample.boxes, f"{sample.key}: boxes")
    boxes, labels = _need(prediction.boxes, "boxes"), _need(prediction.labels, "labels")
    panels = [
        _boxes_panel(sample.image, truth, _need(sample.box_labels, f"{sample.key}: box_labels"), None, task),
        _boxes_panel(sample.image, boxes, labels, prediction.scores, task),
    ]
    return _card(
        panels, [(f"left: truth, {len(truth)} {_boxes(len(truth))}", _BLACK), (_count_text(prediction, boxes), _BLACK)]
    )


def _compare_mask(sample: Sample, prediction: Prediction, task: Task) -> Image:
    truth = _need(sample.mask, f"{sample.key}: mask")
    mask = _map(prediction.mask, "mask", truth, sample.key)
    known = truth != IGNORE_LABEL
    share = float((truth == mask)[known].mean()) if known.any() else 0.0
    # Both maps decide the legend: a class that is only said is worth naming too.
    legend = _legend(np.concatenate([truth[known], mask[known]]), task)
    text = (f"left: truth, right: said, {100 * share:.0f} % of pixels right", _BLACK)
    return _card([_mask_panel(sample.image, truth), _mask_panel(sample.image, mask)], [text, *legend])


def _compare_depth(sample: Sample, prediction: Prediction, task: Task) -> Image:
    truth = _need(sample.depth, f"{sample.key}: depth")
    depth = _map(prediction.depth, "depth", truth, sample.key)
    known = truth > 0
    error = float((np.abs(depth - truth)[known] / truth[known]).mean()) if known.any() else 0.0
    limits_m = _depth_range(truth)
    panels = [_fit(sample.image), _depth_panel(truth, limits_m), _depth_panel(depth, limits_m)]
    text = f"image, truth, said: {limits_m[0]:.1f} m (dark) to {limits_m[1]:.1f} m, off by {100 * error:.0f} %"
    return _card(panels, [(text, _BLACK)])


def _sample_text(sample: Sample, tasks: Mapping[Family, Task]) -> list[_Text]:
    lines: list[_Text] = []
    if sample.label is not None and sample.label >= 0:
        lines.append((_name(tasks.get("classify"), sample.label), _BLACK))
    if sample.caption:
        lines.append((f'"{sample.caption}"', _BLACK))
    if sample.concepts and not lines:
        lines.append((", ".join(_name(tasks.get("multilabel"), index) for index in sample.concepts), _BLACK))
    if sample.mask is not None and not sample.caption and "segment" in tasks:
        lines += _legend(sample.mask, tasks["segment"])
    if sample.depth is not None and (sample.depth > 0).any():
        low_m, high_m = _depth_range(sample.depth)
        lines.append((f"depth {low_m:.1f} m (dark) to {high_m:.1f} m (light)", _GREY))
    return lines


def _score_lines(prediction: Prediction, task: Task) -> list[_Text]:
    scores = _need(prediction.scores, "scores")
    best = np.argsort(-scores, kind="stable")[:_MAX_TEXT_LINES]
    return [(f"{scores[index]:.2f} {_name(task, int(index))}", _BLACK) for index in best]


def _count_text(prediction: Prediction, boxes: NDArray[np.float32]) -> str:
    scores = prediction.scores
    num_shown = len(boxes) if scores is None else int((scores >= MIN_SHOWN_SCORE).sum())
    return f"said: {num_shown} {_boxes(num_shown)} with score {MIN_SHOWN_SCORE} or more"


def _boxes(count: int) -> str:
    return "box" if count == 1 else "boxes"


def _legend(mask: NDArray[np.uint8], task: Task) -> list[_Text]:
    labels, counts = np.unique(mask[mask != IGNORE_LABEL], return_counts=True)
    largest = labels[np.argsort(-counts, kind="stable")][:_MAX_LEGEND_LINES]
    return [(f"\0{_name(task, int(label))}", class_colour(int(label))) for label in largest]


def _name(task: Task | None, index: int) -> str:
    names = () if task is None else task.class_names
    return names[index] if index < len(names) else f"class {index}"


def _need(value: T | None, what: str) -> T:
    if value is None:
        raise DataError(
            f"{what}: expected a value to draw, got none; give samples and predictions of the task's family"
        )
    return value


def _map(values: NDArray[Any] | None, what: str, truth: NDArray[Any], key: str) -> NDArray[Any]:
    values = _need(values, what)
    if values.shape != truth.shape:
        raise DataError(
            f"{key}: {what} predicted at {values.shape}, known at {truth.shape}; resize the prediction first"
        )
    return values


def _fit(image: Image, side_px: int = _CELL_PX) -> Image:
    """Scales the longer side to ``side_px``; small images keep their pixels visible, maps never get mixed values."""
    import cv2

    scale = side_px / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    if image.shape[1::-1] == size:
        return np.ascontiguousarray(image)
    if image.ndim == 2:
        return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def _boxes_panel(
    image: Image,
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    scores: NDArray[np.float32] | None,
    task: Task | None,
    side_px: int = _CELL_PX,
) -> Image:
    import cv2

    panel = _fit(image, side_px).copy()
    scale = side_px / max(image.shape[:2])
    unit = max(1.0, side_px / 480)
    # The best last, so that it lies on top.
    for index in reversed(range(len(boxes))):
        if scores is not None and scores[index] < MIN_SHOWN_SCORE:
            continue
        colour = class_colour(int(labels[index]))
        x0, y0, x1, y1 = (round(float(value) * scale) for value in boxes[index])
        cv2.rectangle(panel, (x0, y0), (x1, y1), _BLACK, round(3 * unit), cv2.LINE_AA)
        cv2.rectangle(panel, (x0, y0), (x1, y1), colour, round(1.5 * unit), cv2.LINE_AA)
        text = _name(task, int(labels[index])) + ("" if scores is None else f" {scores[index]:.2f}")
        _tag(panel, text, (x0, y0), colour, 0.36 * unit)
    return panel


def _tag(panel: Image, text: str, corner: tuple[int, int], colour: Colour, size: float) -> None:
    import cv2

    text = _ascii(text)
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    x = max(0, min(corner[0], panel.shape[1] - width - 4))
    y = max(0, corner[1] - height - baseline - 2)
    cv2.rectangle(panel, (x, y), (x + width + 4, y + height + baseline + 2), colour, -1)
    ink = _BLACK if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else _WHITE
    cv2.putText(panel, text, (x + 2, y + height + 2), cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)


def _mask_panel(image: Image, mask: NDArray[np.uint8], side_px: int = _CELL_PX) -> Image:
    import cv2

    panel = _fit(image, side_px)
    labels = cv2.resize(np.ascontiguousarray(mask), panel.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colours = np.array([class_colour(label) for label in range(256)], np.uint8)[labels]
    blended = cv2.addWeighted(panel, 0.35, colours, 0.65, 0)
    return np.where((labels == IGNORE_LABEL)[..., None], panel, blended)


def _depth_range(depth: NDArray[np.float32]) -> tuple[float, float]:
    known = depth[depth > 0]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _depth_panel(depth: NDArray[np.float32], limits_m: tuple[float, float], side_px: int = _CELL_PX) -> Image:
    import cv2

    low_m, high_m = limits_m
    unit = np.clip((depth - low_m) / max(high_m - low_m, 1e-6), 0, 1)
    small = cv2.cvtColor(
        cv2.applyColorMap(np.rint(255 * unit).astype(np.uint8), cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2RGB
    )
    small[depth <= 0] = _GREY
    scale = side_px / max(depth.shape)
    size = (max(1, round(depth.shape[1] * scale)), max(1, round(depth.shape[0] * scale)))
    return cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)


def _card(panels: Sequence[Image], lines: Sequence[_Text]) -> Image:
    """Panels side by side with text below; a line that starts with NUL gets a swatch of its colour."""
    import cv2

    height = max(panel.shape[0] for panel in panels)
    padded = [
        cv2.copyMakeBorder(panel, 0, height - panel.shape[0], 0, 2, cv2.BORDER_CONSTANT, value=_WHITE)
        for panel in panels
    ]
    picture = np.concatenate(padded, axis=1)[:, :-2]
    width = picture.shape[1]
    wrapped: list[tuple[str, Colour, bool]] = []
    for text, colour in lines:
        swatch = text.startswith("\0")
        parts = textwrap.wrap(_ascii(text.lstrip("\0")), max(8, int(width / _CHAR_PX)), max_lines=2, placeholder="...")
        wrapped += [(part, colour, swatch) for part in parts]
    bar = np.full((_LINE_PX * len(wrapped) + 6, width, 3), 255, np.uint8)
    for row, (text, colour, swatch) in enumerate(wrapped):
        y = _LINE_PX * row + 4
        if swatch:
            cv2.rectangle(bar, (1, y), (11, y + 10), colour, -1)
        ink = _BLACK if swatch else colour
        cv2.putText(bar, text, (16 if swatch else 1, y + 10), cv2.FONT_HERSHEY_SIMPLEX, 0.37, ink, 1, cv2.LINE_AA)
    return np.concatenate([picture, bar])


def _grid_png(cards: Sequence[Image], width_px: int) -> bytes:
    if not cards:
        raise DataError("samples: expected at least 1 to draw, got none")
    width = max(card.shape[1] for card in cards) + _GAP_PX
    height = max(card.shape[0] for card in cards) + _GAP_PX
    max_columns = max(1, width_px // width)
    num_rows = -(-len(cards) // max_columns)
    # As few columns as these rows need: 8 cards where 7 fit become 4 and 4, not 7 and 1.
    num_columns = -(-len(cards) // num_rows)
    grid = np.full((num_rows * height + _GAP_PX, num_columns * width + _GAP_PX, 3), 255, np.uint8)
    for index, card in enumerate(cards):
        y = _GAP_PX + index // num_columns * height
        x = _GAP_PX + index % num_columns * width
        grid[y : y + card.shape[0], x : x + card.shape[1]] = card
    return encode_png(grid)


def _ascii(text: str) -> str:
    # OpenCV's stroke fonts hold ASCII only and print several "?" for one other letter.
    return text.encode("ascii", "replace").decode()
