"""The ranks of one machine, seen from the process that starts them.

A rank is ``python -m intern_vision.train.launch`` with torchrun's environment variables. Rank 0 reports through a
pipe, any rank its error; ranks die with their parent, and a SIGTERM to the parent becomes one to each rank, which
saves a checkpoint and exits with 75.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intern_vision import errors
from intern_vision.config import Config
from intern_vision.errors import InternError, RetryableError

KILL_AFTER_S = 20.0
_PR_SET_PDEATHSIG = 1

Take = Callable[[dict[str, Any]], None]
"""What gets the events of rank 0."""


class RankPayload(Config):
    """What a rank must know; written as JSON to a file that only its owner reads.

    Attributes:
        stage: name of the stage whose ``build`` makes the training.
        config: the stage's config as plain values.
        inputs: Refs as plain values by input name.
        store_root: address under which every output lies.
        output_uri: where the stage's output will be committed.
        code: digest of the package's source files where the stage runs.
        output_dir: local folder for the stage's files.
        scratch_dir: local folder shared by the ranks of this node.
        cache_dir: local folder for verified copies of shards.
    """

    stage: str
    config: dict[str, Any]
    inputs: dict[str, tuple[dict[str, Any], ...]]
    store_root: str
    output_uri: str
    code: str
    output_dir: str
    scratch_dir: str
    cache_dir: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the ranks of this machine stand among all ranks of a training.

    Attributes:
        num_local: ranks of this machine.
        node: this machine's number, 0-based; every machine has as many ranks.
        num_nodes: machines that take part.
        address: where rank 0 listens.
        port: its port; 0 = any free one, which only works on a single machine.
        num_threads: processor threads of a rank; 0 = its share of this machine's processors.
    """

    num_local: int
    node: int = 0
    num_nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    num_threads: int = 0


def run_local_ranks(payload: RankPayload, place: Place, take: Take) -> None:
    """Runs this machine's ranks to their end; SIGTERM and SIGINT are passed on to them.

    Args:
        payload: what they train; its folders are this machine's.
        place: which ranks they are.
        take: gets the events of rank 0 where it is one of them.

    Raises:
        InternError: of the class a rank raised; RetryableError where a rank was killed or asked to stop.
    """
    payload_path = Path(payload.scratch_dir) / "payload.json"
    payload_path.write_text(payload.to_json())
    read_end, write_end = os.pipe()
    failures: list[dict[str, Any]] = []
    ranks = _spawn(payload_path, place, write_end)
    os.close(write_end)
    follower = threading.Thread(target=_follow, args=(read_end, take, failures), daemon=True)
    follower.start()
    try:
        with forwarding_signals(lambda: _terminate(ranks)):
            codes = _wait(ranks)
    finally:
        _stop(ranks)
        follower.join(timeout=KILL_AFTER_S)
    _raise_failure(codes, failures, place.node * place.num_local)


def _spawn(payload_path: Path, place: Place, write_end: int) -> list[subprocess.Popen[bytes]]:
    port = place.port or _free_port()
    num_threads = place.num_threads or max(1, (os.cpu_count() or 1) // place.num_local)
    ranks = []
    for local_rank in range(place.num_local):
        environment = os.environ | {
            "RANK": str(place.node * place.num_local + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(place.num_nodes * place.num_local),
            "LOCAL_WORLD_SIZE": str(place.num_local),
            "MASTER_ADDR": place.address,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(num_threads),
            "PYTHONUNBUFFERED": "1",
            "INTERN_EVENT_PIPE": str(write_end),
        }
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "intern_vision.train.launch", str(payload_path)],
                env=environment,
                pass_fds=(write_end,),
                preexec_fn=die_with_parent,
            )
        )
    return ranks


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies; for ``preexec_fn`` (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _follow(read_end: int, take: Take, failures: list[dict[str, Any]]) -> None:
    with os.fdopen(read_end, encoding="utf-8") as pipe:
        for line in pipe:
            event = json.loads(line)
            if event["event"] == "error":
                failures.append(event)
            else:
                take(event)


@contextmanager
def forwarding_signals(act: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call ``act`` (in the main thread; elsewhere nothing changes)."""
    old = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, lambda number, frame: act())
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _terminate(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()


def _wait(ranks: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """Waits until all ranks ended well or one ended badly; the others then get a moment to say why."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if all(code is not None for code in codes):
            return codes
        if any(code not in (None, 0) for code in codes):
            deadline = time.monotonic() + 5.0
            while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
                time.sleep(0.05)
            return [rank.poll() for rank in ranks]
        time.sleep(0.05)


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    _terminate(ranks)
    deadline = time.monotonic() + KILL_AFTER_S
    for rank in ranks:
        try:
            rank.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _raise_failure(codes: list[int | None], failures: list[dict[str, Any]], first_rank: int = 0) -> None:
    if failures:
        # A rank's own fault explains more than the retryable ends of its neighbours.
        failure = min(failures, key=lambda event: event["type"] == "RetryableError")
        error_class = getattr(errors, failure["type"], InternError)
        raise error_class(failure["message"])
    # When one rank is killed, its neighbours fail in their next collective: the kill is the cause.
    for rank, code in enumerate(codes, first_rank):
        if code is not None and code < 0:
            raise RetryableError(
                f"rank {rank} was killed by {signal.Signals(-code).name} (out of memory?); the same command resumes"
            )
    for rank, code in enumerate(codes, first_rank):
        if code:
            raise InternError(f"rank {rank} ended with code {code}; its traceback is in the log above")
