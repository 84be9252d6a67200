"""An ingest that is interrupted in any way opens only the rest when it starts again, and makes the same bytes."""

import http.server
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter

import pytest
from helpers import StageProcess, set_environment
from ingest_parts import encoded, write
from running import INTERN, clean_environment, error_line

from intern_vision import services
from intern_vision.stages import ingest
from intern_vision.stages.base import Inputs, read_record, read_ref, run_stage
from intern_vision.store import open_store, split_uri

NUM_FILES, NUM_URLS, WAITS_AT = 25, 40, 30
"""Pictures in a folder and behind addresses, and the address that waits to be released."""


class Web:
    """Pictures behind addresses; ``/wait`` answers once it is released, ``/gone`` never does."""

    def __init__(self):
        self.asked, self.released = Counter(), threading.Event()
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                web.asked[self.path] += 1
                if self.path == "/wait":
                    web.released.wait(60)
                body = b"" if self.path == "/gone" else encoded(seed=1000 + len(self.path) + hash(self.path) % 999)
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                return None

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web():
    found = Web()
    yield found
    found.close()


@pytest.fixture
def sources(tmp_path, web):
    """A folder and a list of addresses, as the stage's config has them."""
    for number in range(NUM_FILES):
        write(tmp_path / "in" / "cat" / f"{number:02d}.png", encoded(seed=number))
    names = ["wait" if number == WAITS_AT else "gone" if number == 3 else f"{number}" for number in range(NUM_URLS)]
    table = write(tmp_path / "list.csv", "url\n" + "".join(f"{web.url}/{name}\n" for name in names))
    return [{"uri": str(tmp_path / "in")}, {"uri": str(table)}]


def config_of(sources):
    fetch = {"private_urls": True, "num_threads": 4, "timeout_s": 60.0}
    return ingest.Config.from_dict({"sources": sources, "rows_per_part": 10, "fetch": fetch})


def parts(store_root):
    return [file.uri for file in open_store(store_root).list(store_root) if "/checkpoints/part-" in file.uri]


def bytes_of(store_root, ref):
    store = open_store(store_root)
    return {name: store.read(f"{ref.uri}/{name}") for name in read_record(store, ref.uri).files}


def test_a_killed_ingest_opens_only_the_rest(tmp_path, web, sources, decoded, monkeypatch):
    store_root = f"file://{tmp_path}/store"
    environment = {"INTERN_STORE": store_root, "INTERN_STATE": str(tmp_path / "state")}
    set_environment(monkeypatch, environment)
    web.released.set()
    whole = run_stage("ingest", config_of(sources), Inputs())
    expected, facts = bytes_of(store_root, whole), read_record(open_store(store_root), whole.uri).facts
    assert len(decoded) == NUM_FILES + NUM_URLS - 1 and facts["num_ok"] == len(decoded)
    shutil.rmtree(tmp_path / "store")
    web.released.clear()
    web.asked.clear()
    stage = StageProcess(tmp_path / "first", "ingest", config_of(sources), {}, "ingest", 1, environment)
    # Of the folder two parts of ten rows and one of five, of the list three until the address that waits.
    stage.wait_until(lambda: len(parts(store_root)) == 6)
    os.killpg(stage.process.pid, signal.SIGKILL)
    stage.process.wait()
    asked = Counter(web.asked)
    assert not list(tmp_path.glob("store/ingest/*/_COMMITTED")) and asked["/gone"] == 1
    decoded.clear()
    web.released.set()
    resumed = run_stage("ingest", config_of(sources), Inputs())
    assert len(decoded) == NUM_URLS - WAITS_AT
    assert {name for name in web.asked if web.asked[name] > asked[name]} == {
        f"/{number}" for number in range(WAITS_AT + 1, NUM_URLS)
    } | {"/wait"}
    assert resumed == whole and bytes_of(store_root, resumed) == expected
    assert read_record(open_store(store_root), whole.uri).facts == facts
    assert parts(store_root) == [], "they are of no use once the output is committed"


def test_what_changed_meanwhile_is_opened_again(tmp_path, web, sources, decoded, monkeypatch):
    environment = {"INTERN_STORE": f"file://{tmp_path}/store", "INTERN_STATE": str(tmp_path / "state")}
    set_environment(monkeypatch, environment)
    stage = StageProcess(tmp_path / "first", "ingest", config_of(sources), {}, "ingest", 1, environment)
    stage.wait_until(lambda: len(parts(environment["INTERN_STORE"])) >= 3)
    os.killpg(stage.process.pid, signal.SIGKILL)
    stage.process.wait()
    web.released.set()
    changed = write(tmp_path / "in" / "cat" / "07.png", encoded(seed=99, size=(40, 30)))
    (tmp_path / "in" / "cat" / "08.png").unlink()
    ref = run_stage("ingest", config_of(sources), Inputs())
    assert len(encoded(seed=99, size=(40, 30))) in decoded
    again = run_stage("ingest", config_of(sources).with_overrides({"version": "2"}), Inputs())
    assert read_record(open_store(ref.uri), ref.uri).facts["num_rows"] == NUM_FILES - 1 + NUM_URLS
    assert bytes_of(ref.uri, ref)["stamps.parquet"] == bytes_of(again.uri, again)["stamps.parquet"]
    assert changed.exists()


def test_a_command_that_was_asked_to_stop_goes_on(tmp_path, web, sources):
    state, out = tmp_path / "state", tmp_path / "refs" / "all.json"
    override = '{"rows_per_part": 1000, "fetch": {"num_threads": 4, "timeout_s": 60}}'
    uris = [source["uri"] for source in sources]
    command = [INTERN, "data", "ingest", *uris, "--out", out, "--private-urls", "--override", override]
    command += ["--state-dir", state]

    def start():
        return subprocess.Popen(command, env=clean_environment(), stdout=-1, stderr=-1, text=True)

    first = start()
    while not web.asked[f"/{WAITS_AT + 3}"]:
        assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGTERM)
    web.released.set()
    stdout, stderr = first.communicate(timeout=60)
    done = subprocess.CompletedProcess(command, first.returncode, stdout, stderr)
    assert done.returncode == 75 and error_line(done) == "error: asked to stop; the same command goes on"
    assert not out.exists() and len(parts(f"file://{state}/store")) == 2
    asked = Counter(web.asked)
    second = start()
    stdout, stderr = second.communicate(timeout=60)
    assert second.returncode == 0 and f"{NUM_FILES + NUM_URLS - 1} of {NUM_FILES + NUM_URLS} images usable" in stdout
    assert f"{NUM_FILES + WAITS_AT} images were opened before the interruption" in stderr
    assert {name for name in web.asked if web.asked[name] > asked[name]} <= {
        f"/{number}" for number in range(WAITS_AT + 1, NUM_URLS)
    } | {"/wait"}
    assert read_ref(out).kind == "manifest" and list((state / "ingest").iterdir()) == []


def test_a_store_that_is_lost_is_gone_on_with(tmp_path, web, sources, monkeypatch):
    state = tmp_path / "servers"
    own = {"INTERN_STATE": str(tmp_path / "state"), "AWS_MAX_ATTEMPTS": "1"}
    for name in [name for name in os.environ if name.startswith(("INTERN_", "MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(name)
    with services.running(state, with_mlflow=False) as found, monkeypatch.context() as patch:
        set_environment(patch, {**found.environment(), **own})
        stage = StageProcess(tmp_path / "first", "ingest", config_of(sources), {}, "ingest", 1)
        stage.wait_until(lambda: len(parts(found.store_uri)) == 6)
    web.released.set()
    assert stage.finish() == 75 and "RetryableError: " in stage.log() and "Traceback" not in stage.log()
    asked = Counter(web.asked)
    with services.running(state, with_mlflow=False) as found, monkeypatch.context() as patch:
        set_environment(patch, {**found.environment(), **own})
        ref = run_stage("ingest", config_of(sources), Inputs())
        facts = read_record(open_store(ref.uri), ref.uri).facts
    assert facts["num_ok"] == NUM_FILES + NUM_URLS - 1 and split_uri(ref.uri)[0] == "s3"
    assert {web.asked[f"/{number}"] - asked[f"/{number}"] for number in range(WAITS_AT) if number != 3} == {0}
