"""Where a source's bytes are: files of a folder, objects below an S3 prefix, web addresses; archives are beside.

A ``Tree`` is what a layout looks at; names in it are relative, with ``/``.
"""

import io
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from intern_vision.errors import DataError, ForbiddenError, MissingObjectError, NoAnswerError
from intern_vision.pictures import Sources, download
from intern_vision.store import join_uri, open_store

MAX_LIST_BYTES = 2**33
"""Largest annotation file: 8 GiB."""

_MAX_BACKOFF_S = 30.0


class Unusable(ValueError):
    """What is wrong with one row: it is quarantined and the others go on.

    Args:
        kind: a word that such rows are counted under.
        words: one line for people.
    """

    def __init__(self, kind: str, words: object) -> None:
        super().__init__(f"{kind}: {' '.join(str(words).split())}")


class File(Protocol):
    """The bytes of one image, mask or depth map.

    Attributes:
        uri: ``file://`` or ``s3://`` address at which the bytes can be read again; empty where they have none.
        shown: what messages and quarantined rows call it.
    """

    uri: str
    shown: str

    def stamp(self) -> str:
        """Text that is another one when the bytes may have changed."""

    def read(self, max_bytes: int) -> bytes:
        """All bytes; ``Unusable`` where they are missing or too many."""


@dataclass(slots=True, frozen=True)
class Nowhere:
    """What a list names and that cannot be a file."""

    shown: str
    uri = ""

    def stamp(self) -> str:
        """Nothing is known."""
        return ""

    def read(self, max_bytes: int) -> bytes:
        """Always ``Unusable``."""
        raise Unusable("missing", f"no file {self.shown}")


@dataclass(slots=True, frozen=True)
class LocalFile:
    """A file in place."""

    path: Path

    @property
    def uri(self) -> str:
        """Its address, nothing percent-encoded."""
        return f"file://{self.path}"

    shown = uri

    def stamp(self) -> str:
        """Size and time of the last change."""
        try:
            found = self.path.stat()
        except OSError:
            return ""
        return f"{found.st_size} {found.st_mtime_ns}"

    def read(self, max_bytes: int) -> bytes:
        """The file's bytes."""
        try:
            found = self.path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                raise Unusable("unreadable", f"{self.path}: is no ordinary file")
            with open(self.path, "rb") as file:
                # Of a file that is small, no more memory is asked for than it takes.
                return checked_size(file.read(min(found.st_size, max_bytes) + 1), max_bytes)
        except FileNotFoundError:
            raise Unusable("missing", f"no file {self.path}") from None
        except OSError as error:
            raise Unusable("unreadable", f"{self.path}: {error.strerror}") from None


@dataclass(slots=True, frozen=True)
class StoredObject:
    """An object in place; its stamp is what the listing of its prefix said."""

    uri: str
    listed: str = "address"

    @property
    def shown(self) -> str:
        """Its address."""
        return self.uri

    def stamp(self) -> str:
        """Size and time of the last change, where they are known."""
        return self.listed

    def read(self, max_bytes: int) -> bytes:
        """The object's bytes.

        Raises:
            Unusable: there is no such object, these credentials may not read it, or it is too large.
            AccessError: the server knows no such credentials.
            RetryableError: the server does not answer.
        """
        try:
            return checked_size(open_store(self.uri).read(self.uri, 0, max_bytes + 1), max_bytes)
        except MissingObjectError:
            raise Unusable("missing", "no object lies there") from None
        except ForbiddenError:
            raise Unusable("forbidden", "the credentials are good, but may not read this object") from None


@dataclass(slots=True, frozen=True)
class Fetching:
    """How web addresses are read.

    Attributes:
        sources: limits on size, time and redirects, and whether private hosts may be asked.
        num_retries: further tries after a failure that another try may mend.
        backoff_s: pause before the first of them; it doubles.
    """

    sources: Sources = field(default_factory=lambda: Sources(private_urls=False, timeout_s=20.0))
    num_retries: int = 2
    backoff_s: float = 0.5


@dataclass(slots=True, frozen=True)
class WebFile:
    """An ``http(s)://`` address."""

    url: str
    fetching: Fetching
    uri = ""

    @property
    def shown(self) -> str:
        """The address."""
        return self.url

    def stamp(self) -> str:
        """The same always: what was fetched once is not fetched again."""
        return "address"

    def read(self, max_bytes: int) -> bytes:
        """What the address answers, tried again where a server was away."""
        sources = self.fetching.sources.model_copy(update={"max_bytes": max_bytes})
        for attempt in range(self.fetching.num_retries + 1):
            try:
                return download(self.url, sources)
            except NoAnswerError as error:
                if attempt == self.fetching.num_retries:
                    raise Unusable("fetch", f"{error} (tried {attempt + 1} times)") from None
                time.sleep(min(self.fetching.backoff_s * 2**attempt, _MAX_BACKOFF_S))
            except DataError as error:
                raise Unusable("fetch", error) from None
        raise AssertionError("unreachable: the loop returns or raises")


class Tree(ABC):
    """Files of a source by their names.

    Attributes:
        shown: what messages call it.
    """

    shown: str

    @cached_property
    def names(self) -> list[str]:
        """All names, sorted; hidden files and folders are left out."""
        return sorted(name for name in self._listed() if not _is_hidden(name))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._known

    @abstractmethod
    def file(self, name: str) -> File:
        """The file of a name; it need not exist."""

    @abstractmethod
    def below(self, folder: str) -> "Tree":
        """The part below a folder."""

    @abstractmethod
    def _listed(self) -> Iterator[str]:
        """All names in any order."""

    def stream(self, name: str) -> BinaryIO:
        """An annotation file to be read from its beginning; DataError where it cannot be read."""
        try:
            return io.BytesIO(self.file(name).read(MAX_LIST_BYTES))
        except Unusable as error:
            raise DataError(f"{self.shown}/{name}: {error}") from None

    def text(self, name: str) -> str:
        """A whole annotation file as text; DataError where it is not UTF-8."""
        try:
            with self.stream(name) as file:
                return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            what = f"byte {error.object[error.start]:#x} at {error.start}"
            raise DataError(f"{self.shown}/{name}: expected UTF-8 text, got {what}; save it as UTF-8") from None

    def named_file(self, name: str) -> File:
        """The file that a list names by a relative path; ``Unusable`` where it leads out of the tree or is no path."""
        pure = PurePosixPath(name)
        if "\0" in name:
            raise Unusable("path", f"{name!r} holds a zero byte, which no file's name can")
        if pure.is_absolute() or ".." in pure.parts or not pure.parts:
            raise Unusable("path", f"{name!r} leads out of {self.shown}")
        return self.file(pure.as_posix())


@dataclass(frozen=True)
class LocalTree(Tree):
    """The files of a local folder; links to files are followed, links to folders are not."""

    folder: Path

    @property
    def shown(self) -> str:
        """The folder."""
        return str(self.folder)

    def has(self, name: str) -> bool:
        """Whether there is such a file; nothing is listed."""
        return (self.folder / name).is_file()

    def file(self, name: str) -> LocalFile:
        """The file of a name."""
        return LocalFile(self.folder / name)

    def stream(self, name: str) -> BinaryIO:
        """The open file, which is not read into memory."""
        try:
            return open(self.folder / name, "rb")
        except OSError as error:
            raise DataError(f"{self.folder / name}: {error.strerror}; check the path") from None

    def below(self, folder: str) -> "LocalTree":
        """The part below a folder."""
        return LocalTree(self.folder / folder)

    def _listed(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not _is_hidden(name)]
            relative = os.path.relpath(folder, self.folder)
            start = "" if relative == "." else relative + "/"
            yield from (start + name for name in names)


@dataclass(frozen=True)
class StoreTree(Tree):
    """The objects below an S3 prefix."""

    uri: str

    @property
    def shown(self) -> str:
        """The prefix."""
        return self.uri

    @cached_property
    def _stamps(self) -> dict[str, str]:
        start = len(self.uri) + 1
        return {
            found.uri[start:]: f"{found.num_bytes} {found.modified_s}" for found in open_store(self.uri).list(self.uri)
        }

    def file(self, name: str) -> StoredObject:
        """The object of a name."""
        return StoredObject(join_uri(self.uri, *name.split("/")), self._stamps.get(name, "address"))

    def below(self, folder: str) -> "StoreTree":
        """The part below a folder."""
        return StoreTree(join_uri(self.uri, *folder.split("/")))

    def _listed(self) -> Iterator[str]:
        yield from self._stamps


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or "/." in name or "/__MACOSX" in name


def checked_size(data: bytes, max_bytes: int) -> bytes:
    """The bytes; ``Unusable`` where there are more than allowed."""
    if len(data) > max_bytes:
        raise Unusable("large", f"more than {max_bytes} bytes")
    return data
