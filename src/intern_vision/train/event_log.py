"""Events of rank 0 on their way through the store, where no pipe leads from the node to the stage's process.

They lie as JSON lines in objects of ``CHUNK_LINES`` lines below one address; the last object is written anew while
it grows, which an object store does in one piece, so a reader sees whole lines only, in order, none twice and none
missed. Logs of pods would be the shorter way, but they are cut when they grow and lost with their machine.
"""

import json
import sys
import threading
from typing import Any

from intern_vision.errors import InternError, MissingObjectError
from intern_vision.store import Store, join_uri
from intern_vision.train.local_ranks import Take

CHUNK_LINES = 1000
FLUSH_S = 2.0
POLL_S = 2.0


class EventLog:
    """Writes events; used as a block, in which a thread sends them every ``FLUSH_S`` seconds.

    Args:
        store: where to.
        uri: address below which this attempt's events lie; no other one may have used it.
    """

    def __init__(self, store: Store, uri: str) -> None:
        self._store = store
        self._uri = uri
        self._lock = threading.Lock()
        self._new: list[str] = []
        self._chunk: list[str] = []
        self._number = 0
        self._is_late = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_loop, name="event-log", daemon=True)

    def __enter__(self) -> "EventLog":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._closing.set()
        self._thread.join()
        try:
            self._send()
        except InternError as late:
            if error is None:
                raise  # the history would miss rows: a retry resumes and has them from the checkpoint
            print(f"the last events could not be stored: {late}", file=sys.stderr, flush=True)

    def take(self, event: dict[str, Any]) -> None:
        """Keeps an event until it is sent."""
        with self._lock:
            self._new.append(json.dumps(event))

    def _send_loop(self) -> None:
        while not self._closing.wait(FLUSH_S):
            try:
                self._send()
            except InternError as error:  # the next round sends it; the end of the block insists
                print(f"events wait for the store: {error}", file=sys.stderr, flush=True)

    def _send(self) -> None:
        with self._lock:
            new, self._new = self._new, []
        if not (new or self._is_late):
            return
        self._chunk += new
        self._is_late = True
        while self._chunk:
            lines = self._chunk[:CHUNK_LINES]
            self._store.put("".join(f"{line}\n" for line in lines).encode(), _chunk_uri(self._uri, self._number))
            if len(lines) < CHUNK_LINES:
                break
            self._number, self._chunk = self._number + 1, self._chunk[CHUNK_LINES:]
        self._is_late = False


class EventReader:
    """Reads events while they are written; used as a block, in which a thread looks every ``POLL_S`` seconds.

    Args:
        store: where from.
        uri: as of the ``EventLog``.
        take: gets every event once, in order.
    """

    def __init__(self, store: Store, uri: str, take: Take) -> None:
        self._store = store
        self._uri = uri
        self._take = take
        self._number = 0
        self._num_seen = 0
        self._fault: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read_loop, name="event-reader", daemon=True)

    def __enter__(self) -> "EventReader":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._closing.set()
        self._thread.join()
        try:
            if self._fault is not None:
                raise self._fault
            self.read()
        except Exception:
            if error is None:
                raise

    def read(self) -> None:
        """Hands on what is there and was not yet handed on."""
        while True:
            try:
                lines = self._store.read(_chunk_uri(self._uri, self._number)).decode().splitlines()
            except MissingObjectError:
                return
            for line in lines[self._num_seen :]:
                self._num_seen += 1
                self._take(json.loads(line))
            if len(lines) < CHUNK_LINES:
                return
            self._number, self._num_seen = self._number + 1, 0

    def _read_loop(self) -> None:
        while not self._closing.wait(POLL_S):
            try:
                self.read()
            except InternError as error:  # the end of the block reads what is left
                print(f"the nodes' events cannot be read now: {error}", file=sys.stderr, flush=True)
            except Exception as error:  # of whoever takes them: the end of the block raises it
                self._fault = error
                return


def _chunk_uri(uri: str, number: int) -> str:
    return join_uri(uri, f"{number:06d}.jsonl")
