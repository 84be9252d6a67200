"""The served model over real HTTP, as a client meets it."""

import asyncio
import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import GENOTYPE, HEAD, SIZE_PX
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data.codec import encode_png
from intern_vision.errors import ConfigError
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.pictures import ALLOW_VARIABLE, Sources
from intern_vision.registry import register_model
from intern_vision.serve import MAX_REQUEST_BYTES, allow, bind, curl_line, is_open, limited
from intern_vision.task import Task

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
TEXT = base64.b64encode(encode_png(PICTURE)).decode()
TASKS = {
    "kind": Task(family="classify", class_names=("ant", "bee", "cat")),
    "area": Task(family="segment", class_names=("ground", "sky")),
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    heads = {name: HeadSpec(task=task, config=HEAD) for name, task in TASKS.items()}
    folder = tmp_path_factory.mktemp("model")
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=heads)).save(folder)
    return folder


@pytest.fixture(scope="module")
def server(services, model_dir, tmp_path_factory):
    """`intern serve` in a process of its own: its address and the process."""
    name = f"intern-{uuid.uuid4().hex[:8]}"
    register_model(
        model_dir,
        name=name,
        description="tiny",
        card="# Tiny",
        tags={},
        metrics={},
        parents=[],
        input_example=PICTURE,
    )
    log = tmp_path_factory.mktemp("serve") / "stderr.txt"
    command = [sys.executable, "-c", "from intern_vision.cli import app_main; app_main()", "serve", name]
    with (
        open(log, "wb") as stderr,
        subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=stderr) as process,
    ):
        lines = iter(process.stdout.readline, b"")
        text = b""
        for line in lines:
            text += line
            if line == b"}\n":
                break
        assert text, log.read_text()
        yield json.loads(text)["url"], process, log
        process.kill()


def ask(url: str, body: object) -> tuple[int, dict]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/invocations", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_answers_are_those_of_the_model(server, model_dir):
    url, _, _ = server
    with urllib.request.urlopen(f"{url}/ping", timeout=10) as answer:
        assert answer.status == 200
    said = VisionModel.load(model_dir).predict([PICTURE])["kind"][0]
    for body in (
        {"inputs": {"image": [TEXT, TEXT]}},
        {"dataframe_records": [{"image": TEXT}, {"image": f"data:image/png;base64,{TEXT}"}]},
        {"dataframe_split": {"columns": ["image"], "data": [[TEXT], [PICTURE.tolist()]]}},
    ):
        status, answer = ask(url, body)
        assert status == 200 and len(answer["predictions"]) == 2
        for row in answer["predictions"]:
            assert row["kind"]["label"] == TASKS["kind"].class_names[said.label]
            assert row["kind"]["score"] == pytest.approx(float(said.scores[said.label]), abs=1e-5)
            assert set(row["area"]) == {"size_px", "segments"} and row["area"]["size_px"] == [40, 30]
    params = {"head": "kind", "top_k": 1}
    status, answer = ask(url, {"dataframe_records": [{"image": TEXT}], "params": params})
    assert status == 200 and list(answer["predictions"][0]) == ["kind"]
    assert len(answer["predictions"][0]["kind"]["top"]) == 1


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("%%%", "row 1: '%%%' is neither an address nor base64 text"),
        (__file__, "row 1: .* a served model reads no paths unless it is told to"),
        ("http://127.0.0.1:1/a.png", "row 1: http://127.0.0.1:1/a.png: leads to an address that is not public"),
        ("s3://intern/a.png", "row 1: s3://intern/a.png: s3:// is not read here"),
        (7, "row 1: expected bytes, base64 text, a path, an address or an array, got int"),
    ],
)
def test_a_wrong_row_is_a_400_with_one_line(server, cell, line):
    status, answer = ask(server[0], {"dataframe_records": [{"image": TEXT}, {"image": cell}]})
    assert status == 400
    assert answer["message"].splitlines()[-1].startswith("Error: row 1: ")
    assert re.search(line, answer["message"])


def test_wrong_parameters_and_columns_are_a_400(server):
    status, answer = ask(server[0], {"dataframe_records": [{"image": TEXT}], "params": {"head": "none"}})
    assert status == 400 and "head: expected one of area, kind, got 'none'" in answer["message"]
    status, answer = ask(server[0], {"dataframe_records": [{"picture": TEXT}]})
    assert status == 400 and "missing inputs ['image']" in answer["message"]


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("bash"), reason="needs bash and curl")
def test_the_printed_curl_line_works(server, tmp_path):
    (tmp_path / "PICTURE.jpg").write_bytes(encode_png(PICTURE))
    line = curl_line(server[0])
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["predictions"][0]["kind"]["label"] in TASKS["kind"].class_names


def test_a_request_without_end_is_refused_before_it_is_read(server):
    host = server[0].removeprefix("http://")
    for headers, status in (
        ({"Content-Length": str(MAX_REQUEST_BYTES + 1)}, 413),
        ({"Transfer-Encoding": "chunked"}, 411),
    ):
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.putrequest("POST", "/invocations")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_a_taken_port_is_one_line(server, monkeypatch):
    # The command writes it to the environment of this process, which other tests share.
    monkeypatch.setenv(ALLOW_VARIABLE, "none")
    port = server[0].rpartition(":")[2]
    done = CliRunner().invoke(app, ["serve", "intern-none", "--port", port])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --port {port}: taken by process ") and done.stderr.count("\n") == 1


def test_unknown_model_and_wrong_options_are_one_line(services):
    for arguments, line in (
        (["intern-none"], "error: model intern-none@candidate: not registered; registered are "),
        (["s3://intern/store/x"], "error: model: expected NAME@ALIAS of a registered model, got 's3://intern/store/x'"),
        (["intern-none", "--allow", "all"], "error: INTERN_SERVE_ALLOW: expected none or some of files, s3, urls"),
        (["intern-none", "--host", "nowhere.invalid"], "error: --host nowhere.invalid"),
        (["intern-none", "--host", "192.0.2.1"], "error: --host 192.0.2.1 --port 0: Cannot assign requested address"),
        (["intern-none", "--port", "70000"], "error: --port: expected a number from 0 to 65535, got 70000"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ALLOW_VARIABLE, "none")
            done = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
        assert done.exit_code == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr


def test_what_is_allowed_comes_from_the_option_or_the_environment(monkeypatch):
    monkeypatch.setenv(ALLOW_VARIABLE, "files")
    allow([])
    assert Sources.served().files and not Sources.served().urls
    allow(["s3", "private_urls"])
    assert (Sources.served().s3, Sources.served().urls, Sources.served().files) == (True, True, False)
    with pytest.raises(ConfigError, match="got all"):
        allow(["all"])


def test_mlflows_own_server_is_as_closed(monkeypatch):
    from mlflow.pyfunc import scoring_server

    from intern_vision import serving

    # Put back what the server sets.
    monkeypatch.setenv(serving._SERVING_VARIABLE, "false")
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    assert serving._sources() == Sources()
    metadata = SimpleNamespace(get_input_schema=lambda: None)
    scoring_server.init(SimpleNamespace(metadata=metadata))
    assert serving._sources() == Sources.served({})
    assert not serving._sources().files


def test_who_may_reach_a_socket():
    for host, expected in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        with bind(host, 0) as held:
            assert is_open(held) is expected


def test_other_requests_pass_the_limit():
    seen = []

    async def inner(scope, receive, send):
        seen.append(scope["type"])

    post = {"type": "http", "method": "POST", "headers": [(b"content-length", b"10")]}
    for scope in (post, {"type": "http", "method": "GET", "headers": []}, {"type": "lifespan"}):
        asyncio.run(limited(inner, 10)(scope, None, None))
    assert seen == ["http", "http", "lifespan"]


def test_ctrl_c_ends_it_cleanly(server):
    _, process, log = server
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    started = time.perf_counter()
    assert process.wait(timeout=30) == 0
    assert time.perf_counter() - started < 15
    assert "Traceback" not in log.read_text()
