import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_parts import HEIGHT_PX, WIDTH_PX, Ingest, encoded, saved, write
from PIL import Image

from intern_vision.data.codec import decode_image
from intern_vision.data.manifest import MANIFEST_INFO_NAME, MANIFEST_NAME
from intern_vision.data.manifest_store import fetch_file, load_manifest, map_in_order, open_images, read_bytes
from intern_vision.errors import ConfigError, DataError, MissingObjectError
from intern_vision.stages.base import read_record
from intern_vision.store import ensure_bucket, file_sha256, open_store


@pytest.fixture
def taken(tmp_path, monkeypatch):
    for number in range(3):
        write(tmp_path / "in" / f"{number}.png", encoded(seed=number))
    write(tmp_path / "in" / "bad.png", b"bad")
    return Ingest(tmp_path / "own", monkeypatch)(tmp_path / "in")


def test_a_manifest_is_fetched_alone_and_checked(taken, tmp_path):
    store = open_store(taken.ref.uri)
    info, table = load_manifest(store, taken.ref, tmp_path / "got")
    assert (info.num_rows, info.num_ok, info.sha256) == (4, 3, file_sha256(table))
    assert sorted(path.name for path in table.parent.iterdir()) == [MANIFEST_INFO_NAME, MANIFEST_NAME]
    files = read_record(store, taken.ref.uri).files
    assert files[MANIFEST_NAME] == info.sha256
    with pytest.raises(DataError, match="has no file none.json; make the output anew"):
        fetch_file(store, taken.ref, "none.json", tmp_path)
    path = Path(taken.ref.uri.removeprefix("file://")) / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="manifest.parquet: expected SHA-256"):
        load_manifest(store, taken.ref, tmp_path / "again")
    with pytest.raises(ConfigError, match="manifest: expected a Ref of kind manifest, got dataset"):
        load_manifest(store, taken.ref.model_copy(update={"kind": "dataset"}), tmp_path)


def test_bytes_at_both_kinds_of_address(s3, tmp_path):
    data = encoded()
    path = write(tmp_path / "a b#é.png", data)
    ensure_bucket("ingest-bytes")
    open_store("s3://ingest-bytes").put(data, "s3://ingest-bytes/x/a b#é.png")
    for uri in (f"file://{path}", "s3://ingest-bytes/x/a b#é.png"):
        assert read_bytes(uri) == data == read_bytes(uri, max_bytes=len(data))
        with pytest.raises(DataError, match=f"more than {len(data) - 1} bytes; save the image smaller"):
            read_bytes(uri, max_bytes=len(data) - 1)
        with pytest.raises(MissingObjectError):
            read_bytes(uri + "x")
    with pytest.raises(ConfigError, match="expected an address that starts with file:// or s3://"):
        read_bytes("https://a/b.png")


@pytest.mark.parametrize("num_threads", [1, 3])
def test_images_come_in_order_with_their_rows(taken, num_threads):
    rows = [*taken.rows, {"uri": "file:///none.png"}] * 3
    found = list(open_images(rows, num_threads))
    assert [row for row, _ in found] == rows
    for row, image in found:
        if row.get("status") == "ok":
            assert np.array_equal(image, decode_image(read_bytes(row["uri"])))
            assert image.shape == (HEIGHT_PX, WIDTH_PX, 3)
        else:
            assert isinstance(image, str) and "\n" not in image


def test_images_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(tmp_path / "a.jpg", saved(Image.new("RGB", (10, 6)), "JPEG", exif=exif))
    ((_, image),) = open_images([{"uri": f"file://{path}"}], 2)
    assert image.shape == (10, 6, 3)


@settings(max_examples=25)
@given(st.integers(1, 5), st.lists(st.integers(), max_size=40))
def test_results_come_in_order(num_threads, items):
    assert list(map_in_order(lambda item: item + 1, items, num_threads)) == [item + 1 for item in items]


def test_only_a_few_are_ahead_and_nothing_goes_on_after_a_fault():
    started, lock = [], threading.Lock()

    def work(item):
        with lock:
            started.append(item)
        if item == 5:
            raise DataError("five")
        return item

    found = map_in_order(work, iter(range(1000)), 2)
    assert next(found) == 0
    time.sleep(0.05)
    assert len(started) <= 6
    with pytest.raises(DataError, match="five"):
        list(found)
    num_started = len(started)
    time.sleep(0.05)
    assert len(started) == num_started < 20
