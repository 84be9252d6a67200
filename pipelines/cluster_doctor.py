"""Checks of a cluster, in plain words: object store, MLflow, Kubeflow Pipelines, Trainer and the steps' rights."""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intern_vision.address import split_uri
from intern_vision.doctor import Check, store_check, tried
from intern_vision.errors import AccessError, ConfigError, RetryableError
from intern_vision.mlflow_rest import Server

TRAINER_GROUP, TRAINER_VERSION = "trainer.kubeflow.org", "v1alpha1"
TIMEOUT_S = 10.0
ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Token and authority of a pod's service account."""
RUNTIME_PLURALS = {"cluster": "clustertrainingruntimes", "namespace": "trainingruntimes"}
STEP_RIGHTS = (
    (TRAINER_GROUP, "trainjobs", "", ("create", "get", "list", "watch", "patch", "delete")),
    ("", "pods", "", ("get", "list", "watch")),
    ("", "pods", "log", ("get",)),
)
"""(API group, resource, subresource, verbs) that a step needs to train on several nodes."""


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


def checks(wanted: Wanted) -> list[Check]:
    """Looks at everything that is wanted; a fault of one does not hide another."""
    found = []
    if wanted.s3:
        found.append(_s3(wanted.create_bucket))
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
    return found


def _s3(create_bucket: bool) -> Check:
    from intern_vision.s3 import S3Access, S3Store, ensure_bucket

    uri = os.environ.get("INTERN_STORE", "")
    fix = "correct objectStore's endpoint, bucket, existingSecret and its key names in the chart's values"
    if not uri.startswith("s3://"):
        return Check("s3", False, f"INTERN_STORE: expected s3://bucket/prefix, got {uri!r}", fix)

    def prepared() -> str:
        if create_bucket:
            ensure_bucket(split_uri(uri)[1])
        return uri

    bucket = tried("s3", prepared, fix)
    if not bucket.ok:
        return bucket
    access = S3Access.from_environment()
    return store_check(S3Store(uri, access), f"{uri}/doctor-{secrets.token_hex(4)}", access.name, fix)


def _mlflow() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ConfigError("MLFLOW_TRACKING_URI: expected an address, got none")
    Server(uri).get("mlflow/experiments/get", experiment_id="0")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return f"{uri} answers{f' to {user}' if user else ', without a login'}"


def _kfp(wanted: Wanted) -> str:
    from intern_pipelines.kubeflow import health

    multi_user = bool(health(wanted.kfp_url).get("multi_user"))
    if multi_user and not wanted.kfp_namespace:
        raise ConfigError(f"{wanted.kfp_url} is a multi-user installation; set kfp.multiUser to true")
    return f"{wanted.kfp_url} answers, {'multi-user' if multi_user else 'single-user'}"


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
    denied = [
        f"{verb} {'/'.join(filter(None, (resource, subresource)))}"
        for group, resource, subresource, verbs in STEP_RIGHTS
        for verb in verbs
        if not _is_allowed(namespace, account, group, resource, subresource, verb)
    ]
    if denied:
        raise AccessError(f"service account {account} in {namespace} may not: {', '.join(denied)}")
    return f"may run training jobs in {namespace}"


def _is_allowed(namespace: str, account: str, group: str, resource: str, subresource: str, verb: str) -> bool:
    attributes = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
    if subresource:
        attributes["subresource"] = subresource
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "LocalSubjectAccessReview",
        "metadata": {"namespace": namespace},
        "spec": {"user": f"system:serviceaccount:{namespace}:{account}", "resourceAttributes": attributes},
    }
    path = f"/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews"
    return bool(_asked("POST", path, review)["status"]["allowed"])


def _kubernetes_url() -> str:
    """Address of the cluster this process is a pod of."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (ACCOUNT_FOLDER / "token").exists():
        raise ConfigError("no cluster: this check runs in a pod with a service account; use helm test")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _asked(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The Kubernetes API's answer; what it refuses as errors for people."""
    import requests

    url = _kubernetes_url()
    headers = {"Authorization": f"Bearer {(ACCOUNT_FOLDER / 'token').read_text().strip()}"}
    authority = ACCOUNT_FOLDER / "ca.crt"
    try:
        answer = requests.request(
            method,
            url + path,
            json=body,
            headers=headers,
            timeout=TIMEOUT_S,
            verify=str(authority) if authority.exists() else True,
        )
    except requests.RequestException as error:
        raise RetryableError(f"no answer from the Kubernetes API ({type(error).__name__})") from None
    if answer.status_code in (401, 403):
        raise AccessError(f"the Kubernetes API refuses this service account ({answer.status_code} for {path})")
    if answer.status_code == 404:
        raise ConfigError(f"it is not in this cluster (404 for {path})")
    if not answer.ok:
        raise RetryableError(f"the Kubernetes API answers {answer.status_code} for {path}")
    return answer.json()
