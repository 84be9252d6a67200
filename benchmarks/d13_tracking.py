"""D13: a training loop with tracking on over the same loop with tracking off.

As in a stage, the training process only writes JSON lines to a pipe; the process at its other end gives them
to a ``Tracker``, which sends them to a real MLflow server. Ten metrics every ten steps. The ratio is of the
training process's CPU seconds; its elapsed time, in which the other processes also compete for the cores, is
shown beside it.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.d1_trainer_step import make_job
from benchmarks.measure import Figure, Settings, interleave, median_ratio, run_script
from intern_vision.services import running
from intern_vision.track import Tracker
from intern_vision.train.launch import start_distributed
from intern_vision.train.objective import Batch, Losses, MultiTaskObjective
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.trainer import RankContext, Trainer

LOG_EVERY = 10
BATCH_SIZE = 4
ROUNDS_FACTOR = 4
"""Rounds for each one asked for."""
NUM_VALUES = 7
"""Beside the loss, its one part and the learning rate, which makes ten metrics."""


class ReportingObjective(MultiTaskObjective):
    """Reports as many values as the objective with the most signals."""

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """The losses, and one of them under several names."""
        losses, _ = super().forward(batch)
        (loss,) = losses.values()
        return losses, {f"value-{number}": loss.detach() for number in range(NUM_VALUES)}


def make_trainer(num_steps: int, on_event: Callable[[dict[str, Any]], None]) -> Trainer:
    """A trainer whose reports go to ``on_event``."""
    config = TrainerConfig(num_steps=num_steps, batch_size=BATCH_SIZE, learning_rate=1e-3, log_every=LOG_EVERY)
    job = make_job(config)
    job.objective = ReportingObjective(job.objective.model)
    return Trainer(job, RankContext(on_event=on_event))


def follow(spool_dir: str) -> None:
    """The other end of the pipe: tells the tracker of each line, and at the end how many metrics were sent."""
    num_metrics = 0
    with Tracker.for_stage("benchmark", Path(spool_dir)) as tracker:
        for number, line in enumerate(sys.stdin):
            event = json.loads(line)
            tracker.log_metrics({f"train/{k}": v for k, v in event["metrics"].items()}, step=number)
            num_metrics += len(event["metrics"])
    # The tracker deletes its file once the server has everything.
    is_sent = not list(Path(spool_dir).glob("*.jsonl"))
    print(num_metrics - tracker.num_dropped_values if is_sent else 0)


def measure(settings: Settings) -> list[Figure]:
    """The loop with a pipe to the tracker over the loop without."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    start_distributed()
    num_steps = LOG_EVERY if settings.quick else 2 * LOG_EVERY
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "state") as services:
        command = [sys.executable, "-m", "benchmarks.d13_tracking", "--follow", f"{folder}/spool"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        follower = subprocess.Popen(command, env=os.environ | services.environment(), **pipes)

        def emit(event: dict[str, Any]) -> None:
            follower.stdin.write(json.dumps(event) + "\n")

        walls_s: dict[str, list[float]] = {"on": [], "off": []}
        trainers = {"on": make_trainer(num_steps, emit), "off": make_trainer(num_steps, lambda event: None)}

        def timed(name: str) -> Callable[[], None]:
            def run() -> None:
                started = time.perf_counter()
                trainers[name].train()
                walls_s[name].append(time.perf_counter() - started)

            return run

        # A round is short, and the difference small beside the noise of a shared machine.
        seconds = interleave({name: timed(name) for name in trainers}, ROUNDS_FACTOR * settings.num_rounds)
        sent, _ = follower.communicate(timeout=60)
    elapsed = statistics.median(on / off for on, off in zip(walls_s["on"][1:], walls_s["off"][1:], strict=True))
    step_us = 1e6 * statistics.median(seconds["off"]) / num_steps
    return [
        Figure(
            name="D13 tracking",
            value=median_ratio(seconds, "on", "off"),
            target=1.01,
            reference=f"CPU of the loop without tracking, {step_us:.0f} us a step; elapsed {elapsed:.2f} x; "
            f"{int(sent)} metric values reached the server",
            limit="one line of JSON and one write to a pipe every ten steps",
        )
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--follow"]:
        follow(sys.argv[2])
    else:
        run_script(measure, __doc__.splitlines()[0])
