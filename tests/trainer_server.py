"""The Kubernetes API with TrainJobs, pods and their logs, and what runs a TrainJob's nodes as processes here.

Objects have resource versions, lists and watches start from one another, watches and logs are streams that break as
asked, deletion in the foreground waits for the pods. What a controller would do, a test does, or ``Machines``.
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster_servers import ALREADY_EXISTS, NOT_FOUND, ObjectServer

NAMESPACE = "vision"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
RUNTIME = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/intern-torch"
GONE, FORBIDDEN = 410, 403
_PATH = re.compile(rf"(?P<folder>{JOBS}|{PODS})(?:/(?P<name>[^/]+))?(?P<log>/log)?")
_VERBS = {"GET": "get", "POST": "create", "DELETE": "delete"}


class TrainerServer(ObjectServer):
    """Objects with versions; attributes may be set at any time.

    Attributes:
        patch_field: of a TrainJob's spec, which tells Trainer's version; empty: there is no Trainer.
        denied: (verb, resource) that the service account may not.
        quota: a create is refused with this message.
        breaks: what happens to the next watches: ``gone`` (410 in the stream), ``gone at once`` (as status),
            ``cut`` (in the midst of a line), ``away`` (503).
        log_breaks: after how many lines the next log streams end.
        on_create: called in a thread with each new TrainJob.
        asked: (verb, resource) of every request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_field = "runtimePatches"
        self.denied: set[tuple[str, str]] = set()
        self.quota = ""
        self.breaks: list[str] = []
        self.log_breaks: list[int] = []
        self.on_create: Callable[[dict[str, Any]], None] = lambda job: None
        self.asked: list[tuple[str, str]] = []
        self.logs: dict[str, list[tuple[str, float, str]]] = {}
        self.objects[RUNTIME] = {"metadata": {"name": "intern-torch"}}
        self._changed_at: list[tuple[int, str, str, dict[str, Any]]] = []
        self._versions = itertools.count(101)
        self._news = threading.Condition()

    # What a controller, a kubelet or a test does.

    def put(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        """Makes or changes an object; watches hear of it."""
        with self._news:
            kind = "MODIFIED" if path in self.objects else "ADDED"
            metadata = {"uid": f"uid-{next(self._versions)}"} | value["metadata"]
            kept = value | {"metadata": metadata | {"resourceVersion": str(next(self._versions))}}
            self.objects[path] = kept
            self._tell(kind, path, kept)
        return kept

    def remove(self, path: str) -> None:
        """Takes an object away; a TrainJob that is being deleted goes with its last pod."""
        with self._news:
            gone = self.objects.pop(path, None)
            if gone is not None:
                gone = gone | {"metadata": gone["metadata"] | {"resourceVersion": str(next(self._versions))}}
                self._tell("DELETED", path, gone)
            for job_path, job in list(self.objects.items()):
                is_going = job_path.startswith(JOBS) and "deletionTimestamp" in job["metadata"]
                if is_going and not self.pods_of(job["metadata"]["name"]):
                    self.remove(job_path)

    def set_condition(self, job: str, kind: str, reason: str = "", message: str = "") -> None:
        """Adds a condition that holds to a TrainJob, if it is still there."""
        with self._news:
            if (found := self.objects.get(f"{JOBS}/{job}")) is None:
                return
            condition = {"type": kind, "status": "True", "reason": reason or kind, "message": message}
            before = found.get("status", {}).get("conditions", [])
            self.put(f"{JOBS}/{job}", found | {"status": {"conditions": [*before, condition]}})

    def set_pod(
        self, job: str, node: int, phase: str, state: dict[str, Any] | None = None, ending: str = "abcde", **status: Any
    ) -> str:
        """Makes or changes the pod of a node; gives its name."""
        name = f"{job}-node-0-{node}-{ending}"
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "batch.kubernetes.io/job-completion-index": str(node)}
        containers = [{"name": "node", "state": state}] if state else []
        with self._news:
            uid = self.objects.get(f"{PODS}/{name}", {}).get("metadata", {}).get("uid")
            metadata = {"name": name, "labels": labels} | ({"uid": uid} if uid else {})
            self.logs.setdefault(name, [])
            self.put(
                f"{PODS}/{name}",
                {"metadata": metadata, "status": {"phase": phase, "containerStatuses": containers} | status},
            )
        return name

    def write_log(self, pod: str, line: str) -> None:
        """Adds a line to a pod's log."""
        with self._news:
            now = time.time_ns()
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
            self.logs[pod].append((f"{moment}.{now % 10**9:09d}Z", now / 1e9, line))
            self._news.notify_all()

    def pods_of(self, job: str) -> list[str]:
        """Paths of a TrainJob's pods."""
        return [path for path in self.objects if path.startswith(f"{PODS}/{job}-node-")]

    def clear(self, job: str) -> None:
        """Takes a TrainJob's pods away, and so the TrainJob where it is being deleted."""
        for path in self.pods_of(job):
            self.remove(path)

    def is_going(self, job: str) -> bool:
        """Whether a TrainJob is being deleted or is gone."""
        return "deletionTimestamp" in self.objects.get(f"{JOBS}/{job}", {"metadata": "deletionTimestamp"})["metadata"]

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Returns once a condition on the server holds."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            # Not every condition is about an object, so news alone would not do.
            while not condition():
                assert time.monotonic() < deadline, "the server waited in vain"
                self._news.wait(0.05)

    # The API.

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, Any]:
        """Status and JSON, or a stream of bytes, for a request."""
        if path.startswith("/openapi/v3/apis/trainer.kubeflow.org/"):
            return (200, self._schema()) if self.patch_field else (NOT_FOUND, _status("NotFound", NOT_FOUND))
        found = _PATH.fullmatch(path)
        resource = (
            path.rpartition("/")[0].rpartition("/")[2] if found is None else path.split("/")[5 + ("apis" in path)]
        )
        verb = _VERBS[method]
        if found and method == "GET" and not found["name"]:
            verb = "watch" if query.get("watch") == "True" else "list"
        if found and found["log"]:
            resource = "pods/log"
        with self._news:
            self.asked.append((verb, resource))
            self._news.notify_all()
            if (verb, resource) in self.denied:
                return FORBIDDEN, _forbidden(verb, resource)
            if verb == "watch":
                return self._watch(found["folder"], query)
            if verb == "list":
                items = [each for each in self._listed(found["folder"], {}) if _is_selected(each, query)]
                return 200, {"metadata": {"resourceVersion": str(next(self._versions))}, "items": items}
            if found and found["log"]:
                return self._log(found["name"], query)
            if method == "POST":
                return self._make(path, json.loads(body))
            if path not in self.objects:
                return NOT_FOUND, _status("NotFound", NOT_FOUND)
            if method == "DELETE":
                return self._delete(path, json.loads(body or b"{}"))
            return 200, self.objects[path]

    def _make(self, folder: str, value: dict[str, Any]) -> tuple[int, Any]:
        path = f"{folder}/{value['metadata']['name']}"
        if self.quota:
            return FORBIDDEN, _status("Forbidden", FORBIDDEN) | {"message": self.quota}
        if path in self.objects:
            return ALREADY_EXISTS, _status("AlreadyExists", ALREADY_EXISTS)
        kept = self.put(path, value)
        threading.Thread(target=self.on_create, args=(kept,), daemon=True).start()
        return 201, kept

    def _delete(self, path: str, options: dict[str, Any]) -> tuple[int, Any]:
        found = self.objects[path]
        if options.get("preconditions", {}).get("uid") not in (None, found["metadata"]["uid"]):
            return ALREADY_EXISTS, _status("Conflict", ALREADY_EXISTS)
        self.deleted.append(path)
        assert options["propagationPolicy"] == "Foreground"
        self.put(path, found | {"metadata": found["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
        if not self.pods_of(found["metadata"]["name"]):
            self.remove(path)
        return 200, found

    def _watch(self, folder: str, query: dict[str, str]) -> tuple[int, Any]:
        fault = self.breaks.pop(0) if self.breaks else ""
        if fault == "gone at once":
            return GONE, _status("Expired", GONE)
        if fault == "away":
            return 503, _status("ServiceUnavailable", 503)
        return 200, self._stream(folder, query, fault)

    def _stream(self, folder: str, query: dict[str, str], fault: str) -> Iterator[bytes]:
        seen, deadline = int(query["resourceVersion"]), time.monotonic() + float(query["timeoutSeconds"])
        if fault == "gone":
            gone = _status("Expired", GONE) | {"message": "too old resource version"}
            yield json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"
            return
        while time.monotonic() < deadline:
            with self._news:
                self._news.wait_for(lambda seen=seen: self._after(folder, seen), min(1.0, deadline - time.monotonic()))
                news = self._after(folder, seen)
            for version, kind, value in news:
                seen = version
                line = json.dumps({"type": kind, "object": value}).encode() + b"\n"
                if fault == "cut":
                    yield line[: len(line) // 2]
                    raise ConnectionResetError
                if _is_selected(value, query):
                    yield line

    def _after(self, folder: str, version: int) -> list[tuple[int, str, dict[str, Any]]]:
        below = [(v, kind, value) for v, kind, path, value in self._changed_at if path.startswith(f"{folder}/")]
        return [each for each in below if each[0] > version]

    def _log(self, pod: str, query: dict[str, str]) -> tuple[int, Any]:
        if f"{PODS}/{pod}" not in self.objects:
            return NOT_FOUND, _status("NotFound", NOT_FOUND)
        assert query["timestamps"] == "True" and query["container"] == "node"
        return 200, self._log_lines(pod, query, self.log_breaks.pop(0) if self.log_breaks else -1)

    def _log_lines(self, pod: str, query: dict[str, str], num_left: int) -> Iterator[bytes]:
        oldest = time.time() - float(query.get("sinceSeconds", "inf"))
        num_sent = max(0, len(self.logs[pod]) - int(query["tailLines"])) if "tailLines" in query else 0
        while True:
            with self._news:
                lines, is_over = self.logs[pod][num_sent:], self._has_ended(pod) or query.get("follow") != "True"
                if not (lines or is_over):
                    self._news.wait(1.0)
            for stamp, moment, text in lines:
                num_sent += 1
                if moment < oldest:
                    continue
                if num_left == 0:
                    raise ConnectionResetError
                num_left -= 1
                yield f"{stamp} {text}\n".encode()
            if is_over and not lines:
                return

    def _has_ended(self, pod: str) -> bool:
        return self.objects.get(f"{PODS}/{pod}", {}).get("status", {}).get("phase") in ("Succeeded", "Failed", None)

    def _tell(self, kind: str, path: str, value: dict[str, Any]) -> None:
        self._changed_at.append((int(value["metadata"]["resourceVersion"]), kind, path, value))
        self._news.notify_all()

    def _schema(self) -> dict[str, Any]:
        spec = {"properties": {"runtimeRef": {}, self.patch_field: {"type": "array"}}}
        return {"components": {"schemas": {"io.trainer.v1alpha1.TrainJob": {"properties": {"spec": spec}}}}}


class Machines:
    """Runs each node of a TrainJob as a process of this machine, with the variables that Trainer's torch policy sets.

    Used as a block, at whose end no node is left.

    As in a JobSet that must not restart, the first node that fails takes the others with it.

    Args:
        server: whose TrainJobs; its ``on_create`` is taken.
        environment: of the nodes, as the training runtime would bring it.
        num_ranks: of a node.
    """

    def __init__(self, server: TrainerServer, environment: dict[str, str], num_ranks: int = 1) -> None:
        self.server = server
        self.environment = environment
        self.num_ranks = num_ranks
        self.nodes: list[subprocess.Popen[str]] = []
        server.on_create = self.run

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self.nodes:
            node.kill()

    def run(self, job: dict[str, Any]) -> None:
        """A TrainJob from its pods to its condition, or to its deletion."""
        name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
            port = probe.getsockname()[1]
        passed = {variable["name"]: variable["value"] for variable in trainer["env"]}
        shared = {"PET_NNODES": trainer["numNodes"], "PET_MASTER_ADDR": "127.0.0.2", "PET_MASTER_PORT": port}
        shared["PET_NPROC_PER_NODE"] = trainer.get("numProcPerNode", self.num_ranks)
        nodes = [
            subprocess.Popen(
                [*trainer["command"], *trainer["args"]],
                env=self.environment | passed | {k: str(v) for k, v in shared.items()} | {"PET_NODE_RANK": str(node)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node in range(trainer["numNodes"])
        ]
        self.nodes = nodes
        pods = [self.server.set_pod(name, node, "Running", {"running": {}}) for node in range(len(nodes))]
        pumps = [threading.Thread(target=self._pump, args=pair) for pair in zip(nodes, pods, strict=True)]
        for pump in pumps:
            pump.start()
        codes = self._follow(name, nodes)
        for pump in pumps:
            pump.join()
        for node, code in enumerate(codes):
            self._end_pod(name, node, code)
        if any(codes):
            self.server.set_condition(name, "Failed", "FailedJobs", "jobset failed due to one or more job failures")
        else:
            self.server.set_condition(name, "Complete", "AllJobsCompleted")
        self.server.wait_until(lambda: self.server.is_going(name))
        self.server.clear(name)

    def _follow(self, name: str, nodes: list[subprocess.Popen[str]]) -> list[int]:
        is_told = False
        while any(node.poll() is None for node in nodes):
            if not is_told and (self.server.is_going(name) or any(node.poll() for node in nodes)):
                is_told = True
                for node in nodes:
                    with suppress(ProcessLookupError):
                        node.terminate()
            time.sleep(0.02)
        return [node.wait() for node in nodes]

    def _pump(self, node: subprocess.Popen[str], pod: str) -> None:
        for line in node.stdout:
            self.server.write_log(pod, line.rstrip("\n"))

    def _end_pod(self, name: str, node: int, code: int) -> None:
        pod = f"{name}-node-0-{node}-abcde"
        lines = "\n".join(text for _, _, text in self.server.logs[pod][-20:])
        exit_code = code if code >= 0 else 128 - code
        ended = {"exitCode": exit_code, "reason": "Error" if code else "Completed", "message": lines if code else ""}
        self.server.set_pod(name, node, "Failed" if code else "Succeeded", {"terminated": ended})

    def kill(self, node: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to a node's program."""
        os.kill(self.nodes[node].pid, number)


def write_kubeconfig(path: Path, url: str) -> Path:
    """A file for ``KUBECONFIG`` that leads to the server."""
    context = {"cluster": "here", "user": "here", "namespace": NAMESPACE}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": context}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "here", "user": {"token": "of the step"}}],
    }
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return path


def _is_selected(value: dict[str, Any], query: dict[str, str]) -> bool:
    metadata = value["metadata"]
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, _, wanted = pair.partition("=")
        if metadata.get("labels", {}).get(key) != wanted:
            return False
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return name in ("", metadata["name"])


def _status(reason: str, code: int) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason}


def _forbidden(verb: str, resource: str) -> dict[str, Any]:
    message = (
        f'{resource} is forbidden: User "system:serviceaccount:{NAMESPACE}:pipeline-runner" cannot {verb} resource '
        f'"{resource}" in the namespace "{NAMESPACE}"'
    )
    return _status("Forbidden", FORBIDDEN) | {"message": message}
