import json
import subprocess
import sys

import official_layouts
import pytest
from helpers import make_world, save_backbone, set_environment
from running import clean_environment

from intern_vision.bench.table import BenchmarkTable
from intern_vision.stages.base import fetch, read_ref
from intern_vision.store import open_store

OVERRIDES = {"adapt": {"precision": "fp32"}, "evaluate": {"precision": "fp32", "num_examples": 1}}


def test_the_pipeline_scores_what_it_can_and_tells_the_rest(tmp_path):
    """Wiring alone: what the steps do is tested beside them."""
    world = make_world(tmp_path / "world")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, world.environment)
        model = save_backbone(world, tmp_path / "model")
    data = tmp_path / "data"
    official_layouts.write_cifar10(data)
    (data / "svhn").mkdir()
    arguments = {
        "model": model.uri,
        "data_root": str(data),
        "datasets": "cifar10,svhn,dtd",
        "protocols": "100",
        "preset": "smoke",
        "overrides": json.dumps(OVERRIDES),
    }
    done = subprocess.run(
        [sys.executable, "-m", "intern_pipelines.local", "benchmark", json.dumps(arguments), str(tmp_path / "root")],
        env=clean_environment(TMPDIR=str(tmp_path), **world.environment),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = (path for path in (tmp_path / "root").glob("**/result") if "benchmark-report" in str(path))
    ref = read_ref(result)
    table = BenchmarkTable.from_json((fetch(open_store(ref.uri), ref, tmp_path / "report") / "table.json").read_text())
    assert (table.columns, [row.dataset for row in table.rows]) == (("intern@100",), ["cifar10"])
    assert {gap.dataset: gap.status for gap in table.gaps} == {"svhn": "failed", "dtd": "absent"}
    (page,) = (tmp_path / "root").glob("**/page")
    assert "Not scored" in page.read_text()
