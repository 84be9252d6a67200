import json
import subprocess
import sys

import pytest
from running import clean_environment, read_events

from intern_pipelines.local import PIPELINES, load_pipeline
from intern_vision.stages.base import read_record, read_ref
from intern_vision.store import open_store

SIZES = {"num_train": 30, "num_val": 5, "num_test": 6, "image_size_px": 32}


def run_local(tmp_path, pipeline, **arguments):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    environment = clean_environment(
        INTERN_STORE=f"file://{tmp_path}/store",
        INTERN_STATE=str(tmp_path / "state"),
        INTERN_EVENTS=str(run_dir / "events.jsonl"),
        TMPDIR=str(run_dir),
        PYTHONUNBUFFERED="1",
    )
    command = [sys.executable, "-m", "intern_pipelines.local", pipeline, json.dumps(arguments), str(tmp_path / "root")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_is_called_like_its_module(name):
    assert load_pipeline(name).pipeline_spec.pipeline_info.name in ("intern", f"intern-{name}")


def test_overrides_reach_the_steps_with_their_types(tmp_path):
    sets = ["flower", "depth_room"]
    overrides = json.dumps({"upstream": SIZES, "downstream": SIZES | {"seed": 3}, "downstream_sets": sets})
    done = run_local(tmp_path, "data", preset="smoke", overrides=overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {ref.name: ref for path in tmp_path.glob("root/**/result") if (ref := read_ref(path))}
    assert found.keys() == {"upstream", "flower", "depth_room"}
    for name, ref in found.items():
        config = read_record(open_store(ref.uri), ref.uri).config
        assert {key: config[key] for key in SIZES} == SIZES
        assert [type(config[key]) for key in (*SIZES, "seed")] == [int] * 5, "Kubeflow makes floats of numbers"
        assert config["dataset"] == name and config["seed"] == (0 if name == "upstream" else 3)
    assert "Traceback" not in done.stdout + done.stderr


def test_failing_step_ends_the_process_with_one(tmp_path):
    done = run_local(tmp_path, "data", preset="smoke", overrides='{"upstream": {"seed": "x"}}')
    assert done.returncode == 1
    assert "pipeline data: Pipeline" in done.stderr and "Traceback" not in done.stderr
    failed = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "failed"]
    assert {event["note"] for event in failed} == {'upstream.seed: expected a valid integer, got "x"'}
    assert {event["exit_code"] for event in failed} == {2}
