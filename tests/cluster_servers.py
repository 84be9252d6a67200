"""HTTP servers that answer as Kubeflow Pipelines' API server and as the Kubernetes API do, as far as is asked here.

They keep what they are sent, over real sockets; status codes and shapes are those of the generated clients.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

ALREADY_EXISTS, NOT_FOUND = 409, 404
Answer = tuple[int, Any, dict[str, str]]


class KubeflowServer:
    """Pipelines, versions, experiments and runs in memory.

    Attributes:
        multi_user: what the health endpoint says.
        token: bearer token that every request must carry; empty for none.
        version: the tag it says it was built from.
        states: what a run's state is at each look, the last one for ever.
        tasks: what a run's details say of its tasks.
        logs: logs of pods by name; a pod that is not there has none.
        plugins: what a run says of its plugins.
    """

    def __init__(self) -> None:
        self.multi_user = False
        self.token = ""
        self.version = "2.17.0"
        self.tasks: list[dict[str, Any]] = []
        self.logs: dict[str, bytes] = {}
        self.plugins: dict[str, Any] = {}
        self.states = ["RUNNING", "SUCCEEDED"]
        self.refused = 0
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, Any]:
        """Status and JSON for a request."""
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"message": "no token"}
        if self.refused:
            return self.refused, {"message": "the server says no\nand why"}
        path = path.removeprefix("/apis/v2beta1")
        if path == "/healthz":
            return 200, {"multi_user": self.multi_user, "pipeline_store": "database", "tag_name": self.version}
        if log := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
            found = log[1] in self.runs and self.logs.get(log[2])
            return (200, found) if found else (500, {"error_message": "no such pod"})
        if path == "/pipelines/upload_version":
            return self._upload(query, headers, body)
        kept = {"pipelines": self.pipelines, "experiments": self.experiments, "runs": self.runs}
        found = re.fullmatch(r"/(pipelines|experiments|runs)(?:/([^/]+))?(/versions)?", path)
        if not found:
            return NOT_FOUND, {"message": f"no such path {path}"}
        kind, name, versions = found.groups()
        if versions:
            of_pipeline = [each for each in self.versions.values() if each["pipeline_id"] == name]
            newest_first = query.get("sort_by") == "created_at desc"
            found = _filtered(of_pipeline, query)[:: -1 if newest_first else 1]
            return 200, {"pipeline_versions": found[: int(query.get("page_size", 10))]}
        if method == "POST":
            return self._create(kind, json.loads(body), kept[kind])
        if name is None:
            return 200, {kind: _filtered(list(kept[kind].values()), query)}
        if name not in kept[kind]:
            return NOT_FOUND, {"message": f"{kind} {name} not found"}
        if kind == "runs":
            self.runs[name]["state"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            self.runs[name] |= {"run_details": {"task_details": self.tasks}, "plugins_output": self.plugins}
        return 200, kept[kind][name]

    def _create(self, kind: str, body: dict[str, Any], kept: dict[str, dict[str, Any]]) -> tuple[int, Any]:
        singular = kind.removesuffix("s")
        if kind == "pipelines" and any(each["display_name"] == body["display_name"] for each in kept.values()):
            return ALREADY_EXISTS, {"message": "already exist"}
        same = [
            each for each in kept.values() if kind == "experiments" and each["display_name"] == body["display_name"]
        ]
        if same:
            return 200, same[0]
        identity = f"{singular}-{len(kept) + 1}"
        kept[identity] = body | {f"{singular}_id": identity}
        return 200, kept[identity]

    def _upload(self, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, Any]:
        if query["pipelineid"] not in self.pipelines:
            return NOT_FOUND, {"message": "pipeline not found"}
        if any(
            v["display_name"] == query["name"] and v["pipeline_id"] == query["pipelineid"]
            for v in self.versions.values()
        ):
            return ALREADY_EXISTS, {"message": "already exist"}
        message = BytesParser().parsebytes(b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body)
        (part,) = message.get_payload()
        identity = f"version-{len(self.versions) + 1}"
        self.files[query["name"]] = part.get_payload(decode=True)
        spec, platform = yaml.safe_load_all(self.files[query["name"]])
        self.versions[identity] = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": identity,
            "display_name": query["name"],
            "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform},
        }
        return 200, self.versions[identity]


class KubernetesServer:
    """The parts of the Kubernetes API that the doctor asks.

    Attributes:
        trainer: resource names below ``trainer.kubeflow.org/v1alpha1``; empty: the API is not there.
        runtimes: names of training runtimes.
        allowed: (verb, resource, subresource or "") that service accounts may.
        refused: status of every answer; 0 for the right ones.
        nodes, quotas, pods: what lists of them hold.
        token: bearer token that every request must carry.
    """

    def __init__(self) -> None:
        self.token = "of the service account"
        self.trainer = ["trainjobs", "trainingruntimes", "clustertrainingruntimes"]
        self.runtimes = ["intern-torch"]
        self.allowed: set[tuple[str, str, str]] = set()
        self.refused = 0
        self.reviews: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self.quotas: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, Any]:
        """Status and JSON for a request."""
        if self.refused:
            return self.refused, {"kind": "Status", "message": "no"}
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"kind": "Status", "reason": "Unauthorized"}
        if path.endswith("subjectaccessreviews"):
            review = json.loads(body)
            self.reviews.append(review)
            wanted = review["spec"]["resourceAttributes"]
            right = (wanted["verb"], wanted["resource"], wanted.get("subresource") or "")
            return 201, review | {"status": {"allowed": right in self.allowed}}
        lists = {"nodes": self.nodes, "resourcequotas": self.quotas, "pods": self.pods}
        if (plural := path.rpartition("/")[2]) in lists:
            return 200, {"kind": "List", "items": lists[plural]}
        if path.rstrip("/") == "/apis/trainer.kubeflow.org/v1alpha1" and self.trainer:
            names = [{"name": n, "kind": n, "namespaced": True, "singularName": n, "verbs": []} for n in self.trainer]
            return 200, {"kind": "APIResourceList", "groupVersion": "trainer.kubeflow.org/v1alpha1", "resources": names}
        if path.rpartition("/")[2] in self.runtimes:
            return 200, {"metadata": {"name": path.rpartition("/")[2]}}
        return NOT_FOUND, {"kind": "Status", "reason": "NotFound"}


class RegistryServer:
    """An image registry: manifests by name and tag or digest, behind a token where there is a login.

    Attributes:
        manifests: bytes by ``name:reference``.
        login: ``user:password`` that a token is given for; empty for everybody.
        realm: address of the token server that its challenge names.
    """

    token = "of the registry"

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}
        self.login = ""
        self.realm = ""

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Answer:
        """Status, body and headers for a request."""
        given = headers.get("Authorization", "")
        if path == "/token":
            known = base64.b64encode(self.login.encode()).decode()
            return (200, {"token": self.token}, {}) if given == f"Basic {known}" else (401, {}, {})
        if self.login and given != f"Bearer {self.token}":
            challenge = f'Bearer realm="{self.realm}",service="here",scope="repository:pull"'
            return 401, {}, {"WWW-Authenticate": challenge}
        name, _, reference = path.removeprefix("/v2/").rpartition("/manifests/")
        found = self.manifests.get(f"{name}:{reference}")
        if found is None:
            return NOT_FOUND, {"errors": [{"code": "MANIFEST_UNKNOWN"}]}, {}
        return 200, found, {"Docker-Content-Digest": f"sha256:{hashlib.sha256(found).hexdigest()}"}


class OtherRegionServer:
    """An S3 server whose bucket is in another region than requests are signed for, as Amazon's answers.

    Objects can be written, read and deleted by who signs for the right region.
    """

    region = "eu-west-1"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Answer:
        """Status, body and headers for a request."""
        found = {"x-amz-bucket-region": self.region, "Content-Type": "application/xml"}
        if f"/{self.region}/s3/" not in headers.get("Authorization", ""):
            fault = f"<Error><Code>AuthorizationHeaderMalformed</Code><Region>{self.region}</Region></Error>"
            return 400, b"" if method == "HEAD" else fault.encode(), found
        if method == "PUT":
            self.objects[path] = body
        if method == "POST":
            return 200, b"<DeleteResult></DeleteResult>", found
        if "list-type" in query:
            return 200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>", found
        return 200, self.objects.get(path, b"") if method == "GET" else b"", found


@contextmanager
def serving(server: Any) -> Iterator[str]:
    """Serves on loopback for the length of a block; yields the address.

    Args:
        server: whose ``answer`` gives a status and JSON or bytes, and headers where there are any.
    """

    class Handler(BaseHTTPRequestHandler):
        def _go(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value, *more = server.answer(self.command, parts.path, query, self.headers, body)
            if isinstance(value, Iterator):
                return self._stream(status, value)
            payload = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(more[0] if more else {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def _stream(self, status: int, parts: Iterator[bytes]) -> None:
            """A watch or a log, sent in chunks as it comes; ConnectionResetError of ``parts`` cuts the connection."""
            self.protocol_version, self.close_connection = "HTTP/1.1", True
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                for part in itertools.chain(parts, (b"",)):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                    self.wfile.flush()

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _go

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()


def _filtered(items: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    predicates = json.loads(query["filter"])["predicates"] if "filter" in query else []
    return [each for each in items if all(each[p["key"]] == p["stringValue"] for p in predicates)]


RESOURCES = {
    "v1": {
        "ConfigMap": "configmaps",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "Pod": "pods",
        "Secret": "secrets",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
    },
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "batch/v1": {"Job": "jobs"},
    "networking.k8s.io/v1": {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "rbac.authorization.k8s.io/v1": {"Role": "roles", "RoleBinding": "rolebindings"},
}


class ObjectServer:
    """Objects by path, with the discovery that Helm asks for; no admission, no controllers, no watches.

    Attributes:
        objects: what is there, by path.
        patched: paths of objects that an upgrade changed, in order.
        deleted: paths of what was deleted.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.patched: list[str] = []
        self.deleted: list[str] = []

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, Any]:
        """Status and JSON for a request."""
        if path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path in ("/api", "/apis"):
            return 200, _groups(path)
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version in RESOURCES:
            return 200, _resources(version)
        if method == "POST":
            made = json.loads(body)
            path = f"{path}/{made['metadata']['name']}"
            if path in self.objects:
                return ALREADY_EXISTS, _status("AlreadyExists", ALREADY_EXISTS)
            self.objects[path] = made
            return 201, made
        kinds = {plural: kind for found in RESOURCES.values() for kind, plural in found.items()}
        if kind := kinds.get(path.rpartition("/")[2]):
            return 200, {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": self._listed(path, query)}
        if path not in self.objects:
            return NOT_FOUND, _status("NotFound", NOT_FOUND)
        return 200, self._changed(method, path, body)

    def _changed(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        if method == "PATCH":
            self.patched.append(path)
            _merge(self.objects[path], json.loads(body))
        elif method == "PUT":
            self.objects[path] = json.loads(body)
        elif method == "DELETE":
            self.deleted.append(path)
            return self.objects.pop(path)
        return self.objects[path]

    def _listed(self, path: str, query: dict[str, str]) -> list[dict[str, Any]]:
        wanted = dict(pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if "=" in pair)
        below = [value for name, value in self.objects.items() if name.startswith(f"{path}/")]
        return [each for each in below if wanted.items() <= each["metadata"].get("labels", {}).items()]


def _groups(path: str) -> dict[str, Any]:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    named = [version.split("/") for version in RESOURCES if "/" in version]
    versions = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in named]
    pairs = zip(named, versions, strict=True)
    groups = [{"name": group, "versions": [found], "preferredVersion": found} for (group, _), found in pairs]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(version: str) -> dict[str, Any]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
        for kind, plural in RESOURCES[version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def _status(reason: str, code: int) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """JSON merge patch (RFC 7386); lists are replaced."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
