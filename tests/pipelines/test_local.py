import json
import subprocess
import sys

import pytest
from running import clean_environment, read_events

from intern_pipelines.local import PIPELINES, load_pipeline


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


def test_failing_step_ends_the_process_with_one(tmp_path):
    done = run_local(tmp_path, "data", sources='[{"uri": "pets"}]', settings='{"ingest": {"max_bytes": "x"}}')
    assert done.returncode == 1
    assert "pipeline data: Pipeline" in done.stderr and "Traceback" not in done.stderr
    failed = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "failed"]
    assert {event["note"] for event in failed} == {'ingest.max_bytes: expected a valid integer, got "x"'}
    assert {event["exit_code"] for event in failed} == {2}
