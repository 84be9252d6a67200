"""A person's own data in every accepted layout: bright shapes on dark noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "cross", "square", "stripes", "triangle")
SIZE_PX = (72, 80)
"""Height and width; neither the models' size nor a square."""


def draw(rng: np.random.Generator, shape: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[int]]:
    """A picture in BGR, the shape's pixels, and its box ``x y width height``."""
    height, width = SIZE_PX
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    radius = int(rng.integers(10, 20))
    x, y = int(rng.integers(radius, width - radius)), int(rng.integers(radius, height - radius))
    canvas = np.zeros((height, width), np.uint8)
    if shape == "circle":
        cv2.circle(canvas, (x, y), radius, 1, -1)
    elif shape == "square":
        cv2.rectangle(canvas, (x - radius, y - radius), (x + radius, y + radius), 1, -1)
    elif shape == "triangle":
        cv2.fillPoly(canvas, [np.array([[x, y - radius], [x - radius, y + radius], [x + radius, y + radius]])], 1)
    elif shape == "cross":
        for side in (-1, 1):
            cv2.line(canvas, (x - radius, y - side * radius), (x + radius, y + side * radius), 1, 4)
    else:
        for row in range(y - radius, y + radius, 6):
            cv2.line(canvas, (x - radius, row), (x + radius, row), 1, 2)
    image[canvas > 0] = rng.integers(150, 256, 3)
    return image, canvas > 0, list(cv2.boundingRect(canvas))


def _write(path: Path, image: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def image_folder(root: Path, num_a_class: int = 10) -> Path:
    """``root/<shape>/<n>.png``."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for index in range(num_a_class):
            _write(root / shape / f"{index}.png", draw(rng, shape)[0])
    return root


def labels_csv(root: Path) -> Path:
    """``root/labels.csv`` with several labels an image."""
    rng = np.random.default_rng(1)
    lines = ["file,labels,caption"]
    for index in range(40):
        shapes = [SHAPES[index % 4], SHAPES[(index * 3 + 1) % 5]]
        image, *_ = draw(rng, shapes[0])
        _, second, _ = draw(rng, shapes[1])
        image[second] = (40, 200, 40)
        _write(root / "pictures" / f"{index}.jpg", image)
        lines.append(f"pictures/{index}.jpg,{'|'.join(sorted(set(shapes)))},a {shapes[0]} under a {shapes[1]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"


def coco(root: Path, change: Callable[[dict[str, Any]], None] = lambda document: None) -> Path:
    """``root/images/`` and ``root/annotations/instances.json``."""
    rng = np.random.default_rng(2)
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10 * index + 10, "name": shape} for index, shape in enumerate(SHAPES[:3])],
    }
    for index in range(40):
        image, _, box = draw(rng, SHAPES[index % 3])
        _write(root / "images" / f"{index}.jpg", image)
        height, width = SIZE_PX
        document["images"].append({"id": index, "file_name": f"{index}.jpg", "height": height, "width": width})
        document["annotations"].append(
            {"id": 1000 + index, "image_id": index, "category_id": 10 * (index % 3) + 10, "bbox": box}
        )
    change(document)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances.json").write_text(json.dumps(document))
    return root


def masks(root: Path) -> Path:
    """``root/images/``, ``root/masks/`` and ``root/classes.txt`` (background and two shapes)."""
    rng = np.random.default_rng(3)
    for index in range(40):
        image, pixels, _ = draw(rng, SHAPES[2 * (index % 2)])
        _write(root / "images" / f"{index}.png", image)
        _write(root / "masks" / f"{index}.png", pixels * np.uint8(1 + index % 2))
    (root / "classes.txt").write_text("background\ncircle\nsquare\n")
    return root


def depth(root: Path) -> Path:
    """``root/images/`` and ``root/depth/`` in millimetres: the shape is nearer than the wall."""
    rng = np.random.default_rng(4)
    for index in range(40):
        image, pixels, _ = draw(rng, "square")
        _write(root / "images" / f"{index}.png", image)
        _write(root / "depth" / f"{index}.png", np.where(pixels, 1500, 4000).astype(np.uint16))
    (root / "scale.txt").write_text("0.001\n")
    return root
