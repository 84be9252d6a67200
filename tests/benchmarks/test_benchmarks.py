"""The scripts run and print finite figures; how large they are is not a test's business."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("d[0-9]*.py"))


def run_module(module, *options):
    command = [sys.executable, "-m", module, "--rounds", "1", "--quick", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_gives_finite_figures(script):
    figures = json.loads(run_module(f"benchmarks.{script}", "--json")[-1])
    assert figures
    for figure in figures:
        assert figure["name"].split()[0].lower() == script.split("_")[0]
        assert math.isfinite(figure["value"]) and figure["target"] > 0
        assert figure["value"] > 0 or figure["unit"] == "s"
        assert figure["reference"] and figure["limit"]


def test_script_prints_lines_for_people():
    lines = run_module("benchmarks.d3_loader")
    assert len(lines) == 5 and all(line.startswith("D3 loader") for line in lines[:4])
    assert all(" reference: " in line and " limit: " in line for line in lines[:4])
    assert "cores" in lines[4]


def test_every_script_is_in_the_table():
    listed = subprocess.run(
        [sys.executable, "-c", "from benchmarks.__main__ import SCRIPTS; print(*SCRIPTS)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(listed.stdout.split()) == SCRIPTS


def test_a_step_reads_its_config_without_heavy_modules():
    """Figure D10 stands and falls with this."""
    code = """
import json, sys
from intern_vision import presets, run_config, steps
from intern_vision.stages.base import code_digest, run_stage
run_config.stage_config(presets.resolve("smoke"), "prepare", "flower")
code_digest()
heavy = {"numpy", "cv2", "torch", "deepspeed", "mlflow", "boto3", "requests", "pyarrow", "daft", "grain", "kfp"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
