import base64
import http.server
import io
import socket
import ssl
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.data.codec import encode_jpeg, encode_png
from intern_vision.errors import AccessError, ConfigError, DataError
from intern_vision.pictures import ALLOW_VARIABLE, Sources, list_pictures, read_picture

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
PNG = encode_png(PICTURE)
HERE = Sources(timeout_s=5.0)
SERVED = Sources.served({})


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, _, _ = self.path.partition("?")
        getattr(self, name.strip("/").replace(".", "_"), self.missing)()

    def missing(self):
        self.answer(404, b"")

    def picture_png(self):
        self.answer(200, PNG)

    def text(self):
        self.answer(200, b"<html>sign in</html>")

    def moved(self):
        self.answer(302, b"", Location="picture.png")

    def loop(self):
        self.answer(301, b"", Location="/loop")

    def to_file(self):
        self.answer(302, b"", Location="file:///etc/hostname")

    def large(self):
        self.answer(200, bytes(5000))

    def short(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PNG) + 10))
        self.end_headers()
        self.wfile.write(PNG)

    def drip(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        return None


@pytest.fixture(scope="module")
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_form_gives_the_same_pixels(web, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    text = base64.b64encode(PNG).decode()
    forms = [PNG, bytearray(PNG), memoryview(PNG), text, f"data:image/png;base64,{text}", path, str(path)]
    forms += [f"{web}/picture.png", f"{web}/picture.png?size=1", f"{web}/moved", PICTURE, PICTURE.tolist()]
    for form in forms:
        np.testing.assert_array_equal(read_picture(form, HERE), PICTURE, err_msg=str(form)[:60])


@pytest.mark.parametrize(
    ("page", "line"),
    [
        ("none", "answered 404 Not Found; expected a picture"),
        ("text", "cannot be decoded as an image"),
        ("loop", "more than 3 redirects"),
        ("to_file", "expected http://HOST/PATH"),
        ("large", "more than 4096 bytes"),
        ("short", "ended 10 bytes early"),
        ("drip", "no complete answer within 0.3 s"),
    ],
)
def test_address_that_gives_no_picture_is_one_line(web, page, line):
    started = time.perf_counter()
    with pytest.raises(DataError, match=line) as caught:
        read_picture(f"{web}/{page}?signature=secret", HERE.with_overrides({"max_bytes": 4096, "timeout_s": 0.3}))
    assert time.perf_counter() - started < 2
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_unreachable_and_malformed_addresses():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
    for address, line in {
        closed: "cannot be reached",
        "http://nowhere.invalid/a.png": "nowhere.invalid/a.png: cannot be reached",
        "http://": "expected http://HOST/PATH",
        "http://host:port/": "not an address",
        "http://me:hunter2@host/a.png": "without user and password",
        "http://host/a b.png": "percent-encode",
        "http://host/a\r\nHost: b": "percent-encode",
        "file:///etc/hostname": "expected an http://, https:// or s3:// address",
        "ftp://host/a.png": "expected an http://, https:// or s3:// address",
    }.items():
        with pytest.raises(DataError, match=line) as caught:
            read_picture(address, HERE)
        assert "hunter2" not in str(caught.value)


def test_plain_server_is_no_https_server(web):
    with pytest.raises(DataError, match="cannot be reached"):
        read_picture(web.replace("http:", "https:") + "/picture.png", HERE)
    assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED


def test_served_model_reads_public_addresses_only(web, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source, line in {
        f"{web}/picture.png": "leads to an address that is not public",
        "http://localhost/a.png": "not public",
        "http://169.254.169.254/latest/meta-data": "not public",
        "http://[::1]/a.png": "not public",
        "http://[::ffff:127.0.0.1]/a.png": "not public",
        "http://[64:ff9b::7f00:1]/a.png": "not public",
        "http://2130706433/a.png": "not public",
        "s3://intern/a.png": "s3:// is not read here; send the picture's bytes",
        str(path): "neither an address nor base64 text; a served model reads no paths",
    }.items():
        with pytest.raises(DataError, match=line):
            read_picture(source, SERVED)
    np.testing.assert_array_equal(read_picture(base64.b64encode(PNG).decode(), SERVED), PICTURE)
    with pytest.raises(DataError, match="http:// is not read here"):
        read_picture(f"{web}/picture.png", Sources.served({ALLOW_VARIABLE: "none"}))


def test_name_that_changes_its_address_in_between_is_refused(web, monkeypatch):
    real, calls = socket.getaddrinfo, []

    def rebound(host, *arguments, **options):
        calls.append(host)
        return real("8.8.8.8" if len(calls) == 1 else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    with pytest.raises(DataError, match="not public"):
        read_picture(f"{web}/picture.png", SERVED)
    assert len(calls) == 2


def test_what_is_allowed_is_told_by_the_environment(web, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    allowed = Sources.served({ALLOW_VARIABLE: "private_urls, files"})
    for source in (f"{web}/picture.png", path):
        np.testing.assert_array_equal(read_picture(source, allowed), PICTURE)
    assert (SERVED.urls, SERVED.private_urls, SERVED.files, SERVED.s3) == (True, False, False, False)
    with pytest.raises(ConfigError, match=f"{ALLOW_VARIABLE}: expected none or some of .*, got everything"):
        Sources.served({ALLOW_VARIABLE: "everything"})


def test_s3_address(s3, tmp_path):
    from intern_vision.store import open_store

    open_store("s3://intern").put(PNG, "s3://intern/pictures/a.png")
    np.testing.assert_array_equal(read_picture("s3://intern/pictures/a.png", HERE), PICTURE)
    with pytest.raises(DataError, match="s3://intern/pictures/b.png"):
        read_picture("s3://intern/pictures/b.png", HERE)
    with pytest.raises(DataError, match="more than 64 bytes"):
        read_picture("s3://intern/pictures/a.png", HERE.with_overrides({"max_bytes": 64}))
    with pytest.raises((AccessError, DataError)):
        read_picture("s3://another-bucket/a.png", HERE)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size_px", [9_000, 12_000, 60_000])
def test_picture_that_unpacks_to_gigabytes_is_refused_before_it_does(size_px):
    with pytest.raises(DataError, match="pixels"):
        read_picture(bomb(size_px, size_px), HERE)


def test_limits(tmp_path):
    small = HERE.with_overrides({"max_pixels": 62, "max_bytes": 100})
    for source, line in {
        PICTURE.tobytes(): "cannot be decoded",
        bomb(9, 7): "9 x 7 pixels are more than 62",
    }.items():
        with pytest.raises(DataError, match=line):
            read_picture(source, small)
    with pytest.raises(DataError, match="7 x 9 pixels are more than 62"):
        read_picture(PICTURE, small)
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (str(path), base64.b64encode(PNG).decode()):
        with pytest.raises(DataError, match="bytes"):
            read_picture(source, small)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (None, "got NoneType"),
        (7, "got int"),
        (b"", "cannot be decoded"),
        (PNG[:60], "cannot be decoded"),
        (encode_jpeg(PICTURE)[:50], "cannot be decoded"),
        ("%%%", "'%%%' is neither a file here, an address nor base64 text"),
        (PICTURE[:, :, 0], r"expected a uint8 array \(H, W, 3\), got uint8 \(9, 7\)"),
        (PICTURE.astype(np.float32), "got float32"),
        ([[[0, 0, 256]]], "expected a uint8 array"),
        ([[[0, 0, 0]], [[0, 0]]], "ragged|expected a uint8"),
        (np.zeros((0, 5, 3), np.uint8), "expected a uint8 array"),
    ],
)
def test_what_is_no_picture(source, line):
    with pytest.raises(DataError, match=line):
        read_picture(source, HERE)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=60)))
def test_anything_is_a_picture_or_one_line(source):
    try:
        assert read_picture(source, SERVED).dtype == np.uint8
    except DataError as error:
        assert str(error)


def test_folders_files_and_addresses_are_listed(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.PNG", "deep/a.jpg", "deep/er/c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(PNG)
    assert list_pictures([str(tmp_path), "http://host/x", str(tmp_path / "notes.txt")]) == [
        *(str(tmp_path / name) for name in ("b.PNG", "deep/a.jpg", "deep/er/c.webp")),
        "http://host/x",
        str(tmp_path / "notes.txt"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no picture in this folder"):
        list_pictures([str(tmp_path / "empty")])
    with pytest.raises(DataError, match="gone.jpg: no such file"):
        list_pictures([str(tmp_path / "gone.jpg")])


def test_modes_and_orientation_become_upright_rgb():
    from PIL import Image

    for mode in ("L", "P", "RGBA", "1"):
        file = io.BytesIO()
        Image.fromarray(PICTURE).convert(mode).save(file, "PNG")
        assert read_picture(file.getvalue(), HERE).shape == PICTURE.shape
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "JPEG", exif=exif)
    assert read_picture(file.getvalue(), HERE).shape == (7, 9, 3)
