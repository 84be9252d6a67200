"""Spool: the events of one tracked run as JSON lines on local disk, held by one process at a time.

The first line opens the run; every other line is one event. The file lives until everything
in it is sent.
"""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from intern_vision.errors import ConfigError


class Spool:
    """An open and locked spool file; made by ``create`` or ``claim``.

    Attributes:
        path: the file; its stem ends in a unique id.
        opening: the first line.
        num_events: number of lines, the first included.
        files_dir: folder for copies of files to upload; absent while there are none.
    """

    def __init__(self, path: Path, file: IO[bytes], opening: dict[str, Any], num_events: int) -> None:
        """Takes over an open, locked file."""
        self.path = path
        self.opening = opening
        self.num_events = num_events
        self.files_dir = path.with_suffix(".files")
        self._file = file

    @classmethod
    def create(cls, folder: Path, name: str, opening: dict[str, Any]) -> Self:
        """Starts a new file with its first line.

        Raises:
            ConfigError: the folder cannot be written.
        """
        spool_id = uuid.uuid4().hex
        path = folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:60]}-{spool_id}.jsonl"
        # Locked under another name first: nobody can claim the file before it is held and has its first line.
        unheld = path.with_suffix(".new")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = unheld.open("a+b")
            # A file system without locks still spools; two replays at once then send twice, which is harmless.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            spool = cls(path, file, opening | {"spool": spool_id}, 0)
            spool.append([spool.opening])
            unheld.rename(path)
        except OSError as error:
            raise ConfigError(f"INTERN_STATE: cannot write {path} ({error.strerror})") from None
        return spool

    @classmethod
    def claim(cls, path: Path) -> Self | None:
        """Takes a file that no live process holds; None where there is one, or the file is gone or empty."""
        try:
            # Not a mode that creates: another replay may have deleted the file since it was listed.
            file = path.open("r+b")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have deleted it between the opening and the lock.
            is_same = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except OSError:
            is_same = False
        file.seek(0)
        lines = list(_parsed(file)) if is_same else []
        if not lines or lines[0][0].get("op") != "open":
            file.close()
            return None
        return cls(path, file, lines[0][0], len(lines))

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        """Writes events at the end; the kernel has them once this returns. Raises OSError where the disk is full."""
        if events:
            self.num_events += len(events)
            self._file.write(b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events))
            self._file.flush()

    def read(self, offset: int, max_events: int) -> list[tuple[dict[str, Any], int]]:
        """Up to ``max_events`` events from a byte offset on, each with the offset of its end."""
        lines = []
        with self.path.open("rb") as file:
            file.seek(offset)
            for event, end in _parsed(file):
                lines.append((event, end))
                if len(lines) == max_events:
                    break
        return lines

    def release(self) -> None:
        """Leaves the file to whoever claims it next."""
        # A forked child shares the lock, so closing alone would not lift it.
        with suppress(OSError, ValueError):
            fcntl.flock(self._file, fcntl.LOCK_UN)
        with suppress(OSError):
            self._file.close()

    def delete(self) -> None:
        """Removes the file and the copies of files to upload."""
        shutil.rmtree(self.files_dir, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self.release()


def _parsed(file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
    """The events of complete lines with their end offsets; a line that a crash cut short is passed over."""
    end = file.tell()
    for line in file:
        end += len(line)
        if line.endswith(b"\n"):
            with suppress(ValueError):
                yield json.loads(line), end
