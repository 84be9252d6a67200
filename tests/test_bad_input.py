"""Wrong commands, addresses and files: one line that says what to change, the right exit code, no traceback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import own_data
import pytest
from helpers import set_environment
from running import clean_environment, error_line, intern, processes_of, read_events

from intern_vision import track
from intern_vision.errors import InternError
from intern_vision.mlflow_rest import Server
from intern_vision.stages.base import read_ref

CLOSED = "http://127.0.0.1:9"


def refused(*arguments, exit_code=2, **changes):
    """The one line that a command ends with."""
    return error_line(intern(*arguments, exit_code=exit_code, **changes))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--override", '{"amateur": {"trainer": {"num_step": 3}}}'], "amateur.trainer.num_step: unknown key; known"),
        (["--override", '{"search": {"num_trials": "4"}}'], "search.num_trials: expected a valid integer, got"),
        (["--override", '{"search": {"num_trials": 2.5}}'], "search.num_trials: expected a valid integer, got 2.5"),
        (["--override", "{bad"], r"overrides: expected a JSON object, got '{bad' \(.* line 1 column 2\)"),
        (["--preset", "nanno"], "preset: expected one of smoke, nano, small, mn_b4, mn_b15, got 'nanno'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(tmp_path, arguments, line):
    preset = [] if "--preset" in arguments else ["--preset", "smoke"]
    state = tmp_path / "state"
    assert re.match(f"error: {line}", refused("run", *preset, *arguments, "--state-dir", state))
    assert not state.exists()


def test_state_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("run", "--preset", "smoke", "--state-dir", tmp_path / "file")
    assert line == f"error: {tmp_path}/file: expected a folder for the servers' state, got a file; name another"


def test_port_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refused("run", "--preset", "smoke", "--state-dir", tmp_path / "state", INTERN_S3_PORT=port)
    assert f"INTERN_S3_PORT: port {port} is taken by process {os.getpid()}" in line
    assert processes_of(tmp_path) == []


def test_changed_config_of_a_run(tmp_path):
    run = ["run", "--preset", "smoke", "--state-dir", tmp_path]
    # The first start gets as far as its servers.
    assert "no answer" in refused(*run, exit_code=75, MLFLOW_TRACKING_URI=CLOSED)
    override = ["--override", '{"adapt": {"seed": 1}}']
    line = refused(*run, *override)
    assert "run smoke was started with another config: adapt.seed: 0 -> 1; give the same values" in line
    assert "no answer" in refused(*run, *override, "--no-resume", exit_code=75, MLFLOW_TRACKING_URI=CLOSED)
    assert "adapt.seed: 1 -> 0" in refused(*run)


def test_wrong_credentials(s3, tmp_path):
    # An MLflow address keeps an MLflow server from being started first.
    changes = {"INTERN_S3_ENDPOINT": s3.s3_endpoint, "MLFLOW_TRACKING_URI": CLOSED, "AWS_ACCESS_KEY_ID": "wrong"}
    arguments = ["run", "--preset", "smoke", "--state-dir", tmp_path / "state"]
    line = refused(*arguments, **changes, AWS_SECRET_ACCESS_KEY="not-to-be-shown")
    assert s3.s3_endpoint in line and "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in line
    assert "not-to-be-shown" not in line


def test_tracking_server_away_at_the_start_of_a_run(tmp_path):
    # Models are registered there at the end: the run says so now, not after the training.
    line = refused("run", "--preset", "smoke", "--state-dir", tmp_path, exit_code=75, MLFLOW_TRACKING_URI=CLOSED)
    assert line == f"error: MLFLOW_TRACKING_URI: no answer from {CLOSED}; start it or correct the address"
    assert processes_of(tmp_path) == []


def test_own_data_is_refused_before_anything_starts(tmp_path):
    shapes = own_data.image_folder(tmp_path / "shapes")
    (shapes / "blob").mkdir()
    line = refused("adapt", "--data", shapes, "--preset", "smoke", "--state-dir", tmp_path / "state")
    assert line == "error: class 'blob': the folder has no image; add images or remove the folder"
    assert not (tmp_path / "state").exists()


def test_tracking_server_away_at_the_start_of_an_adaptation(tmp_path):
    shapes = own_data.image_folder(tmp_path / "shapes")
    arguments = ["adapt", "--data", shapes, "--preset", "smoke", "--state-dir", tmp_path / "state"]
    line = refused(*arguments, exit_code=75, MLFLOW_TRACKING_URI=CLOSED)
    assert line == f"error: MLFLOW_TRACKING_URI: no answer from {CLOSED}; start it or correct the address"
    assert processes_of(tmp_path) == []


def test_no_servers_survive_a_refusal(tmp_path):
    refused("lineage", "no/such/form", "--state-dir", tmp_path)
    assert processes_of(tmp_path) == []


STEP = """
import sys
from intern_vision.steps import run_step
run_step("search", "smoke", sys.argv[1], inputs={"data": [sys.argv[2]]}, output=sys.argv[3])
"""
PREPARE = """
import sys
from intern_vision.steps import run_step
run_step("prepare", "smoke", sys.argv[1], item="upstream", output=sys.argv[2])
"""
SMALL = json.dumps({"upstream": {"num_train": 40, "num_val": 10}, "search": {"trainer": {"batch_size": 8}}})


def step(code, *arguments, **changes):
    return subprocess.run(
        [sys.executable, "-c", code, SMALL, *map(str, arguments)],
        env=clean_environment(**changes),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small upstream dataset on a file store: its environment and the file of its Ref."""
    root = tmp_path_factory.mktemp("prepared")
    environment = {"INTERN_STORE": f"file://{root}/store", "INTERN_STATE": str(root / "state")}
    done = step(PREPARE, root / "data", **environment)
    assert done.returncode == 0, done.stderr
    return environment, root / "data"


def test_training_goes_on_without_its_tracking_server_and_is_replayed(prepared, services, tmp_path, monkeypatch):
    environment, data = prepared
    experiment = f"replayed-{tmp_path.name}"
    tracking = {"MLFLOW_TRACKING_URI": CLOSED, "MLFLOW_EXPERIMENT_NAME": experiment, "INTERN_TRACK_TIMEOUT_S": "1"}
    tracking["INTERN_STATE"] = str(tmp_path)
    done = step(STEP, data, tmp_path / "out", **environment | tracking)
    assert done.returncode == 0, done.stderr
    assert read_ref(tmp_path / "out").kind == "genotype"
    warnings = [line for line in done.stderr.splitlines() if line.startswith("tracking: ")]
    assert len(warnings) == 1 and re.search(r"\d+ events not sent \(.*\); kept in .*\.jsonl for the next", warnings[0])
    (spooled,) = (tmp_path / "spool").glob("*.jsonl")
    assert str(spooled) in warnings[0]
    set_environment(monkeypatch, {"MLFLOW_TRACKING_URI": services.mlflow_uri})
    assert track.replay(tmp_path / "spool") == 1
    assert list((tmp_path / "spool").iterdir()) == []
    server = Server(services.mlflow_uri)
    found = server.get("mlflow/experiments/get-by-name", experiment_name=experiment)["experiment"]
    (run,) = server.post("mlflow/runs/search", {"experiment_ids": [found["experiment_id"]]})["runs"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("search", "FINISHED")
    assert {"wall_s", "best_reward"} <= {metric["key"] for metric in run["data"]["metrics"]}


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_shard_is_named(prepared, tmp_path, damage):
    environment, data = prepared
    ref = read_ref(data)
    store = Path(environment["INTERN_STORE"].removeprefix("file://"))
    root = shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("search"))
    shard = next(root.rglob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    uri = f"file://{root}/prepare/{ref.uri.rsplit('/', 1)[1]}"
    (tmp_path / "data").write_text(ref.with_overrides({"uri": uri}).to_json())
    moved = {"INTERN_STORE": f"file://{root}", "INTERN_STATE": str(tmp_path / "state")}
    done = step(STEP, tmp_path / "data", tmp_path / "out", **environment | moved)
    assert done.returncode == 2, done.stderr
    assert f"{uri}/shards/00000.tar" in error_line(done)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "state").rglob("*.tar")) == [], "a damaged copy is kept"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk takes root")
@pytest.mark.parametrize("size", ["16k", "6m"])
def test_full_disk(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        done = intern("run", "--preset", "smoke", "--state-dir", disk / "state", exit_code=75)
        assert re.search("disk is full|full|No space", error_line(done))
        assert processes_of(disk) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_errors_of_the_package_have_three_exit_codes():
    from intern_vision import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, InternError)]
    assert {kind.exit_code for kind in kinds} == {1, 2, 75}


def test_stopping_while_servers_start_leaves_nothing(tmp_path):
    from running import INTERN, seconds_until_gone

    process = subprocess.Popen(
        [INTERN, "run", "--preset", "smoke", "--state-dir", tmp_path / "state"],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "state" / "services.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) != 0 and "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert seconds_until_gone(tmp_path, 10) < 5.0
    assert read_events(tmp_path / "state" / "runs" / "smoke" / "events.jsonl") == []
