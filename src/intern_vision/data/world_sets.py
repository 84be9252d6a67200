"""How each set of the made world is drawn: one painter per set, from a random stream to a sample's fields."""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from intern_vision.data import world_flat
from intern_vision.data.sample import IGNORE_LABEL
from intern_vision.data.world_caption import Described, caption_scene, pick
from intern_vision.data.world_names import (
    BACKGROUNDS,
    COLOUR_RGB,
    COLOURS,
    CONCEPT_PARENTS,
    CONCEPTS,
    FAMILIES,
    NOVEL_SHAPES,
    SHAPES,
    SIZE_RADIUS_M,
    SIZES,
    TEXTURES,
)
from intern_vision.data.world_scene import (
    BACKDROP,
    FIRST_OBJECT,
    GROUND,
    GROUND_PATTERNS,
    PALETTES,
    Camera,
    Colour,
    Frame,
    Thing,
    add_things,
    any_tint,
    expose,
    jitter_tint,
    outdoor_camera,
    outdoors,
    room,
    second_tint,
    visible_boxes,
)

Rng = np.random.Generator
Painter = Callable[[Rng, int, int], dict[str, Any]]

_NUM_OBJECTS_WEIGHTS = (0.35, 0.4, 0.25)  # 1, 2 or 3 objects
_ROLL_SD_RAD = 0.3
_NOISE = 0.03
_CAST = 0.05
_ROOM_SHAPES = ("vase", "lamp", "chair", "pillar")
_MARKED_SHAPES = ("vase", "bottle", "bell", "crown")
_FAMILY_IDS = {shape: FAMILIES.index(family) for shape, family in CONCEPT_PARENTS.items()}
_CONCEPT_IDS = {concept: index for index, concept in enumerate(CONCEPTS)}


def _upstream(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    while True:
        background = pick(rng, BACKGROUNDS)
        frame, things, described = _day_scene(rng, size_px, background)
        boxes = visible_boxes(frame)
        if boxes:
            break
    seen = [described[index] for index in boxes]
    names = {name for item in seen for name in (CONCEPT_PARENTS[item.shape], item.shape, item.texture, item.colour)}
    return {
        "caption": caption_scene(rng, seen, background),
        "concepts": tuple(sorted(_CONCEPT_IDS[name] for name in names)),
        **_box_fields(boxes, [SHAPES.index(thing.shape) for thing in things]),
        "mask": _family_mask(frame, things, boxes),
        "depth": frame.depth_HW,
        "image": expose(rng, frame.image_HWC, _NOISE, _CAST),
    }


def _day_scene(rng: Rng, size_px: int, background: str) -> tuple[Frame, list[Thing], list[Described]]:
    camera = outdoor_camera(rng, size_px)
    frame = outdoors(rng, camera, PALETTES[background], pick(rng, GROUND_PATTERNS))
    things: list[Thing] = []
    described = []
    for _ in range(_num_objects(rng)):
        shape, texture = pick(rng, SHAPES), pick(rng, TEXTURES)
        colour, size = pick(rng, COLOURS), pick(rng, SIZES)
        tint = jitter_tint(rng, COLOUR_RGB[colour])
        radius_m = SIZE_RADIUS_M[size] * float(rng.uniform(0.92, 1.08))
        thing = _place(rng, camera, things, shape, texture, tint, radius_m)
        things.append(thing)
        described.append(
            Described(
                shape=shape,
                texture=texture,
                colour=colour,
                size=size,
                x=thing.column_px / size_px,
                depth_m=thing.depth_m,
            )
        )
    add_things(frame, things, float(rng.uniform(-1, 1)))
    return frame, things, described


def _place(
    rng: Rng, camera: Camera, others: Sequence[Thing], shape: str, texture: str, tint: Colour, radius_m: float
) -> Thing:
    """Stands an object on the ground; of four places tries to take one that hides little of the others."""
    for _ in range(4):
        depth_m = float(rng.uniform(2.4, 5.0))
        radius_px = camera.focal_px * radius_m / depth_m
        margin_px = min(0.75 * radius_px, 0.4 * camera.size_px)
        column_px = float(rng.uniform(margin_px, camera.size_px - margin_px))
        if all(
            abs(column_px - other.column_px) > 0.75 * (radius_px + camera.focal_px * other.radius_m / other.depth_m)
            for other in others
        ):
            break
    return Thing(
        shape=shape,
        texture=texture,
        tint=tint,
        tint2=second_tint(tint),
        column_px=column_px,
        depth_m=depth_m,
        radius_m=radius_m,
        roll_rad=float(rng.normal(0, _ROLL_SD_RAD)),
        texture_roll_rad=float(rng.uniform(-0.5, 0.5)),
    )


def _det_novel(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    camera = outdoor_camera(rng, size_px)
    frame = outdoors(rng, camera, PALETTES[pick(rng, ("dusk", "studio"))], pick(rng, GROUND_PATTERNS))
    things: list[Thing] = []
    for _ in range(_num_objects(rng)):
        shape, texture = pick(rng, NOVEL_SHAPES), pick(rng, TEXTURES)
        things.append(_place(rng, camera, things, shape, texture, any_tint(rng), float(rng.uniform(0.5, 0.9))))
    add_things(frame, things, float(rng.uniform(-1, 1)))
    labels = [NOVEL_SHAPES.index(thing.shape) for thing in things]
    return {
        **_box_fields(visible_boxes(frame), labels),
        "image": expose(rng, frame.image_HWC, _NOISE, _CAST),
    }


def _det_thermal(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    camera = outdoor_camera(rng, size_px)
    frame = outdoors(rng, camera, PALETTES[pick(rng, BACKGROUNDS)], "bare")
    things: list[Thing] = []
    for _ in range(_num_objects(rng)):
        cold = float(rng.uniform(0.1, 0.5))
        shape, texture = pick(rng, SHAPES), pick(rng, ("plain", "speckled", "striped"))
        radius_m = SIZE_RADIUS_M[pick(rng, SIZES)]
        things.append(_place(rng, camera, things, shape, texture, (cold, cold, cold), radius_m))
    add_things(frame, things, 0.0)
    grey = 1 - frame.image_HWC.mean(axis=2)
    grey = cv2.GaussianBlur(grey, (0, 0), 0.7 * size_px / 64)
    # Row noise of an uncooled microbolometer.
    grey += (0.03 * rng.standard_normal((size_px, 1))).astype(np.float32)
    image = np.repeat((0.12 + 0.8 * grey)[..., None], 3, axis=2)
    labels = [_FAMILY_IDS[thing.shape] for thing in things]
    exposed = expose(rng, image, 0.0, 0.0).astype(np.int16)
    exposed += np.rint(9 * rng.standard_normal((size_px, size_px, 1), np.float32)).astype(np.int16)
    return {**_box_fields(visible_boxes(frame), labels), "image": np.clip(exposed, 0, 255).astype(np.uint8)}


def _seg_night(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    frame, things, _ = _day_scene(rng, size_px, pick(rng, BACKGROUNDS))
    image = frame.image_HWC
    image *= np.array([0.16, 0.19, 0.32], np.float32) * np.float32(rng.uniform(0.8, 1.3))
    axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    x, y, wide = rng.uniform((0.2, 0.5, 0.18), (0.8, 0.8, 0.35)).tolist()
    beam = np.exp(-(((axis - y) / wide) ** 2))[:, None] * np.exp(-(((axis - x) / wide) ** 2))[None]
    image *= 1 + beam[..., None] * np.array([1.9, 1.6, 0.8], np.float32)
    sky = frame.owner_HW == BACKDROP
    for row, column in (rng.random((50, 2)) * size_px).astype(int).tolist():
        if sky[row, column]:
            image[row, column] += 0.35
    return {
        "mask": _family_mask(frame, things, visible_boxes(frame)),
        "image": expose(rng, image, 0.035, _CAST),
    }


def _depth_room(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    frame, (left_m, right_m, back_m) = room(rng, size_px)
    camera = frame.camera
    things = []
    for _ in range(1 + int(rng.random() * 4)):
        depth_m, radius_m = float(rng.uniform(2.2, back_m - 0.4)), float(rng.uniform(0.35, 0.7))
        radius_px = camera.focal_px * radius_m / depth_m
        lowest_px = max(0.5 * radius_px, camera.column_px(1.2 * radius_m - left_m, depth_m))
        highest_px = min(size_px - 0.5 * radius_px, camera.column_px(right_m - 1.2 * radius_m, depth_m))
        tint = any_tint(rng)
        things.append(
            Thing(
                shape=pick(rng, _ROOM_SHAPES),
                texture=pick(rng, TEXTURES),
                tint=tint,
                tint2=second_tint(tint),
                column_px=float(rng.uniform(lowest_px, highest_px)),
                depth_m=depth_m,
                radius_m=radius_m,
                texture_roll_rad=float(rng.uniform(-0.5, 0.5)),
            )
        )
    add_things(frame, things, float(rng.uniform(-1, 1)))
    return {"depth": frame.depth_HW, "image": expose(rng, frame.image_HWC, _NOISE, _CAST)}


def _relation(rng: Rng, label: int, size_px: int) -> dict[str, Any]:
    side, nearer = (-1 if label < 2 else 1), label % 2 == 0
    while True:
        camera = outdoor_camera(rng, size_px)
        frame = outdoors(rng, camera, PALETTES[pick(rng, ("dusk", "studio"))], pick(rng, GROUND_PATTERNS))
        middle, gap, near_m, step_m = rng.uniform((0.35, 0.14, 2.5, 0.7), (0.65, 0.34, 3.2, 1.6)).tolist()
        things = []
        for shape, sign in ((pick(rng, _MARKED_SHAPES), -1), ("pin", 1)):
            tint = any_tint(rng)
            things.append(
                Thing(
                    shape=shape,
                    texture=pick(rng, TEXTURES),
                    tint=tint,
                    tint2=second_tint(tint),
                    column_px=size_px * (middle + sign * side * gap / 2),
                    depth_m=near_m if nearer == (shape == "pin") else near_m + step_m,
                    radius_m=float(rng.uniform(0.4, 0.6)),
                    roll_rad=float(rng.normal(0, 0.1)),
                )
            )
        add_things(frame, things, float(rng.uniform(-1, 1)))
        # The answer must be in the picture: neither object may be hidden by the other.
        if len(visible_boxes(frame)) == len(things):
            return {"label": label, "image": expose(rng, frame.image_HWC, _NOISE, _CAST)}


def _box_fields(boxes: dict[int, tuple[int, int, int, int]], labels: Sequence[int]) -> dict[str, NDArray]:
    return {
        "boxes": np.array(list(boxes.values()), np.float32).reshape(-1, 4),
        "box_labels": np.array([labels[index] for index in boxes], np.int64),
    }


def _family_mask(frame: Frame, things: Sequence[Thing], boxes: dict[int, Any]) -> NDArray[np.uint8]:
    """Families, then ground, then backdrop; what is left of objects without a box is ignored."""
    lookup = np.full(FIRST_OBJECT + len(things), IGNORE_LABEL, np.uint8)
    lookup[GROUND], lookup[BACKDROP] = len(FAMILIES), len(FAMILIES) + 1
    for index in boxes:
        lookup[FIRST_OBJECT + index] = _FAMILY_IDS[things[index].shape]
    return lookup[frame.owner_HW]


def _num_objects(rng: Rng) -> int:
    return 1 + int(np.searchsorted(np.cumsum(_NUM_OBJECTS_WEIGHTS[:-1]), rng.random(), side="right"))


PAINTERS: dict[str, Painter] = {
    "upstream": _upstream,
    "flower": world_flat.flower,
    "species": world_flat.species,
    "texture": world_flat.texture,
    "count": world_flat.count,
    "relation": _relation,
    "sketch": world_flat.sketch,
    "det_novel": _det_novel,
    "det_thermal": _det_thermal,
    "seg_night": _seg_night,
    "seg_mosaic": world_flat.seg_mosaic,
    "depth_room": _depth_room,
}
