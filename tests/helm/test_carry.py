"""The list of images for a registry without internet is what the rendered chart and its pipelines name."""

import subprocess
import sys

from helm_chart import CHART, ROOT, helm


def listed(*values):
    command = [sys.executable, ROOT / "docker/carry.py", "list", "--helm", helm()]
    for path in values:
        command += ["--values", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_every_image_of_a_release_is_listed_once():
    assert listed() == ["intern-vision-mlflow:0.1.0", "intern-vision-store:0.1.0", "intern-vision:0.1.0"]


def test_values_of_a_mirror_are_followed():
    found = listed(CHART / "examples/air-gapped.yaml")
    assert len(found) == 3
    assert all(name.startswith("registry.example.org/mirror/intern-vision") and "@sha256:" in name for name in found)
