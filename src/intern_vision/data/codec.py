"""Encoded images to arrays and back: simplejpeg for JPEG, OpenCV for the rest; always RGB."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

_JPEG_QUALITY = 95
_ORIENTATION_TAG = 0x0112
# Colour type of a PNG with a palette, its byte 25.
_PALETTE = b"\x03"
# Metadata lies at the beginning of a JPEG or PNG file.
_METADATA_BYTES = 4096


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """JPEG at quality 95 without colour subsampling of ``(height, width, 3)`` uint8 RGB."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), _JPEG_QUALITY, "RGB", "444")


def decode_image(data: bytes | memoryview, *, upright: bool = True) -> NDArray[np.uint8]:
    """Decodes JPEG, PNG, BMP, PPM, TIFF or WebP to ``(height, width, 3)`` uint8 RGB.

    Args:
        data: the encoded file.
        upright: turn and mirror the pixels as the EXIF orientation says, as every viewer does; else the pixels as
            stored.

    Raises:
        ValueError: the bytes are no image or end too early.
    """
    image = _decode_stored(data)
    return _turned(image, exif_orientation(data)) if upright else image


def exif_orientation(data: bytes | memoryview) -> int:
    """The EXIF orientation of an encoded image, 1 (as stored) to 8; 1 where it has none (EXIF 2.32, tag 0x0112)."""
    head = bytes(data[:_METADATA_BYTES])
    if head[:2] == b"\xff\xd8" or head[:4] == b"\x89PNG":
        if b"Exif\0\0" not in head and b"eXIf" not in head:
            return 1
    elif head[8:12] != b"WEBP":
        return 1  # OpenCV turns TIFF by itself, whatever its flags say
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            found = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, ValueError, SyntaxError):
        return 1
    return found if found in range(1, 9) else 1


def _turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _decode_stored(data: bytes | memoryview) -> NDArray[np.uint8]:
    if bytes(data[:2]) == b"\xff\xd8":
        import simplejpeg

        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError as error:
            return _decode_odd_jpeg(data, error)
    import cv2

    image = cv2.imdecode(_checked_png(data), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("not an image that can be decoded")
    return image


def _decode_odd_jpeg(data: bytes | memoryview, refusal: ValueError) -> NDArray[np.uint8]:
    # simplejpeg takes any warning for an error. Public datasets hold files with a few stray bytes between their parts,
    # which every viewer shows; Pillow reads those, and refuses a file cut short too.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError):
        raise refusal from None


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


def decode_labels(data: bytes | memoryview) -> NDArray[Any]:
    """Decodes class indices a pixel: ``(height, width)`` of a one-channel PNG, or the indices of one with a palette.

    PASCAL VOC's masks have a palette, of which OpenCV would give the colours.

    Raises:
        ValueError: the bytes are no such image or end too early.
    """
    if bytes(data[25:26]) != _PALETTE:
        return decode_map(data)
    from PIL import Image

    with Image.open(io.BytesIO(_checked_png(data))) as image:
        return np.array(image)


def image_suffix(data: bytes) -> str:
    """``jpg`` or ``png`` for such a file, by its first bytes; empty for any other."""
    return "jpg" if data[:2] == b"\xff\xd8" else "png" if data[:4] == b"\x89PNG" else ""


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
