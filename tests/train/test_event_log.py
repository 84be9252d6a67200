import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.errors import InternError, RetryableError
from intern_vision.store import FileStore, join_uri
from intern_vision.train import event_log
from intern_vision.train.event_log import EventLog, EventReader


@pytest.fixture
def store(tmp_path):
    return FileStore(f"file://{tmp_path}")


@given(st.lists(st.integers(0, 7), max_size=12))
@settings(max_examples=30, deadline=None)
def test_every_event_arrives_once_and_in_order_however_writing_and_reading_mix(tmp_path_factory, batches):
    store = FileStore(f"file://{tmp_path_factory.mktemp('events')}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_log, "CHUNK_LINES", 4)
        log, taken, number = EventLog(store, store.root_uri), [], 0
        reader = EventReader(store, store.root_uri, taken.append)
        for size in batches:
            for _ in range(size):
                log.take({"number": number})
                number += 1
            log._send()
            reader.read()
            assert taken == [{"number": n} for n in range(number)]
        assert len(store.list(store.root_uri)) == -(-number // 4)


def test_threads_write_and_read_while_the_training_goes_on(store, monkeypatch):
    monkeypatch.setattr(event_log, "FLUSH_S", 0.005)
    monkeypatch.setattr(event_log, "POLL_S", 0.005)
    monkeypatch.setattr(event_log, "CHUNK_LINES", 10)
    taken, halfway = [], threading.Event()

    def take(event):
        taken.append(event["n"])
        if event["n"] == 49:
            halfway.set()

    with EventReader(store, store.root_uri, take), EventLog(store, store.root_uri) as log:
        for n in range(50):
            log.take({"n": n})
        assert halfway.wait(20), "events come while the log is open"
        for n in range(50, 77):
            log.take({"n": n})
    assert taken == list(range(77))
    # A process that starts later, as after a crash, reads all of it.
    again = []
    with EventReader(store, store.root_uri, lambda event: again.append(event["n"])):
        pass
    assert again == taken


class FailingStore(FileStore):
    """Does not answer ``num_failures`` times."""

    num_failures = 0

    def put(self, source, uri):
        if self.num_failures:
            self.num_failures -= 1
            raise RetryableError("the disk is full")
        super().put(source, uri)


def test_a_store_that_is_away_delays_events_and_loses_none(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(event_log, "FLUSH_S", 0.005)
    store, answered = FailingStore(f"file://{tmp_path}"), threading.Event()
    store.num_failures = 3
    uri = join_uri(store.root_uri, "000000.jsonl")
    with EventLog(store, store.root_uri) as log:
        log.take({"n": 1})
        for _ in range(4000):
            if not store.num_failures and (tmp_path / "000000.jsonl").exists():
                answered.set()
                break
            threading.Event().wait(0.005)
    assert answered.is_set() and json.loads(store.read(uri)) == {"n": 1}
    assert "events wait for the store: the disk is full" in capfd.readouterr().err


def test_the_end_insists_on_the_last_events_unless_another_error_is_on_its_way(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(event_log, "FLUSH_S", 60.0)
    store = FailingStore(f"file://{tmp_path}")
    store.num_failures = 2
    with pytest.raises(RetryableError, match="the disk is full"), EventLog(store, store.root_uri) as log:
        log.take({"n": 1})
    with pytest.raises(InternError, match="the cause"), EventLog(store, store.root_uri) as log:
        log.take({"n": 1})
        raise InternError("the cause")
    assert "the last events could not be stored: the disk is full" in capfd.readouterr().err


def test_a_fault_of_whoever_takes_the_events_is_raised_at_the_end(store, monkeypatch):
    monkeypatch.setattr(event_log, "POLL_S", 0.005)
    taken = threading.Event()

    def take(event):
        taken.set()
        raise OSError("no space left")

    with EventLog(store, store.root_uri) as log:
        log.take({"n": 1})
    with pytest.raises(OSError, match="no space left"), EventReader(store, store.root_uri, take):
        assert taken.wait(20)
