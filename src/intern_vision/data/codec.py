"""Encoded images to arrays and back: simplejpeg for JPEG, OpenCV for the rest; always RGB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_JPEG_QUALITY = 95


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """JPEG at quality 95 without colour subsampling of ``(height, width, 3)`` uint8 RGB."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), _JPEG_QUALITY, "RGB", "444")


def decode_image(data: bytes | memoryview) -> NDArray[np.uint8]:
    """Decodes JPEG, PNG, BMP, PPM, TIFF or WebP to ``(height, width, 3)`` uint8 RGB.

    An EXIF orientation is not applied: boxes and masks refer to the pixels as stored.

    Raises:
        ValueError: the bytes are no image or end too early.
    """
    if bytes(data[:2]) == b"\xff\xd8":
        import simplejpeg

        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    import cv2

    image = cv2.imdecode(_checked_png(data), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("not an image that can be decoded")
    return image


def decode_map(data: bytes | memoryview) -> NDArray[Any]:
    """Decodes a one-channel PNG to ``(height, width)``, uint8 or uint16 as stored.

    Raises:
        ValueError: the bytes are no image, end too early or have several channels.
    """
    import cv2

    values = cv2.imdecode(_checked_png(data), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2:
        raise ValueError("not a one-channel image that can be decoded")
    return values


def _checked_png(data: bytes | memoryview) -> NDArray[np.uint8]:
    # OpenCV gives the rows it has of a PNG cut short, without a word.
    if bytes(data[:4]) == b"\x89PNG" and b"IEND" not in bytes(data[-64:]):
        raise ValueError("PNG ends before its IEND chunk")
    if not len(data):
        raise ValueError("empty file")
    return np.frombuffer(data, np.uint8)


def encode_png(image: NDArray[Any]) -> bytes:
    """PNG of ``(height, width)`` uint8 or uint16, or of ``(height, width, 3)`` uint8 RGB."""
    import cv2

    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def encode_depth(depth: NDArray[np.float32], scale: float) -> NDArray[np.uint16]:
    """Depth in metres as units of ``scale`` metres; a known depth never becomes 0, which means unknown.

    Raises:
        ValueError: a depth is beyond 65,535 units, negative or not finite.
    """
    if depth.size and not (depth.min() >= 0 and depth.max() <= 65535 * scale):
        raise ValueError(f"depth {depth.min():.3f}..{depth.max():.3f} m is outside 0..{65535 * scale:.3f} m")
    units = np.rint(depth / scale)
    return np.where(depth > 0, np.maximum(units, 1), 0).astype(np.uint16)
