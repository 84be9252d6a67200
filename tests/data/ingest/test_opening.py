import io
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_parts import HEIGHT_PX, WIDTH_PX, encoded, saved, write
from PIL import Image, ImageOps

from intern_vision.data.codec import decode_image
from intern_vision.data.ingest.opening import turned_box
from intern_vision.data.manifest_store import read_bytes

GREY = Image.fromarray(np.arange(HEIGHT_PX * WIDTH_PX, dtype=np.uint16).reshape(HEIGHT_PX, WIDTH_PX) // 4 % 256)
PICTURE = Image.open(io.BytesIO(encoded()))


def sixteen_bits(shape):
    import cv2

    pixels = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    return cv2.imencode(".png", pixels)[1].tobytes()


def frames(form, **options):
    other = Image.new("RGB", PICTURE.size)
    return saved(PICTURE.convert("RGB"), form, save_all=True, append_images=[other], **options)


def bomb(side_px):
    """A few kilobytes that would unpack to 3 bytes a pixel."""
    return saved(Image.new("1", (side_px, side_px)), "PNG")


USED = {
    "cmyk.jpg": saved(PICTURE.convert("CMYK"), "JPEG"),
    "grey.png": saved(PICTURE.convert("L"), "PNG"),
    "bits.png": saved(PICTURE.convert("1"), "PNG"),
    "palette.png": saved(PICTURE.convert("P"), "PNG"),
    "alpha.png": saved(PICTURE.convert("RGBA"), "PNG"),
    "deep_colours.png": sixteen_bits((HEIGHT_PX, WIDTH_PX, 3)),
    "plain.bmp": encoded("BMP"),
    "plain.tif": encoded("TIFF"),
    "plain.webp": encoded("WEBP"),
    "plain.ppm": encoded("PPM"),
    "really_a_jpeg.png": encoded("JPEG"),
    "really_a_png.jpg": encoded("PNG"),
}
REFUSED = {
    "truncated.jpg": (encoded("JPEG")[:400], "decode: "),
    "truncated.png": (encoded("PNG")[:400], "decode: "),
    "empty.jpg": (b"", "empty: file of 0 bytes"),
    "text.jpg": (b"<html>no picture</html>", "decode: not an image"),
    "bomb.png": (bomb(10_000), "bomb: 10000 x 10000 pixels are more than 67108864"),
    "large_bomb.png": (bomb(20_000), "bomb: more than 67108864 pixels in 48610 bytes"),
    "animated.png": (frames("PNG"), "animated: 2 frames"),
    "animated.webp": (frames("WEBP"), "animated: 2 frames"),
    "pages.tif": (frames("TIFF"), "animated: 2 frames or pages"),
    "moving.gif": (frames("GIF"), "format: GIF is not read; save it as JPEG or PNG"),
    "still.gif": (saved(PICTURE.convert("P"), "GIF"), "format: GIF is not read"),
    "deep_grey.png": (sixteen_bits((HEIGHT_PX, WIDTH_PX)), "format: one channel of more than 8 bits (I;16)"),
    "float.tif": (saved(PICTURE.convert("F"), "TIFF"), "format: one channel of more than 8 bits (F)"),
}


def test_every_picture_is_used_or_set_apart_with_its_reason(take_up, tmp_path):
    for name, data in USED.items():
        write(tmp_path / "in" / name, data)
    for name, (data, _) in REFUSED.items():
        write(tmp_path / "in" / name, data)
    taken = take_up(tmp_path / "in")
    for name, data in USED.items():
        row = taken.by_name(f"/{name}")
        assert (row["status"], row["width_px"], row["height_px"]) == ("ok", WIDTH_PX, HEIGHT_PX), (name, row)
        assert row["num_bytes"] == len(data) and read_bytes(row["uri"]) == data
    for name, (_, reason) in REFUSED.items():
        row = taken.by_name(f"/{name}")
        assert row["status"] == "quarantined" and row["reason"].startswith(reason), (name, row["reason"])
        assert row["digest"] == "" and "\n" not in row["reason"]
    counts = taken.info.steps[0].counts
    assert counts == {"animated": 3, "bomb": 2, "decode": 3, "empty": 1, "format": 4}
    assert (taken.info.num_rows, taken.info.num_ok) == (len(USED) + len(REFUSED), len(USED))


def test_a_file_that_is_too_large_and_one_that_cannot_be_opened(take_up, tmp_path):
    write(tmp_path / "in" / "small.png", encoded())
    write(tmp_path / "in" / "large.png", encoded(seed=1) + bytes(10_000))
    (tmp_path / "in" / "dangling.png").symlink_to(tmp_path / "none.png")
    (tmp_path / "in" / "circle.png").symlink_to(tmp_path / "in" / "circle.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    taken = take_up(tmp_path / "in", max_bytes=5_000)
    assert sorted(taken.reasons) == [
        "large: more than 5000 bytes",
        f"missing: no file {tmp_path}/in/dangling.png",
        f"unreadable: {tmp_path}/in/circle.png: Too many levels of symbolic links",
        f"unreadable: {tmp_path}/in/pipe.png: is no ordinary file",
    ]


def test_names_that_are_no_addresses(take_up, tmp_path):
    folder = tmp_path / "in"
    for name in (b"good.png", b"back\\slash.png", b"latin-\xe9.png", b"line\nbreak.png"):
        (folder / "x").parent.mkdir(exist_ok=True)
        with open(bytes(folder) + b"/" + name, "wb") as file:
            file.write(encoded())
    taken = take_up(folder)
    assert taken.info.num_ok == 1 and len(taken.reasons) == 3
    assert all(reason.startswith("path: ") and "\n" not in reason for reason in taken.reasons)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_and_boxes_are_those_of_the_upright_image(take_up, tmp_path, orientation):
    # A white spot on black: where it is upright must be where its box is.
    pixels = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    pixels[2:6, 20:30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(pixels), "PNG", exif=exif)
    write(tmp_path / "in" / "images" / "a.png", data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")
    spot = np.argwhere(np.array(upright) > 0)
    (y0, x0), (y1, x1) = spot.min(0).tolist(), (spot.max(0) + 1).tolist()
    turned = orientation >= 5
    # Annotations that state the size as stored are turned with the image; others are upright already.
    for name, size, box in (
        ("stored.json", (HEIGHT_PX, WIDTH_PX), [20, 2, 10, 4]),
        ("upright.json", upright.size[::-1], [x0, y0, x1 - x0, y1 - y0]),
    ):
        if name == "stored.json" and not turned:
            continue
        document = {"images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}]}
        document |= {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}]}
        document |= {"categories": [{"id": 1, "name": "spot"}]}
        path = write(tmp_path / "in" / name, json.dumps(document))
        (row,) = take_up(path).rows
        assert row["status"] == "ok", row
        assert (row["height_px"], row["width_px"]) == upright.size[::-1] == decode_image(data).shape[:2]
        (found,) = row["boxes"]
        assert [found[name] for name in ("x0", "y0", "x1", "y1")] == [x0, y0, x1, y1]


@settings(max_examples=40)
@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_box_is_turned_as_pixels_are(orientation, height, width, data):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y0:y1, x0:x1] = 1
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    upright = np.array(ImageOps.exif_transpose(image))
    a, b, c, d = map(int, turned_box([x0, y0, x1, y1], (height, width), orientation))
    expected = np.zeros_like(upright)
    expected[b:d, a:c] = 1
    assert np.array_equal(upright, expected)
