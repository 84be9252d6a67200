"""Scenes of the made world: a pinhole camera, a ground plane or a room, and upright flat objects standing in it.

Depth is metres along the optical axis. Objects are painted from far to near, so what is nearer occludes. Letters:
H W = image height and width, C = 3 RGB channels; images are float32 in 0..1 until ``expose`` turns them into uint8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.world_names import MAX_DEPTH_M
from intern_vision.data.world_shapes import lowest_point, sample_distance, sample_texture

BACKDROP, GROUND, FIRST_OBJECT = 0, 1, 2  # values of Frame.owner_HW
# An object is annotated only where enough of it can be seen; the rest is ambiguous, also to people.
MIN_VISIBLE_PX = 14  # at 64 x 64 pixels
MIN_VISIBLE_SHARE = 0.25
_REFERENCE_SIZE_PX = 64
_TEXTURE_PERIOD = 1.25  # in object radii
_REACH = 1.35  # no shape reaches farther from its centre, in object radii

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a place: sky from top to bottom, the ridge before it, the ground; and the ridge's outline."""

    sky_top: Colour
    sky_bottom: Colour
    ridge: Colour
    ground: Colour
    outline: str


PALETTES: dict[str, Palette] = {
    "meadow": Palette((0.45, 0.68, 0.95), (0.80, 0.90, 0.98), (0.30, 0.55, 0.30), (0.42, 0.66, 0.30), "hills"),
    "desert": Palette((0.55, 0.75, 0.92), (0.98, 0.90, 0.75), (0.85, 0.62, 0.38), (0.90, 0.76, 0.52), "hills"),
    "snow": Palette((0.62, 0.74, 0.86), (0.88, 0.92, 0.96), (0.70, 0.76, 0.84), (0.92, 0.94, 0.97), "mountains"),
    "beach": Palette((0.40, 0.72, 0.96), (0.78, 0.92, 0.98), (0.12, 0.48, 0.68), (0.93, 0.86, 0.66), "sea"),
    "forest": Palette((0.55, 0.70, 0.72), (0.75, 0.84, 0.78), (0.10, 0.30, 0.16), (0.34, 0.38, 0.22), "trees"),
    "town": Palette((0.66, 0.72, 0.80), (0.86, 0.86, 0.86), (0.46, 0.44, 0.48), (0.62, 0.62, 0.64), "skyline"),
    # Downstream only.
    "dusk": Palette((0.24, 0.14, 0.38), (0.96, 0.52, 0.36), (0.22, 0.12, 0.26), (0.44, 0.28, 0.36), "mountains"),
    "studio": Palette((0.82, 0.80, 0.76), (0.70, 0.68, 0.64), (0.62, 0.52, 0.44), (0.56, 0.42, 0.32), "sea"),
}
GROUND_PATTERNS = ("bare", "checks", "stripes", "tiles", "patches")


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera with a level optical axis, seen in a square image.

    Attributes:
        size_px: image side.
        focal_px: focal length.
        horizon_px: row of the horizon.
        height_m: height above the ground.
    """

    size_px: int
    focal_px: float
    horizon_px: float
    height_m: float

    def ground_row_px(self, depth_m: float) -> float:
        """Row at which the ground lies ``depth_m`` away."""
        return self.horizon_px + self.focal_px * self.height_m / depth_m

    def column_px(self, x_m: float, depth_m: float) -> float:
        """Column of a point ``x_m`` right of the axis."""
        return self.size_px / 2 + self.focal_px * x_m / depth_m

    def x_m(self, column_px: float, depth_m: float) -> float:
        """Inverse of ``column_px``."""
        return (column_px - self.size_px / 2) * depth_m / self.focal_px


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A flat object that stands upright on the ground, facing the camera.

    Attributes:
        shape: a shape of ``world_shapes``.
        texture: a texture of ``world_shapes``.
        tint: its first colour, RGB in 0..1.
        tint2: its second colour.
        column_px: column of its centre.
        depth_m: its distance.
        radius_m: length of one object radius.
        roll_rad: clockwise turn.
        texture_roll_rad: turn of the texture against the object.
    """

    shape: str
    texture: str
    tint: Colour
    tint2: Colour
    column_px: float
    depth_m: float
    radius_m: float
    roll_rad: float = 0.0
    texture_roll_rad: float = 0.0


@dataclass(slots=True)
class Frame:
    """A picture in the making.

    Attributes:
        camera: what it is seen with.
        image_HWC: float32 RGB in 0..1.
        depth_HW: float32 metres, everywhere in ``(0, MAX_DEPTH_M]``.
        owner_HW: uint8: ``BACKDROP``, ``GROUND`` or ``FIRST_OBJECT + index``.
        areas_px: pixels of each object before occlusion, by index.
    """

    camera: Camera
    image_HWC: NDArray[np.float32]
    depth_HW: NDArray[np.float32]
    owner_HW: NDArray[np.uint8]
    areas_px: list[int]


def outdoor_camera(rng: np.random.Generator, size_px: int) -> Camera:
    """A camera over the ground plane, with a random horizon and height."""
    return Camera(
        size_px=size_px,
        focal_px=float(size_px),
        horizon_px=size_px * float(rng.uniform(0.14, 0.26)),
        height_m=float(rng.uniform(1.4, 1.65)),
    )


def outdoors(rng: np.random.Generator, camera: Camera, palette: Palette, pattern: str) -> Frame:
    """Paints a ground plane that ends at a backdrop ``MAX_DEPTH_M`` away.

    Args:
        rng: the scene's own random stream.
        camera: what it is seen with.
        palette: colours, jittered a little.
        pattern: one of ``GROUND_PATTERNS``.

    Returns:
        A frame without objects.
    """
    size = camera.size_px
    tones = np.array([palette.sky_top, palette.sky_bottom, palette.ridge, palette.ground], np.float32)
    tones = np.clip(tones + rng.normal(0, 0.04, (4, 3)) + rng.normal(0, 0.03, (4, 1)), 0, 1).astype(np.float32)
    first_row = int(np.ceil(camera.ground_row_px(MAX_DEPTH_M) - 0.5))
    rows = np.arange(size, dtype=np.float32) + 0.5
    image = np.empty((size, size, 3), np.float32)
    share = (rows[:first_row] / first_row)[:, None]
    image[:first_row] = (tones[0] + share * (tones[1] - tones[0]))[:, None]
    ridge_px = _ridge(rng, palette.outline, size)
    image[:first_row][rows[:first_row, None] > first_row - ridge_px] = tones[2]

    depth_m = (camera.focal_px * camera.height_m / (rows[first_row:] - camera.horizon_px)).astype(np.float32)
    x_m = (rows - size / 2)[None] * (depth_m / np.float32(camera.focal_px))[:, None]
    relief = _ground_relief(rng, pattern, x_m, depth_m[:, None])
    # Fades with distance: what is finer than a pixel would only alias.
    relief = 1 + relief * (0.13 * (1 - depth_m / MAX_DEPTH_M))[:, None]
    image[first_row:] = tones[3] * relief[..., None]

    depth = np.full((size, size), MAX_DEPTH_M, np.float32)
    depth[first_row:] = np.minimum(depth_m, MAX_DEPTH_M)[:, None]
    owner = np.full((size, size), BACKDROP, np.uint8)
    owner[first_row:] = GROUND
    return Frame(camera, image, depth, owner, [])


def _ridge(rng: np.random.Generator, outline: str, size: int) -> NDArray[np.float32]:
    """Height of what stands before the sky, in pixels, for each column."""
    x = (np.arange(size, dtype=np.float32) + 0.5) / size
    phase, pace, tall = rng.random(3).tolist()
    if outline == "hills":
        height = 0.5 + 0.3 * np.sin(2 * np.pi * (x * (0.8 + pace) + phase)) + 0.2 * np.sin(2 * np.pi * (2.3 * x + pace))
    elif outline == "mountains":
        height = np.maximum(abs((x * (2 + pace) + phase) % 1 - 0.5) * 2, abs((x * 1.3 + pace) % 1 - 0.5) * 1.6)
    elif outline == "trees":
        height = 0.45 + 0.55 * abs((x * (7 + 3 * pace) + phase) % 1 - 0.5) * 2
    elif outline == "skyline":
        height = rng.random(9)[(x * 8.99).astype(int)] * 0.9 + 0.1
    else:
        height = np.full_like(x, 0.5)
    return (height * size * (0.08 + 0.09 * tall)).astype(np.float32)


def _ground_relief(rng: np.random.Generator, pattern: str, x_m: NDArray, z_m: NDArray) -> NDArray[np.float32]:
    """Brightness of the ground pattern in -1..1; ``x_m`` is (H, W), ``z_m`` (H, 1)."""
    pace, shift, turn = rng.random(3).tolist()
    u = x_m * np.float32(0.9 + 0.8 * pace) + np.float32(64 + shift)
    v = z_m * np.float32(0.9 + 0.8 * pace)
    if pattern == "checks":
        value = ((u.astype(np.int32) + v.astype(np.int32)) & 1) * 2.0 - 1
    elif pattern == "stripes":
        value = ((u if turn < 0.5 else u + v).astype(np.int32) & 1) * 2.0 - 1
    elif pattern == "tiles":
        value = 0.6 - 2.0 * ((u % 1 < 0.14) | (v % 1 < 0.14))
    elif pattern == "patches":
        value = np.sin(u * 2.1 + 3 * turn) * np.sin(v * 2.7 + shift * 5) + 0.4 * np.sin(u * 5.3 + v * 3.1)
    else:
        value = np.zeros_like(u)
    return np.asarray(value, np.float32)


def room(rng: np.random.Generator, size_px: int) -> tuple[Frame, tuple[float, float, float]]:
    """Paints the inside of a box-shaped room; the floor is ``GROUND``, all else ``BACKDROP``.

    Args:
        rng: the scene's own random stream.
        size_px: image side.

    Returns:
        A frame without objects, and the metres from the camera to the left, right and back wall.
    """
    height_m, back_m, left_m, right_m = rng.uniform((2.4, 4.5, 1.4, 1.4), (3.4, 9.0, 3.2, 3.2)).tolist()
    camera = Camera(size_px, 0.85 * size_px, size_px * float(rng.uniform(0.34, 0.5)), float(rng.uniform(1.3, 1.7)))
    axis = np.arange(size_px, dtype=np.float32) + 0.5
    ray_y = (axis - camera.horizon_px) / camera.focal_px
    ray_x = (axis - size_px / 2) / camera.focal_px
    with np.errstate(divide="ignore"):
        z_rows = np.where(ray_y >= 0, camera.height_m / ray_y, (camera.height_m - height_m) / ray_y)[:, None]
        z_cols = np.where(ray_x >= 0, right_m / ray_x, -left_m / ray_x)[None]
    depth = np.minimum(np.minimum(z_rows, z_cols), back_m).astype(np.float32)
    flat = z_rows <= np.minimum(z_cols, back_m)
    side = ~flat & (z_cols <= back_m)
    floor = flat & (ray_y > 0)[:, None]
    surface = np.where(floor, 0, np.where(flat, 1, np.where(side, np.where(ray_x > 0, 2, 3)[None], 4)))
    wall = rng.uniform(0.45, 0.9, 3)
    tones = np.stack([rng.uniform(0.25, 0.65, 3), wall * 0.4 + 0.58, wall * 0.85, wall * 0.7, wall]).astype(np.float32)
    image = tones[surface]
    pattern = GROUND_PATTERNS[int(rng.random() * len(GROUND_PATTERNS))]
    image *= (1 + 0.14 * floor * _ground_relief(rng, pattern, ray_x[None] * depth, depth))[..., None]
    image *= (1.08 - 0.45 * depth / MAX_DEPTH_M)[..., None]
    owner = np.where(floor, GROUND, BACKDROP).astype(np.uint8)
    return Frame(camera, image, depth, owner, []), (left_m, right_m, back_m)


def add_things(frame: Frame, things: Sequence[Thing], light: float) -> None:
    """Paints shadows, then objects from far to near, and updates depth and owners.

    Args:
        frame: the frame to paint on.
        things: objects in the order that ``frame.owner_HW`` counts them.
        light: where light falls from, -1 = left to 1 = right.
    """
    frame.areas_px = [0] * len(things)
    for thing in things:
        _add_shadow(frame, thing, light)
    for index in sorted(range(len(things)), key=lambda i: -things[i].depth_m):
        _add_sprite(frame, things[index], index, light)


def _add_shadow(frame: Frame, thing: Thing, light: float) -> None:
    camera, size = frame.camera, frame.camera.size_px
    radius = camera.focal_px * thing.radius_m / thing.depth_m
    x, y = thing.column_px - 0.45 * light * radius, camera.ground_row_px(thing.depth_m)
    x0, x1 = max(0, int(x - 2 * radius)), min(size, int(x + 2 * radius) + 1)
    y0, y1 = max(0, int(y - 0.55 * radius)), min(size, int(y + 0.55 * radius) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    across = np.exp(-1.6 * ((np.arange(x0, x1, dtype=np.float32) + 0.5 - x) / (0.95 * radius)) ** 2)
    along = np.exp(-1.6 * ((np.arange(y0, y1, dtype=np.float32) + 0.5 - y) / (0.28 * radius)) ** 2)
    dark = (0.55 * along)[:, None] * across
    dark *= frame.owner_HW[y0:y1, x0:x1] == GROUND
    frame.image_HWC[y0:y1, x0:x1] *= (1 - dark)[..., None]


def _add_sprite(frame: Frame, thing: Thing, index: int, light: float) -> None:
    camera, size = frame.camera, frame.camera.size_px
    radius = camera.focal_px * thing.radius_m / thing.depth_m
    x = thing.column_px
    y = camera.ground_row_px(thing.depth_m) - radius * lowest_point(thing.shape, thing.roll_rad)
    reach = _REACH * radius + 1
    x0, x1 = max(0, int(x - reach)), min(size, int(x + reach) + 1)
    y0, y1 = max(0, int(y - reach)), min(size, int(y + reach) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    window = (x0, y0, x1, y1)
    distance = sample_distance(thing.shape, radius, (x, y), thing.roll_rad, window)
    alpha = np.clip(0.5 - distance, 0, 1)
    # Lit from above and from one side as a rounded body would be; darker towards the outline.
    across = (np.arange(x0, x1, dtype=np.float32) + 0.5 - x) * np.float32(0.2 * light / radius)
    along = (np.arange(y0, y1, dtype=np.float32) + 0.5 - y) * np.float32(-0.14 / radius)
    shade = 0.9 + along[:, None] + across - 0.22 * np.clip(1 + distance / (0.3 * radius), 0, 1)
    tint, tint2 = np.asarray(thing.tint, np.float32), np.asarray(thing.tint2, np.float32)
    if thing.texture == "plain":
        body = shade[..., None] * tint
    else:
        turn = thing.roll_rad + thing.texture_roll_rad
        mix = sample_texture(thing.texture, _TEXTURE_PERIOD * radius, (x, y), turn, window)
        body = shade[..., None] * (tint + mix[..., None] * (tint2 - tint))
    under = frame.image_HWC[y0:y1, x0:x1]
    under += alpha[..., None] * (body - under)
    solid = alpha > 0.5
    frame.areas_px[index] = int(np.count_nonzero(solid))
    frame.owner_HW[y0:y1, x0:x1][solid] = FIRST_OBJECT + index
    frame.depth_HW[y0:y1, x0:x1][solid] = thing.depth_m


def visible_boxes(frame: Frame) -> dict[int, tuple[int, int, int, int]]:
    """Tight boxes ``x0 y0 x1 y1`` (pixels, end exclusive) around what is seen of each object, by its index.

    Objects of which fewer than ``MIN_VISIBLE_PX`` pixels (scaled with the image's area) or less than
    ``MIN_VISIBLE_SHARE`` of their unoccluded pixels are seen are left out.
    """
    boxes = {}
    least_px = MIN_VISIBLE_PX * (frame.camera.size_px / _REFERENCE_SIZE_PX) ** 2
    for index, area_px in enumerate(frame.areas_px):
        seen = frame.owner_HW == FIRST_OBJECT + index
        if np.count_nonzero(seen) < max(least_px, MIN_VISIBLE_SHARE * area_px):
            continue
        rows, cols = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        boxes[index] = (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)
    return boxes


def expose(rng: np.random.Generator, image_HWC: NDArray[np.float32], noise: float, cast: float) -> NDArray[np.uint8]:
    """Applies a colour cast, an exposure and sensor noise.

    Args:
        rng: the scene's own random stream.
        image_HWC: float32 RGB in 0..1; changed in place.
        noise: standard deviation of the sensor noise, in 0..1 units.
        cast: standard deviation of each channel's gain.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    image_HWC *= (255 * rng.normal(1, cast, 3) * rng.normal(1, 0.06)).astype(np.float32)
    if noise > 0:
        image_HWC += rng.standard_normal(image_HWC.shape, np.float32) * np.float32(255 * noise)
    image_HWC += 0.5
    return np.clip(image_HWC, 0, 255, out=image_HWC).astype(np.uint8)


def any_tint(rng: np.random.Generator) -> Colour:
    """A random colour."""
    return tuple(rng.uniform(0.05, 0.95, 3).tolist())


def contrasting_tint(rng: np.random.Generator, tint: Sequence[float]) -> Colour:
    """A random colour whose mean differs by more than a quarter from another's."""
    total = sum(tint)
    while True:
        other = rng.random(3).tolist()
        if abs(sum(other) - total) > 0.75:
            return tuple(other)


def jitter_tint(rng: np.random.Generator, tint: Colour) -> Colour:
    """A shade of a colour, near enough that its name stays the same."""
    return tuple(np.clip(np.asarray(tint) + rng.normal(0, 0.035, 3), 0, 1).tolist())


def second_tint(tint: Colour) -> Colour:
    """The colour that a texture mixes in: darker for light objects, lighter for dark ones."""
    return tuple(0.35 * c if sum(tint) > 1.5 else 0.3 * c + 0.7 for c in tint)
