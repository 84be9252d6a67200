import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from intern_vision.data.codec import (
    decode_image,
    decode_labels,
    encode_jpeg,
    encode_png,
    exif_orientation,
    image_suffix,
)


@pytest.fixture
def jpeg():
    return encode_jpeg(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))


def test_stray_bytes_between_the_parts_of_a_jpeg_do_no_harm(jpeg):
    scan = jpeg.index(b"\xff\xda")
    assert np.array_equal(decode_image(jpeg[:scan] + b"abc" + jpeg[scan:]), decode_image(jpeg))
    assert np.array_equal(decode_image(jpeg + bytes(10)), decode_image(jpeg))


def test_a_jpeg_cut_short_is_refused(jpeg):
    for end in (2, 20, len(jpeg) // 4, len(jpeg) // 2, len(jpeg) - 400):
        with pytest.raises(ValueError):
            decode_image(jpeg[:end])


def test_print_colours_become_rgb():
    grey = np.indices((40, 48)).sum(0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).convert("RGB").convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(decode_image(buffer.getvalue()).astype(int) - grey[..., None]).max() <= 4


def test_labels_are_a_palettes_indices():
    labels = np.random.default_rng(0).integers(0, 21, (12, 16), np.uint8)
    palette = Image.fromarray(labels, "L").convert("P")
    palette.putdata(labels.ravel())
    palette.putpalette([255 - value // 3 for value in range(768)])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    assert np.array_equal(decode_labels(buffer.getvalue()), labels)
    assert np.array_equal(decode_labels(encode_png(labels)), labels)
    with pytest.raises(ValueError, match="ends before its IEND"):
        decode_labels(buffer.getvalue()[:-30])
    with pytest.raises(ValueError, match="one-channel"):
        decode_labels(encode_png(np.zeros((4, 4, 3), np.uint8)))


def test_a_suffix_follows_from_the_bytes(jpeg):
    assert image_suffix(jpeg) == "jpg"
    assert image_suffix(encode_png(np.zeros((4, 4), np.uint8))) == "png"
    assert image_suffix(b"GIF89a") == image_suffix(b"") == ""


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_orientation_says(form, orientation):
    pixels = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    Image.fromarray(pixels).convert("RGB").save(buffer, form, exif=exif, **options)
    data = buffer.getvalue()
    with Image.open(buffer) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert exif_orientation(data) == orientation
    upright = decode_image(data)
    assert upright.shape == expected.shape and np.abs(upright - expected).max() <= 3
    stored = decode_image(data, upright=False)
    assert np.abs(stored.astype(int) - pixels[..., None]).max() <= 3


def test_files_without_an_orientation_stay_as_stored(jpeg):
    assert exif_orientation(jpeg) == exif_orientation(encode_png(np.zeros((4, 4), np.uint8))) == 1
    assert exif_orientation(b"") == exif_orientation(b"no image") == 1
    exif = Image.Exif()
    exif[0x0112] = 77
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    assert exif_orientation(buffer.getvalue()) == 1
