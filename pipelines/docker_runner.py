"""Steps of a local run as containers: ``kfp.local.DockerRunner`` with the image, servers and folders of the run."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from intern_vision import containers

RUN_LABEL = "intern.run"
SHM_SIZE = "2g"
"""Ranks exchange tensors through /dev/shm; Docker gives 64 MB by itself."""

_PASSED = (
    "INTERN_EVENTS",
    "INTERN_NUM_RANKS",
    "INTERN_OWNER_PID",
    "INTERN_PARENT_RUN_ID",
    "INTERN_RUN_DIR",
    "INTERN_STATE",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "TMPDIR",
)
"""What the run tells its steps; the host's paths are the containers' too."""

_SHARED_FOLDERS = ("cache", "scratch", "spool")
"""Of the state folder, beside the run's own; not its servers' data and not its credentials."""


def step_label(run_dir: str | Path) -> str:
    """The label of a run's containers."""
    return f"{RUN_LABEL}={Path(run_dir).absolute()}"


def environment() -> dict[str, str]:
    """Environment of a step: the run's settings, and the servers as containers of their network see them."""
    found = containers.services_of(Path(os.environ["INTERN_STATE"]), inside=True).environment()
    found.pop("AWS_CA_BUNDLE", None)  # a path of this machine
    hosts = ",".join(["mlflow", "store", "127.0.0.1", "localhost"])
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    # With the host's process numbers tini is not the first one, and adopts orphans only when told.
    own = {"NO_PROXY": hosts, "no_proxy": hosts, "HOME": "/tmp", "TINI_SUBREAPER": "1"}
    return found | passed | own


def make_runner() -> Any:
    """The runner for this process's run, which ``INTERN_STATE`` and ``INTERN_RUN_DIR`` name.

    Raises:
        ConfigError: no engine, or the image is not on this machine.
    """
    from docker.types import DeviceRequest, Mount
    from kfp import local

    client = containers.connect()
    state_dir, run_dir = Path(os.environ["INTERN_STATE"]), Path(os.environ["INTERN_RUN_DIR"])
    folders = [run_dir, *(state_dir / name for name in _SHARED_FOLDERS)]
    for folder in folders:  # Docker would make them as root
        folder.mkdir(parents=True, exist_ok=True)
    data = [Path(text) for text in os.environ.get("INTERN_MOUNTS", "").split(os.pathsep) if text]
    mounts = [Mount(str(folder), str(folder), type="bind") for folder in folders]
    mounts += [Mount(str(folder), str(folder), type="bind", read_only=True) for folder in data]
    has_gpus = "nvidia" in client.info().get("Runtimes", {})
    return local.DockerRunner(
        network=containers.read_settings(state_dir)["INTERN_PROJECT"],
        environment=environment(),
        mounts=mounts,
        # Files in the bind-mounted folders belong to who started the run.
        user=f"{os.getuid()}:{os.getgid()}",
        # Steps end when the process that started the run is gone, which they can only see in its own namespace.
        pid_mode="host",
        labels=dict([step_label(run_dir).split("=", 1)]),
        shm_size=SHM_SIZE,
        tmpfs={"/tmp": ""},
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if has_gpus else [],
    )


def ask_to_stop(run_dir: str | Path) -> None:
    """Sends SIGTERM to the steps that run: they save a checkpoint and end.

    Not through the containers' first process: a shell stands between it and the step and would end at once.
    """
    for container in containers.connect().containers.list(filters={"label": step_label(run_dir)}):
        with suppress(psutil.Error):  # it ends by itself at this moment
            for process in psutil.Process(container.attrs["State"]["Pid"]).children(recursive=True):
                if "kfp.dsl.executor_main" in process.cmdline():
                    process.send_signal(signal.SIGTERM)


def remove_steps(run_dir: str | Path) -> None:
    """Removes what a run left behind."""
    containers.remove_labelled(containers.connect(), step_label(run_dir))
