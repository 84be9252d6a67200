import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from helpers import StageProcess, World, amateur_config, gone, trainer_config

from intern_vision.errors import InternError, RetryableError
from intern_vision.stages.base import COMMIT_MARKER, read_record
from intern_vision.store import FileStore, join_uri
from intern_vision.train import launch, local_ranks
from intern_vision.train.checkpoint import Checkpoints
from intern_vision.train.launch import HISTORY_FILE

NUM_STEPS = 48


class Runs:
    """Attempts at one amateur with all five signals, two ranks, under one name."""

    def __init__(self, world: World, folder, name: str, **settings) -> None:
        self.world, self.folder, self.name = world, folder, name
        trainer = trainer_config(**{"num_steps": NUM_STEPS, "checkpoint_every": 4} | settings)
        self.config = amateur_config(trainer=trainer)
        self.store = FileStore(world.store_root)
        self.num_started = 0

    def start(self) -> StageProcess:
        self.num_started += 1
        inputs = {"data": (self.world.upstream,), "genotype": (self.world.genotype,)}
        folder = self.folder / f"{self.name}-{self.num_started}"
        return StageProcess(folder, "amateur", self.config, inputs, self.name, 2, self.world.environment)

    def output_uri(self) -> str:
        (uri,) = {
            "/".join(file.uri.split("/")[: self.world.store_root.count("/") + 3])
            for file in self.store.list(f"{self.world.store_root}/amateur")
            if f"/amateur/{self.name}-" in file.uri
        }
        return uri

    def last_complete_step(self) -> int:
        checkpoints = Checkpoints(self.store, join_uri(self.output_uri(), "checkpoints"), self.folder)
        return checkpoints.complete_steps()[-1]

    def assert_uncommitted(self) -> None:
        # A training that fails at once has not even saved a checkpoint.
        stored = [file.uri for file in self.store.list(f"{self.world.store_root}/amateur")]
        assert not [uri for uri in stored if re.search(rf"/amateur/{self.name}-[^/]+/{COMMIT_MARKER}$", uri)]


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_as_if_nothing_had_happened(world, tmp_path):
    rng = random.Random(2021)
    undisturbed = Runs(world, tmp_path, "undisturbed").start()
    expected = read_record(FileStore(world.store_root), undisturbed.ref().uri)
    runs = Runs(world, tmp_path, "killed")
    resumed_at = 0

    def started(kill_step: int) -> tuple[StageProcess, list[psutil.Process]]:
        run = runs.start()
        run.wait_for_step(kill_step)
        time.sleep(0.03 * rng.random())
        assert run.notes() == ([f"resumed at step {resumed_at} of {NUM_STEPS}"] if resumed_at else [])
        ranks = run.ranks()
        assert len(ranks) == 2
        return run, ranks

    def check(ranks: list[psutil.Process]) -> None:
        nonlocal resumed_at
        assert gone(ranks)
        runs.assert_uncommitted()
        assert runs.last_complete_step() > resumed_at
        resumed_at = runs.last_complete_step()

    run, ranks = started(rng.randint(9, 12))  # the whole group at once
    os.killpg(run.process.pid, signal.SIGKILL)
    assert run.finish() == -signal.SIGKILL
    check(ranks)

    run, ranks = started(rng.randint(18, 21))  # the parent alone: its ranks must not outlive it
    run.process.kill()
    assert run.finish() == -signal.SIGKILL
    check(ranks)

    run, ranks = started(rng.randint(27, 30))  # one rank alone
    victim = rng.randrange(2)
    ranks[victim].kill()
    assert run.finish() == RetryableError.exit_code, run.log()
    assert f"RetryableError: rank {victim} was killed by SIGKILL" in run.log()
    check(ranks)

    run, ranks = started(rng.randint(36, 39))  # a polite request: nothing is lost
    run.process.terminate()
    assert run.finish() == RetryableError.exit_code, run.log()
    done = run.events("step")[-1]["done"]
    assert f"RetryableError: stopped at step {done} of {NUM_STEPS}; the same command resumes" in run.log()
    check(ranks)
    assert resumed_at == done

    final = read_record(runs.store, runs.start().ref().uri)
    assert final.facts["resumed_at_step"] == resumed_at
    assert final.cpu_s > expected.cpu_s, "five starts and the same steps"
    assert final.files == expected.files and {"weights.safetensors", HISTORY_FILE} <= final.files.keys()
    assert final.ref.digest == expected.ref.digest
    assert runs.store.list(join_uri(final.ref.uri, "checkpoints")) == []
    rows = [json.loads(line) for line in runs.store.read(join_uri(final.ref.uri, HISTORY_FILE)).splitlines()]
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert {f"loss/{name}" for name in final.config["signals"]} <= rows[0].keys()
    assert final.facts["image_passes"] == NUM_STEPS * 8 * 2

    again = runs.start()  # committed: not repeated, and torch is not even imported
    assert again.ref() == final.ref
    assert again.events("cached") and not again.events("step") and "torch imported: False" in again.log()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_stage_and_commits_nothing(world, tmp_path):
    runs = Runs(world, tmp_path, "diverging", learning_rate=1e30, log_every=3, checkpoint_every=1)
    run = runs.start()
    assert run.finish() == 1, run.log()
    (line,) = [line for line in run.log().splitlines() if line.startswith("TrainingError")]
    assert re.search(r"not finite.* at step [01]; samples on rank [01]: upstream-train-\d{6}, ", line), line
    assert "lower trainer.learning_rate" in line
    assert run.log().count("Traceback") == 0
    runs.assert_uncommitted()


@pytest.mark.parametrize(
    ("codes", "failures", "error", "message"),
    [
        ([1, -9], [], RetryableError, "rank 1 was killed by SIGKILL"),
        ([-15, 0], [], RetryableError, "rank 0 was killed by SIGTERM"),
        ([0, 1], [], InternError, "rank 1 ended with code 1"),
        ([75, 2], ["RetryableError", "CheckpointError"], InternError, "CheckpointError says"),
        ([75, None], ["RetryableError"], RetryableError, "RetryableError says"),
    ],
)
def test_the_cause_is_told_and_not_its_echo(codes, failures, error, message):
    events = [{"type": name, "message": f"{name} says"} for name in failures]
    with pytest.raises(error, match=message) as caught:
        local_ranks._raise_failure(codes, events)
    assert (caught.value.exit_code == RetryableError.exit_code) == (error is RetryableError)


def test_all_well_raises_nothing():
    local_ranks._raise_failure([0, 0], [])


def test_alone_needs_no_port_and_leaves_no_trace_for_child_processes():
    launch.start_distributed()
    launch.start_distributed()
    assert torch.distributed.get_world_size() == 1
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & os.environ.keys()


def test_deepspeed_comes_without_mlflow_and_leaves_it_importable():
    code = (
        "import sys\nfrom intern_vision.train.launch import import_deepspeed\nimport_deepspeed()\n"
        "assert 'mlflow' not in sys.modules\nimport importlib.util\nassert importlib.util.find_spec('mlflow')\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
