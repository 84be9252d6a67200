"""What the chart's pods run, run here: store, MLflow with its login, doctor and self-test, on loopback.

Commands, arguments and variables are those of the rendered objects; only folders, ports and host names are replaced.
"""

import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helm_chart import containers, one, render

from intern_vision.servers import find_weed, http_status, is_free

pytest.importorskip("flask_wtf", reason="pip install 'intern-vision[helm]'")
pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 120.0


class Pods:
    """The release's containers as processes of this machine.

    Args:
        folder: takes the place of the pods' volumes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifests = render("default", "1.34", apis=())
        made = [m for m in self.manifests if m["kind"] == "Secret"]
        self.secrets = {
            m["metadata"]["name"]: {k: base64.b64decode(v).decode() for k, v in m["data"].items()} for m in made
        }
        self.ports = self._free_ports()
        self.running: list[subprocess.Popen[bytes]] = []

    def _free_ports(self) -> dict[str, int]:
        """A free port for each that the objects name."""
        named = ("8333", "18333", "9333", "19333", "8080", "18080", "8888", "18888", "9327", "5000")
        free = (port for port in range(21000 + os.getpid() % 5000, 32000) if is_free(port))
        return {name: next(free) for name in named}

    def here(self, text: str) -> str:
        """A text of the objects with this machine's folders, host and ports in it."""
        text = re.sub(r"http://intern-[\w.-]+", "http://127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"(?<=[=:])(\d{4,5})\b", lambda match: str(self.ports.get(match[1], match[1])), text)
        return re.sub(r"(?<![\w/.])/(?=data|run/|tmp|etc/)|(?<=sqlite:///)/(?=data)", f"{self.folder}/", text)

    def environment(self, container: dict) -> dict[str, str]:
        """The container's variables, those from Secrets included, and no other but PATH."""
        found = {"PATH": f"{BIN}:{os.environ['PATH']}"}
        for variable in container["env"]:
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            value = self.secrets[reference["name"]][reference["key"]] if reference else self.here(variable["value"])
            found[variable["name"]] = value
        return found

    def argv(self, container: dict) -> list[str]:
        """Command and arguments."""
        program, *rest = [*container["command"], *container.get("args", ())]
        names = {"weed": str(find_weed()), "python": sys.executable}
        return [names.get(program, str(BIN / program)), *(self.here(word) for word in rest)]

    def finish(self, container: dict, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Runs a container to its end."""
        return subprocess.run(
            self.argv(container), env=self.environment(container), capture_output=True, text=True, timeout=timeout_s
        )

    def start(self, container: dict, port: str, path: str) -> subprocess.Popen[bytes]:
        """Starts a container and waits until its probe answers."""
        with open(self.folder / f"{container['name']}.log", "wb") as log:
            process = subprocess.Popen(
                self.argv(container),
                env=self.environment(container),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        self.running.append(process)
        deadline = time.monotonic() + START_TIMEOUT_S
        while http_status(f"http://127.0.0.1:{self.ports[port]}{path}") != 200:
            text = (self.folder / f"{container['name']}.log").read_text(errors="replace")
            assert process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.1)
        return process

    def stop(self) -> None:
        """Ends what was started here."""
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def pod(self, kind: str, ending: str) -> list[dict]:
        """Containers of an object, init containers first."""
        spec = one(self.manifests, kind, ending)["spec"]
        return containers(spec.get("template", {}).get("spec") or spec)


@pytest.fixture(scope="module")
def pods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pods")
    for name in ("data", "run/mlflow", "tmp", "etc/intern/mlflow"):
        (folder / name).mkdir(parents=True)
    found = Pods(folder)
    script = one(found.manifests, "ConfigMap", "-mlflow")["data"]["prepare.py"]
    (folder / "etc/intern/mlflow/prepare.py").write_text(script)
    (store,), (prepare, server) = found.pod("StatefulSet", "-store"), found.pod("Deployment", "-mlflow")
    try:
        found.start(store, "8333", "/healthz")
        prepared = found.finish(prepare)
        assert prepared.returncode == 0, prepared.stderr
        found.start(server, "5000", "/health")
        yield found
    finally:
        found.stop()


def test_only_s3_and_metrics_listen_beyond_loopback(pods):
    args = pods.pod("StatefulSet", "-store")[0]["args"]
    outside = {word.split("=")[0] for word in args if word.endswith("=0.0.0.0")}
    assert outside == {"-s3.ip.bind", "-metricsIp"}
    assert http_status(f"http://127.0.0.1:{pods.ports['9327']}/metrics") == 200


def test_preparing_again_changes_nothing_and_the_login_file_is_private(pods):
    again = pods.finish(pods.pod("Deployment", "-mlflow")[0])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": done") == 3
    assert (pods.folder / "run/mlflow/auth.ini").stat().st_mode & 0o077 == 0


def test_mlflow_wants_its_login_and_knows_its_own_names(pods):
    import requests

    url = f"http://127.0.0.1:{pods.ports['5000']}/api/2.0/mlflow/experiments/get?experiment_id=0"
    login = (pods.secrets["intern-mlflow"]["username"], pods.secrets["intern-mlflow"]["password"])
    service = "intern-intern-vision-mlflow.kubeflow.svc.cluster.local"
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, auth=login, headers={"Host": f"{service}:5000"}, timeout=10).status_code == 200
    assert requests.get(url, auth=login, headers={"Host": "elsewhere.example.org"}, timeout=10).status_code == 403


def test_doctor_finds_everything(pods):
    (container,) = pods.pod("Pod", "-doctor")
    container["args"] = [word for word in container["args"] if "--kfp" not in word]
    done = pods.finish(container)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["s3", "s3 region", "s3 multipart", "s3 checksums", "s3 conditional writes", "s3 credentials", "mlflow"]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [f"ok   {name}" for name in names]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "FAIL s3: s3://intern"),
        ("MLFLOW_TRACKING_PASSWORD", "wrong", "refused access (401"),
        ("INTERN_S3_ENDPOINT", "http://127.0.0.1:9", "no answer from http://127.0.0.1:9"),
    ],
)
def test_doctor_says_what_is_wrong_without_a_traceback(pods, variable, value, expected):
    (container,) = pods.pod("Pod", "-doctor")
    argv = [word for word in pods.argv(container) if "--kfp" not in word]
    environment = pods.environment(container) | {variable: value, "AWS_MAX_ATTEMPTS": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and expected in done.stdout and "     fix: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr and pods.secrets["intern-s3"]["secret-key"] not in done.stdout


def test_helm_test_logs_reads_back_and_removes(pods):
    done = pods.finish(pods.pod("Pod", "-test")[0])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines == [f"{what} came back" for what in WRITTEN]


def test_nothing_is_written_but_to_volumes(pods):
    logs = {"seaweedfs.log", "mlflow.log"}
    assert {path.name for path in pods.folder.iterdir()} == {"data", "etc", "run", "tmp"} | logs
    assert {path.name for path in (pods.folder / "run/mlflow").iterdir()} == {"auth.ini"}


WRITTEN = ("the run's metric", "the run's parameter", "the run's file", "the registered model", "the model's file")
