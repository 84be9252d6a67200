"""What pods say about themselves: how a node ended, why it does not start, and which end was the cause."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from intern_components.train_job.cluster import CONTAINER
from intern_vision.errors import ConfigError, InternError, RetryableError, TrainingError

Pod = Mapping[str, Any]
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

_KILLED, _TERMINATED = 128, 143
CANNOT_START = (
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
)
"""Reasons for which a container waits that no waiting mends."""
_CONFIG, _RETRY = ConfigError.exit_code, RetryableError.exit_code


@dataclass(frozen=True, kw_only=True)
class NodeEnd:
    """How a node ended badly.

    Attributes:
        node: its number, as text.
        pod: its pod.
        exit_code: of its program, -1 where it has none.
        reason: Kubernetes' word for it, such as ``OOMKilled`` or ``Evicted``; empty for a plain exit.
        message: the program's last line ``error: ...`` without that word, or what Kubernetes says.
        at: when, as an ISO text.
    """

    node: str
    pod: str
    exit_code: int
    reason: str
    message: str
    at: str

    @property
    def is_taken(self) -> bool:
        """Whether the machine or the kernel ended it, and not its program."""
        return bool(self.reason) or self.exit_code < 0 or self.exit_code > _KILLED

    @property
    def rank_as_cause(self) -> tuple[int, str]:
        """Smaller is likelier the cause: a program that said what is wrong, a machine that took it, then echoes."""
        if self.exit_code == _CONFIG:
            return 0, self.at
        if self.is_taken and self.exit_code != _TERMINATED:
            return 1, self.at
        # The others end because a neighbour is gone or because the job was stopped.
        return {_RETRY: 3, _TERMINATED: 4}.get(self.exit_code, 2), self.at

    def error(self) -> InternError:
        """The end as an error of the class that the same end has on one machine."""
        where = f"node {self.node} (pod {self.pod})"
        if self.is_taken:
            detail = f", {self.message}" if self.message else ""
            reason = self.reason or f"signal {self.exit_code - _KILLED}"
            memory = "; give it more memory or lower trainer.batch_size" if self.reason == "OOMKilled" else ""
            return RetryableError(f"{where} was killed: {reason}{detail}{memory}; the same command resumes")
        text = self.message or f"ended with code {self.exit_code}; its log is above"
        classes = {_CONFIG: ConfigError, _RETRY: RetryableError}
        return classes.get(self.exit_code, TrainingError)(f"{where}: {text}")


def node_of(pod: Pod) -> str:
    """Number of the pod's node among those of the job, as text."""
    metadata = pod["metadata"]
    return metadata.get("labels", {}).get(INDEX_LABEL) or metadata.get("annotations", {}).get(INDEX_LABEL, "?")


def has_started(pod: Pod) -> bool:
    """Whether the pod has a log."""
    state = _container(pod).get("state", {})
    return "running" in state or "terminated" in state


def has_ended(pod: Pod) -> bool:
    """Whether the pod will not run again."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def end_of(pod: Pod) -> NodeEnd | None:
    """How a pod ended badly; None where it runs, waits or ended well."""
    status = pod.get("status", {})
    container = _container(pod)
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    taken = _taken_by(status)
    if not ended.get("exitCode") and not (status.get("phase") == "Failed" or (taken and not ended)):
        return None
    plain = ("Error", "Completed", "")
    reason = taken or ("" if ended.get("reason", "") in plain else ended["reason"])
    last_line = next(
        (line for line in reversed(ended.get("message", "").splitlines()) if line.startswith("error: ")), ""
    )
    return NodeEnd(
        node=node_of(pod),
        pod=pod["metadata"]["name"],
        exit_code=ended.get("exitCode", -1),
        reason=reason,
        message=last_line.removeprefix("error: ") or " ".join(status.get("message", "").split()),
        at=ended.get("finishedAt") or "9",
    )


def cause(ends: Iterable[NodeEnd], condition: Mapping[str, Any], job: str) -> InternError:
    """Why a job failed.

    Args:
        ends: bad ends of its nodes.
        condition: the TrainJob's condition ``Failed``.
        job: its name.
    """
    ends = sorted(ends, key=lambda end: end.rank_as_cause)
    if ends:
        return ends[0].error()
    reason, message = condition.get("reason", "Failed"), " ".join(condition.get("message", "").split())
    if reason == "TrainingRuntimeNotSupported":
        return ConfigError(f"TrainJob {job}: {reason}: {message}; correct INTERN_TRAINING_RUNTIME")
    # Nodes that left no trace: their machines are gone.
    return RetryableError(f"TrainJob {job} failed: {reason}: {message}; the same command resumes")


def fault_at_start(pod: Pod) -> str:
    """Why the pod's container cannot start, empty where nothing says so; a registry may answer better later."""
    waiting = _container(pod).get("state", {}).get("waiting") or {}
    if waiting.get("reason") not in CANNOT_START:
        return ""
    return f"{waiting['reason']}: {' '.join(waiting.get('message', '').split())}"


def waits_for(pod: Pod) -> str:
    """What the scheduler says about a pod that has no machine yet, empty where it has one."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return " ".join(condition.get("message", "").split())
    return ""


def condition_of(job: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The TrainJob's condition of this type where it holds."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            return condition
    return None


def _container(pod: Pod) -> Mapping[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return next((each for each in statuses if each["name"] == CONTAINER), {})


def _taken_by(status: Mapping[str, Any]) -> str:
    """Kubernetes' word for taking a pod from its machine, empty where it did not."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return condition.get("reason", "DisruptionTarget")
    return status.get("reason", "") if status.get("phase") == "Failed" else ""
