"""The servers of one machine as containers: SeaweedFS, Postgres and MLflow, as ``compose.yaml`` says.

Docker's engine alone is needed, not its Compose: of that file's language what the file uses is understood here, and
anything else is refused. Settings, random credentials among them, lie in ``docker/servers.env`` of the state folder.
"""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import intern_vision
from intern_vision.errors import AccessError, ConfigError, InternError, RetryableError
from intern_vision.s3 import S3Access
from intern_vision.servers import (
    BUCKET,
    REGION,
    choose_ports,
    http_status,
    mlflow_is_ready,
    new_credentials,
    takes_objects,
)
from intern_vision.service_state import locked, make_private_folder, write_private
from intern_vision.services import LOCK_TIMEOUT_S, Services

COMPOSE_FILE = Path(__file__).with_name("compose.yaml")
START_TIMEOUT_S = 600.0
POLL_S = 0.2
MAX_RESTARTS = 3
PROJECT_LABEL = "intern.project"
DIGEST_LABEL = "intern.digest"
_SERVICE_KEYS = {"image", "command", "environment", "ports", "volumes", "tmpfs", "user", "read_only", "cap_drop"}
_SERVICE_KEYS |= {"security_opt", "restart", "stop_grace_period", "shm_size", "healthcheck", "depends_on"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def settings_path(state_dir: Path) -> Path:
    """Where the settings of a state folder's containers lie, as ``NAME=VALUE`` lines of mode 0600."""
    return state_dir / "docker" / "servers.env"


def read_settings(state_dir: Path) -> dict[str, str]:
    """The settings, or an empty dict where no containers were ever started for the folder."""
    path = settings_path(state_dir)
    return dict(line.split("=", 1) for line in path.read_text().splitlines()) if path.exists() else {}


def connect() -> Any:
    """A client of the Docker engine.

    Raises:
        AccessError: this user may not use it.
        ConfigError: no engine answers.
    """
    import docker
    from docker.errors import DockerException

    try:
        return docker.from_env()
    except DockerException as error:
        if "Permission denied" in str(error):
            raise AccessError(
                "docker: this user may not use the engine; add the user to the group docker and log in again"
            ) from None
        raise ConfigError(
            "docker: no engine answers; install it (apt-get install docker.io), start it, or set DOCKER_HOST"
        ) from None


def check_image(client: Any, image: str) -> None:
    """Raises ConfigError where an image is not on this machine."""
    from docker.errors import ImageNotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        raise ConfigError(f"docker: no image {image} on this machine; build it: make images") from None


def up(state_dir: Path) -> Services:
    """Starts the servers, or finds them running; they answer on return and run until ``down``.

    Raises:
        ConfigError: no engine, an image is missing, or a port that was asked for is taken.
        RetryableError: a server did not answer in time, or another process is busy with the folder.
        InternError: a server ends as soon as it is started.
    """
    state_dir = Path(state_dir).absolute()
    client = connect()
    make_private_folder(state_dir)
    with locked(state_dir, LOCK_TIMEOUT_S):
        settings = _settings(client, state_dir)
        composed = compose(settings)
        for service in composed["services"].values():
            check_image(client, service["image"])
        _make_network(client, settings["INTERN_PROJECT"])
        found = services_of(state_dir)
        answers = {
            "store": lambda: http_status(f"{found.s3_endpoint}/healthz") == 200,
            "mlflow": lambda: mlflow_is_ready(found.mlflow_uri) and takes_objects(found.access),
        }
        for name in start_order(composed["services"]):
            _start(client, settings["INTERN_PROJECT"], name, composed)
            if name in answers:  # MLflow would end at its start as long as the store does not answer
                _wait(client, settings["INTERN_PROJECT"], name, answers[name])
    return found


def down(state_dir: Path) -> bool:
    """Stops and removes a state folder's containers; True where there were any. Data and credentials stay."""
    state_dir = Path(state_dir).absolute()
    project = read_settings(state_dir).get("INTERN_PROJECT", "")
    if not project:
        return False
    client = connect()
    with locked(state_dir, LOCK_TIMEOUT_S):
        found = client.containers.list(all=True, filters={"label": f"{PROJECT_LABEL}={project}"})
        for container in sorted(found, key=lambda item: item.name.endswith("-postgres")):  # its client first
            _remove(container)
        for network in client.networks.list(names=[f"^{project}$"]):
            network.remove()
    return bool(found)


@contextmanager
def running(state_dir: Path, *, keep: bool = False) -> Iterator[Services]:
    """``up`` for the length of a block; servers that did not run before are stopped at its end unless ``keep``."""
    were_running = is_up(state_dir)
    try:
        yield up(state_dir)
    finally:
        if not (keep or were_running):
            down(state_dir)


def is_up(state_dir: Path) -> bool:
    """Whether all of a state folder's containers run."""
    settings = read_settings(Path(state_dir).absolute())
    if not settings:
        return False
    project = settings["INTERN_PROJECT"]
    running_now = connect().containers.list(filters={"label": f"{PROJECT_LABEL}={project}", "status": "running"})
    names = {container.name for container in running_now}
    return all(f"{project}-{name}" in names for name in compose(settings)["services"])


def services_of(state_dir: Path, *, inside: bool = False) -> Services:
    """Addresses of a state folder's servers.

    Args:
        state_dir: the state folder.
        inside: as containers of the same network see them, instead of this machine.
    """
    settings = read_settings(Path(state_dir).absolute())
    s3 = "store:8333" if inside else f"127.0.0.1:{settings['INTERN_S3_PORT']}"
    mlflow = "mlflow:5000" if inside else f"127.0.0.1:{settings['INTERN_MLFLOW_PORT']}"
    access = S3Access(f"http://{s3}", REGION, settings["INTERN_ACCESS_KEY"], settings["INTERN_SECRET_KEY"])
    store_uri = os.environ.get("INTERN_STORE") or f"s3://{BUCKET}/store"
    return Services(access, store_uri, f"http://{mlflow}", ("seaweedfs", "postgres", "mlflow"))


def remove_labelled(client: Any, label: str) -> None:
    """Removes containers that are left behind with a label, running or not."""
    for container in client.containers.list(all=True, filters={"label": label}):
        _remove(container, timeout_s=1)


def _settings(client: Any, state_dir: Path) -> dict[str, str]:
    """The folder's settings, completed and written; ports are chosen anew where the servers do not run."""
    old = read_settings(state_dir)
    fresh = new_credentials()
    project = f"intern-{hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]}"
    settings = {
        "INTERN_ACCESS_KEY": fresh["access_key"],
        "INTERN_SECRET_KEY": fresh["secret_key"],
        "INTERN_POSTGRES_PASSWORD": secrets.token_urlsafe(24),
    }
    settings |= old | {"INTERN_PROJECT": project, "INTERN_VERSION": intern_vision.__version__}
    held = client.containers.list(filters={"label": f"{PROJECT_LABEL}={project}"})
    if not held:
        variables = {"s3": "INTERN_S3_PORT", "mlflow": "INTERN_MLFLOW_PORT"}
        remembered = {name: int(old[key]) for name, key in variables.items() if key in old}
        ports = choose_ports(list(variables), remembered)
        settings |= {variables[name]: str(port) for name, port in ports.items()}
    make_private_folder(settings_path(state_dir).parent)
    write_private(settings_path(state_dir), "".join(f"{name}={value}\n" for name, value in sorted(settings.items())))
    return settings


def compose(settings: Mapping[str, str]) -> dict[str, Any]:
    """``compose.yaml`` with its variables filled in.

    Raises:
        InternError: the file uses what is not understood here.
    """
    import yaml

    composed = _filled(yaml.safe_load(COMPOSE_FILE.read_text()), settings)
    for name, service in composed["services"].items():
        unknown = sorted(service.keys() - _SERVICE_KEYS)
        if unknown:
            raise InternError(f"{COMPOSE_FILE.name}: services.{name}: {', '.join(unknown)} is not understood")
    return composed


def _filled(value: Any, settings: Mapping[str, str]) -> Any:
    """A plain value with the variables in its texts filled in, so that a setting stays a text whatever it holds."""
    if isinstance(value, dict):
        return {name: _filled(item, settings) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, settings) for item in value]
    return _VARIABLE.sub(lambda match: settings[match.group(1)], value) if isinstance(value, str) else value


def start_order(services: Mapping[str, Any]) -> list[str]:
    """Services after those they depend on."""
    ordered: list[str] = []
    while len(ordered) < len(services):
        ready = [n for n, s in services.items() if n not in ordered and set(s.get("depends_on", {})) <= set(ordered)]
        if not ready:
            raise InternError(f"{COMPOSE_FILE.name}: depends_on goes in a circle")
        ordered += ready
    return ordered


def _make_network(client: Any, name: str) -> None:
    if not client.networks.list(names=[f"^{name}$"]):
        client.networks.create(name, labels={PROJECT_LABEL: name})


def _start(client: Any, project: str, name: str, composed: Mapping[str, Any]) -> None:
    """Starts one service unless it runs as it should."""
    from docker.errors import APIError, NotFound

    service = composed["services"][name]
    image = client.images.get(service["image"]).id
    digest = hashlib.sha256(json.dumps([service, image], sort_keys=True).encode()).hexdigest()
    try:
        container = client.containers.get(f"{project}-{name}")
        if container.status == "running" and container.labels.get(DIGEST_LABEL) == digest:
            return
        _remove(container)
    except NotFound:
        pass
    for other, how in service.get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            _wait(client, project, other, lambda other=other: _is_healthy(client, f"{project}-{other}"))
    try:
        client.containers.run(
            service["image"],
            name=f"{project}-{name}",
            detach=True,
            network=project,
            networking_config={project: client.api.create_endpoint_config(aliases=[name])},
            labels={PROJECT_LABEL: project, DIGEST_LABEL: digest},
            **_run_arguments(service, composed["volumes"]),
        )
    except APIError as error:
        raise RetryableError(f"docker: {project}-{name} did not start: {error.explanation}; try again") from None


def _run_arguments(service: Mapping[str, Any], volumes: Mapping[str, Any]) -> dict[str, Any]:
    """One service of ``compose.yaml`` in the words of docker-py."""
    arguments = {name: service[name] for name in ("command", "environment", "user", "read_only") if name in service}
    arguments |= {name: service[name] for name in ("cap_drop", "security_opt", "shm_size") if name in service}
    arguments["restart_policy"] = {"Name": service.get("restart", "no")}
    arguments["tmpfs"] = dict.fromkeys(service.get("tmpfs", ()), "")
    ports = [text.split(":") for text in service.get("ports", ())]
    arguments["ports"] = {f"{inner}/tcp": (host, int(outer)) for host, outer, inner in ports}
    mounts = [text.split(":") for text in service.get("volumes", ())]
    arguments["volumes"] = {volumes[name]["name"]: {"bind": folder, "mode": "rw"} for name, folder in mounts}
    if check := service.get("healthcheck"):
        arguments["healthcheck"] = {
            "test": check["test"],
            "interval": _nanoseconds(check["interval"]),
            "timeout": _nanoseconds(check["timeout"]),
            "retries": check["retries"],
        }
    return arguments


def _nanoseconds(text: str) -> int:
    return int(text.removesuffix("s")) * 10**9


def _is_healthy(client: Any, name: str) -> bool:
    return client.containers.get(name).attrs["State"].get("Health", {}).get("Status") == "healthy"


def _wait(client: Any, project: str, name: str, is_ready: Callable[[], bool]) -> None:
    """Returns when a server answers.

    Raises:
        InternError: it ends again and again.
        RetryableError: it did not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        container = client.containers.get(f"{project}-{name}")
        ended = container.status in ("exited", "dead") or container.attrs["RestartCount"] > MAX_RESTARTS
        late = time.monotonic() > deadline
        if ended or late:
            lines = container.logs(tail=3).decode(errors="replace").strip().splitlines()
            what = f"docker: {container.name} {'ends at its start' if ended else 'does not answer'}"
            text = f"{what}: {' | '.join(lines) or 'it wrote nothing'} (docker logs {container.name})"
            raise (InternError if ended else RetryableError)(text)
        time.sleep(POLL_S)


def _remove(container: Any, timeout_s: int = 30) -> None:
    from docker.errors import APIError, NotFound

    try:
        container.stop(timeout=timeout_s)
        container.remove(force=True)
    except NotFound:
        pass
    except APIError as error:
        if error.status_code != 409:  # removed by itself at this moment
            raise RetryableError(f"docker: {container.name} could not be removed: {error.explanation}") from None
