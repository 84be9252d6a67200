import threading
from pathlib import Path

import pytest
from toy_training import run_toy, toy_checkpoints, toy_job

from intern_vision.errors import RetryableError
from intern_vision.store import FileStore, join_uri, open_store
from intern_vision.train.checkpoint import Checkpoints


def make(folder: Path, store=None, **settings) -> Checkpoints:
    root = f"file://{folder}/store"
    local_dir = folder / "local"
    local_dir.mkdir(parents=True, exist_ok=True)
    return Checkpoints(store or open_store(root), f"{root}/checkpoints", local_dir, **settings)


def write_step(checkpoints: Checkpoints, step: int, text: str = "weights") -> None:
    folder = checkpoints.local_dir / f"step-{step}" / "part"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_text(f"{text} of {step}")


def stored(checkpoints: Checkpoints) -> set[str]:
    return {file.uri.removeprefix(checkpoints.uri + "/") for file in checkpoints.store.list(checkpoints.uri)}


def test_saved_and_found_again(tmp_path):
    one = make(tmp_path)
    assert one.complete_steps() == [] and one.download_latest() == 0
    write_step(one, 20)
    one.upload(20)
    one.close()
    assert stored(one) == {"step-20/part/model.pt", "step-20/_COMMITTED-0-of-1"}
    assert not (one.local_dir / "step-20").exists()
    other = make(tmp_path / "again", one.store)
    other.uri = one.uri
    assert other.download_latest() == 20
    files = [path for path in other.local_dir.rglob("*") if path.is_file()]
    assert [path.read_text() for path in files] == ["weights of 20"]
    one.delete_all()
    assert stored(one) == set()


def test_only_the_newest_are_kept_in_order_of_number(tmp_path):
    checkpoints = make(tmp_path, num_kept=2)
    for step in (8, 9, 10, 100):
        write_step(checkpoints, step)
        checkpoints.upload(step)
    checkpoints.close()
    assert checkpoints.complete_steps() == [10, 100]
    assert {name.split("/")[0] for name in stored(checkpoints)} == {"step-10", "step-100"}


def test_incomplete_ones_are_ignored_and_written_anew(tmp_path):
    checkpoints = make(tmp_path)
    write_step(checkpoints, 10)
    checkpoints.upload(10)
    checkpoints.close()
    checkpoints.store.put(b"half", join_uri(checkpoints.uri, "step-20", "part", "model.pt"))
    assert checkpoints.complete_steps() == [10]
    assert checkpoints.download_latest() == 10
    write_step(checkpoints, 20)
    checkpoints.upload(20)
    checkpoints.close()
    assert checkpoints.complete_steps() == [10, 20]
    assert checkpoints.store.read(f"{checkpoints.uri}/step-20/part/model.pt") == b"weights of 20"


def test_every_node_must_have_finished(tmp_path):
    nodes = [make(tmp_path / str(node), open_store(f"file://{tmp_path}/store")) for node in range(2)]
    for number, node in enumerate(nodes):
        node.uri, node.node, node.num_nodes = f"file://{tmp_path}/store/checkpoints", number, 2
        write_step(node, 5, f"node {number}")
    nodes[1].upload(5)
    nodes[1].close()
    assert nodes[0].complete_steps() == []
    nodes[0].upload(5)
    nodes[0].close()
    assert nodes[0].complete_steps() == nodes[1].complete_steps() == [5]
    # Written by two nodes, so one node alone has no use for it.
    assert make(tmp_path / "alone", nodes[0].store).complete_steps() == []


class FullStore(FileStore):
    """A store whose disk is full from the second checkpoint on."""

    def put(self, source, uri):
        if "step-4" in uri:
            raise RetryableError(f"{uri}: the disk is full; free some space")
        super().put(source, uri)


def test_a_failed_upload_surfaces_at_the_next_one_and_at_the_end(tmp_path):
    root = f"file://{tmp_path}/store"
    checkpoints = make(tmp_path, FullStore(root))
    for step in (2, 4):
        write_step(checkpoints, step)
        checkpoints.upload(step)
    with pytest.raises(RetryableError, match="disk is full"):
        checkpoints.close()
    with pytest.raises(RetryableError, match="disk is full"):
        checkpoints.upload(6)
    assert checkpoints.complete_steps() == [2]


def test_a_failed_upload_ends_the_training(tmp_path):
    checkpoints = make(tmp_path, FullStore(f"file://{tmp_path}/store"))
    with pytest.raises(RetryableError, match="disk is full"):
        run_toy(toy_job(num_steps=9, checkpoint_every=2), checkpoints)
    assert checkpoints.complete_steps() == [2]


class SlowStore(FileStore):
    """A store that waits before it writes."""

    def __init__(self, root_uri: str) -> None:
        super().__init__(root_uri)
        self.go = threading.Event()

    def put(self, source, uri):
        assert self.go.wait(20)
        super().put(source, uri)


def test_training_does_not_wait_for_uploads_until_the_end(tmp_path):
    store = SlowStore(f"file://{tmp_path}/store")
    checkpoints = make(tmp_path, store)
    steps = []
    job = toy_job(num_steps=6, checkpoint_every=2)
    original = job.transform

    def transform(sample, rng):
        steps.append(sample["key"])
        return original(sample, rng)

    job.transform = transform
    thread = threading.Timer(3.0, store.go.set)
    ended = []
    closing = checkpoints.close

    def close():
        ended.append(store.go.is_set())
        closing()

    checkpoints.close = close
    thread.start()
    run_toy(job, checkpoints)
    # All six steps were done while the first upload was still held up.
    assert ended == [False] and len(steps) == 48
    assert checkpoints.complete_steps() == [2, 4]


def test_no_checkpoint_is_written_after_the_last_step(tmp_path):
    checkpoints = toy_checkpoints(tmp_path)
    run_toy(toy_job(num_steps=4, checkpoint_every=2), checkpoints)
    assert checkpoints.complete_steps() == [2]
    assert list(checkpoints.local_dir.iterdir()) == []
