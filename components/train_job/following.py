"""Following a TrainJob: watches that survive every kind of interruption, and the log of its first node."""

import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from intern_components.train_job.cluster import JOBS, Cluster, is_expired
from intern_vision.errors import RetryableError

JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
WATCH_S = 60
"""How long the server keeps one watch open."""
QUIET_S = 90.0
"""How long a log may say nothing before its connection is taken for dead and made anew."""
RECONNECT_S = 1.0
PATIENCE_S = 900.0
"""How long the Kubernetes API may stay away while the nodes train on."""

Changes = queue.Queue[tuple[str, str, Any]]
"""(``jobs`` or ``pods``, what happened, object), (kind, ``SYNC``, all objects) or (kind, ``FAULT``, error)."""


class Watcher(threading.Thread):
    """Puts every change of some objects into a queue: a list, then a watch from there, and again where that breaks.

    Args:
        cluster: the API.
        kind: ``jobs`` or ``pods``.
        changes: where to.
        selection: of the objects, as options of the client's list call.
    """

    def __init__(self, cluster: Cluster, kind: str, changes: Changes, **selection: str) -> None:
        super().__init__(name=f"watch-{kind}", daemon=True)
        self._cluster = cluster
        self._kind = kind
        self._changes = changes
        self._selection = selection
        self._right = JOBS if kind == "jobs" else "pods"
        self._call = cluster.list_jobs if kind == "jobs" else cluster.list_pods
        self._closing = threading.Event()

    def close(self) -> None:
        """Ends the thread after its present wait; its connection ends with the process."""
        self._closing.set()

    def run(self) -> None:
        """The thread."""
        import urllib3
        from kubernetes.client import ApiException

        version, away_since = "", 0.0
        while not self._closing.is_set():
            try:
                if not version:
                    version = self._list()
                version = self._watch(version)
                away_since = 0.0
                continue
            except ApiException as error:
                version = ""
                if is_expired(error):
                    continue
                fault = self._cluster.fault(error, ("watch", self._right))
                if not isinstance(fault, RetryableError):
                    self._changes.put((self._kind, "FAULT", fault))
                    return
            except (urllib3.exceptions.HTTPError, ValueError) as error:  # cut off, perhaps within a line of JSON
                version = ""
                fault = RetryableError(
                    f"the Kubernetes API stayed away for {PATIENCE_S:.0f} s ({type(error).__name__})"
                )
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > PATIENCE_S:
                self._changes.put((self._kind, "FAULT", fault))
                return
            self._closing.wait(RECONNECT_S)

    def _list(self) -> str:
        answer = self._call(**self._selection, _preload_content=False, _request_timeout=WATCH_S)
        found = json.loads(answer.data)
        self._changes.put((self._kind, "SYNC", found["items"]))
        return found["metadata"]["resourceVersion"]

    def _watch(self, version: str) -> str:
        from kubernetes import watch

        options = {"timeout_seconds": WATCH_S, "_request_timeout": (WATCH_S, WATCH_S + 30)}
        stream = watch.Watch(return_type="object").stream(
            self._call, resource_version=version, **self._selection, **options
        )
        for event in stream:
            version = event["raw_object"]["metadata"]["resourceVersion"]
            self._changes.put((self._kind, event["type"], event["raw_object"]))
            if self._closing.is_set():
                break
        return version


class LogStream(threading.Thread):
    """Says every line of a pod's log once, from its start to its end, over as many connections as it takes.

    Args:
        cluster: the API.
        pod: the pod's name; it has started.
        say: takes a line.
        options: of the client's call, such as ``tail_lines``.
    """

    def __init__(self, cluster: Cluster, pod: str, say: Callable[[str], None], **options: int) -> None:
        super().__init__(name=f"log-{pod}", daemon=True)
        self._cluster = cluster
        self._pod = pod
        self._say = say
        self._options = options
        self._ended = threading.Event()
        self._last_stamp = ""
        self._last_read = 0.0

    def end(self) -> None:
        """Says that the pod has ended: what is left is read, and then the thread ends."""
        self._ended.set()

    def run(self) -> None:
        """The thread."""
        import urllib3
        from kubernetes.client import ApiException

        while True:
            is_last = self._ended.is_set()
            try:
                self._read(follow=not is_last)
                if is_last:
                    return
            except ApiException as error:
                if error.status in (401, 403):
                    self._say(f"no log: {self._cluster.fault(error, ('get', 'pods/log'))}")
                    return
                if error.status == 404:
                    return
            except urllib3.exceptions.HTTPError:
                pass  # the next connection goes on where this one ended
            if is_last:
                time.sleep(RECONNECT_S)
            else:
                self._ended.wait(RECONNECT_S)

    def _read(self, follow: bool) -> None:
        from kubernetes.watch.watch import iter_resp_lines

        options: dict[str, Any] = {**self._options, "follow": follow, "_request_timeout": (RECONNECT_S * 20, QUIET_S)}
        if self._last_stamp:
            # The API has no moment to start from here but only an age; what was said already is left out below.
            options["since_seconds"] = int(time.monotonic() - self._last_read) + 10
        for line in iter_resp_lines(self._cluster.log(self._pod, **options)):
            # The kubelet writes moments of one width, so that their texts sort as they do.
            stamp, _, text = line.partition(" ")
            if stamp > self._last_stamp:
                self._last_stamp, self._last_read = stamp, time.monotonic()
                self._say(text)
