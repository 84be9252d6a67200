"""From two folders to a dataset that a training reads: duplicates, a leak and broken files on the way."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from helpers import set_environment
from running import clean_environment

from intern_pipelines.data import data
from intern_vision.data.augment import Resize
from intern_vision.data.codec import encode_jpeg
from intern_vision.data.loader import ShardSource, load_info, make_loader
from intern_vision.data.manifest import MANIFEST_INFO_NAME, MANIFEST_NAME, ManifestInfo
from intern_vision.data.settings import AugmentConfig
from intern_vision.data.tables import iter_rows
from intern_vision.stages import prepare
from intern_vision.stages.base import Inputs, read_record, read_ref, run_stage
from intern_vision.store import join_uri, open_store

CLASSES = ("cat", "dog")
HEIGHT_PX, WIDTH_PX = 96, 128


def scene(seed, height_px=HEIGHT_PX, width_px=WIDTH_PX):
    """Discs of any colour and size, ``(height, width, 3)`` uint8."""
    rng = np.random.default_rng(seed)
    image = np.full((height_px, width_px, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(12):
        centre, radius = (rng.random(2) * (width_px, height_px)).astype(int), int(rng.uniform(0.05, 0.3) * height_px)
        cv2.circle(image, centre.tolist(), radius, rng.integers(0, 256, 3).tolist(), -1)
    return image


def image(seed):
    return encode_jpeg(scene(seed))


def folder_of(root, first, num):
    """An image folder of ``num`` different pictures a class."""
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for index in range(num):
            (root / name / f"{index}.jpg").write_bytes(image(first + number * num + index))
    return root


@pytest.fixture
def environment(tmp_path, monkeypatch):
    values = {"INTERN_STORE": f"file://{tmp_path}/store", "INTERN_STATE": str(tmp_path / "state")}
    set_environment(monkeypatch, values)
    return values


def run_pipeline(tmp_path, environment, **arguments):
    """Runs the pipeline in a process of its own; gives the Ref of each step by name."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    command = [sys.executable, "-m", "intern_pipelines.local", "data", json.dumps(arguments), str(tmp_path / "root")]
    own = clean_environment(**environment, INTERN_EVENTS=str(run_dir / "events.jsonl"), TMPDIR=str(run_dir))
    done = subprocess.run(command, env=own, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for path in tmp_path.glob("root/**/result"):
        ref = read_ref(path)
        found[read_record(open_store(ref.uri), ref.uri).stage] = ref
    return found, next(tmp_path.glob("root/**/page")).read_text()


@pytest.mark.slow
def test_two_sources_become_one_dataset_without_duplicates_leaks_and_broken_files(tmp_path, environment):
    benchmark = folder_of(tmp_path / "benchmark", 500, 6)
    against = run_stage("prepare", prepare.Config(dataset="pets", path=str(benchmark)), Inputs(), name="pets")
    first, second = folder_of(tmp_path / "first", 0, 12), folder_of(tmp_path / "second", 100, 12)
    shutil.copy(first / "cat" / "0.jpg", second / "cat" / "same.jpg")
    smaller = cv2.resize(scene(1), None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    (second / "cat" / "smaller.jpg").write_bytes(encode_jpeg(smaller))
    shutil.copy(benchmark / "dog" / "2.jpg", second / "dog" / "leaked.jpg")
    (first / "dog" / "cut.jpg").write_bytes(image(900)[:200])
    (first / "dog" / "empty.jpg").write_bytes(b"")
    (second / "cat" / "tiny.jpg").write_bytes(encode_jpeg(scene(901, 12, 16)))
    refs, page = run_pipeline(
        tmp_path,
        environment,
        sources=json.dumps([{"uri": str(first), "licence": "CC0-1.0"}, {"uri": str(second), "licence": "CC-BY-4.0"}]),
        against=json.dumps([against.uri]),
        # A cap that no concept reaches, but which takes out what has none: it sees those of the label step.
        rules='["size:min_px=32", "cap:per_concept=1000,unmatched=remove"]',
        settings=json.dumps({"shard": {"name": "pets-2", "split": {"seed": 3}}}),
    )
    assert refs.keys() == {"ingest", "dedup", "filter", "label", "shard", "data_report"}
    store = open_store(environment["INTERN_STORE"])
    info = ManifestInfo.from_json(store.read(join_uri(refs["filter"].uri, MANIFEST_INFO_NAME)).decode())
    assert [step.name for step in info.steps] == ["ingest", "dedup", "label", "filter"]
    store.get(join_uri(refs["filter"].uri, MANIFEST_NAME), tmp_path / MANIFEST_NAME)
    rows = list(iter_rows(tmp_path / MANIFEST_NAME))
    taken_out = {
        (row["uri"].rsplit("/", 1)[-1], row["status"], row["reason"].split(":")[0]) for row in rows if row["reason"]
    }
    duplicates = {name for name, status, kind in taken_out if kind == "duplicate" and status == "removed"}
    assert len(duplicates) == 2 and {"smaller.jpg"} < duplicates, "of equal bytes either goes, of sizes the smaller"
    others = {item for item in taken_out if item[2] != "duplicate"}
    assert others == {
        ("leaked.jpg", "removed", "leak"),
        ("tiny.jpg", "removed", "size"),
        ("cut.jpg", "quarantined", "decode"),
        ("empty.jpg", "quarantined", "empty"),
    }
    assert info.num_ok == sum(row["status"] == "ok" for row in rows) == 4 * 12
    assert {len(row["concepts"]) for row in rows if row["status"] == "ok"} == {1}
    dataset = load_info(store, refs["shard"].uri)
    assert (dataset.name, dataset.num_train + dataset.num_val + dataset.num_test) == ("pets-2", info.num_ok)
    assert dataset.tasks["classify"].class_names == CLASSES
    assert "CC0-1.0" in dataset.licence and "CC-BY-4.0" in dataset.licence
    source = ShardSource(store, refs["shard"].uri, cache_dir=tmp_path / "cache", split="train", fields=("label",))
    resize = Resize(AugmentConfig(image_size_px=32))
    loader = make_loader(source, batch_size=8, seed=0, start_step=0, num_steps=2, rank=0, num_ranks=1, transform=resize)
    batches = list(loader)
    assert [batch["image_BCHW"].shape for batch in batches] == [(8, 3, 32, 32)] * 2
    assert {int(label) for batch in batches for label in batch["label_B"]} == {0, 1}
    for words in ("pets/", "leaked", "decode:", "pets-2", "CC-BY-4.0"):
        assert words in page, words


def test_steps_follow_each_other():
    tasks = MessageToDict(data.pipeline_spec)["root"]["dag"]["tasks"]
    order = ["ingest", "dedup", "label", "filter", "annotate", "shard", "data-report"]
    assert set(tasks) == set(order)
    for name, task in tasks.items():
        artifacts = task.get("inputs", {}).get("artifacts", {})
        producers = {key: value["taskOutputArtifact"]["producerTask"] for key, value in artifacts.items()}
        expected = {"manifest": order[order.index(name) - 1]} if name != "ingest" else {}
        if name == "data-report":
            expected = {"manifest": "annotate", "data": "shard"}
        elif name in ("filter", "annotate", "shard"):
            expected["labels"] = "label"
        assert producers == expected
