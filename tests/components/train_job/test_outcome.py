import pytest

from intern_components.train_job import outcome
from intern_components.train_job.outcome import cause, end_of
from intern_vision.errors import ConfigError, RetryableError, TrainingError

FAILED = {"type": "Failed", "status": "True", "reason": "FailedJobs", "message": "jobset failed"}


def pod(node=0, phase="Failed", code=None, word="Error", message="", at="2026-01-01T00:00:00Z", **status):
    ended = {"exitCode": code, "reason": word, "message": message, "finishedAt": at}
    state = {"running": {}} if code is None else {"terminated": ended}
    return {
        "metadata": {"name": f"job-node-0-{node}-x", "labels": {outcome.INDEX_LABEL: str(node)}},
        "status": {"phase": phase, "containerStatuses": [{"name": "node", "state": state}]} | status,
    }


DISRUPTED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}


@pytest.mark.parametrize(
    ("ended", "error", "text"),
    [
        (pod(code=2, message="x\nerror: trainer.x: bad\n"), ConfigError, "node 0 (pod job-node-0-0-x): trainer.x: bad"),
        (pod(code=75, message="error: stopped at step 8"), RetryableError, "stopped at step 8"),
        (pod(code=1, message="error: loss is not finite"), TrainingError, "loss is not finite"),
        (pod(code=1, message="Traceback"), TrainingError, "ended with code 1; its log is above"),
        (pod(code=137, word="OOMKilled"), RetryableError, "was killed: OOMKilled; give it more memory"),
        (pod(code=139), RetryableError, "was killed: signal 11"),
        (pod(reason="Evicted"), RetryableError, "killed: Evicted"),
        (pod(phase="Running", **DISRUPTED), RetryableError, "was killed: PreemptionByScheduler"),
    ],
)
def test_an_end_has_the_class_and_the_line_that_it_has_on_one_machine(ended, error, text):
    found = end_of(ended).error()
    assert type(found) is error and text in str(found) and "\n" not in str(found)


@pytest.mark.parametrize("well", [pod(phase="Running"), pod(phase="Succeeded", code=0), pod(phase="Pending")])
def test_what_runs_or_ended_well_has_no_bad_end(well):
    assert end_of(well) is None


def test_the_cause_is_told_and_not_its_echo():
    config = pod(1, code=2, message="error: batch", at="2026-01-01T00:00:09Z")
    killed = pod(1, code=137, word="OOMKilled", at="2026-01-01T00:00:05Z")
    crashed = pod(0, code=1, message="Traceback", at="2026-01-01T00:00:01Z")
    lost, stopped = pod(0, code=75, message="error: lost the other nodes"), pod(2, code=143)
    for pods, word in (
        ([crashed, lost, config], "batch"),
        ([lost, crashed, killed], "OOMKilled"),
        ([stopped, lost, crashed], "ended with code 1"),
        ([stopped, lost], "lost the other nodes"),
        ([stopped], "signal 15"),
    ):
        assert word in str(cause([end_of(each) for each in pods], FAILED, "job"))


def test_a_job_without_a_trace_of_its_nodes_is_tried_again_unless_its_runtime_is_wrong():
    gone = cause([], FAILED, "job")
    assert (
        type(gone) is RetryableError
        and str(gone) == "TrainJob job failed: FailedJobs: jobset failed; the same command resumes"
    )
    wrong = cause([], FAILED | {"reason": "TrainingRuntimeNotSupported"}, "job")
    assert type(wrong) is ConfigError and "INTERN_TRAINING_RUNTIME" in str(wrong)
