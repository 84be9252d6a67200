"""A source as it is named on the command line: what it is, and how the paths and addresses in its lists are read."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from intern_vision.data.ingest.archives import ARCHIVE_SUFFIXES, open_archive
from intern_vision.data.ingest.files import (
    Fetching,
    File,
    LocalFile,
    LocalTree,
    StoredObject,
    StoreTree,
    Tree,
    Unusable,
    WebFile,
)
from intern_vision.errors import ConfigError, DataError, MissingObjectError
from intern_vision.store import open_store, split_uri


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source as its layout's reader sees it.

    Attributes:
        uri: its address.
        tree: its files, or those beside the file that is the source.
        file: the name of that file, or empty.
        fetching: how web addresses in its lists are read.
        scratch_dir: for copies of archives.
    """

    uri: str
    tree: Tree
    file: str = ""
    fetching: Fetching = field(default_factory=Fetching)
    scratch_dir: Path

    def file_at(self, text: str) -> File:
        """What a list names: a relative path, an address or, where the list lies on this machine, an absolute path.

        Raises:
            Unusable: the path leads out of the source, or the address is of an unknown scheme.
        """
        scheme, separator, rest = text.partition("://")
        if scheme in ("http", "https") and separator:
            return WebFile(text, self.fetching)
        is_local = isinstance(self.tree, LocalTree)
        try:
            if scheme == "s3" and separator:
                split_uri(text)
                return StoredObject(text)
            if is_local and (text.startswith("/") or scheme == "file" and separator):
                return LocalFile(Path(split_uri(text if separator else f"file://{text}")[2]))
        except ConfigError as error:
            raise Unusable("path", error) from None
        if separator:
            raise Unusable("path", f"{text[:80]!r}: expected a path or an http://, https:// or s3:// address")
        return self.tree.named_file(text)


def open_origin(uri: str, scratch_dir: Path, fetching: Fetching) -> Origin:
    """Finds a source: a folder, an S3 prefix, an archive, or a file that lists images.

    Args:
        uri: a local path, ``file://`` or ``s3://`` address.
        scratch_dir: for copies of archives.
        fetching: how web addresses in its lists are read.

    Raises:
        DataError: there is no such file, folder or prefix.
        AccessError: the S3 server refuses the credentials.
    """
    if uri.startswith("s3://"):
        return _stored_origin(uri.rstrip("/"), scratch_dir, fetching)
    path = Path(uri.removeprefix("file://")).absolute()
    uri = f"file://{path}"
    if path.is_dir():
        return Origin(uri=uri, tree=LocalTree(path), fetching=fetching, scratch_dir=scratch_dir)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; check the source's path")
    if _is_archive(path.name):
        tree = open_archive(path, str(path), scratch_dir)
        return Origin(uri=uri, tree=tree, fetching=fetching, scratch_dir=scratch_dir)
    # COCO's annotations lie in a folder of their own beside those of the images.
    top = path.parent.parent if path.parent.name == "annotations" else path.parent
    name = path.relative_to(top).as_posix()
    return Origin(uri=uri, tree=LocalTree(top), file=name, fetching=fetching, scratch_dir=scratch_dir)


def _stored_origin(uri: str, scratch_dir: Path, fetching: Fetching) -> Origin:
    tree = StoreTree(uri)
    if tree.names:
        return Origin(uri=uri, tree=tree, fetching=fetching, scratch_dir=scratch_dir)
    try:
        open_store(uri).read(uri, 0, 0)
    except MissingObjectError:
        raise DataError(f"{uri}: no object at or below this address; check the source's address") from None
    parent, _, name = uri.rpartition("/")
    if _is_archive(name):
        found: Tree = open_archive(copied(uri, scratch_dir), uri, scratch_dir)
        return Origin(uri=uri, tree=found, fetching=fetching, scratch_dir=scratch_dir)
    above, _, folder = parent.rpartition("/")
    if folder == "annotations":
        parent, name = above, f"annotations/{name}"
    return Origin(uri=uri, tree=StoreTree(parent), file=name, fetching=fetching, scratch_dir=scratch_dir)


def copied(uri: str, scratch_dir: Path) -> Path:
    """A local copy of an object that must be read here and there, such as an archive."""
    path = scratch_dir / "copies" / PurePosixPath(uri).name
    open_store(uri).get(uri, path)
    return path


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)
