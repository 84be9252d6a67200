"""Store: bytes at a ``file://`` or ``s3://`` address, through five verbs that behave alike on both."""

import os
import shutil
from pathlib import Path
from typing import Protocol

from intern_vision.address import (
    COMMITTED_NAME,
    PART_PREFIX,
    StoredFile,
    check_deletable,
    check_digest,
    check_range,
    digest_of_files,
    file_sha256,
    join_uri,
    open_source,
    replacing,
    split_uri,
)
from intern_vision.errors import AccessError, ConfigError, DataError, MissingObjectError
from intern_vision.s3 import S3Access, S3Store, ensure_bucket

__all__ = [
    "FileStore",
    "S3Access",
    "S3Store",
    "Store",
    "StoredFile",
    "digest_of_files",
    "ensure_bucket",
    "file_sha256",
    "join_uri",
    "open_store",
]


class Store(Protocol):
    """Reads and writes whole files at full addresses.

    Every verb raises ConfigError for an address of another scheme or with a refused name,
    AccessError where credentials or permissions do not suffice, and RetryableError where the
    server does not answer or a disk is full.
    """

    root_uri: str

    def put(self, source: Path | bytes, uri: str) -> None:
        """Writes bytes or a local file to an address, replacing what lies there.

        Readers see the old bytes or all new ones, never a part. Files are streamed.

        Raises:
            DataError: the local file is missing, or the bucket is.
        """

    def get(self, uri: str, target: Path, *, sha256: str | None = None) -> None:
        """Copies the file at an address to a local path, which appears only when complete.

        Args:
            uri: what to copy.
            target: where to; missing parent folders are made.
            sha256: 64 hexadecimal digits that the bytes must have, or None for no check.

        Raises:
            MissingObjectError: nothing lies at the address.
            DataError: the digest differs; ``target`` is left as it was.
        """

    def read(self, uri: str, start: int = 0, num_bytes: int | None = None) -> bytes:
        """Up to ``num_bytes`` bytes from offset ``start`` on (None: to the end); empty beyond the end.

        Raises:
            MissingObjectError: nothing lies at the address.
        """

    def list(self, prefix: str) -> list[StoredFile]:
        """All files below an address at any depth, sorted by address; empty where there are none.

        A file at the address itself and siblings whose names start alike are not below it.
        """

    def delete(self, prefix: str) -> None:
        """Removes the file at an address and all below it; does nothing where there are none.

        ``_COMMITTED`` markers go first, so that a half-deleted output is never taken for a valid one.

        Raises:
            ConfigError: the address does not lie below the store's root.
        """


def open_store(root_uri: str) -> Store:
    """The store for an address; raises ConfigError where the scheme is neither ``file`` nor ``s3``."""
    scheme, _, _ = split_uri(root_uri)
    return S3Store(root_uri) if scheme == "s3" else FileStore(root_uri)


class FileStore:
    """``Store`` over a file system.

    Args:
        root_uri: the address below which ``delete`` may work; need not exist yet.
    """

    def __init__(self, root_uri: str):
        """Checks the address; nothing is made before the first ``put``."""
        _path(root_uri)
        self.root_uri = root_uri

    def put(self, source: Path | bytes, uri: str) -> None:
        """Writes beside the target, flushes to disk, then renames."""
        target = _path(uri)
        try:
            if isinstance(source, bytes):
                with replacing(target, len(source)) as part:
                    part.write_bytes(source)
                return
            with (
                open_source(source) as file,
                replacing(target, os.fstat(file.fileno()).st_size) as part,
                open(part, "wb") as copy,
            ):
                shutil.copyfileobj(file, copy, 2**20)
        except OSError as error:
            raise _from_os_error(error, uri) from None

    def get(self, uri: str, target: Path, *, sha256: str | None = None) -> None:
        """Copies to a temporary file beside ``target``, checks the digest, then renames."""
        try:
            with open(_path(uri), "rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                with replacing(target, num_bytes) as part:
                    with open(part, "wb") as copy:
                        shutil.copyfileobj(file, copy, 2**20)
                    if sha256 is not None:
                        check_digest(part, uri, sha256)
        except OSError as error:
            raise _from_os_error(error, uri) from None

    def read(self, uri: str, start: int = 0, num_bytes: int | None = None) -> bytes:
        """A range of the file's bytes."""
        check_range(start, num_bytes)
        try:
            with open(_path(uri), "rb") as file:
                file.seek(start)
                return file.read(-1 if num_bytes is None else num_bytes)
        except OSError as error:
            raise _from_os_error(error, uri) from None

    def list(self, prefix: str) -> list[StoredFile]:
        """Every file below the folder, sorted by address; unfinished files are left out."""
        found = []
        for folder, _, names in os.walk(_path(prefix)):
            for name in names:
                path = Path(folder, name)
                if name.startswith(PART_PREFIX):
                    continue
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # deleted between the walk and here
                found.append(StoredFile(f"file://{path}", stat.st_size, stat.st_mtime))
        return sorted(found)

    def delete(self, prefix: str) -> None:
        """Removes the file or folder, the ``_COMMITTED`` markers first."""
        check_deletable(self.root_uri, prefix)
        path = _path(prefix)
        try:
            if path.is_dir() and not path.is_symlink():
                for marker in path.rglob(COMMITTED_NAME):
                    marker.unlink(missing_ok=True)
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _from_os_error(error, prefix) from None


def _path(uri: str) -> Path:
    scheme, _, path = split_uri(uri)
    if scheme != "file":
        raise ConfigError(f"{uri!r}: expected an address that starts with file://")
    return Path(path)


def _from_os_error(error: OSError, uri: str) -> Exception:
    if isinstance(error, FileNotFoundError):
        return MissingObjectError(f"{uri}: no file lies there; check the address or run the step that writes it")
    if isinstance(error, IsADirectoryError):
        return MissingObjectError(f"{uri}: no file lies there, but a folder; name a file in it")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return DataError(f"{uri}: a part of this path is a file, so nothing can lie below it; choose another address")
    if isinstance(error, PermissionError):
        return AccessError(f"{uri}: {error.strerror.lower()}; give this user the right to read and write it")
    return DataError(f"{uri}: {error.strerror or error}")
