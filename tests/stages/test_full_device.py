"""Ingest and shard on a file system that is really full: one line, nothing half-written, a rerun once there is room."""

import os
import shutil
import subprocess
import zipfile
from contextlib import contextmanager

import pytest
from ingest_parts import encoded
from running import error_line, intern

from intern_vision.stages.base import read_ref

NUM_IMAGES = 40
LARGE = "32m"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small file system takes root"
)


@contextmanager
def mounted(folder, size):
    """A file system of so many bytes in memory; skips where this container may not mount."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"this container may not mount: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def make_room(folder):
    subprocess.run(["mount", "-o", f"remount,size={LARGE}", folder], check=True)


def archive(path):
    """Pictures of 27 kB each, about 1.1 MB."""
    with zipfile.ZipFile(path, "w") as file:
        for number in range(NUM_IMAGES):
            file.writestr(f"cat/{number:02d}.png", encoded(seed=number, size=(96, 96)))
    return path


def steps(path, out, state, store):
    """The arguments of a command, and the environment it is started in."""
    environment = {"INTERN_STORE": f"file://{store}"}
    return {
        "ingest": (["data", "ingest", path, "--out", out, "--state-dir", state], environment),
        "shard": (["data", "shard", path, "--out", out, "--state-dir", state], environment),
    }


def assert_refused(arguments, environment, out, disk):
    """The command ends with one line that names the fault; only whole files lie there, and nothing is committed."""
    line = error_line(intern(*arguments, exit_code=75, **environment))
    assert "no space left on" in line or "the disk is full" in line
    assert line.endswith("run the same command again") and not out.exists()
    left = [path for path in disk.rglob("*") if path.is_file()]
    assert [path for path in left if path.name == "_COMMITTED" or path.name.startswith(".part")] == []
    assert [path for path in left if "scratch" in path.parts and path.name != ".lock"] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files with the Refs of an archive's manifest and dataset, made where there is room, and the archive."""
    root = tmp_path_factory.mktemp("whole")
    made = {"raw": archive(root / "raw.zip"), "ingest": root / "ingest.json", "shard": root / "shard.json"}
    for stage, source in (("ingest", made["raw"]), ("shard", made["ingest"])):
        arguments, environment = steps(source, made[stage], root / "state", root / "store")[stage]
        intern(*arguments, **environment)
    return made


@pytest.mark.parametrize("full", ["store", "state"])
@pytest.mark.parametrize("stage", ["ingest", "shard"])
def test_a_full_disk_ends_a_step_that_goes_on_once_there_is_room(tmp_path, whole, stage, full):
    out = tmp_path / "refs" / f"{stage}.json"
    # Of the local state an ingest needs no more than its tables.
    with mounted(tmp_path / "small", "16k" if (full, stage) == ("state", "ingest") else "400k") as disk:
        places = {"store": tmp_path / "roomy-store", "state": tmp_path / "roomy-state"} | {full: disk / full}
        source = whole["raw" if stage == "ingest" else "ingest"]
        arguments, environment = steps(source, out, **places)[stage]
        assert_refused(arguments, environment, out, disk)
        make_room(disk)
        intern(*arguments, **environment)
        found, expected = (read_ref(path) for path in (out, whole[stage]))
        assert found.kind == expected.kind and found.name == expected.name
        if stage == "shard":  # rows of a manifest have addresses of the store
            assert found.digest == expected.digest
