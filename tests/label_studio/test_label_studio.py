"""Tasks, annotations and exports of a real Label Studio server, started here on loopback."""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from annotators import choice, label_result, make_shop, rectangle, take
from helpers import set_environment
from label_studio.environment import PROGRAM, VERSION

from intern_vision.data.annotation.answers import Asked, latest, read_votes
from intern_vision.data.annotation.files import AGREEMENT_FILE, LABELLING_FILE, SELECTION_FILE, TASKS_FILE
from intern_vision.data.annotation.tasks import Item, embedded, labelling_config, task
from intern_vision.data.manifest import ManifestBox
from intern_vision.data.manifest_store import load_manifest
from intern_vision.data.tables import iter_rows
from intern_vision.stages.base import fetch, read_record
from intern_vision.store import open_store

START_TIMEOUT_S = 900
pytestmark = [
    pytest.mark.skipif(
        not PROGRAM.exists(), reason=f"no Label Studio {VERSION}: python tests/label_studio/environment.py installs it"
    ),
    pytest.mark.slow,
]


class User:
    """Somebody who uses the server through its API.

    Args:
        address: of the server.
        token: the user's own.
    """

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self.session = session()
        self.session.headers["Authorization"] = f"Token {token}"

    def ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self.session.request(method, self.address + path, timeout=120, **options)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()

    def new_project(self, title: str, config: str, tasks: list[dict[str, Any]]) -> int:
        project = self.ask("POST", "/api/projects", json={"title": title, "label_config": config})["id"]
        taken = self.ask("POST", f"/api/projects/{project}/import", json=tasks)
        assert taken["task_count"] == taken["prediction_count"] == len(tasks)
        return project

    def tasks(self, project: int) -> list[dict[str, Any]]:
        found = self.ask("GET", "/api/tasks", params={"project": project, "page_size": 1000, "fields": "all"})
        return found["tasks"]

    def annotate(self, number: int, result: list[dict[str, Any]]) -> None:
        self.ask("POST", f"/api/tasks/{number}/annotations/", json={"result": result})

    def export(self, project: int) -> str:
        return json.dumps(self.ask("GET", f"/api/projects/{project}/export", params={"exportType": "JSON"}))


def session() -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    return made


def invited(admin: User, email: str) -> User:
    """Signs up as a person would, with the link that the owner hands out."""
    link = admin.ask("GET", "/api/invite")["invite_url"]
    visitor = session()
    path = link[link.index("/user/signup") :]
    assert visitor.get(admin.address + path, timeout=120).ok
    form = {"email": email, "password": secrets.token_urlsafe(16), "csrfmiddlewaretoken": visitor.cookies["csrftoken"]}
    done = visitor.post(admin.address + path, data=form, headers={"Referer": admin.address}, timeout=120)
    assert done.ok, done.text[:500]
    token = visitor.get(f"{admin.address}/api/current-user/token", timeout=120)
    assert token.ok, token.text[:500]
    return User(admin.address, token.json()["token"])


@pytest.fixture(scope="module")
def admin(tmp_path_factory) -> Iterator[User]:
    """The owner of a server with a data folder and a random token of its own."""
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(20)
    settings = {
        "BASE_DATA_DIR": str(folder),
        "USERNAME": "anna@example.com",
        "PASSWORD": secrets.token_urlsafe(16),
        "USER_TOKEN": token,
        "ENABLE_LEGACY_API_TOKEN": "true",
        "DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "HOST": f"http://127.0.0.1:{port}",
    }
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {f"LABEL_STUDIO_{name}": value for name, value in settings.items()}
    command = [PROGRAM, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}", folder / "log.txt")
        yield User(f"http://127.0.0.1:{port}", token)
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            if session().get(f"{address}/health", timeout=10).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    pytest.fail(f"no answer after {START_TIMEOUT_S} s: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def ben(admin) -> User:
    return invited(admin, "ben@example.com")


def test_two_annotators_verify_labels(admin, ben, tmp_path, monkeypatch):
    shop = make_shop(tmp_path / "shop")
    set_environment(monkeypatch, shop.environment)
    store = open_store(shop.environment["INTERN_STORE"])
    folder = fetch(store, shop.asked, tmp_path / "asked")
    chosen = {row["item"]: row for row in iter_rows(folder / SELECTION_FILE)}
    project = admin.new_project(
        "labels", (folder / LABELLING_FILE).read_text(), json.loads((folder / TASKS_FILE).read_text())
    )
    there = admin.tasks(project)
    assert {each["data"]["item"] for each in there} == set(chosen)
    assert all(each["predictions"][0]["result"][0]["value"] == {"choices": ["right"]} for each in there)
    questions = sorted(item for item, row in chosen.items() if row["role"] == "question")
    doubted = set(questions[:2])
    for each in there:
        row = chosen[each["data"]["item"]]
        shown = shop.truth[row["key"]]
        admin.annotate(each["id"], label_result(row["proposed"], shown))
        ben.annotate(each["id"], label_result(row["proposed"], "" if row["item"] in doubted else shown))
    exported = tmp_path / "export.json"
    exported.write_text(admin.export(project))
    ref = take(shop.asked, exported)
    facts = read_record(store, ref.uri).facts
    assert (facts["num_labelled"], facts["num_open"]) == (len(questions) - 2, 2)
    out = fetch(store, ref, tmp_path / "answered")
    agreement = json.loads((out / AGREEMENT_FILE).read_text())
    assert [each["audit_accuracy"] for each in agreement["annotators"].values()] == [1, 1]
    assert {each["data"]["item"] for each in json.loads((out / TASKS_FILE).read_text())} == doubted
    _, path = load_manifest(store, ref, tmp_path / "answered")
    labels = {row["key"]: row["labels"] for row in iter_rows(path)}
    for item in set(questions) - doubted:
        assert labels[chosen[item]["key"]] == [shop.truth[chosen[item]["key"]]]


def test_boxes_come_back_as_they_were_drawn(admin, ben):
    width_px, height_px = 120, 80
    boxes = (ManifestBox(label="cat", x0=12, y0=8, x1=60, y1=40), ManifestBox(label="dog", x0=66, y0=40, x1=114, y1=72))
    image = np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3), np.uint8)
    size = {"width_px": width_px, "height_px": height_px}
    item = Item(
        item="0123456789abcdef", key="k", uri="file:///k", proposed="cat", boxes=boxes, scores=(0.9, 0.6), **size
    )
    made = task(item, "box", embedded(image, 1024))
    project = admin.new_project("boxes", labelling_config("box", ("cat", "dog")), [made])
    (there,) = admin.tasks(project)
    shown = there["predictions"][0]["result"]
    admin.annotate(there["id"], shown)
    drawn = rectangle("dog", 0, 0, 30, 20, width_px, height_px)
    ben.annotate(there["id"], [*shown[:1], drawn, choice("verdict", "unsure")])
    asked = {item.item: Asked(key="k", role="question", proposed="cat", known="", **size)}
    votes = latest(list(read_votes(admin.export(project), "export", asked, "box")))[item.item]
    assert len({vote.annotator for vote in votes}) == 2
    for found, drawn in zip(votes[0].boxes, boxes, strict=True):
        assert found.label == drawn.label
        for name in ("x0", "y0", "x1", "y1"):
            assert getattr(found, name) == pytest.approx(getattr(drawn, name), abs=0.01)
    assert votes[1].verdict == "unsure"
