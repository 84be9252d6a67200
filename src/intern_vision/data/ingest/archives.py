"""Zip and tar archives, read member by member and never unpacked, so that no path in them can lead anywhere."""

import gzip
import os
import stat
import tarfile
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from intern_vision.data.ingest.files import Tree, Unusable, checked_size
from intern_vision.errors import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_ARCHIVE_BYTES = 2**39
"""Largest tar that a compressed one may unpack to: 512 GiB."""

_COPY_BYTES = 2**20


@dataclass(slots=True, frozen=True)
class Member:
    """A member of an archive."""

    archive: "ArchiveTree"
    name: str
    uri = ""

    @property
    def shown(self) -> str:
        """The archive and the member."""
        return f"{self.archive.shown}#{self.archive.prefix}{self.name}"

    def stamp(self) -> str:
        """Size and checksum or time, as the archive states them."""
        return self.archive.stamps.get(self.archive.prefix + self.name, "")

    def read(self, max_bytes: int) -> bytes:
        """The member's bytes."""
        return checked_size(self.archive.read_member(self.name, max_bytes + 1), max_bytes)


@dataclass(frozen=True)
class ArchiveTree(Tree):
    """The members of a zip or tar archive, read in place of being unpacked.

    Attributes:
        shown: what messages call the archive.
        stamps: member to size and checksum or time.
        members: member to where its bytes lie.
        prefix: folder in the archive at which names start, with a slash, or empty.
    """

    shown: str
    stamps: dict[str, str]
    members: "ZipMembers | TarMembers"
    prefix: str = ""

    def file(self, name: str) -> Member:
        """The member of a name."""
        return Member(self, name)

    def below(self, folder: str) -> "ArchiveTree":
        """The part below a folder."""
        return ArchiveTree(self.shown, self.stamps, self.members, f"{self.prefix}{folder}/")

    def read_member(self, name: str, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` of a member; ``Unusable`` where it is missing or damaged."""
        name = self.prefix + name
        if name not in self.stamps:
            raise Unusable("missing", f"no member {name} in {self.shown}")
        return self.members.read(name, max_bytes)

    def _listed(self) -> Iterator[str]:
        start = len(self.prefix)
        return (name[start:] for name in self.stamps if name.startswith(self.prefix))


class ZipMembers:
    """Members of a zip archive; safe to read from several threads."""

    def __init__(self, path: Path, shown: str) -> None:
        self._archive = zipfile.ZipFile(path)
        self.stamps: dict[str, str] = {}
        for member in self._archive.infolist():
            name = _checked_name(member.filename, shown)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _is_link(name, shown)
            if member.flag_bits & 1:
                raise DataError(f"{shown}: member {name} is encrypted; give an archive without a password")
            if not member.is_dir():
                self.stamps[name] = f"{member.file_size} {member.CRC:08x}"

    def read(self, name: str, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` of a member."""
        try:
            with self._archive.open(name) as file:
                return file.read(max_bytes)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
            raise Unusable("unreadable", error) from None


class TarMembers:
    """Members of an uncompressed tar file, each one ranged read; safe to read from several threads."""

    def __init__(self, path: Path, shown: str) -> None:
        self.stamps: dict[str, str] = {}
        self._ranges: dict[str, tuple[int, int]] = {}
        # Open as long as members may be read, also where the file is a copy that was removed by then.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = _checked_name(member.name, shown)
                if member.issym() or member.islnk():
                    raise _is_link(name, shown)
                if member.isfile():
                    self.stamps[name] = f"{member.size} {member.mtime}"
                    self._ranges[name] = (member.offset_data, member.size)
                archive.members = []  # a million of them would be a gigabyte

    def read(self, name: str, max_bytes: int) -> bytes:
        """Up to ``max_bytes`` of a member."""
        offset, num_bytes = self._ranges[name]
        data = os.pread(self._descriptor, min(num_bytes, max_bytes), offset)
        if len(data) < min(num_bytes, max_bytes):
            raise Unusable("unreadable", f"{name}: the archive ends before this member does")
        return data


def open_archive(path: Path, shown: str, scratch_dir: Path) -> ArchiveTree:
    """The members of a zip or tar file.

    Args:
        path: the local file.
        shown: what messages call it.
        scratch_dir: where a compressed tar is unpacked to a tar.

    Raises:
        DataError: no archive, a damaged or encrypted one, or a member that is a link or leads out of it.
    """
    try:
        if zipfile.is_zipfile(path):
            members: ZipMembers | TarMembers = ZipMembers(path, shown)
        else:
            plain = _plain_tar(path, shown, scratch_dir)
            members = TarMembers(plain, shown)
            if plain != path:
                plain.unlink()  # the open descriptor keeps its bytes until the last member was read
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{shown}: cannot be read as an archive ({error}); copy it anew") from None
    return ArchiveTree(shown, members.stamps, members)


def _plain_tar(path: Path, shown: str, scratch_dir: Path) -> Path:
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path
    plain = scratch_dir / f"{abs(hash(shown)):x}.tar"
    num_bytes = 0
    with gzip.open(path, "rb") as packed, open(plain, "wb") as copy:
        while chunk := packed.read(_COPY_BYTES):
            num_bytes += len(chunk)
            if num_bytes > MAX_ARCHIVE_BYTES:
                raise DataError(
                    f"{shown}: unpacks to more than {MAX_ARCHIVE_BYTES} bytes; give the folder in its place"
                )
            copy.write(chunk)
    return plain


def _checked_name(name: str, shown: str) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise DataError(f"{shown}: member {name!r} leads out of the archive; pack it anew without such names")
    return pure.as_posix()


def _is_link(name: str, shown: str) -> DataError:
    return DataError(f"{shown}: member {name!r} is a link; pack the archive anew with the files themselves")
