"""Tar files in which the members of one name belong together, as the webdataset library and img2dataset write them."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from intern_vision.data.ingest.archives import ArchiveTree, open_archive
from intern_vision.data.ingest.files import LocalFile, Tree, Unusable
from intern_vision.data.ingest.offer import Offer, Offers
from intern_vision.data.ingest.origin import Origin, copied
from intern_vision.errors import DataError

MAX_TEXT_BYTES = 2**20
IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")


def read_webdataset(origin: Origin) -> Offers:
    """``<key>.jpg`` (or ``.png``, ``.webp``) with ``.txt`` or ``.json`` captions and ``.cls`` labels.

    Tables and statistics beside the tar files, as img2dataset writes them, hold nothing that the tar files lack and are
    not read. One tar is open at a time, but for the images of it that are still waiting.

    Raises:
        DataError: no tar file, or one that cannot be read.
    """
    tree = origin.tree
    if isinstance(tree, ArchiveTree):
        return Offers(layout="webdataset", rows=_samples(tree, ""))
    names = [name for name in tree.names if name.lower().endswith(".tar")]
    if not names:
        raise DataError(f"{tree.shown}: no .tar file in it")

    def rows() -> Iterator[Offer]:
        for name in names:
            yield from _samples(_open_tar(origin, name), f"{PurePosixPath(name).with_suffix('')}/")

    return Offers(layout="webdataset", rows=rows())


def is_webdataset(tree: Tree) -> bool:
    """Whether an archive's images have texts of the same names beside them."""
    known = set(tree.names)
    images = [name for name in known if name.endswith(IMAGE_MEMBERS)]
    return any(f"{name.rsplit('.', 1)[0]}.{suffix}" in known for name in images for suffix in ("txt", "json", "cls"))


def _open_tar(origin: Origin, name: str) -> ArchiveTree:
    file = origin.tree.file(name)
    if isinstance(file, LocalFile):
        return open_archive(file.path, str(file.path), origin.scratch_dir)
    path: Path = copied(file.uri, origin.scratch_dir)
    try:
        return open_archive(path, file.uri, origin.scratch_dir)
    finally:
        path.unlink()  # the open descriptor keeps its bytes until the last member was read


def _samples(tree: ArchiveTree, start: str) -> Iterator[Offer]:
    for key, group in itertools.groupby(tree.names, _key_of):
        members = {name[len(key) + 1 :].lower(): name for name in group}
        suffix = next((each for each in IMAGE_MEMBERS if each in members), IMAGE_MEMBERS[0])
        offer = Offer(name=start + key, image=tree.file(members.get(suffix, f"{key}.{suffix}")))
        try:
            _add_texts(offer, tree, members)
        except Unusable as error:
            offer.fault = str(error)
        yield offer


def _key_of(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _add_texts(offer: Offer, tree: ArchiveTree, members: dict[str, str]) -> None:
    facts: dict[str, Any] = {}
    if "json" in members:
        text = _text(tree, members["json"])
        try:
            facts = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unusable("annotation", f"{members['json']}: {error}") from None
        if not isinstance(facts, dict):
            raise Unusable("annotation", f"{members['json']}: expected an object, got {type(facts).__name__}")
    caption = _text(tree, members["txt"]) if "txt" in members else facts.get("caption")
    offer.caption = caption.strip() if isinstance(caption, str) else None
    licence = facts.get("licence", facts.get("license", facts.get("LICENSE")))
    offer.licence = licence if isinstance(licence, str) and licence != "?" else ""
    if "cls" in members:
        offer.labels = (_text(tree, members["cls"]).strip(),)
    elif isinstance(facts.get("label"), str):
        offer.labels = (facts["label"],)


def _text(tree: ArchiveTree, name: str) -> str:
    try:
        return tree.file(name).read(MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.object[error.start]:#x} at {error.start}"
        raise Unusable("text", f"{name}: expected UTF-8 text, got {what}") from None
