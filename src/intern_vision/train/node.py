"""One node of a training on several: ``python -m intern_vision.train.node <address of the payload>``.

Kubeflow Trainer's torch policy says in torchrun's variables (``PET_*``) which node this is. The program starts the
node's ranks, sends the events of rank 0 through the store and, on node 0, the stage's files. It ends with the
package's exit codes and a last line ``error: ...``; torchrun itself would end with 1 whatever happened, and would
give ranks that save a checkpoint 30 seconds.
"""

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from intern_vision.config import Config
from intern_vision.errors import ConfigError, InternError, RetryableError
from intern_vision.stages.base import code_digest, scratch_folder, state_dir
from intern_vision.store import Store, file_sha256, join_uri, open_store
from intern_vision.train.event_log import EventLog
from intern_vision.train.local_ranks import Place, RankPayload, run_local_ranks

PAYLOAD_FILE = "payload.json"
RESULT_FILE = "result.json"
EVENTS_FOLDER, RESULT_FOLDER = "events", "result"


class Result(Config):
    """What node 0 uploaded; written last, as JSON, to ``RESULT_FILE`` beside the payload.

    Attributes:
        files: SHA-256 of each file by its name below ``RESULT_FOLDER``.
    """

    files: dict[str, str]


def place_from(environment: Mapping[str, str]) -> Place:
    """Which ranks this node has.

    ``INTERN_NUM_RANKS`` says how many, or else ``PET_NPROC_PER_NODE``: a number, ``cpu`` (one a processor), ``gpu``
    (one a GPU) or ``auto`` (one a GPU, and one where there is none). ``OMP_NUM_THREADS`` is kept where it is set: a
    container sees all processors of its machine and not its share of them.

    Raises:
        ConfigError: a variable is missing or is no number.
    """
    words = environment.get("INTERN_NUM_RANKS") or environment.get("PET_NPROC_PER_NODE", "auto")
    return Place(
        num_local=_num_ranks(words),
        node=_number(environment, "PET_NODE_RANK", at_least=0),
        num_nodes=_number(environment, "PET_NNODES", at_least=1),
        address=environment.get("PET_MASTER_ADDR") or _refuse("PET_MASTER_ADDR", "an address", ""),
        port=_number(environment, "PET_MASTER_PORT", at_least=1),
        num_threads=_number({"OMP_NUM_THREADS": "0"} | dict(environment), "OMP_NUM_THREADS", at_least=0),
    )


def run_node(payload_uri: str, place: Place) -> None:
    """Trains this node's share; node 0 leaves events, the stage's files and ``RESULT_FILE`` beside the payload.

    Raises:
        ConfigError: the image of the nodes has other code than the step.
        InternError: as ``run_local_ranks``.
    """
    store = open_store(payload_uri)
    folder_uri = payload_uri.rpartition("/")[0]
    payload = RankPayload.from_json(store.read(payload_uri).decode(), at=payload_uri)
    if payload.code != code_digest():
        raise ConfigError(
            f"{payload_uri}: the step's code is {payload.code[:12]}, this node's is {code_digest()[:12]}; "
            "give nodes and steps one image, by digest"
        )
    print(f"node {place.node} of {place.num_nodes}: {place.num_local} ranks of {payload.stage}", flush=True)
    with scratch_folder(f"node-{place.node}") as scratch_dir:
        output_dir = scratch_dir / "output"
        output_dir.mkdir()
        here = {"output_dir": output_dir, "scratch_dir": scratch_dir, "cache_dir": state_dir() / "cache"}
        local = payload.with_overrides({name: str(path) for name, path in here.items()})
        with ExitStack() as stack:
            log = stack.enter_context(EventLog(store, join_uri(folder_uri, EVENTS_FOLDER))) if not place.node else None
            run_local_ranks(local, place, log.take if log else _ignore)
        if not place.node:
            _upload(store, output_dir, folder_uri)


def main(payload_uri: str) -> int:
    """The program; gives the exit code."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        run_node(payload_uri, place_from(os.environ))
    except InternError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _upload(store: Store, output_dir: Path, folder_uri: str) -> None:
    files = {}
    for path in sorted(output_dir.rglob("*")):
        if path.is_file():
            name = path.relative_to(output_dir).as_posix()
            files[name] = file_sha256(path)
            store.put(path, join_uri(folder_uri, RESULT_FOLDER, *name.split("/")))
    store.put(Result(files=files).to_json().encode(), join_uri(folder_uri, RESULT_FILE))


def _num_ranks(words: str) -> int:
    if words == "cpu":
        return len(os.sched_getaffinity(0))
    if words in ("auto", "gpu"):
        import torch

        num_gpus = torch.cuda.device_count()
        return num_gpus or (1 if words == "auto" else _refuse("PET_NPROC_PER_NODE", "a node with GPUs", words))
    return _number({"INTERN_NUM_RANKS": words}, "INTERN_NUM_RANKS", at_least=1)


def _number(environment: Mapping[str, str], name: str, at_least: int) -> int:
    text = environment.get(name, "")
    if not text.isdecimal() or int(text) < at_least:
        _refuse(name, f"a number >= {at_least}", text)
    return int(text)


def _refuse(name: str, expected: str, found: str) -> NoReturn:
    raise ConfigError(
        f"{name}: expected {expected}, got {found!r}; a TrainJob whose runtime has the torch policy sets it"
    )


def _ignore(event: dict[str, Any]) -> None:
    """Events are rank 0's, which runs on another node."""


def _stop(number: int, frame: Any) -> None:
    raise RetryableError("asked to stop; the same command resumes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
