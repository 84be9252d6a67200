"""The two runs that the tests of the whole system look at, and commands that go on from them."""

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import intern

from intern_vision.ref import Ref
from intern_vision.s3 import S3Access, S3Store
from intern_vision.service_state import read_record
from intern_vision.stages.base import read_ref

Done = subprocess.CompletedProcess[str]
SETS = ("flower", "det_novel", "seg_night", "depth_room")
FAMILIES = ("multilabel", "detect", "segment", "depth")
TRAININGS = ("amateur", "clip", "generalist-joint", *(f"expert-{family}" for family in FAMILIES))
ARMS = ("intern", "clip")
STEPS = {
    "prepare-upstream",
    "search",
    *TRAININGS,
    "amateur_local",
    "generalist-average",
    "select",
    *(f"prepare-{name}" for name in SETS),
    *(f"{stage}-{arm}-{name}" for stage in ("adapt", "evaluate") for arm in ARMS for name in SETS),
    "export",
    "report",
}
# Trainings that take long enough to be stopped in their middle; everything else as little as possible.
STOPPABLE = {"num_steps": 24, "batch_size": 4, "checkpoint_every": 2, "log_every": 1}
FEW = {"batch_size": 4}
INTERRUPTED = json.dumps(
    {
        "downstream_sets": ["flower"],
        "upstream": {"num_train": 100},
        "amateur": {"trainer": STOPPABLE},
        "baselines": {"clip": {"trainer": STOPPABLE | {"num_steps": 60}}},
        "experts": {family: {"trainer": FEW} for family in FAMILIES},
        "generalists": {"joint": {"trainer": FEW}, "average": {"trainer": FEW, "num_statistics_batches": 1}},
        "adapt": {"shares": [1.0]},
    }
)
# Name of the dataset: what is given, one of its pictures, its task's family.
LAYOUTS = {
    "shapes": ("shapes", "shapes/circle/0.png", "classify"),
    "pairs": ("pairs/labels.csv", "pairs/pictures/0.jpg", "multilabel"),
    "boxes": ("boxes", "boxes/images/0.jpg", "detect"),
    "regions": ("regions", "regions/images/0.png", "segment"),
    "rooms": ("rooms", "rooms/images/0.png", "depth"),
}


@dataclass
class Smoke:
    """A finished smoke run.

    Attributes:
        state: its state folder.
        run_dir: the run's own folder.
        stdout, stderr: what it printed.
        wall_s: how long it took.
        left: commands of processes that were there right after its end.
    """

    state: Path
    run_dir: Path
    stdout: str
    stderr: str
    wall_s: float
    left: list[list[str]]

    def refs(self) -> dict[str, Ref]:
        """Results by step."""
        return {path.stem: read_ref(path) for path in (self.run_dir / "refs").iterdir()}

    def store(self) -> S3Store:
        """The embedded store; it must be up."""
        keys = json.loads((self.state / "credentials.json").read_text())
        record = read_record(self.state)
        return S3Store(
            "s3://intern/store", S3Access(record.s3_endpoint, "us-east-1", keys["access_key"], keys["secret_key"])
        )


def is_in_its_middle(event: dict[str, Any]) -> bool:
    """Whether a progress event is from the middle of a training of ``INTERRUPTED``."""
    return event["stage"] in ("amateur", "clip") and event["done"] >= 4


def resumed(events: list[dict[str, Any]]) -> dict[str, int]:
    """The steps at which trainings were resumed, by stage."""
    notes = {event["stage"]: event["note"] for event in events if event["event"] == "note"}
    return {stage: int(note.split()[3]) for stage, note in notes.items() if note.startswith("resumed at step")}


def adapt(smoke: Smoke, data: Path, name: str, *arguments: str, exit_code: int = 0) -> Done:
    """Adapts the smoke run's generalist."""
    command = ["adapt", "--data", data, "--name", name, "--preset", "smoke", "--state-dir", smoke.state]
    return intern(*command, *arguments, exit_code=exit_code)


def together(*calls: Callable[[], Done]) -> list[Done]:
    """Runs commands at a time, begun one after the other: the servers' lock is not waited for."""

    def call(index: int, function: Callable[[], Done]) -> Done:
        time.sleep(1.5 * index)
        return function()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call, *item) for item in enumerate(calls)]]
