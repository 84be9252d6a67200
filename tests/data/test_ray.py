"""The data steps on Ray: the same code on another engine, chosen by one variable, gives the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from intern_vision.data.manifest import ManifestBox, ManifestRow, use_daft, write_manifest
from intern_vision.errors import ConfigError

STEP = """
import os, sys
from pathlib import Path

if os.environ["DAFT_RUNNER"] == "ray":
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    assert sum(each["Alive"] for each in ray.nodes()) == 2

import daft
from intern_vision.data.manifest import read_manifest, write_frame
from intern_vision.data.summary import rows_by_group, summarise

path, out = map(Path, sys.argv[1:])
table = read_manifest(path)
kept = table.groupby("digest").agg(daft.col("key").min().alias("kept"))
joined = table.join(kept, on="digest")
is_kept = daft.col("key") == daft.col("kept")
removed = daft.functions.when(is_kept, daft.lit("ok")).otherwise(daft.lit("removed"))
write_frame(joined.with_column("status", removed), out)
chosen = rows_by_group(out, "label", ["cat", "dog"], 3)
print(summarise(out).to_json(), [row["key"] for rows in chosen.values() for row in rows])
assert daft.runners.get_or_create_runner().name == os.environ["DAFT_RUNNER"]
"""


def run_step(runner, path, out):
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEP, path, out],
        env=os.environ | quiet | {"DAFT_RUNNER": runner},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return hashlib.sha256(out.read_bytes()).hexdigest(), done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'intern-vision[ray]'")
def test_two_ray_workers_give_the_bytes_of_the_native_engine(tmp_path):
    path = tmp_path / "manifest.parquet"
    rows = (
        ManifestRow(
            key=f"k{7919 * number % 40_000:05d}",
            uri=f"file:///{number}.jpg",
            digest=f"{number % 30_000:064x}",
            source=("own", "web")[number % 2],
            labels=("cat", "dog")[: number % 3],
            boxes=(ManifestBox(label="cat", x0=0, y0=0, x1=number % 7 + 1, y1=2),) if number % 5 else None,
        )
        for number in range(40_000)
    )
    write_manifest(rows, path)
    native = run_step("native", path, tmp_path / "native.parquet")
    assert json.loads(native[1].partition(" [")[0])["sources"]
    assert run_step("ray", path, tmp_path / "ray.parquet") == native


def test_a_runner_that_is_not_there_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv("DAFT_RUNNER", "spark")
    with pytest.raises(ConfigError, match="DAFT_RUNNER: expected native or ray, got 'spark'"):
        use_daft()
    monkeypatch.setenv("DAFT_RUNNER", "ray")
    monkeypatch.setattr("intern_vision.data.manifest.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="DAFT_RUNNER: Ray is not installed; pip install"):
        use_daft()
