"""Pictures from wherever they lie: bytes, base64 text, arrays, files, ``http(s)://`` and ``s3://`` addresses.

H and W are a picture's height and width in pixels.
"""

import base64
import binascii
import http.client
import io
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from intern_vision.config import Config
from intern_vision.errors import ConfigError, DataError, NoAnswerError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
ALLOW_VARIABLE = "INTERN_SERVE_ALLOW"
"""What a served model may read besides the request itself: a comma list of ``Sources`` fields, or ``none``."""

SERVED_DEFAULT = "urls"
# Longer text is base64, and must not become an error about a file's name.
_MAX_PATH_CHARS = 1024
_MAX_SHOWN_CHARS = 60
_REDIRECTS = (301, 302, 303, 307, 308)
# Request timeout and too many requests.
_PASSING = (408, 429)
_CHUNK_BYTES = 2**16
# IPv6 addresses that stand for an IPv4 address, public or not (RFC 6052, RFC 3056).
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16"))


class Sources(Config):
    """What may be read besides bytes, base64 text and arrays, and how much of it.

    The defaults are those of a program on a person's own machine; ``served`` gives those of a server.

    Attributes:
        files: local paths.
        s3: ``s3://`` addresses, with this process's own credentials.
        urls: ``http://`` and ``https://`` addresses.
        private_urls: those too whose host is not public: this machine, the local network, a cloud's metadata.
        max_bytes: size of one encoded picture.
        max_pixels: H times W of one picture; it takes 3 bytes a pixel once decoded.
        timeout_s: for one address, redirects included.
        max_redirects: of one address.
    """

    files: bool = True
    s3: bool = True
    urls: bool = True
    private_urls: bool = True
    max_bytes: int = Field(default=2**25, ge=1)
    max_pixels: int = Field(default=2**26, ge=1)
    timeout_s: float = Field(default=10.0, gt=0.0)
    max_redirects: int = Field(default=3, ge=0)

    @classmethod
    def served(cls, environment: Mapping[str, str] = os.environ) -> "Sources":
        """What ``INTERN_SERVE_ALLOW`` names; by default public addresses alone.

        Raises:
            ConfigError: it names something else.
        """
        kinds = ("files", "s3", "urls", "private_urls")
        named = {name.strip() for name in environment.get(ALLOW_VARIABLE, SERVED_DEFAULT).split(",")} - {"", "none"}
        if named - set(kinds):
            raise ConfigError(
                f"{ALLOW_VARIABLE}: expected none or some of {', '.join(kinds)}, got {', '.join(sorted(named))}"
            )
        return cls.from_dict({kind: kind in named or kind == "urls" and "private_urls" in named for kind in kinds})


def read_picture(source: Any, sources: Sources) -> NDArray[np.uint8]:
    """One picture as ``(H, W, 3)`` uint8 RGB, upright.

    Args:
        source: encoded bytes, base64 text (also as a ``data:`` address), a local path, an ``http(s)://`` or ``s3://``
            address, a uint8 array ``(H, W, 3)``, or such pixels as nested lists.
        sources: what may be read.

    Raises:
        DataError: it is no picture, too large, unreachable or not allowed.
        AccessError: the S3 server refuses the credentials.
        RetryableError: the S3 server is away.
    """
    if isinstance(source, (np.ndarray, list, tuple)):
        return _pixels(source, sources)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), sources)
    if not isinstance(source, (str, Path)):
        raise DataError(f"expected bytes, base64 text, a path, an address or an array, got {type(source).__name__}")
    data, name = _read(str(source), sources)
    try:
        return _decode(data, sources)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def list_pictures(names: Sequence[str]) -> list[str]:
    """The pictures that names stand for: a folder's picture files at any depth in order, anything else as it is.

    Raises:
        DataError: a folder has no picture; a local file is missing.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if "://" in name:
            found.append(name)
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise DataError(f"{name}: no picture in this folder; expected files such as *{', *'.join(SUFFIXES)}")
            found += map(str, files)
        elif path.is_file():
            found.append(name)
        else:
            raise DataError(f"{name}: no such file or folder")
    return found


def _pixels(values: Any, sources: Sources) -> NDArray[np.uint8]:
    try:
        pixels = np.asarray(values)
    except ValueError:
        raise DataError("expected rows of pixels of one length, got a ragged list") from None
    is_listed = not isinstance(values, np.ndarray)
    if is_listed and pixels.dtype.kind in "iu" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise DataError(f"expected a uint8 array (H, W, 3), got {pixels.dtype} {pixels.shape}")
    _check_pixels(pixels.shape[1], pixels.shape[0], sources)
    return pixels


def _read(text: str, sources: Sources) -> tuple[bytes, str]:
    """The bytes that a text stands for, and what messages call them."""
    scheme, separator, _ = text[:_MAX_PATH_CHARS].partition("://")
    if separator:
        kinds = {"http": sources.urls, "https": sources.urls, "s3": sources.s3}
        if scheme not in kinds:
            raise DataError(f"{_shown(text)}: expected an http://, https:// or s3:// address")
        if not kinds[scheme]:
            raise DataError(f"{_shown(text)}: {scheme}:// is not read here; send the picture's bytes as base64 text")
        return _read_s3(text, sources) if scheme == "s3" else download(text, sources), _shown(text)
    if len(text) < _MAX_PATH_CHARS and not text.startswith("data:") and sources.files and Path(text).is_file():
        with open(text, "rb") as file:
            return _checked_size(file.read(sources.max_bytes + 1), text, sources), text
    return _from_base64(text, sources), "base64 text"


def _from_base64(text: str, sources: Sources) -> bytes:
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    if len(encoded) > 2 * sources.max_bytes:
        raise DataError(f"base64 text of {len(encoded)} characters: a picture may have {sources.max_bytes} bytes")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        kinds = "a file here, an address" if sources.files else "an address"
        hint = "" if sources.files else "; a served model reads no paths unless it is told to"
        raise DataError(f"{text[:_MAX_SHOWN_CHARS]!r} is neither {kinds} nor base64 text{hint}") from None
    return _checked_size(data, "base64 text", sources)


def _read_s3(uri: str, sources: Sources) -> bytes:
    from intern_vision.store import open_store

    return _checked_size(open_store(uri).read(uri, 0, sources.max_bytes + 1), uri, sources)


def _checked_size(data: bytes, name: str, sources: Sources) -> bytes:
    if len(data) > sources.max_bytes:
        raise DataError(f"{_shown(name)}: more than {sources.max_bytes} bytes; send a smaller picture")
    return data


def _decode(data: bytes, sources: Sources) -> NDArray[np.uint8]:
    """Decodes only what a header of acceptable size announces: a few kilobytes can unpack to gigabytes."""
    from PIL import Image

    from intern_vision.data.codec import decode_image

    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except Image.DecompressionBombError as error:
        raise DataError(f"{error}; at most {sources.max_pixels} pixels are taken") from None
    except (OSError, ValueError, SyntaxError):
        raise DataError("cannot be decoded as an image; send JPEG, PNG or WebP") from None
    _check_pixels(width, height, sources)
    try:
        return decode_image(data)
    except ValueError as error:
        raise DataError(f"cannot be decoded as an image ({error}); send JPEG, PNG or WebP") from None


def _check_pixels(width: int, height: int, sources: Sources) -> None:
    if width * height > sources.max_pixels:
        raise DataError(f"{width} x {height} pixels are more than {sources.max_pixels}; send a smaller picture")


def download(url: str, sources: Sources) -> bytes:
    """What an ``http(s)://`` address answers.

    Args:
        url: the address.
        sources: limits on size, time and redirects, and whether private hosts may be asked.

    Raises:
        NoAnswerError: another try may succeed.
        DataError: it cannot: a wrong or refused address, no such page, too many redirects, too large.
    """
    deadline_s = time.monotonic() + sources.timeout_s
    for _ in range(sources.max_redirects + 1):
        found = _get(url, sources, deadline_s)
        if isinstance(found, bytes):
            return found
        url = found
    raise DataError(f"{_shown(url)}: more than {sources.max_redirects} redirects")


def _get(url: str, sources: Sources, deadline_s: float) -> bytes | str:
    """The bytes at an address, or the address that it redirects to. Proxies of the environment are not used."""
    parts, port = _split(url)
    connection = _connection(parts, port, deadline_s - time.monotonic())
    with _network_faults(url, sources, deadline_s):
        if not sources.private_urls:
            for *_, address in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM):
                _check_public(str(address[0]), url)
        try:
            connection.connect()
            # Once more for the address that was really reached: a name may be given another one in between.
            if not sources.private_urls:
                _check_public(connection.sock.getpeername()[0], url)
            with _ended_at(deadline_s, connection.sock):
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "intern-vision"})
                return _body(connection.getresponse(), url, sources, deadline_s)
        finally:
            connection.close()


def _connection(parts: SplitResult, port: int, timeout_s: float) -> http.client.HTTPConnection:
    host, timeout_s = parts.hostname or "", max(timeout_s, 0.001)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _body(response: http.client.HTTPResponse, url: str, sources: Sources, deadline_s: float) -> bytes | str:
    location = response.headers.get("Location")
    if response.status in _REDIRECTS and location:
        return urljoin(url, location)
    if response.status != 200:
        fault = NoAnswerError if response.status in _PASSING or response.status >= 500 else DataError
        raise fault(f"{_shown(url)}: answered {response.status} {response.reason}; expected a picture")
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        _checked_size(data, url, sources)
    if time.monotonic() >= deadline_s:
        raise TimeoutError
    if response.length:
        raise NoAnswerError(f"{_shown(url)}: ended {response.length} bytes early; try again")
    return bytes(data)


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise DataError(f"{_shown(url)}: not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DataError(f"{_shown(url)}: expected http://HOST/PATH or https://HOST/PATH")
    if parts.username or parts.password:
        raise DataError(f"{parts.scheme}://{parts.hostname}: expected an address without user and password")
    if any(ord(char) <= 32 or ord(char) > 126 for char in url):
        raise DataError(f"{_shown(url)}: expected an address without spaces and foreign letters; percent-encode them")
    return parts, port


def _check_public(address: str, url: str) -> None:
    found = ipaddress.ip_address(address)
    found = getattr(found, "ipv4_mapped", None) or found
    is_translated = any(found in network for network in _TRANSLATED if found.version == network.version)
    if not found.is_global or found.is_multicast or is_translated:
        raise DataError(f"{_shown(url)}: leads to an address that is not public; such are not read here")


@contextmanager
def _ended_at(deadline_s: float, connected: socket.socket) -> Iterator[None]:
    """Closes a socket at a deadline: its own timeout starts anew with every byte that a slow server sends."""

    def end() -> None:
        try:
            connected.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    timer = threading.Timer(max(deadline_s - time.monotonic(), 0.0), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _network_faults(url: str, sources: Sources, deadline_s: float) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline_s:
            raise NoAnswerError(f"{_shown(url)}: no complete answer within {sources.timeout_s:g} s") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise NoAnswerError(f"{_shown(url)}: cannot be reached ({reason})") from None


def _shown(name: str) -> str:
    """An address as messages show it: without its query, which may hold a signature."""
    return name.partition("?")[0].partition("#")[0][:120] if "://" in name[:10] else name[:120]
