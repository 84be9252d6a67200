"""A sample as the members of a tar file, and back."""

import json
from collections.abc import Container

import numpy as np

from intern_vision.data.codec import encode_depth, encode_jpeg, encode_png, image_suffix
from intern_vision.data.sample import Sample

MEMBERS = ("image", "json", "mask", "depth")
JSON_FIELDS = ("caption", "label", "concepts", "boxes", "box_labels", "box_attributes", "frame")
FIELDS = ("image", *JSON_FIELDS, "mask", "depth")


def present_fields(sample: Sample) -> tuple[str, ...]:
    """Those of ``FIELDS`` that a sample has."""
    return tuple(name for name in FIELDS if _has(sample, name))


def encode_members(sample: Sample, *, lossless: bool, depth_scale: float) -> dict[str, tuple[str, bytes]]:
    """Suffix and bytes of each of ``MEMBERS`` that a sample has.

    Args:
        sample: its ``encoded`` file is kept unchanged where it is JPEG or PNG.
        lossless: any other image becomes PNG and not JPEG at quality 95.
        depth_scale: metres per unit of the 16-bit depth image.

    Raises:
        ValueError: the depth does not fit 16 bits.
    """
    if sample.encoded is not None and (suffix := image_suffix(sample.encoded)):
        members = {"image": (suffix, sample.encoded)}
    elif lossless:
        members = {"image": ("png", encode_png(sample.image))}
    else:
        members = {"image": ("jpg", encode_jpeg(sample.image))}
    values = {name: getattr(sample, name) for name in JSON_FIELDS if _has(sample, name)}
    if values:
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=lambda array: array.tolist())
        members["json"] = ("json", text.encode())
    if sample.mask is not None:
        members["mask"] = ("mask.png", encode_png(sample.mask.astype(np.uint8)))
    if sample.depth is not None:
        members["depth"] = ("depth.png", encode_png(encode_depth(sample.depth, depth_scale)))
    return members


def fill_from_json(sample: Sample, data: bytes, fields: Container[str]) -> None:
    """Sets those of ``fields`` that a shard's JSON member holds, but for caption and label, which the index has too."""
    values = {name: value for name, value in json.loads(data).items() if name in fields}
    if "concepts" in values:
        sample.concepts = tuple(values["concepts"])
    if "boxes" in values:
        sample.boxes = np.array(values["boxes"], np.float32).reshape(-1, 4)
    if "box_labels" in values:
        sample.box_labels = np.array(values["box_labels"], np.int64)
    attributes = values.get("box_attributes", {})
    sample.box_attributes = {name: np.array(numbers, np.float32) for name, numbers in attributes.items()}
    sample.frame = values.get("frame")


def _has(sample: Sample, name: str) -> bool:
    value = getattr(sample, name)
    return value is not None and not (name == "box_attributes" and not value)
