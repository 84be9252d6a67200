"""Tar files whose bytes follow from their members, written a member at a time."""

import hashlib
import tarfile
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 512
"""Size of a header; the data of a member is padded to whole blocks."""


class TarWriter:
    """One file being written; its bytes depend on the members alone (no time, no owner).

    Attributes:
        path: the file.
        num_bytes: bytes written so far.
        num_samples: samples in it, as counted by its user.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.num_bytes = 0
        self.num_samples = 0
        self._sha256 = hashlib.sha256()
        self._file: BinaryIO = open(self.path, "wb")  # noqa: SIM115 - closed by close()

    def add(self, name: str, data: bytes) -> int:
        """Appends a member; returns the offset of its data."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.num_bytes
        self._write(data + bytes(-len(data) % BLOCK_BYTES))
        return offset

    def close(self) -> str:
        """Ends the tar file and gives its SHA-256."""
        self._write(bytes(2 * BLOCK_BYTES))
        self._file.close()
        return self._sha256.hexdigest()

    def abort(self) -> None:
        """Closes the file without ending it."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.num_bytes += len(data)
