"""A training on several nodes as a TrainJob, from its start to its deletion."""

import os
import queue
import time
from collections.abc import Callable
from typing import Any

from intern_components.train_job import outcome
from intern_components.train_job.cluster import Cluster
from intern_components.train_job.following import JOB_LABEL, Changes, LogStream, Watcher
from intern_components.train_job.manifest import MANAGED_BY, OUTPUT, PAYLOAD, job_name, runtime_of, train_job
from intern_vision.errors import ConfigError, InternError, RetryableError
from intern_vision.train.several_nodes import NodesRequest

POLL_S = 0.5
START_PATIENCE_S = 180.0
"""How long a container may fail to start, its image to be pulled."""
GONE_PATIENCE_S = 900.0
"""How long the pods of an earlier attempt may take to save a checkpoint and go."""
QUIET_START_S = 60.0
"""After which a job without a pod is worth a word."""
SETTLE_S = 5.0
"""How long after the job's end its pods may still say why."""
LOG_END_S = 15.0
TAIL_LINES = 30


class TrainJobRun:
    """One TrainJob; see ``intern_vision.train.several_nodes.NodesJob``.

    Args:
        request: what to start.
        say: tells people.

    Raises:
        ConfigError: there is no cluster.
    """

    def __init__(self, request: NodesRequest, say: Callable[[str], None]) -> None:
        self._request = request
        self._say = say
        self._cluster = Cluster()
        self._name = job_name(request)
        self._uid = ""
        self._job: dict[str, Any] = {}
        self._pods: dict[str, dict[str, Any]] = {}
        self._changes: Changes = queue.Queue()
        self._logs: dict[str, LogStream] = {}
        self._said: set[str] = set()
        self._started = time.monotonic()
        self._stuck_since: dict[str, float] = {}

    def start(self, is_stopping: Callable[[], bool]) -> str:
        """Makes the TrainJob, or takes over the one of an earlier try of this step; gives its payload's address.

        One that failed, or is being deleted, is waited for to go first: its pods may still be saving a checkpoint.

        Raises:
            AccessError: a right is missing.
            ConfigError: Trainer or its runtime is missing, or the name belongs to something else.
            RetryableError: a quota is used up, the API is away, or the old job does not go.
        """
        manifest = self._manifest()
        deadline = time.monotonic() + GONE_PATIENCE_S
        while time.monotonic() < deadline:
            if is_stopping():
                raise RetryableError("asked to stop; the same command resumes")
            made = self._cluster.create(manifest)
            found = made or self._cluster.find(self._name)
            if found is None:
                continue  # it went in between
            self._check_ours(found)
            is_going = "deletionTimestamp" in found["metadata"]
            if made or not (is_going or outcome.condition_of(found, "Failed")):
                self._uid, self._job = found["metadata"]["uid"], found
                verb = "started" if made else "took over"
                self._say(f"{verb} TrainJob {self._name}, {self._request.num_nodes} nodes, {self._cluster.namespace}")
                return found["metadata"]["annotations"][PAYLOAD]
            if not is_going:
                self._cluster.delete(self._name, found["metadata"]["uid"])
            self._once(f"waiting for the TrainJob {self._name} of an earlier try to go")
            time.sleep(POLL_S)
        raise RetryableError(
            f"TrainJob {self._name} is still being deleted after {GONE_PATIENCE_S:.0f} s; look at its pods with "
            f"kubectl -n {self._cluster.namespace} get pods -l {JOB_LABEL}={self._name}"
        )

    def wait(self, is_stopping: Callable[[], bool]) -> None:
        """Follows the TrainJob to its end and says the first node's log.

        Raises:
            InternError: what ended a node, with the class and so the exit code that it has on one machine;
                RetryableError where nodes were taken away, the job was deleted, or this process is asked to stop.
        """
        selection = {"jobs": {"field_selector": f"metadata.name={self._name}"}}
        selection["pods"] = {"label_selector": f"{JOB_LABEL}={self._name}"}
        watchers = [Watcher(self._cluster, kind, self._changes, **options) for kind, options in selection.items()]
        for watcher in watchers:
            watcher.start()
        try:
            while not outcome.condition_of(self._job, "Complete"):
                if failed := outcome.condition_of(self._job, "Failed"):
                    raise self._cause(failed)
                if is_stopping():
                    raise RetryableError("asked to stop: the nodes save a checkpoint, and the same command resumes")
                self._take_change(POLL_S)
                self._look_at_pods()
            self._settle()
            self._finish_logs()
        finally:
            for watcher in watchers:
                watcher.close()

    def delete(self) -> None:
        """Removes the TrainJob where ``start`` made it or took it over; a failure is told."""
        if not self._uid:
            return
        try:
            self._cluster.delete(self._name, self._uid)
        except InternError as error:
            self._say(
                f"TrainJob {self._name} is left over ({error}); "
                f"kubectl -n {self._cluster.namespace} delete trainjob {self._name}"
            )

    def _manifest(self) -> dict[str, Any]:
        from intern_components.base import IMAGE

        runtime = runtime_of(os.environ)
        patch_field = self._cluster.patch_field()
        self._cluster.check_runtime(*runtime)
        pod = self._cluster.own_pod()
        return train_job(self._request, self._cluster.namespace, runtime, patch_field, pod, IMAGE)

    def _check_ours(self, found: dict[str, Any]) -> None:
        metadata = found["metadata"]
        is_ours = MANAGED_BY.items() <= metadata.get("labels", {}).items()
        if not is_ours or metadata.get("annotations", {}).get(OUTPUT) != self._request.output_uri:
            raise ConfigError(
                f"TrainJob {self._name} in namespace {self._cluster.namespace} is not this step's; delete it"
            )

    def _take_change(self, timeout_s: float) -> None:
        try:
            kind, what, found = self._changes.get(timeout=timeout_s)
        except queue.Empty:
            return
        if what == "FAULT":
            raise found
        if kind == "jobs":
            self._take_job(what, found)
        elif what == "SYNC":
            # Pods that went while nobody looked keep what they were last seen to say.
            self._pods |= {pod["metadata"]["uid"]: pod for pod in found}
        elif what in ("ADDED", "MODIFIED", "DELETED"):
            self._pods[found["metadata"]["uid"]] = found

    def _take_job(self, what: str, found: Any) -> None:
        if what == "SYNC":
            jobs = [job for job in found if job["metadata"]["uid"] == self._uid]
            what, found = ("MODIFIED", jobs[0]) if jobs else ("DELETED", self._job)
        if found["metadata"]["uid"] != self._uid:
            return
        if what == "DELETED":
            self._uid = ""
            raise RetryableError(f"TrainJob {self._name} was deleted while it ran; the same command resumes")
        self._job = found

    def _look_at_pods(self) -> None:
        for uid, pod in self._pods.items():
            if outcome.node_of(pod) == "0" and uid not in self._logs and outcome.has_started(pod):
                self._logs[uid] = self._log_of(pod)
            if uid in self._logs and outcome.has_ended(pod):
                self._logs[uid].end()
            if waiting := outcome.waits_for(pod):
                self._once(f"node {outcome.node_of(pod)} waits for a machine: {waiting}")
            self._check_start(uid, pod)
        if outcome.condition_of(self._job, "Suspended"):
            self._once("the TrainJob is suspended: a queue holds it back")
        elif not self._pods and time.monotonic() - self._started > QUIET_START_S:
            self._once(
                "no node has a pod yet; a quota or a webhook may refuse them: "
                f"kubectl -n {self._cluster.namespace} describe jobs -l {JOB_LABEL}={self._name}"
            )

    def _check_start(self, uid: str, pod: dict[str, Any]) -> None:
        fault = outcome.fault_at_start(pod)
        if not fault:
            self._stuck_since.pop(uid, None)
            return
        where = f"node {outcome.node_of(pod)} (pod {pod['metadata']['name']})"
        self._once(f"{where} does not start: {fault.partition(':')[0]}")
        since = self._stuck_since.setdefault(uid, time.monotonic())
        if fault.startswith("InvalidImageName") or time.monotonic() - since > START_PATIENCE_S:
            raise ConfigError(f"{where} cannot start: {fault}; correct the image, its pull secret or the runtime")

    def _settle(self) -> None:
        """Waits a moment until every pod says how it ended: the job's condition may come first."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            self._take_change(POLL_S)
            self._look_at_pods()
            if self._pods and all(map(outcome.has_ended, self._pods.values())):
                return

    def _cause(self, failed: Any) -> InternError:
        self._settle()
        self._finish_logs()
        ends = [end for pod in self._pods.values() if (end := outcome.end_of(pod))]
        for end in ends:
            if end.node != "0":
                self._say_tail(end)
        return outcome.cause(ends, failed, self._name)

    def _log_of(self, pod: dict[str, Any]) -> LogStream:
        stream = LogStream(self._cluster, pod["metadata"]["name"], lambda line: self._say_line("0", line))
        stream.start()
        return stream

    def _finish_logs(self) -> None:
        for stream in self._logs.values():
            stream.end()
        deadline = time.monotonic() + LOG_END_S
        for stream in self._logs.values():
            stream.join(timeout=max(0.0, deadline - time.monotonic()))

    def _say_tail(self, end: outcome.NodeEnd) -> None:
        tail = LogStream(self._cluster, end.pod, lambda line: self._say_line(end.node, line), tail_lines=TAIL_LINES)
        tail.end()
        tail.start()
        tail.join(timeout=LOG_END_S)

    def _say_line(self, node: str, line: str) -> None:
        print(f"[{self._request.name} node {node}] {line}", flush=True)

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)
