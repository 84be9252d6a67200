"""Workspace: what building a training may use, in the stage's process or in a rank."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, fetch
from intern_vision.store import Store


@dataclass(slots=True, kw_only=True)
class Workspace:
    """Inputs and local folders of a training.

    Attributes:
        store: the bytes.
        inputs: the stage's Refs.
        scratch_dir: local folder shared by the ranks of this node.
        cache_dir: local folder for verified copies of shards.
    """

    store: Store
    inputs: Inputs
    scratch_dir: Path
    cache_dir: Path

    @property
    def process_name(self) -> str:
        """A name no other process of this node uses now."""
        return str(os.getpid())

    def fetch(self, ref: Ref) -> Path:
        """A verified local copy of a small output; ranks of one node share it."""
        root = self.scratch_dir / "inputs"
        root.mkdir(exist_ok=True)
        with open(root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return fetch(self.store, ref, root)
