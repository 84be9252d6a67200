"""Diabetic Retinopathy in the form ``btgraham-300``, which VTAB and with it GV-B use."""

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.codec import decode_image
from intern_vision.data.official.layout import OfficialCopy, OfficialReading, Picture, classify_reading, load_file
from intern_vision.data.official.names import RETINOPATHY_GRADES
from intern_vision.data.reading import Item, SplitRule
from intern_vision.data.sample import Split

_RADIUS_PX = 300
_KEPT_RADIUS = 0.9
_GREY = 128
_JPEG_QUALITY = 72


def read_retinopathy(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """Photographs and grades of the Kaggle competition; its public test is for validation, its private one is scored.

    The photographs are taken as downloaded and normalised when opened, see ``normalised_eye``.
    """
    labels, solution = copy.need("trainLabels.csv"), copy.need("retinopathy_solution.csv")
    usages: dict[str, Split] = {"Public": "val", "Private": "test"}
    items = []
    for row in copy.table(labels, ("image", "level")):
        with copy.parsing(labels):
            label = int(row["level"])
        items.append(copy.item(copy.inside(f"train/{row['image']}.jpeg", labels), "train", label))
    for row in copy.table(solution, ("image", "level", "Usage")):
        with copy.parsing(solution):
            label, split = int(row["level"]), usages[row["Usage"]]
        items.append(copy.item(copy.inside(f"test/{row['image']}.jpeg", solution), split, label))

    def load(item: Item) -> Picture:
        encoded = _jpeg(normalised_eye(load_file(item).image))
        return Picture(decode_image(encoded), encoded)

    return classify_reading(copy, items, RETINOPATHY_GRADES, load)


def normalised_eye(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photograph as in TFDS' ``diabetic_retinopathy_detection/btgraham-300``, after the 2015 competition's winner.

    The eye's radius, found on the middle row, becomes 300 px; four times the difference to a blurred copy is put on
    grey; what lies beyond 0.9 of the radius becomes grey and is cropped away. The reader keeps it as JPEG of quality
    72, as TFDS does.

    Args:
        image: ``(height, width, 3)`` uint8 RGB.

    Returns:
        At most ``(540, 540, 3)`` uint8 RGB.
    """
    import cv2

    middle = image[image.shape[0] // 2].sum(axis=1, dtype=np.int64)
    radius_px = float((middle > middle.mean() / 10).sum()) / 2
    # A photograph without an eye on its middle row: half its height is taken for the radius.
    scale = _RADIUS_PX / (radius_px if radius_px >= 1 else image.shape[0] / 2)
    scaled = cv2.resize(image, None, fx=scale, fy=scale)
    detail = cv2.addWeighted(scaled, 4, cv2.GaussianBlur(scaled, (0, 0), _RADIUS_PX / 30), -4, _GREY)
    height, width = detail.shape[:2]
    kept_px = int(_RADIUS_PX * _KEPT_RADIUS)
    eye = np.zeros((height, width), np.uint8)
    cv2.circle(eye, (width // 2, height // 2), kept_px, 1, -1)
    detail[eye == 0] = _GREY
    rows = slice(max(height // 2 - kept_px, 0), height // 2 + kept_px)
    columns = slice(max(width // 2 - kept_px, 0), width // 2 + kept_px)
    return np.ascontiguousarray(detail[rows, columns])


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    import cv2

    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
