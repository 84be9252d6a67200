"""Workflows cannot run here; what they name exists, and what they say of themselves is true."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

import intern_vision
from intern_vision.cli import app

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))


def lines(path):
    """Every command of a workflow's steps."""
    workflow = yaml.safe_load(path.read_text())
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            yield from step.get("run", "").splitlines()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_files_and_versions_exist(path):
    command = typer.main.get_command(app)
    num_commands = 0
    for line in lines(path):
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            done = subprocess.run(["make", "-C", ROOT, "-n", *words[1:]], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        if words[:1] == [".venv/bin/intern"]:
            num_commands += 1
            found = command
            for word in words[1:]:
                if hasattr(found, "commands"):
                    found = found.commands[word]
            options = {name for parameter in found.params for name in parameter.opts + parameter.secondary_opts}
            assert {word for word in words if word.startswith("--")} <= options, line
        assert all((ROOT / word).exists() for word in words if word.startswith("helm/")), line
        assert set(re.findall(r"\bintern-vision(?:-\w+)?:([\w.]+)", line)) <= {intern_vision.__version__}, line
    assert num_commands


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_few_rights_and_an_end(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 180 for job in workflow["jobs"].values())


def test_the_page_says_what_the_workflow_does():
    """The page's commands, as far as they are not for two terminals, are the workflow's."""
    page, (workflow,) = (ROOT / "docs/kind.md").read_text(), [p for p in WORKFLOWS if p.stem == "kind"]
    text = workflow.read_text()
    for shared in (
        "kind load docker-image --name intern intern-vision:0.1.0 intern-vision-store:0.1.0 intern-vision-mlflow:0.1.0",
        "kubectl wait --for condition=established --timeout=60s crd/applications.app.k8s.io",
        "helm/intern-vision/examples/laptop.yaml",
        "2.17.0",
        "env/platform-agnostic?ref=",
    ):
        assert shared in page and shared in text, shared
    assert "It has not been run" in text and "have **not been run**" in page
