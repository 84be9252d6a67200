import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_parts import HEIGHT_PX, WIDTH_PX, encoded, write

from intern_vision.data.codec import decode_labels
from intern_vision.data.ingest.label_studio import decode_brush
from intern_vision.data.manifest_store import read_bytes
from intern_vision.errors import DataError


def encode_brush(values, word_size=8, sizes=(3, 4, 8, 16)):
    """Runs and literals as the format's description says, as text of bits."""
    bits = f"{len(values):032b}{word_size - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    start = 0
    while start < len(values):
        end = start + 1
        while end < len(values) and values[end] == values[start] and end - start < 2 ** sizes[3]:
            end += 1
        length = end - start - 1
        choice = next(index for index, size in enumerate(sizes) if length < 2**size)
        # A run of one is written as a literal, so that both are read.
        is_run = length > 0
        bits += f"{int(is_run)}{choice:02b}{length:0{sizes[choice]}b}{values[start]:0{word_size}b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8))


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 300)), max_size=12))
def test_a_brush_is_decoded(runs):
    values = [value for value, length in runs for _ in range(length)]
    assert decode_brush(encode_brush(values), len(values)).tolist() == values


def test_a_brush_of_another_size_or_cut_short():
    data = encode_brush([1] * 40)
    with pytest.raises(ValueError, match="has 40 values, expected 44"):
        decode_brush(data, 44)
    with pytest.raises(ValueError, match="ends early"):
        decode_brush(data[:-2], 40)


def region(kind, value, **more):
    size = {"original_width": WIDTH_PX, "original_height": HEIGHT_PX}
    return {"id": "r1", "type": kind, "value": value, "from_name": "a", "to_name": "image", **size, **more}


def choice(*names):
    return {"id": "c1", "type": "choices", "value": {"choices": list(names)}, "from_name": "b", "to_name": "image"}


def rectangle(label, x, y, width, height, rotation=0):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]}
    return region("rectanglelabels", value)


def task(number, image, *annotations):
    return {"id": number, "data": {"image": image, "shown": "x"}, "annotations": list(annotations), "predictions": []}


def annotation(*results, **more):
    return {"result": list(results), "was_cancelled": False, "updated_at": "2026-01-01", **more}


def test_choices_boxes_polygons_and_strokes(take_up, tmp_path):
    root = tmp_path / "in"
    for number in range(6):
        write(root / "images" / f"up-{number}.png", encoded(seed=number))
    write(root / "local" / "a b.png", encoded(seed=9))
    mask = np.zeros((HEIGHT_PX, WIDTH_PX, 4), np.uint8)
    mask[3:6, 4:9] = 255
    stroke = region(
        "brushlabels", {"format": "rle", "rle": list(encode_brush(mask.ravel().tolist())), "brushlabels": ["sky"]}
    )
    polygon = region(
        "polygonlabels", {"points": [[50, 50], [100, 50], [100, 100], [50, 100]], "polygonlabels": ["road"]}
    )
    old = annotation(choice("cat"), updated_at="2026-01-03")
    skipped = annotation(choice("bird"), updated_at="2026-01-09", was_cancelled=True)
    tasks = [
        task(1, "/data/upload/1/up-0.png", old, annotation(choice("dog"), updated_at="2026-01-02"), skipped),
        task(2, "/data/upload/1/up-1.png", old, annotation(choice("dog"), ground_truth=True)),
        task(3, "images/up-2.png", annotation(rectangle("dog", 25, 50, 50, 25), choice("cat", "dog"))),
        task(4, "/data/upload/1/up-3.png", annotation(stroke, polygon)),
        task(5, "/data/local-files/?d=local/a%20b.png"),
    ]
    taken = take_up(write(root / "export.json", json.dumps(tasks)))
    assert taken.reasons == []
    assert taken.by_name("/up-0.png")["labels"] == ["cat"] and taken.by_name("/up-1.png")["labels"] == ["dog"]
    row = taken.by_name("/up-2.png")
    assert row["labels"] == ["cat", "dog"]
    assert [[box[name] for name in ("x0", "y0", "x1", "y1", "label")] for box in row["boxes"]] == [
        [8, 12, 24, 18, "dog"]
    ]
    expected = np.full((HEIGHT_PX, WIDTH_PX), 255, np.uint8)
    expected[3:6, 4:9], expected[12:, 16:] = 1, 0
    found = decode_labels(read_bytes(taken.by_name("/up-3.png")["mask"]))
    assert np.array_equal(found, expected)
    row = taken.by_name("a b.png")
    assert row["labels"] is None and row["boxes"] is None and row["mask"] is None
    tasks = taken.info.sources[0].tasks
    assert tasks["segment"].class_names == ("road", "sky") and tasks["multilabel"].class_names == ("cat", "dog")


def test_what_is_wrong_with_a_task_sets_it_apart(take_up, tmp_path):
    for number in range(6):
        write(tmp_path / "in" / f"{number}.png", encoded(seed=number))
    tasks = [
        task(0, "0.png"),
        task(1, "1.png", annotation(rectangle("dog", 50, 50, 80, 10))),
        task(2, "2.png", annotation(rectangle("dog", 5, 5, 8, 10, rotation=30))),
        task(3, "3.png", annotation(region("brushlabels", {"rle": [0] * 20, "brushlabels": ["sky"]}))),
        task(4, "4.png", annotation({"type": "rectanglelabels", "value": {"rectanglelabels": ["x"]}})),
        task(5, "/data/local-files/?d=../../etc/hostname"),
        {"id": 6, "data": {"a": "1.png", "b": "2.png"}, "annotations": []},
        task(7, "0.png"),
    ]
    taken = take_up(write(tmp_path / "in" / "export.json", json.dumps(tasks)))
    assert taken.info.num_ok == 1
    expected = [
        "annotation: task 4: not as Label Studio exports it: KeyError 'original_height'",
        "box: task 1: region r1: box [16.0, 12.0, 25.6, 2.4",
        "box: task 2: region r1: is turned by 30 degrees; draw it upright",
        "duplicate: task 7: is listed twice",
        "mask: task 3: the brush's code has 0 values, expected 3072",
        f"path: task 5: '../../etc/hostname' leads out of {tmp_path}/in",
        "row: task 6: names no image in image, img, url, image_url",
    ]
    found = sorted(taken.reasons)
    assert [a for a, b in zip(found, expected, strict=True) if not a.startswith(b)] == []


@pytest.mark.parametrize("text", ["[1]", '[{"annotations": [{"was": 1}]}]', "[{", "[" * 50_000])
def test_a_file_that_is_no_export_ends_the_ingest(take_up, tmp_path, text):
    with pytest.raises(DataError, match="a.json: expected a JSON export of Label Studio, a list of tasks: "):
        take_up(write(tmp_path / "in" / "a.json", text))
