from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intern_vision.heads import FasterRcnnConfig, HeadConfig
from intern_vision.heads.base import TaskHead, build_head
from intern_vision.models.features import Features
from intern_vision.task import Task

SIZE_PX = 64
NUM_IMAGES = 8
COLOURS = np.array([[230, 40, 40], [40, 220, 60], [50, 60, 240]])
MAX_DEPTH_M = 10.0
TASKS = {
    "classify": Task(family="classify", class_names=("red", "green", "blue")),
    "multilabel": Task(family="multilabel", class_names=("red", "green", "blue")),
    "detect": Task(family="detect", class_names=("red", "green", "blue")),
    "segment": Task(family="segment", class_names=("ground", "red", "green", "blue")),
    "depth": Task(family="depth", max_depth_m=MAX_DEPTH_M),
}


class TinyBackbone(nn.Module):
    channels = (16, 24, 32)
    strides = (4, 8, 16)
    vector_width = 32

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, kernel, stride, 1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after, kernel, stride in ((3, 16, 5, 4), (16, 24, 3, 2), (24, 32, 3, 2))
        )

    def forward(self, image_BCHW: Tensor) -> Features:
        x, maps = image_BCHW.float() / 127.5 - 1, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Features(maps=tuple(maps), vector_BD=x.amax((2, 3)))


def make_head(family: str, frozen_features: bool = False, **config: Any) -> TaskHead:
    settings = HeadConfig(neck_width=24, **config)
    channels, strides, width = TinyBackbone.channels, TinyBackbone.strides, TinyBackbone.vector_width
    return build_head(TASKS[family], channels, strides, width, settings, frozen_features)


def made_batch(num_images: int = NUM_IMAGES) -> dict[str, Any]:
    """One or two coloured squares on a grey ground whose depth grows upwards; image 0 has the first colour."""
    rng = np.random.default_rng(0)
    image = np.full((num_images, SIZE_PX, SIZE_PX, 3), 110, np.uint8)
    boxes = np.zeros((num_images, 3, 4), np.float32)
    box_labels = np.full((num_images, 3), -1, np.int64)
    mask = np.zeros((num_images, SIZE_PX, SIZE_PX), np.uint8)
    depth = np.repeat(np.linspace(8, 2, SIZE_PX, dtype=np.float32)[None, :, None], num_images, 0).repeat(SIZE_PX, 2)
    for i in range(num_images):
        for j in range(1 + i % 2):
            side = int(rng.integers(14, 24))
            x, y = int(rng.integers(0, 32 - side // 2)) + 32 * j - (8 if j else 0), int(rng.integers(0, 64 - side))
            label = (i + j) % 3
            image[i, y : y + side, x : x + side] = COLOURS[label]
            boxes[i, j] = x, y, min(x + side, SIZE_PX), y + side
            box_labels[i, j] = label
            mask[i, y : y + side, x : x + side] = label + 1
            depth[i, y : y + side, x : x + side] = 1.5
    concepts = np.zeros((num_images, 3), np.float32)
    for i in range(num_images):
        concepts[i, box_labels[i][box_labels[i] >= 0]] = 1
    arrays = {
        "image_BCHW": np.ascontiguousarray(image.transpose(0, 3, 1, 2)),
        "label_B": np.arange(num_images) % 3,
        "concepts_BK": concepts,
        "boxes_BN4": boxes,
        "box_labels_BN": box_labels,
        "mask_BHW": mask,
        "depth_BHW": np.ascontiguousarray(depth),
    }
    batch: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**batch, "keys": [f"image-{i}" for i in range(num_images)]}


@pytest.fixture
def batch() -> dict[str, Any]:
    return made_batch()


@pytest.fixture
def head_for() -> Callable[..., TaskHead]:
    torch.manual_seed(0)
    return make_head


@pytest.fixture
def made_images() -> Callable[[int], dict[str, Any]]:
    return made_batch


@pytest.fixture
def two_stage() -> dict[str, Any]:
    """Head settings of a Faster R-CNN for 64 px."""
    settings = FasterRcnnConfig(
        anchor_scales=(4.0,),
        num_anchor_samples=64,
        num_candidates=128,
        num_proposals=32,
        canonical_cells=6.0,
        pooled_size=4,
        num_region_samples=24,
        hidden_width=64,
    )
    return {"detector": "faster_rcnn", "faster_rcnn": settings}


@pytest.fixture
def features(batch: dict[str, Any]) -> Features:
    torch.manual_seed(0)
    with torch.no_grad():
        return TinyBackbone()(batch["image_BCHW"])


@pytest.fixture
def overfit(batch: dict[str, Any]) -> Callable[..., tuple[float, float, dict[str, float]]]:
    """Trains a tiny backbone and a head on the eight images; gives first loss, last loss and scores."""

    def run(family: str, num_steps: int, **config: Any) -> tuple[float, float, dict[str, float]]:
        torch.manual_seed(0)
        backbone, head = TinyBackbone(), make_head(family, **config)
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=num_steps)
        history = []
        for _ in range(num_steps):
            loss = sum(head.losses(head(backbone(batch["image_BCHW"])), batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            history.append(loss.detach())
        backbone.eval(), head.eval()
        metric = head.metric()
        metric.update(head.predict(head(backbone(batch["image_BCHW"])), (SIZE_PX, SIZE_PX)), batch)
        return float(history[0]), float(history[-1]), metric.compute()

    return run
