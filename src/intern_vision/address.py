"""Addresses of stored files, and the digests that say whether their bytes are the right ones.

An address is ``file:///absolute/path`` or ``s3://bucket/key``. What follows the scheme is taken
literally (nothing is percent-encoded), so both schemes share one set of rules for names: those
of the stricter of a POSIX file system and the S3 servers in use.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from intern_vision.errors import AccessError, ConfigError, DataError, RetryableError

COMMITTED_NAME = "_COMMITTED"
"""Last file of an output to be written and the first to be deleted: its presence makes a Ref valid."""

PART_PREFIX = ".intern-part-"
"""Names of unfinished local files start so; such files are never listed, and no address may use the name."""

MAX_SEGMENT_BYTES = 255
MAX_KEY_BYTES = 1024
SCHEMES = ("file", "s3")


@dataclass(frozen=True, order=True)
class StoredFile:
    """One file that ``Store.list`` found.

    Attributes:
        uri: its address.
        num_bytes: its size.
        modified_s: time of the last change, seconds since 1970 (UTC).
    """

    uri: str
    num_bytes: int
    modified_s: float


def join_uri(root: str, *parts: str) -> str:
    """Appends path segments to an address; a part may hold several segments, as in ``"a/b"``.

    Raises:
        ConfigError: ``root`` is no address, or a part holds a segment that is empty, ``.`` or
            ``..``, has a backslash or a control character, or is longer than 255 bytes of UTF-8.
    """
    uri = "/".join((root, *parts))
    if not all(parts):
        raise ConfigError(f"{uri!r}: expected a path segment, got an empty one; remove it")
    split_uri(uri)
    return uri


def split_uri(uri: str) -> tuple[str, str, str]:
    """Splits an address into scheme, bucket and key.

    Returns:
        ``("s3", bucket, key)`` or ``("file", "", absolute path)``; the key of a whole bucket is
        empty, the path of a file system's root is ``/``.

    Raises:
        ConfigError: the address breaks one of the rules that ``join_uri`` names.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ConfigError(f"{uri!r}: expected an address that starts with file:// or s3://")
    bucket, slash, key = rest.partition("/")
    if scheme == "s3" and len(bucket) < 3:
        raise ConfigError(f"{uri!r}: expected s3://bucket/key with a bucket name of at least 3 letters, got {bucket!r}")
    if scheme == "file" and (bucket or not slash):
        raise ConfigError(f"{uri!r}: expected file:// and an absolute path, as in file:///data/store")
    if slash and not (scheme == "file" and not key):
        for segment in key.split("/"):
            _check_segment(segment, uri)
    if len(key.encode()) > MAX_KEY_BYTES:
        raise ConfigError(f"{uri[:60]!r}...: expected a key of at most {MAX_KEY_BYTES} bytes, got {len(key.encode())}")
    return (scheme, "", f"/{key}") if scheme == "file" else (scheme, bucket, key)


def _check_segment(segment: str, uri: str) -> None:
    if not segment:
        raise ConfigError(f"{uri!r}: expected a path segment between and after slashes; remove the extra '/'")
    if segment in (".", ".."):
        raise ConfigError(f"{uri!r}: the path segment {segment!r} is refused by S3 servers; write the full path")
    if "\\" in segment or any(ord(char) < 32 or ord(char) == 127 for char in segment):
        raise ConfigError(f"{uri!r}: expected no backslash and no control character; rename {segment!r}")
    if segment.startswith(PART_PREFIX):
        raise ConfigError(f"{uri!r}: names that start with {PART_PREFIX!r} are kept for unfinished files; rename it")
    try:
        num_bytes = len(segment.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{uri!r}: expected text that UTF-8 can hold; rename {segment!r}") from None
    if num_bytes > MAX_SEGMENT_BYTES:
        raise ConfigError(
            f"{segment[:40]!r}...: expected a path segment of at most {MAX_SEGMENT_BYTES} bytes, got {num_bytes}"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file's bytes, 64 hexadecimal digits; the file is streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_files(digests: Mapping[str, str]) -> str:
    """One digest for many files: SHA-256 over the lines ``name sha256`` in order of the names.

    Args:
        digests: file name (relative to the output's prefix) -> its SHA-256.
    """
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def listing_digest(path: Path, others: Iterable[Path] = ()) -> str:
    """Digest of names, sizes and times of files; their bytes are not read.

    Args:
        path: a file, or a folder, all of whose files count wherever it lies.
        others: further files, by their whole paths; what is missing is left out.
    """
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    named = {file.relative_to(path).as_posix(): file for file in files}
    named |= {str(file): file for file in others if file.is_file()}
    stats = {name: file.stat() for name, file in named.items()}
    return digest_of_files({name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items()})


def check_digest(path: Path, uri: str, sha256: str) -> None:
    """Compares a downloaded file with the digest it should have; raises DataError where they differ."""
    got = file_sha256(path)
    if got != sha256:
        raise DataError(f"{uri}: expected SHA-256 {sha256}, got {got}; the bytes are damaged, write the file again")


def open_source(path: Path) -> BinaryIO:
    """Opens a local file to be stored; raises DataError where it is missing or a folder."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file to store; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path}: expected a file to store, got a folder; store its files one by one") from None


def check_range(start: int, num_bytes: int | None) -> None:
    """Raises ValueError for a negative offset or length."""
    if start < 0 or (num_bytes is not None and num_bytes < 0):
        raise ValueError(f"expected start and num_bytes >= 0, got start={start} num_bytes={num_bytes}")


def check_deletable(root_uri: str, prefix: str) -> None:
    """Raises ConfigError unless ``prefix`` lies below ``root_uri`` and is neither a bucket nor ``/``."""
    _, _, key = split_uri(prefix)
    if key in ("", "/") or not (prefix == root_uri or prefix.startswith(root_uri.rstrip("/") + "/")):
        raise ConfigError(f"{prefix}: refused to delete it, for it does not lie below the store's root {root_uri}")


@contextmanager
def replacing(target: Path, num_bytes: int) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` that takes its place when the block succeeds.

    The bytes reach the disk before the rename, so a reader sees the old file or the whole new
    one, also after a power cut. A failed block leaves nothing behind.

    Args:
        target: the file to write; missing parent folders are made.
        num_bytes: size of what is to be written, for the message when the disk is full.

    Raises:
        RetryableError: no space is left.
        AccessError: this user may not write there.
        DataError: a file and a folder are in each other's way.
    """
    part = target.parent / f"{PART_PREFIX}{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, target)
    except OSError as error:
        # EFBIG is what a file-size limit (ulimit -f) gives, EDQUOT a user's quota.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RetryableError(
                f"no space left on {target.parent} ({os.strerror(error.errno).lower()}): "
                f"free {max(1, -(-num_bytes // 2**20))} MiB, run the same command again"
            ) from None
        if isinstance(error, PermissionError):
            raise AccessError(f"{target}: {error.strerror.lower()}; give this user the right to write it") from None
        if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
            raise DataError(
                f"{target}: a file lies where a folder is needed or a folder where the file goes; choose another path"
            ) from None
        raise
    finally:
        with suppress(NotADirectoryError):
            part.unlink(missing_ok=True)
