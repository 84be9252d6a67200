"""A training on several machines, seen from the stage's process.

The stage's process trains nothing itself. It leaves the payload in the store, has a *launcher* start one
``intern_vision.train.node`` a machine, follows rank 0's events in the store and fetches the stage's files in the end.
The library knows no cluster: launchers come from the entry-point group ``intern_vision.node_launchers``.
"""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from intern_vision.errors import ConfigError, MissingObjectError, RetryableError
from intern_vision.stages.base import StageContext
from intern_vision.store import Store, join_uri
from intern_vision.train.event_log import EventReader
from intern_vision.train.local_ranks import RankPayload, Take, forwarding_signals
from intern_vision.train.node import EVENTS_FOLDER, PAYLOAD_FILE, RESULT_FILE, RESULT_FOLDER, Result

LAUNCHERS = "intern_vision.node_launchers"


@dataclass(frozen=True, kw_only=True)
class NodesRequest:
    """What a launcher is asked to start.

    Attributes:
        stage: the stage's name.
        name: what this use of the stage is called.
        output_uri: where the stage's output will be committed: the same work has the same one.
        payload_uri: argument of ``python -m intern_vision.train.node``.
        num_nodes: machines.
    """

    stage: str
    name: str
    output_uri: str
    payload_uri: str
    num_nodes: int


class NodesJob(Protocol):
    """A training on several machines; made by a launcher from a ``NodesRequest`` and a function that tells people."""

    def start(self, is_stopping: Callable[[], bool]) -> str:
        """Starts it, or takes over the one that an earlier process started for the same output.

        Returns:
            Address of the payload that it works on: the request's, or that of the one taken over.

        Raises:
            InternError: what is missing or refused, one line; RetryableError once ``is_stopping``.
        """
        ...

    def wait(self, is_stopping: Callable[[], bool]) -> None:
        """Returns when all nodes ended well.

        Raises:
            InternError: of the class that the cause on a node has; RetryableError once ``is_stopping``.
        """
        ...

    def delete(self) -> None:
        """Removes it and its processes; what is not there is not missed, and a failure is told, not raised."""
        ...


Launcher = Callable[[NodesRequest, Callable[[str], None]], NodesJob]


def run_on_nodes(payload: RankPayload, num_nodes: int, context: StageContext, take: Take) -> None:
    """Runs a training on ``num_nodes`` machines; when it returns, ``context.output_dir`` holds rank 0's files.

    Each attempt has a folder of its own below the output's checkpoints, which go once the output is committed.

    Args:
        payload: what to train; its folders are replaced on each node.
        num_nodes: machines, 2 or more.
        context: of the stage.
        take: gets the events of rank 0.

    Raises:
        InternError: as ``NodesJob``; ConfigError where nothing here can start nodes.
    """
    store = context.store
    folder_uri = join_uri(context.output_uri, "checkpoints", f"nodes-{secrets.token_hex(4)}")
    request = NodesRequest(
        stage=payload.stage,
        name=context.progress.name,
        output_uri=context.output_uri,
        payload_uri=join_uri(folder_uri, PAYLOAD_FILE),
        num_nodes=num_nodes,
    )
    job = find_launcher()(request, context.progress.say)
    store.put(payload.to_json().encode(), request.payload_uri)
    stopping = threading.Event()
    with forwarding_signals(stopping.set):
        try:
            folder_uri = job.start(stopping.is_set).rpartition("/")[0]
            with EventReader(store, join_uri(folder_uri, EVENTS_FOLDER), take):
                job.wait(stopping.is_set)
            _fetch_result(store, folder_uri, context)
        finally:
            job.delete()


def find_launcher() -> Launcher:
    """What starts nodes here; ConfigError where nothing is installed that can."""
    for entry in entry_points(group=LAUNCHERS):
        return entry.load()
    raise ConfigError(
        "trainer.num_nodes: nothing installed here starts other machines; install this package with its components, "
        "or set it to 1"
    )


def _fetch_result(store: Store, folder_uri: str, context: StageContext) -> None:
    uri = join_uri(folder_uri, RESULT_FILE)
    try:
        result = Result.from_json(store.read(uri).decode(), at=uri)
    except MissingObjectError:
        raise RetryableError(f"{uri}: the nodes ended well without a result; the same command resumes") from None
    for name, sha256 in result.files.items():
        target = context.output_dir / name
        store.get(join_uri(folder_uri, RESULT_FOLDER, *name.split("/")), target, sha256=sha256)
