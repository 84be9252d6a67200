"""Training checkpoints in the store: written behind the loop's back, valid only when complete.

A checkpoint of step ``s`` is the prefix ``<checkpoints>/step-<s>`` with the state as safetensors
(``intern_vision.train.engine_state``) and plain values as JSON and, written last, one
``_COMMITTED-<node>-of-<nodes>`` marker by each node. It fits any number of nodes and ranks.
"""

import queue
import re
import shutil
import threading
from pathlib import Path

from intern_vision.store import Store, join_uri

_STEP = re.compile(r"/step-(\d+)/(.+)$")
_MARKER = re.compile(r"_COMMITTED-(\d+)-of-(\d+)$")


class Checkpoints:
    """Saves, finds and prunes the checkpoints of one training.

    Args:
        store: where they lie.
        uri: prefix of this training's checkpoints.
        local_dir: folder shared by the ranks of this node; they write and read here.
        node: this node's number, 0-based.
        num_nodes: nodes that take part.
        num_kept: complete checkpoints to keep.
    """

    def __init__(
        self, store: Store, uri: str, local_dir: Path, *, node: int = 0, num_nodes: int = 1, num_kept: int = 2
    ) -> None:
        self.store = store
        self.uri = uri
        self.local_dir = local_dir
        self.node = node
        self.num_nodes = num_nodes
        self.num_kept = num_kept
        self._queue: queue.Queue[int | None] = queue.Queue()
        self._error: Exception | None = None
        self._uploader: threading.Thread | None = None

    def complete_steps(self) -> list[int]:
        """Steps of which every node that took part has written its marker, ascending."""
        markers: dict[tuple[int, int], set[int]] = {}
        for file in self.store.list(self.uri):
            match = _STEP.search(file.uri)
            marker = _MARKER.fullmatch(match.group(2)) if match else None
            if match and marker:
                markers.setdefault((int(match.group(1)), int(marker.group(2))), set()).add(int(marker.group(1)))
        return sorted({step for (step, num_nodes), nodes in markers.items() if len(nodes) == num_nodes})

    def upload(self, step: int) -> None:
        """Queues this node's files of ``step`` for upload; raises what an earlier upload raised."""
        if self._error is not None:
            raise self._error
        if self._uploader is None:
            self._uploader = threading.Thread(target=self._upload_loop, name="checkpoint-upload", daemon=True)
            self._uploader.start()
        self._queue.put(step)

    def close(self) -> None:
        """Waits for queued uploads; raises what one of them raised."""
        if self._uploader is not None:
            self._queue.put(None)
            self._uploader.join()
            self._uploader = None
        if self._error is not None:
            raise self._error

    def download_latest(self) -> int:
        """Copies the newest complete checkpoint below ``local_dir`` and returns its step; 0 where there is none."""
        steps = self.complete_steps()
        if not steps:
            return 0
        prefix = join_uri(self.uri, f"step-{steps[-1]}")
        for file in self.store.list(prefix):
            name = file.uri.removeprefix(prefix + "/")
            if not _MARKER.fullmatch(name):
                target = self.local_dir / f"step-{steps[-1]}" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self.store.get(file.uri, target)
        return steps[-1]

    def delete_all(self) -> None:
        """Removes every checkpoint of this training from the store."""
        self.store.delete(self.uri)

    def _upload_loop(self) -> None:
        while (step := self._queue.get()) is not None:
            if self._error is not None:
                continue  # the training is about to end: what it reached after the fault is not kept
            try:
                self._upload_one(step)
            except Exception as error:  # the loop raises it at its next checkpoint
                self._error = error

    def _upload_one(self, step: int) -> None:
        folder = self.local_dir / f"step-{step}"
        prefix = join_uri(self.uri, f"step-{step}")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.store.put(path, join_uri(prefix, *path.relative_to(folder).parts))
        self.store.put(b"", join_uri(prefix, f"_COMMITTED-{self.node}-of-{self.num_nodes}"))
        shutil.rmtree(folder, ignore_errors=True)
        if self.node == 0:
            for old_step in self.complete_steps()[: -self.num_kept]:
                self.store.delete(join_uri(self.uri, f"step-{old_step}"))
