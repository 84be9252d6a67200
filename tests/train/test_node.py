import os
import signal

import pytest

from intern_vision.errors import ConfigError
from intern_vision.store import FileStore, join_uri
from intern_vision.train import node
from intern_vision.train.local_ranks import Place, RankPayload
from intern_vision.train.node import place_from, run_node

TRAINER = {
    "PET_NNODES": "3",
    "PET_NODE_RANK": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}


def test_trainers_variables_say_which_ranks_a_node_has():
    place = Place(num_local=4, node=2, num_nodes=3, address="job-node-0-0.job", port=29400)
    assert place_from(TRAINER) == place
    assert place_from(TRAINER | {"INTERN_NUM_RANKS": "8"}).num_local == 8
    assert place_from(TRAINER | {"PET_NPROC_PER_NODE": "cpu"}).num_local == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"PET_NNODES": "1:4"}, "PET_NNODES: expected a number >= 1, got '1:4'"),
        ({"PET_NODE_RANK": ""}, "PET_NODE_RANK: expected a number >= 0, got ''"),
        ({"PET_MASTER_ADDR": ""}, "PET_MASTER_ADDR: expected an address, got ''"),
        ({"INTERN_NUM_RANKS": "many"}, "INTERN_NUM_RANKS: expected a number >= 1, got 'many'"),
    ],
)
def test_a_wrong_variable_is_named(change, line):
    with pytest.raises(ConfigError) as caught:
        place_from(TRAINER | change)
    assert str(caught.value).startswith(line) and "torch policy" in str(caught.value)


def test_a_node_with_other_code_than_the_step_says_so_and_the_program_ends_with_its_code(tmp_path, monkeypatch, capfd):
    store = FileStore(f"file://{tmp_path}")
    uri = join_uri(store.root_uri, "nodes-1", node.PAYLOAD_FILE)
    empty = dict.fromkeys(("store_root", "output_uri", "output_dir", "scratch_dir", "cache_dir"), "")
    payload = RankPayload(stage="amateur", config={}, inputs={}, code="0" * 64, **empty)
    store.put(payload.to_json().encode(), uri)
    with pytest.raises(ConfigError, match="the step's code is 000000000000, this node's is .*one image, by digest"):
        run_node(uri, place_from(TRAINER))
    for name, value in TRAINER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("INTERN_NUM_RANKS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert node.main(uri) == ConfigError.exit_code
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: {uri}: the step's code is")
