import io
import tarfile
import zipfile

import pytest
from ingest_parts import encoded, write

from intern_vision.data.ingest import archives
from intern_vision.data.ingest.archives import open_archive
from intern_vision.data.ingest.files import Unusable
from intern_vision.data.manifest_store import read_bytes
from intern_vision.errors import DataError


def tar(path, members, mode="w", links=()):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def packed(path, members):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path
    return tar(path, members, "w:gz" if path.name.endswith("gz") else "w")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_classes_in_an_archive(take_up, tmp_path, name):
    members = {f"{label}/{number}.png": encoded(seed=number) for label in ("cat", "dog") for number in (1, 2)}
    members["cat/broken.png"] = b"broken"
    taken = take_up(packed(tmp_path / name, members | {"__MACOSX/cat/._1.png": b"x"}))
    assert taken.info.sources[0].tasks["classify"].class_names == ("cat", "dog")
    assert [row["labels"] for row in taken.rows if row["status"] == "ok"] == [["cat"], ["cat"], ["dog"], ["dog"]]
    assert taken.by_name(f"{name}#cat/broken.png")["reason"] == "decode: not an image that can be decoded"
    # The same bytes are kept once.
    uris = {row["uri"] for row in taken.rows if row["status"] == "ok"}
    assert sorted(map(read_bytes, uris)) == sorted(encoded(seed=number) for number in (1, 2))
    assert list((take_up.folder / "state" / "scratch").glob("ingest*")) == []


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "a\\..\\evil.png"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_member_that_leads_out(take_up, tmp_path, name, suffix):
    path = packed(tmp_path / f"a{suffix}", {"cat/1.png": encoded(), name: encoded()})
    if suffix == ".zip" and "\\" in name:
        # The library writes slashes: put the backslashes into the file's bytes.
        path.write_bytes(path.read_bytes().replace(b"a/../evil.png", name.encode()))
    with pytest.raises(DataError, match=rf"a\{suffix}: member '.*evil.png' leads out of the archive; pack it anew"):
        take_up(path)
    assert list((take_up.folder / "store").rglob("*")) == []


def test_links_and_damaged_archives(take_up, tmp_path):
    good = {"cat/1.png": encoded()}
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        path = tar(tmp_path / "a.tar", good, links=[("cat/2.png", "/etc/hostname", kind)])
        with pytest.raises(DataError, match="a.tar: member 'cat/2.png' is a link; pack the archive anew"):
            take_up(path)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        info = zipfile.ZipInfo("cat/2.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/hostname")
    with pytest.raises(DataError, match="b.zip: member 'cat/2.png' is a link"):
        take_up(tmp_path / "b.zip")
    whole = tar(tmp_path / "c.tar.gz", good, "w:gz").read_bytes()
    for name, data in (("c.tar.gz", whole[: len(whole) // 2]), ("d.tar", b"no archive" * 100), ("e.zip", whole[:50])):
        with pytest.raises(DataError, match=rf"{name}: cannot be read as an archive \(.*\); copy it anew"):
            take_up(write(tmp_path / name, data))
    assert list((take_up.folder / "store").rglob("*")) == []


def test_a_tar_that_unpacks_to_too_much(take_up, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 2**21)
    path = tar(tmp_path / "bomb.tar.gz", {"cat/1.png": bytes(2**23)}, "w:gz")
    assert path.stat().st_size < 2**16
    with pytest.raises(DataError, match="bomb.tar.gz: unpacks to more than 2097152 bytes; give the folder"):
        take_up(path)


def test_an_encrypted_zip_and_a_damaged_member(tmp_path):
    path = packed(tmp_path / "a.zip", {"1.png": encoded(), "2.png": encoded(seed=2)})
    data = bytearray(path.read_bytes())
    start = data.index(b"\x89PNG") if b"\x89PNG" in data else 60
    data[start + 10 : start + 30] = bytes(20)
    tree = open_archive(write(tmp_path / "damaged.zip", bytes(data)), "damaged.zip", tmp_path)
    with pytest.raises(Unusable, match="unreadable: "):
        tree.file("1.png").read(2**20)
    assert tree.file("2.png").read(2**20) == encoded(seed=2)
    with pytest.raises(Unusable, match="large: more than 10 bytes"):
        tree.file("2.png").read(10)
    with pytest.raises(Unusable, match="missing: no member 3.png in damaged.zip"):
        tree.file("3.png").read(10)
    data = bytearray(path.read_bytes())
    for head, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(head) + offset] |= 1
    with pytest.raises(DataError, match=r"locked.zip: member 1.png is encrypted; give an archive without a password"):
        open_archive(write(tmp_path / "locked.zip", bytes(data)), "locked.zip", tmp_path)
