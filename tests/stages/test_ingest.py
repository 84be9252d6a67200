import json
import os
import resource
import shutil
import tracemalloc
import uuid
import zipfile
from contextlib import contextmanager

import own_data
import pytest
import typer.main
from ingest_parts import Ingest, encoded, write
from running import strict_json
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data.manifest_store import read_bytes
from intern_vision.data_commands import data_app
from intern_vision.errors import AccessError, ConfigError, DataError, RetryableError
from intern_vision.stages import ingest
from intern_vision.stages.base import read_ref
from intern_vision.store import open_store


@pytest.fixture
def take_up(tmp_path, monkeypatch):
    return Ingest(tmp_path / "own", monkeypatch)


def test_running_again_opens_what_is_new_changed_or_failed_alone(take_up, decoded, tmp_path):
    root = tmp_path / "in"
    for number in range(12):
        write(root / "cat" / f"{number}.png", encoded(seed=number))
    write(root / "cat" / "bad.png", encoded()[:-30])
    first = take_up(root)
    assert len(decoded) == 13 and first.facts["num_ok"] == 12
    assert decoded.clear() is None
    again = take_up(root, earlier=first)
    assert decoded == [len(encoded()) - 30] and again.facts["num_taken_over"] == 12
    # The same rows have the same bytes, and the steps after it need not run anew.
    assert (again.info, again.ref.digest) == (first.info, first.ref.digest) and again.ref.parents == (first.ref.uri,)
    decoded.clear()
    write(root / "cat" / "bad.png", encoded(seed=99))
    write(root / "dog" / "new.png", encoded(seed=100))
    write(root / "cat" / "3.png", encoded(seed=103))
    os.utime(root / "cat" / "4.png", ns=(1, 1))
    (root / "cat" / "5.png").unlink()
    third = take_up(root, earlier=again)
    assert len(decoded) == 4 and third.facts == {
        "num_rows": 13,
        "num_ok": 13,
        "num_quarantined": 0,
        "num_taken_over": 9,
    }
    assert third.rows == take_up(root).rows


def test_annotations_are_those_of_now_though_images_are_taken_over(take_up, decoded, tmp_path):
    root = own_data.coco(tmp_path / "in")
    first = take_up({"uri": str(root), "licence": "A"})
    decoded.clear()

    def moved(document):
        document["annotations"][0]["bbox"] = [1, 2, 3, 4]
        document["annotations"][1]["bbox"] = [1, 2, 300, 4]

    own_data.coco(tmp_path / "other", moved)
    shutil.copy(tmp_path / "other/annotations/instances.json", root / "annotations/instances.json")
    second = take_up({"uri": str(root), "licence": "B"}, earlier=first)
    assert decoded == [] and second.facts["num_ok"] == 39 and second.reasons[0].startswith("box: ")
    (box,) = second.by_name("/0.jpg")["boxes"]
    assert [box[name] for name in ("x0", "y0", "x1", "y1")] == [1, 2, 4, 6]
    assert {row["licence"] for row in second.rows} == {"B"}


def test_rows_do_not_depend_on_threads_or_on_where_the_store_is(take_up, tmp_path, monkeypatch):
    root = own_data.image_folder(tmp_path / "in", 4)
    first = take_up(root)
    monkeypatch.setattr(ingest, "_num_threads", lambda *arguments: 7)
    assert take_up(root).info.sha256 == first.info.sha256


def test_several_sources_are_one_manifest(take_up, tmp_path):
    folder, table = own_data.image_folder(tmp_path / "a", 2), own_data.labels_csv(tmp_path / "b")
    taken = take_up({"uri": str(folder), "name": "shapes"}, {"uri": str(table), "split": "val"}, name="both")
    assert taken.ref.kind == "manifest" and taken.ref.name == "both"
    assert {(row["source"], row["split"]) for row in taken.rows} == {("shapes", ""), ("labels", "val")}
    assert [(source.name, source.uri, source.num_rows) for source in taken.info.sources] == [
        ("shapes", f"file://{folder}", 10),
        ("labels", f"file://{table}", 40),
    ]
    (step,) = taken.info.steps
    assert (step.name, step.num_in, step.num_out) == ("ingest", 50, 50)
    assert ingest.Config.from_dict(step.settings).name == "both"


def test_an_earlier_result_must_be_of_this_stage(take_up, tmp_path):
    from helpers import commit_folder

    root = own_data.image_folder(tmp_path / "in", 1)
    taken = take_up(root)
    other = take_up.fetched(taken)
    (other / "stamps.parquet").unlink()
    ref = commit_folder(take_up.store_root, "dedup", "manifest", "later", other)
    with pytest.raises(DataError, match="has no file stamps.parquet; make the output anew"):
        take_up(root, earlier=type(taken)(ref, taken.info, [], {}))


def test_nothing_usable_leaves_nothing_behind(take_up, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("cat/1.png", encoded())
    write(tmp_path / "bad" / "cat" / "2.png", b"bad")
    with pytest.raises(
        DataError, match="no usable image in any source; the first: file:.*/2.png: decode: not an image"
    ):
        take_up(tmp_path / "bad")
    # The first source's members are kept as blobs before the second source is found to be missing.
    with pytest.raises(DataError, match="none: no such file or folder"):
        take_up(tmp_path / "in.zip", tmp_path / "none")
    left = [path for path in take_up.folder.rglob("*") if path.is_file() and "spool" not in path.parts]
    assert [path.name for path in left if path.name != ".lock"] == []


def test_a_full_disk_can_be_retried(take_up, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("cat/1.png", encoded())
        archive.writestr("cat/2.png", encoded(size=(400, 400)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The kernel then gives EFBIG where a disk would give ENOSPC (Python ignores SIGXFSZ).
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(RetryableError, match="no space left on .*/blobs/.*, run the same command again"):
            take_up(tmp_path / "in.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store = take_up.folder / "store"
    # Whole images that were kept by then may lie there, and nothing else: the next attempt takes them.
    assert {path.suffix for path in store.rglob("*") if path.is_file()} <= {".png", ".parquet"}
    assert all(path.read_bytes() == encoded() for path in store.rglob("*.png"))
    assert take_up(tmp_path / "in.zip").facts["num_ok"] == 2


def _first(num_images, document):
    return {name: document[name][:num_images] for name in ("images", "annotations")}


def test_sources_in_a_bucket(take_up, s3, tmp_path, monkeypatch, decoded):
    root = f"s3://intern/test/{uuid.uuid4().hex}"
    store = open_store(root)
    local = own_data.coco(tmp_path / "in", lambda document: document.update(_first(5, document)))
    for name in ("annotations/instances.json", "images/1.jpg", "images/2.jpg", "images/3.jpg"):
        store.put(local / name, f"{root}/boxes/{name}")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("cat/1.png", encoded())
    store.put(tmp_path / "in.zip", f"{root}/packed.zip")
    store.put(f"url\n{root}/boxes/images/1.jpg\nboxes/images/2.jpg\n".encode(), f"{root}/list.csv")
    taken = take_up(f"{root}/boxes", f"{root}/packed.zip", f"{root}/list.csv")
    assert taken.facts["num_ok"] == 6
    assert {row["source"]: row["uri"] for row in taken.rows if row["uri"].endswith("/2.jpg")} == {
        "boxes": f"{root}/boxes/images/2.jpg",
        "list": f"{root}/boxes/images/2.jpg",
    }
    assert sum(reason.endswith("no object lies there") for reason in taken.reasons) == 2
    assert read_bytes(taken.by_name(".png")["uri"]) == encoded()
    decoded.clear()
    store.put(encoded("JPEG", size=(80, 72), seed=4), f"{root}/boxes/images/3.jpg")
    again = take_up(f"{root}/boxes", f"{root}/packed.zip", f"{root}/list.csv", earlier=taken)
    assert len(decoded) == 1 and again.facts["num_taken_over"] == 5
    with pytest.raises(DataError, match="nothing.zip: no object at or below this address; check the source's address"):
        take_up(f"{root}/nothing.zip")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for source in (f"{root}/boxes", f"{root}/list.csv"):
        with pytest.raises(AccessError, match=f"{root}.* refused the credentials .*; check AWS_ACCESS_KEY_ID"):
            take_up(source)


def denied(s3, *resources, action):
    """The bucket refuses an action on addresses within a ``with`` block, whoever asks."""
    arns = [uri.replace("s3://", "arn:aws:s3:::") for uri in resources]
    statement = {"Effect": "Deny", "Principal": "*", "Action": f"s3:{action}", "Resource": arns}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})

    @contextmanager
    def block():
        s3.access.client().put_bucket_policy(Bucket="intern", Policy=policy)
        try:
            yield
        finally:
            s3.access.client().delete_bucket_policy(Bucket="intern")

    return block()


def test_one_forbidden_object_of_a_bucket_is_one_row(take_up, s3, tmp_path):
    root = f"s3://intern/test/{uuid.uuid4().hex}"
    store = open_store(root)
    for number in range(4):
        store.put(encoded(seed=number), f"{root}/in/{number}.png")
    listed = "file\n" + "".join(f"{root}/in/{number}.png\n" for number in range(4))
    table = write(tmp_path / "list.csv", listed)
    with denied(s3, f"{root}/in/2.png", action="GetObject"):
        taken = take_up(f"{root}/in", table)
    assert taken.facts["num_ok"] == 6
    assert [(row["uri"], row["reason"]) for row in taken.rows if row["status"] != "ok"] == [
        (f"{root}/in/2.png", "forbidden: the credentials are good, but may not read this object"),
        (f"{root}/in/2.png", "forbidden: line 4: the credentials are good, but may not read this object"),
    ]
    assert take_up(f"{root}/in", table, earlier=taken).facts["num_taken_over"] == 6
    with (
        denied(s3, f"{root}/in/*", action="GetObject"),
        pytest.raises(DataError, match=f"no usable image in any source; the first: {root}/in/0.png: forbidden: "),
    ):
        take_up(f"{root}/in")
    with (
        denied(s3, "s3://intern", action="ListBucket"),
        pytest.raises(AccessError, match=f"{root}/in: .* refused the credentials .AccessDenied.; check AWS_ACCESS"),
    ):
        take_up(f"{root}/in")


def test_memory_does_not_grow_with_the_images(take_up, tmp_path):
    def peak_bytes(num_images):
        first = write(tmp_path / f"in{num_images}" / "0.jpg", encoded("JPEG", size=(240, 160)))
        for number in range(1, num_images):
            os.link(first, first.with_name(f"{number}.jpg"))
        tracemalloc.start()
        assert take_up(first.parent).facts["num_ok"] == num_images
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(8)  # imports
    # 150 images more are 17 MB of pixels; a row may take 8 kB until its table is written.
    assert -peak_bytes(50) + peak_bytes(200) < 150 * 8_000


def invoke(*arguments, exit_code=0):
    done = CliRunner().invoke(app, ["data", "ingest", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done


def test_the_command_goes_on_where_its_result_exists(take_up, decoded, tmp_path):
    root, out = own_data.image_folder(tmp_path / "in", 2), tmp_path / "refs" / "shapes.json"
    state = ("--state-dir", tmp_path / "own" / "state")
    done = invoke(root, root / "circle", "--out", out, "--name", "all", "--name", "some", "--licence", "CC0", *state)
    assert done.stdout.startswith("12 of 12 images usable, 0 as before\nmanifest   file://")
    first = read_ref(out)
    assert first.kind == "manifest" and first.name == "shapes" and len(decoded) == 12
    write(root / "circle" / "bad.png", b"bad")
    names = ("--name", "all", "--name", "some")
    facts = strict_json(invoke(root, root / "circle", "--out", out, *names, "--json", *state).stdout)
    assert (facts["num_taken_over"], facts["num_quarantined"]) == (12, 2) and len(decoded) == 12
    assert read_ref(out).uri == facts["ref"]["uri"] != first.uri
    done = invoke(root, root / "circle", "--out", out, *names, "--afresh", *state)
    assert f"next       intern data show {out} --status quarantined" in done.stdout and len(decoded) == 24


def test_every_option_is_explained():
    found = typer.main.get_command(data_app).commands["ingest"]
    assert found.help.endswith(".")
    assert {"--json", "--debug", "--state-dir"} <= {option for each in found.params for option in each.opts}
    assert [each.name for each in found.params if not getattr(each, "help", None)] == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none"], "none: no such file or folder; check the source's path"),
        (
            ["a", "b", "--split", "val", "--split", "test", "--split", "x"],
            "--split: expected 1 or 2 for 2 sources, got 3",
        ),
        (["a", "b", "--name", "x"], "--name: expected 2 for 2 sources, got 1"),
        (["a", "--layout", "yolo"], "ingest.sources.0: layout must be one of auto, image_folder"),
        (["a", "--override", '{"max_pixel": 3}'], "ingest.max_pixel: unknown key; known keys here: fetch, max_bytes"),
    ],
)
def test_a_wrong_command_is_one_line(take_up, tmp_path, arguments, line):
    done = invoke(*arguments, "--out", tmp_path / "out.json", "--state-dir", tmp_path / "state", exit_code=2)
    assert [text for text in done.stderr.splitlines() if text.startswith("error: ") and line in text]
    assert not (tmp_path / "out.json").exists()


def test_sources_are_json_too():
    values = json.loads('{"sources": [{"uri": "s3://b/pets.tar.gz"}], "fetch": {"num_threads": 4.0}}')
    config = ingest.Config.from_dict(values)
    assert config.sources[0].label == "pets" and config.fetch.num_threads == 4
    with pytest.raises(ConfigError, match="sources"):
        ingest.Config.from_dict({"sources": []})
