"""The comparison runs end to end; what it measures in so few steps means nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = {"images": 60, "val-images": 20, "supernet-steps": 2, "trials": 4, "num-ranked": 2}
TINY |= {"proxy-steps": 1, "proxy-trials": 2, "final-steps": 1}


@pytest.mark.slow
def test_every_controller_gets_the_same_number_of_evaluations(tmp_path):
    options = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.search_controllers", *options, "--seeds", "0"]
    environment = os.environ | {
        "INTERN_STORE": f"file://{tmp_path}/store",
        "INTERN_STATE": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    folder = tmp_path / "found"
    done = subprocess.run(
        [*command, "--folder", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "figures.json").read_text())
    (row,) = figures["rows"]
    for controller in ("random", "tpe", "nsga2", "ppo"):
        assert len(row[controller]["trials"]) == 4
        assert 0 < row[controller]["area"] <= row[controller]["best"] < 1.5
    assert len(row["trained"]["trials"]) == 2 and len(row["trained"]["finals"]) == 2
    best = max(row["trained"]["finals"], key=lambda final: final["reward"])
    assert row["trained"]["genotype"] == row["trained"]["trials"][best["trial"]]["genotype"]
    assert set(row["final"]) == {"template", "found"}
    assert row["final"]["found"]["num_macs"] <= row["final"]["template"]["num_macs"]
    assert len(figures["ranks"]["trained"]) == 2
    assert "from scratch, template" in done.stdout and "cores" in done.stdout
