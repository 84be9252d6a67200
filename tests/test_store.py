import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.errors import AccessError, ConfigError, DataError, MissingObjectError, RetryableError
from intern_vision.s3 import S3Access, S3Store, ensure_bucket
from intern_vision.store import FileStore, Store, digest_of_files, file_sha256, join_uri, open_store

BIG_BYTES = 20 * 2**20


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "file":
        return open_store(f"file://{tmp_path}/store")
    request.getfixturevalue("s3")
    return open_store(f"s3://intern/test/{uuid.uuid4().hex}")


def test_open_store_picks_by_scheme(store):
    assert isinstance(store, FileStore if store.root_uri.startswith("file:") else S3Store)
    with pytest.raises(ConfigError, match="file:// or s3://"):
        open_store("gs://bucket/key")


def test_round_trip_of_bytes_and_files(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    for content, expected in ((b"plain", b"plain"), (b"", b""), (source, b"from a file")):
        uri = join_uri(store.root_uri, "a", "b.bin")
        store.put(content, uri)
        assert store.read(uri) == expected
        target = tmp_path / "new" / "folder" / "copy"
        store.get(uri, target, sha256=hashlib.sha256(expected).hexdigest())
        assert target.read_bytes() == expected
        assert [path.name for path in target.parent.iterdir()] == ["copy"]


def test_names_are_taken_literally(store):
    for name in ("a b", "50%25", "q?x=1#y", "ünï-日本", "x+y&z", ".hidden", "a:b", "~", "x" * 255):
        uri = join_uri(store.root_uri, "names", name)
        store.put(name.encode(), uri)
        assert store.read(uri) == name.encode()
    assert len(store.list(join_uri(store.root_uri, "names"))) == 9


def test_range_reads(store):
    uri = join_uri(store.root_uri, "range")
    content = bytes(range(256))
    store.put(content, uri)
    for start, num_bytes in (
        (0, None),
        (0, 10),
        (10, 5),
        (250, 100),
        (250, None),
        (255, 1),
        (256, 1),
        (999, None),
        (5, 0),
    ):
        expected = content[start:] if num_bytes is None else content[start : start + num_bytes]
        assert store.read(uri, start, num_bytes) == expected, (start, num_bytes)
    with pytest.raises(ValueError, match="start=-1"):
        store.read(uri, -1)


def test_list_is_sorted_recursive_and_stops_at_the_prefix(store):
    root = store.root_uri
    for name in ("p/z", "p/a/deep/x", "p/a-b", "p/a", "p2/other", "px"):
        if name == "p/a" and root.startswith("file:"):
            continue  # a folder lies there
        store.put(name.encode(), join_uri(root, name))
    found = store.list(join_uri(root, "p"))
    names = [item.uri.removeprefix(root) for item in found]
    assert names == sorted(names)
    assert set(names) - {"/p/a"} == {"/p/a-b", "/p/a/deep/x", "/p/z"}
    assert [item.num_bytes for item in found] == [len(name) - 1 for name in names]
    assert all(abs(item.modified_s - found[0].modified_s) < 60 for item in found)
    assert store.list(join_uri(root, "nothing")) == []


def test_delete_takes_everything_below_and_nothing_else(store):
    root = store.root_uri
    for name in ("out/_COMMITTED", "out/deep/x", "out2/x", "single"):
        store.put(b"x", join_uri(root, name))
    for _ in range(2):
        store.delete(join_uri(root, "out"))
        store.delete(join_uri(root, "single"))
        assert [item.uri for item in store.list(root)] == [f"{root}/out2/x"]
    with pytest.raises(ConfigError, match="store's root"):
        store.delete(root.rsplit("/", 1)[0])
    store.delete(root)
    assert store.list(root) == []


def test_delete_in_more_than_one_request(s3, monkeypatch):
    monkeypatch.setattr("intern_vision.s3.KEYS_PER_DELETE", 10)
    store = open_store(f"s3://intern/test/{uuid.uuid4().hex}")
    uris = [join_uri(store.root_uri, f"{number:02d}") for number in range(25)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: store.put(b"", uri), uris))
    assert [item.uri for item in store.list(store.root_uri)] == uris
    store.delete(store.root_uri)
    assert store.list(store.root_uri) == []


def test_missing_object(store, tmp_path):
    uri = join_uri(store.root_uri, "gone")
    for action in (lambda: store.read(uri), lambda: store.read(uri, 3, 0), lambda: store.get(uri, tmp_path / "x")):
        with pytest.raises(MissingObjectError, match=uri):
            action()
    assert not (tmp_path / "x").exists()
    with pytest.raises(DataError, match="no such file to store"):
        store.put(tmp_path / "absent", uri)
    with pytest.raises(DataError, match="got a folder"):
        store.put(tmp_path, uri)


def test_wrong_digest_leaves_the_target_alone(store, tmp_path):
    uri = join_uri(store.root_uri, "x")
    store.put(b"damaged", uri)
    target = tmp_path / "target" / "x"
    target.parent.mkdir()
    target.write_bytes(b"old")
    got = hashlib.sha256(b"damaged").hexdigest()
    with pytest.raises(DataError) as caught:
        store.get(uri, target, sha256="0" * 64)
    assert uri in str(caught.value) and "0" * 64 in str(caught.value) and got in str(caught.value)
    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"old"]


def test_big_file_goes_in_parts(store, tmp_path):
    source = tmp_path / "big"
    source.write_bytes(os.urandom(BIG_BYTES))
    uri = join_uri(store.root_uri, "big")
    store.put(source, uri)
    store.get(uri, tmp_path / "back", sha256=file_sha256(source))
    assert store.read(uri, BIG_BYTES - 7) == source.read_bytes()[-7:]
    if isinstance(store, S3Store):
        _, _, bucket, key = uri.split("/", 3)
        # An ETag that counts parts is how S3 marks a multipart upload.
        assert store.access.client().head_object(Bucket=bucket, Key=key)["ETag"].strip('"').endswith("-2")


def test_wrong_credentials_name_endpoint_and_variables(s3, monkeypatch, tmp_path):
    wrong_id = S3Access(s3.access.endpoint, "us-east-1", "AKIDWRONG", "nope-secret")
    wrong_secret = S3Access(
        s3.access.endpoint, "us-east-1", s3.access.access_key or os.environ["AWS_ACCESS_KEY_ID"], "nope"
    )
    for access in (wrong_id, wrong_secret):
        store = S3Store("s3://intern/store", access)
        actions = (
            lambda store=store: store.put(b"x", "s3://intern/store/x"),
            lambda store=store: store.get("s3://intern/store/x", tmp_path / "x"),
            lambda store=store: store.read("s3://intern/store/x"),
            lambda store=store: store.list("s3://intern/store"),
            lambda store=store: store.delete("s3://intern/store/x"),
            lambda access=access: ensure_bucket("other-bucket", access),
        )
        for action in actions:
            with pytest.raises(AccessError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
                action()
            assert s3.access.endpoint in str(caught.value)
            assert "nope" not in str(caught.value)
    assert "nope" not in repr(wrong_id)


def test_unreachable_endpoint_can_be_retried(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = S3Store("s3://intern/store", S3Access("http://127.0.0.1:9", "us-east-1", "k", "s"))
    for action in (
        lambda: store.put(b"x", "s3://intern/store/x"),
        lambda: store.get("s3://intern/store/x", tmp_path / "x"),
        lambda: store.list("s3://intern/store"),
        lambda: ensure_bucket("intern", store.access),
    ):
        with pytest.raises(RetryableError, match="http://127.0.0.1:9"):
            action()


def test_no_such_bucket(s3, tmp_path):
    store = open_store("s3://absent-bucket/store")
    for action in (
        lambda: store.put(b"x", "s3://absent-bucket/store/x"),
        lambda: store.read("s3://absent-bucket/store/x"),
        lambda: store.get("s3://absent-bucket/store/x", tmp_path / "x"),
        lambda: store.list("s3://absent-bucket/store"),
    ):
        with pytest.raises(DataError, match="no bucket 'absent-bucket'") as caught:
            action()
        assert not isinstance(caught.value, MissingObjectError)


def test_ensure_bucket_makes_it_once_and_refuses_bad_names(s3):
    for _ in range(2):
        ensure_bucket("second-bucket")
    open_store("s3://second-bucket/a").put(b"x", "s3://second-bucket/a/b")
    with pytest.raises(ConfigError, match="Bad_Name"):
        ensure_bucket("Bad_Name")


def test_endpoint_from_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://fallback:1")
    monkeypatch.setenv("INTERN_S3_ENDPOINT", "http://first:2")
    assert S3Access.from_environment().endpoint == "http://first:2"
    monkeypatch.delenv("INTERN_S3_ENDPOINT")
    assert S3Access.from_environment().endpoint == "http://fallback:1"
    monkeypatch.setenv("INTERN_S3_ENDPOINT", "aws")
    assert S3Access.from_environment().endpoint == ""
    monkeypatch.setenv("INTERN_S3_ENDPOINT", "localhost:9000")
    with pytest.raises(ConfigError, match="INTERN_S3_ENDPOINT"):
        S3Access.from_environment()


def test_importing_the_store_does_not_import_boto3():
    code = "import sys, intern_vision.store as s; s.open_store('s3://intern/a'); print('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_full_disk_is_retryable_and_leaves_nothing(store, tmp_path):
    big = join_uri(store.root_uri, "big")
    store.put(b"x" * 3 * 2**20, big)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if not mounted:
            # The kernel then gives EFBIG instead of ENOSPC (Python ignores SIGXFSZ).
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        with pytest.raises(RetryableError, match="no space left on .*free 3 MiB, run the same command again"):
            store.get(big, disk / "copy")
        if isinstance(store, FileStore):
            with pytest.raises(RetryableError, match="free 3 MiB"):
                FileStore(f"file://{disk}").put(b"x" * 3 * 2**20, f"file://{disk}/a/b")
        assert [path for path in disk.rglob("*") if path.is_file()] == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def test_put_is_atomic_for_readers(tmp_path):
    store = FileStore(f"file://{tmp_path}")
    uri = f"file://{tmp_path}/x"
    store.put(b"a" * 2**20, uri)
    done, seen = Event(), set()

    def read():
        while not done.is_set():
            seen.add(store.read(uri))

    reader = Thread(target=read)
    reader.start()
    for letter in (b"b", b"a") * 10:
        store.put(letter * 2**20, uri)
    done.set()
    reader.join()
    assert seen <= {b"a" * 2**20, b"b" * 2**20}


def test_file_in_the_way_of_a_folder(tmp_path):
    store = FileStore(f"file://{tmp_path}")
    store.put(b"x", f"file://{tmp_path}/a")
    with pytest.raises(DataError, match="choose another"):
        store.put(b"x", f"file://{tmp_path}/a/b")
    with pytest.raises(DataError):
        store.read(f"file://{tmp_path}/a/b")
    store.delete(f"file://{tmp_path}/a/b")
    assert store.read(f"file://{tmp_path}/a") == b"x"


@pytest.mark.parametrize(
    "parts", [("",), (".",), ("a", ".."), ("a\\b",), ("a/",), ("/a",), ("a//b",), ("x" * 256,), ("é" * 128,), ("a\nb",)]
)
def test_join_uri_refuses(parts):
    for root in ("s3://intern/store", "file:///data"):
        with pytest.raises(ConfigError):
            join_uri(root, *parts)


@pytest.mark.parametrize(
    "root", ["", "store", "/data", "s3:/x/y", "s3://", "s3://ab/c", "file://host/x", "s3://bucket/"]
)
def test_join_uri_refuses_roots(root):
    with pytest.raises(ConfigError):
        join_uri(root, "a")


CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\")
SEGMENT = st.text(CHARACTERS, min_size=1, max_size=60).filter(lambda text: text not in (".", ".."))


@settings(max_examples=30, deadline=None)
@given(st.lists(SEGMENT, min_size=1, max_size=4), st.binary(max_size=200))
def test_any_allowed_name_round_trips(parts, content):
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(f"file://{folder}")
        uri = join_uri(store.root_uri, *parts)
        store.put(content, uri)
        assert store.read(uri) == content
        assert [item.uri for item in store.list(store.root_uri)] == [uri]
        store.get(uri, Path(folder, "copy of it"), sha256=hashlib.sha256(content).hexdigest())


def test_digest_of_files_is_over_sorted_lines():
    digests = {"b": "2" * 64, "a": "1" * 64}
    expected = hashlib.sha256(f"a {'1' * 64}\nb {'2' * 64}\n".encode()).hexdigest()
    assert digest_of_files(digests) == expected == digest_of_files(dict(reversed(digests.items())))
