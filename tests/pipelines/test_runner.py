import fcntl
import json
import signal
import stat
from contextlib import suppress

import psutil
import pytest
from helpers import commit_folder
from running import LongRun, processes_of, seconds_until_gone

from intern_pipelines.runner import RESULT_FILES, LocalRun
from intern_vision.errors import ConfigError, RetryableError
from intern_vision.ref import Ref

REF = Ref(kind="scores", name="x", uri="file:///x", digest="0" * 64, num_bytes=1, parents=())
# Rendering in worker processes begins at 8,000 images.
RENDERS_LONG = json.dumps({"upstream": {"num_train": 40_000}})


def local_run(tmp_path, **identity):
    return LocalRun(
        name="mine", pipeline="data", arguments={}, identity=identity, state_dir=tmp_path / "state", num_ranks=1
    )


def rendering(state):
    """Worker processes that have got as far as rendering."""
    found = []
    for process in processes_of(state):
        with suppress(psutil.Error):  # ended since it was listed
            if "spawn_main" in " ".join(process.cmdline()) and sum(process.cpu_times()[:2]) > 1.5:
                found.append(process)
    return found


def fail_at_services(monkeypatch):
    """Ends ``execute`` where the servers would start."""

    class StoppedError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StoppedError

    monkeypatch.setattr("intern_vision.services.running", stop)
    return StoppedError


def test_second_process_of_one_run_is_refused(tmp_path):
    run = local_run(tmp_path)
    run.run_dir.mkdir(parents=True)
    with open(run.run_dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RetryableError, match="run mine in .* is going on in another process; .* choose --name"):
            run.execute(print)
    assert sorted(path.name for path in run.run_dir.iterdir()) == ["lock"]


def test_changed_config_is_refused_and_names_the_fields(tmp_path, monkeypatch):
    stopped = fail_at_services(monkeypatch)
    with pytest.raises(stopped):
        local_run(tmp_path, a={"b": 1}, c=2).execute(print)
    with pytest.raises(stopped):
        local_run(tmp_path, a={"b": 1}, c=2).execute(print)
    with pytest.raises(ConfigError, match=r"another config: a\.b: 1 -> 3; give the same .* --no-resume"):
        local_run(tmp_path, a={"b": 3}, c=2).execute(print)
    with pytest.raises(stopped):
        local_run(tmp_path, a={"b": 3}, c=2).execute(print, resume=False)
    with pytest.raises(ConfigError, match=r"a\.b: 3 -> 1"):
        local_run(tmp_path, a={"b": 1}, c=2).execute(print)


def test_start_clears_what_the_last_one_left_and_keeps_the_folder_private(tmp_path, monkeypatch):
    run = local_run(tmp_path)
    for name in ("refs", "kfp"):
        (run.run_dir / name).mkdir(parents=True)
        (run.run_dir / name / "old.json").write_text(REF.to_json())
    for name in ("stop", "events.jsonl"):
        (run.run_dir / name).write_text("old")
    (run.run_dir / "log.txt").write_text("old")
    with pytest.raises(fail_at_services(monkeypatch)):
        run.execute(print)
    assert sorted(path.name for path in run.run_dir.iterdir()) == ["config.json", "lock", "log.txt"]
    assert stat.S_IMODE(run.state_dir.stat().st_mode) == 0o700


def test_results_are_found_by_step(tmp_path):
    run = local_run(tmp_path)
    (run.run_dir / "refs").mkdir(parents=True)
    (run.run_dir / "refs" / "report.json").write_text(REF.to_json())
    assert run.ref("report") == REF and run.steps() == ["report"]
    with pytest.raises(ConfigError, match="run mine: no result of step export; known: report"):
        run.ref("export")
    assert run.results(["a", "b"], "report") == [run.run_dir / "report" / "a", run.run_dir / "report" / "b"]


def test_a_failed_run_keeps_what_it_finished(tmp_path):
    run = local_run(tmp_path)
    made = tmp_path / "made"
    (run.run_dir / "refs").mkdir(parents=True)
    made.mkdir()
    for name in RESULT_FILES["report"]:
        (made / name).write_text(name)
    failures = [{"stage": "promote", "note": "does not pass", "exit_code": 2}]
    with pytest.raises(ConfigError, match=r"promote: does not pass \(log: [^,]*log.txt\)"):
        run._raise_failure(1, failures, [])
    ref = commit_folder(f"file://{tmp_path}/store", "report", "report", "mine", made)
    for step in ("report", "annotate"):  # the second was asked for nothing and passed its input on
        (run.run_dir / "refs" / f"{step}.json").write_text(ref.to_json())
    with pytest.raises(ConfigError, match=r"promote: does not pass \(log: .*log.txt, report: .*report.html\)"):
        run._raise_failure(1, failures, [])
    assert (run.run_dir / "report" / "report.html").read_text() == "report.html"
    assert not (run.run_dir / "annotate").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_run_that_is_stopped_while_it_renders(tmp_path, number):
    state = tmp_path / "state"
    run = LongRun(state, "smoke", ["run", "--preset", "smoke", "--override", RENDERS_LONG, "--num-ranks", "2"])
    try:
        run.wait_until(lambda: len(rendering(state)) == 2)
        run.process.send_signal(number)
        assert run.finish(30) == (75 if number == signal.SIGTERM else -number)
        assert seconds_until_gone(state, 10) < 5.0
    finally:
        run.process.kill()
    if number == signal.SIGTERM:
        assert run.stderr().splitlines()[-1] == "error: asked to stop; the same command resumes"
        assert not (run.run_dir / "tmp").exists()
