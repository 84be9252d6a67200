"""Arrays made once and kept on this machine: a folder of entries, bounded, safe for several processes."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from intern_vision.config import canonical_json, text_digest
from intern_vision.errors import ConfigError
from intern_vision.stages.base import COMMIT_MARKER, code_digest

MAX_BYTES_VARIABLE = "INTERN_FEATURE_CACHE_BYTES"
DEFAULT_MAX_BYTES = 16 * 2**30
Content = TypeVar("Content")


class ArrayCache:
    """Entries by key, each a folder of files; ``_COMMITTED`` is written last and names their sizes.

    Beyond ``max_bytes`` the entries used longest ago go, but never one that is being opened; what a process has mapped
    stays readable to it.

    Args:
        folder: where the entries lie; shared by processes.
        max_bytes: of all entries; 0 takes ``INTERN_FEATURE_CACHE_BYTES``, 16 GiB where that is not set.

    Raises:
        ConfigError: the environment variable is no whole number above 0.
    """

    def __init__(self, folder: Path, max_bytes: int = 0) -> None:
        """Makes the folder."""
        self._folder = folder
        self._max_bytes = max_bytes or _configured_bytes()
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, make: Callable[[Path], object], read: Callable[[Path], Content]) -> Content:
        """What ``read`` finds in the entry's folder, which ``make`` fills where there is none yet.

        One process makes an entry; another that asks for the same one waits for it.

        Args:
            key: from ``cache_key``.
            make: writes files into the empty folder that it is given.
            read: opens the files; called while the entry cannot be removed.
        """
        entry = self._folder / key
        with self._locked(key):
            if _is_whole(entry):
                os.utime(entry / COMMIT_MARKER)
            else:
                self._make(entry, make)
            content = read(entry)
        self._evict(keep=entry)
        return content

    def _make(self, entry: Path, make: Callable[[Path], object]) -> None:
        partial = entry.with_name(f"{entry.name}.partial")
        # What a process that died left behind; its lock is gone with it.
        for left in (partial, entry):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        make(partial)
        sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
        (partial / COMMIT_MARKER).write_text(json.dumps(sizes))
        partial.rename(entry)

    def _evict(self, keep: Path) -> None:
        entries = []
        for marker in self._folder.glob(f"*/{COMMIT_MARKER}"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                num_bytes = sum(json.loads(marker.read_text()).values())
                entries.append((marker.stat().st_mtime_ns, num_bytes, marker.parent))
        total_bytes = sum(num_bytes for _, num_bytes, _ in entries)
        for _, num_bytes, entry in sorted(entries):
            if total_bytes <= self._max_bytes:
                break
            if entry != keep:
                with contextlib.suppress(BlockingIOError), self._locked(entry.name, wait=False):
                    shutil.rmtree(entry, ignore_errors=True)
                    total_bytes -= num_bytes

    @contextmanager
    def _locked(self, key: str, wait: bool = True) -> Iterator[None]:
        with open(self._folder / f"{key}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


def cache_key(*parts: object) -> str:
    """32 hexadecimal digits of plain JSON values and of the code, as in a stage's key."""
    return text_digest(canonical_json([code_digest(), *parts]))[:32]


def _is_whole(entry: Path) -> bool:
    try:
        sizes = json.loads((entry / COMMIT_MARKER).read_text())
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False


def _configured_bytes() -> int:
    text = os.environ.get(MAX_BYTES_VARIABLE, "")
    if text and not (text.isdecimal() and int(text)):
        raise ConfigError(f"{MAX_BYTES_VARIABLE}: expected a whole number of bytes above 0, got {text!r}")
    return int(text or DEFAULT_MAX_BYTES)
