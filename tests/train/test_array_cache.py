import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from intern_vision.errors import ConfigError
from intern_vision.stages.base import COMMIT_MARKER
from intern_vision.train.array_cache import MAX_BYTES_VARIABLE, ArrayCache, cache_key

ASK = """
import sys, time
from pathlib import Path
from intern_vision.train.array_cache import ArrayCache

def make(folder):
    time.sleep(0.3)
    (folder / "x.txt").write_text(sys.argv[2])

print(ArrayCache(Path(sys.argv[1])).get("entry", make, lambda folder: (folder / "x.txt").read_text()))
"""


def write(value, num_bytes=1000):
    def make(folder):
        np.save(folder / "x.npy", np.full(num_bytes // 8, value))

    return make


def read(folder):
    return np.load(folder / "x.npy", mmap_mode="r")


def never(folder):
    raise AssertionError("made again")


def test_an_entry_is_made_once(tmp_path):
    cache = ArrayCache(tmp_path)
    one, other = cache.get("a", write(1.0), read), ArrayCache(tmp_path).get("a", never, read)
    assert isinstance(one, np.memmap) and (one == other).all() and float(one[0]) == 1.0
    assert float(cache.get("b", write(2.0), read)[0]) == 2.0


def test_what_was_not_finished_is_made_again(tmp_path):
    cache = ArrayCache(tmp_path)

    def breaks(folder):
        write(1.0)(folder)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cache.get("a", breaks, read)
    assert float(cache.get("a", write(2.0), read)[0]) == 2.0
    (tmp_path / "a" / "x.npy").write_bytes(b"cut")
    assert float(cache.get("a", write(3.0), read)[0]) == 3.0
    (tmp_path / "a" / COMMIT_MARKER).write_text("{")
    assert float(cache.get("a", write(4.0), read)[0]) == 4.0


def test_the_entries_used_longest_ago_go_first(tmp_path):
    cache = ArrayCache(tmp_path, max_bytes=2500)
    for name in ("a", "b"):
        cache.get(name, write(0.0), read)
        time.sleep(0.01)
    mapped = cache.get("a", never, read)
    time.sleep(0.01)
    cache.get("c", write(0.0), read)
    assert {path.parent.name for path in tmp_path.glob(f"*/{COMMIT_MARKER}")} == {"a", "c"}
    ArrayCache(tmp_path, max_bytes=1).get("d", write(0.0), read)
    assert {path.parent.name for path in tmp_path.glob(f"*/{COMMIT_MARKER}")} == {"d"}
    assert float(mapped.sum()) == 0.0, "what is mapped stays readable"


def test_an_entry_that_is_being_opened_is_not_removed(tmp_path):
    cache = ArrayCache(tmp_path)
    opened, go_on = threading.Event(), threading.Event()
    found = []

    def slowly(folder):
        opened.set()
        go_on.wait(10)
        return read(folder)

    reader = threading.Thread(target=lambda: found.append(cache.get("a", write(1.0), slowly)))
    reader.start()
    opened.wait(10)
    ArrayCache(tmp_path, max_bytes=1).get("b", write(2.0), read)
    go_on.set()
    reader.join()
    assert float(found[0][0]) == 1.0


def test_two_processes_share_one_entry(tmp_path):
    command = [sys.executable, "-c", ASK, str(tmp_path)]
    both = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("one", "two")]
    answers = [process.communicate(timeout=60)[0].strip() for process in both]
    assert answers[0] == answers[1] in ("one", "two")
    assert json.loads((tmp_path / "entry" / COMMIT_MARKER).read_text()) == {"x.txt": 3}
    assert not list(tmp_path.glob("*.partial"))


def test_keys_tell_their_parts_apart():
    assert cache_key("a", 1) == cache_key("a", 1) != cache_key("a", 2)
    assert len(cache_key()) == 32


@pytest.mark.parametrize("text", ["0", "many", "-5"])
def test_a_size_that_is_none_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setitem(os.environ, MAX_BYTES_VARIABLE, text)
    with pytest.raises(ConfigError, match=f"{MAX_BYTES_VARIABLE}: expected a whole number of bytes above 0, got"):
        ArrayCache(tmp_path)
