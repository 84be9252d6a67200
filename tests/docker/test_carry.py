"""Images leave one engine as an archive and reach a registry on the other side, or nothing happens at all."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import intern_vision
from intern_vision.servers import http_status, is_free

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docker/carry.py"
STORE = f"intern-vision-store:{intern_vision.__version__}"


def carry(*arguments, exit_code=0):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == exit_code and "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines() if not exit_code else done.stderr.strip()


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("carry", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="session")
def small_image(engine, tmp_path_factory):
    """An image of a few bytes, removed at the end."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    name = "intern-carry-test:1"
    engine.images.build(path=str(folder), tag=name)
    yield name
    engine.images.remove(name, force=True)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.zst"])
def test_an_archive_brings_an_image_back(engine, small_image, tmp_path, ending):
    if ending == "tar.zst" and not shutil.which("zstd"):
        pytest.skip("zstd is not here")
    archive = tmp_path / f"images.{ending}"
    (line,) = carry("save", archive, small_image)
    assert line.startswith(f"{archive}: 0 MB, 1 images, sha256 ")
    contents = json.loads((tmp_path / f"images.{ending}.json").read_text())
    identity = engine.images.get(small_image).id
    assert contents["images"] == {small_image: identity} and contents["sha256"] in line
    engine.images.remove(small_image, force=True)
    assert carry("load", archive, "-") == [small_image]
    assert engine.images.get(small_image).id == identity
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"images.{ending}", f"images.{ending}.json"]


def test_a_changed_archive_is_not_loaded(small_image, tmp_path):
    archive = tmp_path / "images.tar"
    carry("save", archive, small_image)
    with open(archive, "r+b") as file:
        file.seek(600)
        file.write(b"\x01")
    assert "its SHA-256 is" in carry("load", archive, "-", exit_code=2)
    (tmp_path / "images.tar.json").write_text("{}")
    assert "images.tar.json: not written by this script" in carry("load", archive, "-", exit_code=2)
    (tmp_path / "images.tar.json").unlink()
    assert "FileNotFoundError; copy it with the archive" in carry("load", archive, "-", exit_code=2)


def test_what_cannot_be_saved_leaves_nothing(engine, tmp_path):
    error = carry("save", tmp_path / "images.tar", "no-such-image:1", exit_code=2)
    assert "carry.py: docker image inspect: " in error and "no-such-image:1" in error.replace("No such", "no such")
    assert "expected a name that ends in" in carry("save", tmp_path / "images.zip", STORE, exit_code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_program_is_told(tmp_path):
    error = carry("--docker", "no-such-docker", "save", tmp_path / "a.tar", "x", exit_code=2)
    assert error == "carry.py: no-such-docker: no such program; install it or name another one"


def test_a_registry_gets_the_image_and_its_digest_is_printed(engine, small_image, tmp_path):
    program = shutil.which("docker-registry")
    if not program:
        pytest.skip("docker-registry is not here; apt-get install docker-registry")
    port = next(port for port in range(24_000, 25_000) if is_free(port))
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (tmp_path / "registry.yml").write_text(yaml.safe_dump(settings))
    process = subprocess.Popen([program, "serve", tmp_path / "registry.yml"], stderr=subprocess.DEVNULL)
    try:
        while http_status(f"http://127.0.0.1:{port}/v2/") != 200:
            assert process.poll() is None
            time.sleep(0.1)
        archive = tmp_path / "images.tar"
        carry("save", archive, small_image)
        (pinned,) = carry("load", archive, f"127.0.0.1:{port}/mirror/")
        assert pinned.startswith(f"127.0.0.1:{port}/mirror/intern-carry-test@sha256:")
        from intern_pipelines.registry_image import digest_of

        assert digest_of(f"127.0.0.1:{port}/mirror/intern-carry-test:1") == pinned.partition("@")[2]
    finally:
        process.terminate()
        process.wait()
        engine.images.remove(f"127.0.0.1:{port}/mirror/intern-carry-test:1", force=True)


def test_names_lose_their_registry_and_nothing_else(module):
    names = {
        "intern-vision:1": "intern-vision:1",
        "ghcr.io/team/intern-vision:1": "team/intern-vision:1",
        "localhost/a:1": "a:1",
        "127.0.0.1:5000/a/b:1": "a/b:1",
        "team/a:1": "team/a:1",
    }
    assert {name: module._without_registry(name) for name in names} == names
