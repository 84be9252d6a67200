"""Checks of a cluster, in plain words: object store, MLflow, Kubeflow Pipelines, Trainer, rights, GPUs, image, pods.

They run in a pod of the cluster, or on a machine whose ``KUBECONFIG`` names it.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from intern_components.train_job.cluster import GROUP as TRAINER_GROUP
from intern_components.train_job.cluster import VERSION as TRAINER_VERSION
from intern_components.train_job.outcome import CANNOT_START
from intern_vision.address import split_uri
from intern_vision.doctor import Check, tried
from intern_vision.errors import AccessError, ConfigError, RetryableError
from intern_vision.mlflow_rest import Server

TIMEOUT_S = 10.0
RUNTIME_PLURALS = {"cluster": "clustertrainingruntimes", "namespace": "trainingruntimes"}
Rights = Sequence[tuple[str, str, str, Sequence[str]]]
STEP_RIGHTS = (
    (TRAINER_GROUP, "trainjobs", "", ("create", "get", "list", "watch", "delete")),
    ("", "pods", "", ("get", "list", "watch")),
    ("", "pods", "log", ("get",)),
)
"""(API group, resource, subresource, verbs) that a step needs to train on several nodes."""
INSTALL_RIGHTS = (
    ("", "configmaps", "", ("create", "get", "patch", "delete")),
    ("", "persistentvolumeclaims", "", ("create",)),
    ("", "secrets", "", ("create", "get")),
    ("", "serviceaccounts", "", ("create",)),
    ("", "services", "", ("create",)),
    ("apps", "deployments", "", ("create",)),
    ("apps", "statefulsets", "", ("create",)),
    ("batch", "jobs", "", ("create", "get", "delete")),
    ("networking.k8s.io", "networkpolicies", "", ("create",)),
    ("rbac.authorization.k8s.io", "rolebindings", "", ("create",)),
    ("rbac.authorization.k8s.io", "roles", "", ("create",)),
)
"""The same of a person who installs the chart."""
_QUOTED = ("pods", "count/pods", "requests", "limits", "cpu", "memory")
"""Quotas that keep a pod from starting."""
PART_OF = "app.kubernetes.io/part-of=intern-vision"
"""Label of the chart's pods and of the steps'."""
STUCK = ("CrashLoopBackOff", *CANNOT_START)
"""Reasons for which a container waits that no waiting mends."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to look at.

    Attributes:
        s3: the object store that the environment names.
        create_bucket: make its bucket where it is missing.
        mlflow: the MLflow server that the environment names.
        kfp_url: address of Kubeflow Pipelines; empty to leave it out.
        kfp_namespace: the profile's namespace in a multi-user installation.
        trainer: whether Kubeflow Trainer's API must be there.
        runtime: name of the training runtime; empty to leave it out.
        runtime_scope: ``cluster`` or ``namespace``.
        namespace: where training jobs run.
        step_accounts: service accounts there whose rights are looked at.
        my_rights: whether whoever asks may install the chart there.
        gpus: that one node must have for a training step; 0 to leave it out.
        gpu_type: resource name of a GPU.
        image: that nodes must be able to pull; empty to leave it out.
        pods: whether pods there wait for something that does not come.
    """

    s3: bool = True
    create_bucket: bool = False
    mlflow: bool = True
    kfp_url: str = ""
    kfp_namespace: str = ""
    trainer: bool = False
    runtime: str = ""
    runtime_scope: str = "cluster"
    namespace: str = "default"
    step_accounts: Sequence[str] = ()
    my_rights: bool = False
    gpus: int = 0
    gpu_type: str = "nvidia.com/gpu"
    image: str = ""
    pods: bool = False


def checks(wanted: Wanted) -> list[Check]:
    """Looks at everything that is wanted; a fault of one does not hide another."""
    found = []
    if wanted.s3:
        found += _s3(wanted.create_bucket)
    if wanted.mlflow:
        found.append(tried("mlflow", _mlflow, "correct the address or the login of MLflow in the chart's values"))
    if wanted.kfp_url:
        found.append(tried("kubeflow pipelines", lambda: _kfp(wanted), "correct kfp.apiUrl and kfp.multiUser"))
    if wanted.trainer:
        fix = "install Kubeflow Trainer 2.1 or newer, or set trainingRuntime.enabled to never"
        found.append(tried("trainer", _trainer, fix))
    if wanted.runtime:
        fix = "upgrade the release with trainingRuntime.enabled: always"
        found.append(tried("training runtime", lambda: _runtime(wanted), fix))
    for account in wanted.step_accounts:
        fix = "set rbac.create to true, or let an administrator give these rights"
        found.append(tried(f"rights of {account}", lambda account=account: _rights(wanted.namespace, account), fix))
    return found + _own_checks(wanted)


def _own_checks(wanted: Wanted) -> list[Check]:
    """What a person looks at from outside, before an install or when a run does not go on."""
    found = []
    if wanted.my_rights:
        fix = "let an administrator install the chart, or give you these rights in this namespace"
        found.append(tried("your rights", lambda: _my_rights(wanted.namespace), fix))
    if wanted.gpus:
        fix = "install the GPU operator or device plugin, add such a node, or compile with fewer gpus"
        found.append(tried("gpus", lambda: _gpus(wanted.gpus, wanted.gpu_type), fix))
        fix = "free some of it, or let an administrator raise it"
        found.append(tried("quota", lambda: _quota(wanted.namespace, wanted.gpus, wanted.gpu_type), fix))
    if wanted.image:
        fix = "push the image, correct its name, or log in with docker login and give nodes a pull secret"
        found.append(tried("image", lambda: _image(wanted.image), fix))
    if wanted.pods:
        fix = "mend what the message says; kubectl describe pod shows more"
        found.append(tried("pods", lambda: _pods(wanted.namespace), fix))
    return found


def _s3(create_bucket: bool) -> list[Check]:
    from intern_vision.s3 import S3Access, S3Store, ensure_bucket
    from intern_vision.s3_contract import contract

    uri = os.environ.get("INTERN_STORE", "")
    fix = "correct objectStore's endpoint, bucket, existingSecret and its key names in the chart's values"
    if not uri.startswith("s3://"):
        return [Check("s3", False, f"INTERN_STORE: expected s3://bucket/prefix, got {uri!r}", fix)]

    def prepared() -> str:
        if create_bucket:
            ensure_bucket(split_uri(uri)[1])
        return uri

    bucket = tried("s3", prepared, fix)
    if not bucket.ok:
        return [bucket]
    return contract(S3Store(uri, S3Access.from_environment()), f"{uri}/doctor-{secrets.token_hex(4)}", fix)


def _mlflow() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ConfigError("MLFLOW_TRACKING_URI: expected an address, got none")
    Server(uri).get("mlflow/experiments/get", experiment_id="0")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return f"{uri} answers{f' to {user}' if user else ', without a login'}"


def _kfp(wanted: Wanted) -> str:
    from intern_pipelines.kubeflow import check_version, health

    found = health(wanted.kfp_url)
    version = check_version(found, wanted.kfp_url)
    multi_user = bool(found.get("multi_user"))
    if multi_user and not wanted.kfp_namespace:
        raise ConfigError(f"{wanted.kfp_url} is a multi-user installation; set kfp.multiUser to true")
    return f"{wanted.kfp_url} answers, {version}, {'multi-user' if multi_user else 'single-user'}"


def _trainer() -> str:
    found = _asked("GET", f"/apis/{TRAINER_GROUP}/{TRAINER_VERSION}")
    names = sorted(resource["name"] for resource in found.get("resources", ()))
    if "trainjobs" not in names:
        raise ConfigError(f"{TRAINER_GROUP}/{TRAINER_VERSION} has no trainjobs, only {', '.join(names) or 'nothing'}")
    return f"{TRAINER_GROUP}/{TRAINER_VERSION} is there"


def _runtime(wanted: Wanted) -> str:
    folder = "" if wanted.runtime_scope == "cluster" else f"/namespaces/{wanted.namespace}"
    plural = RUNTIME_PLURALS[wanted.runtime_scope]
    _asked("GET", f"/apis/{TRAINER_GROUP}/{TRAINER_VERSION}{folder}/{plural}/{wanted.runtime}")
    return f"{wanted.runtime} is there"


def _rights(namespace: str, account: str) -> str:
    """What a service account may, which this process may ask about (LocalSubjectAccessReview)."""
    user = {"user": f"system:serviceaccount:{namespace}:{account}"}
    path = f"/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews"
    denied = _denied(namespace, STEP_RIGHTS, path, "LocalSubjectAccessReview", user)
    if denied:
        raise AccessError(f"service account {account} in {namespace} may not: {', '.join(denied)}")
    return f"may run training jobs in {namespace}"


def _my_rights(namespace: str) -> str:
    """What this process may itself (SelfSubjectAccessReview), which everybody may ask."""
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    denied = _denied(namespace, INSTALL_RIGHTS, path, "SelfSubjectAccessReview", {})
    if denied:
        raise AccessError(f"you may not in {namespace}: {', '.join(denied)}")
    return f"you may install the chart in {namespace}"


def _denied(namespace: str, rights: Rights, path: str, kind: str, user: dict[str, str]) -> list[str]:
    """The rights that are missing, as ``verb resource/subresource``."""
    denied = []
    for group, resource, subresource, verbs in rights:
        for verb in verbs:
            attributes = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
            if subresource:
                attributes["subresource"] = subresource
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": kind,
                "metadata": {"namespace": namespace} if user else {},
                "spec": {**user, "resourceAttributes": attributes},
            }
            if not _asked("POST", path, review)["status"]["allowed"]:
                denied.append(f"{verb} {'/'.join(filter(None, (resource, subresource)))}")
    return denied


def _gpus(wanted: int, gpu_type: str) -> str:
    nodes = _asked("GET", "/api/v1/nodes")["items"]
    open_nodes = [node for node in nodes if not node["spec"].get("unschedulable")]
    counts = {
        node["metadata"]["name"]: int(node["status"].get("allocatable", {}).get(gpu_type, "0")) for node in open_nodes
    }
    most = max(counts.values(), default=0)
    if most < wanted:
        where = f" (on {max(counts, key=counts.get)})" if most else ""
        raise ConfigError(
            f"no node has {wanted} {gpu_type}: of {len(counts)} open nodes the best has {most}{where}, all together "
            f"{sum(counts.values())}"
        )
    fitting = sum(count >= wanted for count in counts.values())
    return f"{fitting} nodes have {wanted} {gpu_type} or more, all together {sum(counts.values())}"


def _quota(namespace: str, gpus: int, gpu_type: str) -> str:
    """What quotas leave: the GPUs of a training step, and something of all else."""
    from intern_components.train_job.cluster import quantity

    short = []
    quotas = _asked("GET", f"/api/v1/namespaces/{namespace}/resourcequotas")["items"]
    for quota in quotas:
        hard, used = quota["status"].get("hard", {}), quota["status"].get("used", {})
        for resource, limit in hard.items():
            left = quantity(limit) - quantity(used.get(resource, "0"))
            is_gpu = resource.removeprefix("requests.").removeprefix("limits.") == gpu_type
            if left < (gpus if is_gpu else Decimal("0.001")) and (is_gpu or resource.split(".")[0] in _QUOTED):
                short.append(f"{quota['metadata']['name']} has {resource} {used.get(resource, '0')} of {limit} in use")
    if short:
        raise ConfigError(f"quota in {namespace}: {', '.join(short)}, and a training step wants {gpus} {gpu_type}")
    return f"{len(quotas)} in {namespace}, room in all" if quotas else f"none in {namespace}"


def _image(image: str) -> str:
    from intern_pipelines.registry_image import digest_of

    digest = digest_of(image)
    if f"@{digest}" in image:
        return f"{image} can be pulled"
    return f"{image} can be pulled; to pin it: {image.rpartition(':')[0]}@{digest}"


def _pods(namespace: str) -> str:
    pods = _asked("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector={PART_OF}")["items"]
    stuck = [f"pod {pod['metadata']['name']}: {text}" for pod in pods if (text := _waits_for(pod["status"]))]
    if stuck:
        raise ConfigError(", ".join(stuck))
    return f"{len(pods)} in {namespace}, none is stuck"


def _waits_for(status: dict[str, Any]) -> str:
    """Why a pod does not start; empty where it does, or may yet."""
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in STUCK:
            return " ".join(f"{waiting['reason']}: {waiting.get('message', 'no message')}".split())
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return " ".join(f"{condition.get('reason')}: {condition.get('message', 'no message')}".split())
    return ""


def _asked(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The Kubernetes API's answer; what it refuses as errors for people."""
    from intern_components.train_job.cluster import ACCOUNT_FOLDER, Cluster

    in_pod = os.environ.get("KUBERNETES_SERVICE_HOST") and (ACCOUNT_FOLDER / "namespace").exists()
    if not (in_pod or os.environ.get("KUBECONFIG")):
        raise ConfigError(
            "no cluster: run this in a pod with a service account, or set KUBECONFIG to your kubectl's file"
        )
    status, value = Cluster().answer(method, path, body, TIMEOUT_S)
    if status == 0:
        raise RetryableError(f"no answer from the Kubernetes API ({value})")
    if status in (401, 403):
        raise AccessError(f"the Kubernetes API refuses this account ({status} for {path})")
    if status == 404:
        raise ConfigError(f"it is not in this cluster (404 for {path})")
    if not 200 <= status < 300:
        raise RetryableError(f"the Kubernetes API answers {status} for {path}")
    return value
