"""Two nodes as processes of this machine, with Trainer's variables, through the program that a TrainJob names."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from cluster_servers import serving
from helpers import AUGMENT, StageProcess, amateur_config, trainer_config
from trainer_server import JOBS, Machines, TrainerServer, write_kubeconfig

from intern_vision.errors import RetryableError
from intern_vision.stages.base import read_record
from intern_vision.store import FileStore, join_uri
from intern_vision.train.checkpoint import Checkpoints
from intern_vision.train.launch import HISTORY_FILE
from intern_vision.train.settings import CLIP_SIGNALS

NUM_STEPS = 24
PATIENCE_S = 300.0
"""Four processes that import DeepSpeed on a busy machine."""


class TwoNodes:
    """Tries of one amateur on two nodes under ZeRO-2, followed through a Kubernetes API."""

    def __init__(self, request, world, folder, url, name, num_nodes=2):
        trainer = trainer_config(num_steps=NUM_STEPS, checkpoint_every=2, zero_stage=2, num_nodes=num_nodes)
        self.config = amateur_config(trainer=trainer, signals=CLIP_SIGNALS, augment=AUGMENT)
        self.request, self.world, self.folder, self.name, self.num_tries = request, world, folder, name, 0
        self.store = FileStore(world.store_root)
        self.environment = dict(world.environment)
        if num_nodes > 1:
            self.environment["KUBECONFIG"] = str(write_kubeconfig(folder / "kubeconfig", url))

    def start(self, num_ranks=1):
        self.num_tries += 1
        inputs = {"data": (self.world.upstream,), "genotype": (self.world.genotype,)}
        folder = self.folder / f"{self.name}-{self.num_tries}"
        run = StageProcess(folder, "amateur", self.config, inputs, self.name, num_ranks, self.environment)
        self.request.addfinalizer(run.process.kill)
        return run

    def checkpoints(self):
        found = [file.uri for file in self.store.list(f"{self.world.store_root}/amateur")]
        uri = next((uri.partition("/checkpoints/")[0] for uri in found if f"/{self.name}-" in uri), None)
        steps = Checkpoints(self.store, join_uri(uri, "checkpoints"), self.folder).complete_steps() if uri else []
        return steps or [0]


@pytest.mark.slow
def test_a_node_is_killed_and_then_the_step_and_the_weights_are_those_of_one_undisturbed_machine(
    request, world, tmp_path
):
    alone = TwoNodes(request, world, tmp_path, "", "alone", 1).start(num_ranks=2)
    alone.finish(PATIENCE_S)
    expected = read_record(FileStore(world.store_root), alone.ref().uri)
    server = TrainerServer()
    # A TrainJob names the image's python.
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with serving(server) as url, Machines(server, os.environ | world.environment | path) as machines:
        tries = TwoNodes(request, world, tmp_path, url, "nodes")

        run = tries.start()
        run.wait_until(lambda: tries.checkpoints()[-1] >= 4, PATIENCE_S)
        machines.kill(1)
        assert run.finish(PATIENCE_S) == RetryableError.exit_code, run.log()
        last_line = run.log().strip().splitlines()[-1]
        assert last_line.startswith("RetryableError: node 1 (pod intern-amateur-") and "killed: signal 9" in last_line
        assert [node.wait(30) for node in machines.nodes] == [75, -signal.SIGKILL], "the survivor says: try again"
        assert "[nodes node 0] error: rank 0 lost the other nodes" in run.log()
        server.wait_until(lambda: not any(path.startswith(JOBS) for path in server.objects))
        resumed_at = tries.checkpoints()[-1]
        assert 4 <= resumed_at < NUM_STEPS

        run = tries.start()
        run.wait_until(lambda: tries.checkpoints()[-1] >= resumed_at + 2, PATIENCE_S)
        nodes = machines.nodes
        run.process.kill()  # the nodes know nothing of it and go on
        assert run.finish(PATIENCE_S) == -signal.SIGKILL
        time.sleep(0.2)
        assert not server.asked.count(("create", "pods")) and machines.nodes is nodes

        run = tries.start()
        run.finish(PATIENCE_S)
        final = read_record(tries.store, run.ref().uri)
        assert machines.nodes is nodes, "taken over, not started again"
        assert [node.wait(30) for node in nodes] == [0, 0]
    assert final.facts["resumed_at_step"] == resumed_at
    assert final.files == expected.files and final.ref.digest == expected.ref.digest
    assert tries.store.list(join_uri(final.ref.uri, "checkpoints")) == []
    rows = [json.loads(line) for line in tries.store.read(join_uri(final.ref.uri, HISTORY_FILE)).splitlines()]
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert final.cpu_s > expected.cpu_s, "the nodes' own, of both attempts"
    # The number of nodes decides no key.
    assert final.key == expected.key and final.config["trainer"]["num_nodes"] == 2
