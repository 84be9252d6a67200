"""The servers of one machine in containers, and a pipeline whose steps are containers."""

import json
import os
import signal
import stat
import subprocess
import time

import pytest
from running import INTERN, answer, clean_environment, error_line, intern

from intern_vision import containers
from intern_vision.s3 import S3Store

pytestmark = pytest.mark.slow

# The whole graph on one downstream set, with as little training as does.
SMALL = json.dumps(
    {
        "downstream_sets": ["flower"],
        "upstream": {"num_train": 100},
        "experts": {family: {"trainer": {"batch_size": 4}} for family in ("multilabel", "detect", "segment", "depth")},
        "adapt": {"shares": [1.0]},
    }
)


@pytest.fixture(scope="module")
def state_dir(server_images, tmp_path_factory):
    """A state folder whose containers and volumes are gone afterwards."""
    folder = tmp_path_factory.mktemp("docker")
    yield folder
    containers.down(folder)
    client = containers.connect()
    project = containers.read_settings(folder)["INTERN_PROJECT"]
    for volume in client.volumes.list(filters={"name": project}):
        volume.remove()


def test_up_serves_and_down_keeps_the_data(state_dir):
    shown = answer("up", "--where", "docker", "--state-dir", state_dir)
    settings = containers.settings_path(state_dir)
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    found = containers.services_of(state_dir)
    assert shown == {"s3": found.s3_endpoint, "store": found.store_uri, "mlflow": found.mlflow_uri}
    store = S3Store("s3://intern/store", found.access)
    store.put(b"kept", "s3://intern/store/note")

    assert answer("up", "--where", "docker", "--state-dir", state_dir) == shown
    assert answer("models", "--state-dir", state_dir) == {"models": []}
    assert answer("down", "--where", "docker", "--state-dir", state_dir) == {"stopped": True}
    assert answer("down", "--where", "docker", "--state-dir", state_dir) == {"stopped": False}

    again = answer("up", "--where", "docker", "--state-dir", state_dir)
    assert again == shown, "the ports of a folder stay where they are free"
    assert store.read("s3://intern/store/note") == b"kept"


def test_credentials_are_in_no_command_and_no_label(state_dir):
    containers.up(state_dir)
    settings = containers.read_settings(state_dir)
    hidden = [settings[name] for name in ("INTERN_SECRET_KEY", "INTERN_POSTGRES_PASSWORD")]
    label = f"{containers.PROJECT_LABEL}={settings['INTERN_PROJECT']}"
    for container in containers.connect().containers.list(filters={"label": label}):
        said = json.dumps([container.attrs["Config"]["Cmd"], container.labels]) + container.logs().decode()
        assert not any(value in said for value in hidden), container.name


def test_a_pipeline_runs_in_containers(train_image, state_dir):
    arguments = ["run", "--preset", "smoke", "--override", SMALL, "--where", "docker", "--keep"]
    shown = answer(*arguments, "--state-dir", state_dir)
    assert [model["name"] for model in shown["models"]]
    assert answer("models", "--state-dir", state_dir)["models"]
    found = containers.services_of(state_dir)
    steps = {file.uri.split("/")[4] for file in S3Store("s3://intern/store", found.access).list("s3://intern/store")}
    assert {"prepare", "amateur", "expert", "generalist", "adapt", "evaluate", "report"} <= steps
    log = (state_dir / "runs" / "smoke" / "log.txt").read_text()
    assert f"Found image '{train_image.tags[0]}'" in log


def test_a_stopped_run_leaves_no_container_and_resumes(train_image, state_dir):
    changed = json.loads(SMALL) | {"seed": 7}
    changed["amateur"] = {"trainer": {"num_steps": 400, "batch_size": 4, "checkpoint_every": 2}}
    changed["baselines"] = {"clip": {"trainer": {"num_steps": 800}}}  # passes as many images
    command = [INTERN, "run", "--preset", "smoke", "--override", json.dumps(changed), "--name", "stopped"]
    command += ["--where", "docker", "--keep", "--state-dir", str(state_dir)]
    process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    events = state_dir / "runs" / "stopped" / "events.jsonl"
    deadline = time.monotonic() + 300
    while not (events.exists() and _has_step(events.read_text())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 75, said
    label = f"intern.run={os.path.realpath(state_dir)}/runs/stopped"
    assert containers.connect().containers.list(all=True, filters={"label": label}) == []


def _has_step(events: str) -> bool:
    said = [json.loads(line) for line in events.splitlines()]
    return any((event["stage"], event["event"]) == ("amateur", "step") for event in said)


def test_a_missing_image_is_told_before_anything_starts(engine, tmp_path):
    arguments = ["run", "--preset", "smoke", "--where", "docker", "--state-dir", tmp_path]
    done = intern(*arguments, exit_code=2, INTERN_IMAGE="intern-vision:none")
    assert error_line(done) == "error: docker: no image intern-vision:none on this machine; build it: make images"
    assert not containers.settings_path(tmp_path).exists()
