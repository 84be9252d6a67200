"""The Kubernetes API as a step sees it: its namespace, its own pod, training jobs; errors are this package's."""

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from intern_vision.errors import AccessError, ConfigError, InternError, RetryableError

GROUP, VERSION, JOBS = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME_PLURALS = {"ClusterTrainingRuntime": "clustertrainingruntimes", "TrainingRuntime": "trainingruntimes"}
PATCH_FIELDS = ("runtimePatches", "podTemplateOverrides", "podSpecOverrides")
"""Where a TrainJob changes its runtime's pods: from Trainer 2.2 on, in 2.1, in 2.0."""
CONTAINER = "node"
"""Name of the training container; Trainer's torch policy asks for this one."""

ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Token, authority and namespace of a pod's service account."""
TIMEOUT_S = 20.0
RETRY_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between tries of a call that the server does not answer, or with a fault of its own."""
_GONE, _NOT_FOUND, _CONFLICT = 410, 404, 409
_ACCOUNT = re.compile(r'User "(?:system:serviceaccount:[^:"]+:)?([^"]+)"')


class Cluster:
    """The cluster that this process is a pod of, or the current context of the file ``KUBECONFIG``.

    Raises:
        ConfigError: neither is there.
    """

    def __init__(self) -> None:
        from kubernetes import client

        configuration = client.Configuration()
        configuration.retries = 0  # urllib3 would retry by itself and hide for how long
        self.namespace, self.is_pod = _load(configuration)
        self.api = client.ApiClient(configuration)
        self.core = client.CoreV1Api(self.api)
        self.objects = client.CustomObjectsApi(self.api)

    def patch_field(self) -> str:
        """Which of ``PATCH_FIELDS`` this cluster's TrainJob has; ConfigError where there is no TrainJob."""
        path = f"/openapi/v3/apis/{GROUP}/{VERSION}"
        found = self.ask(
            ("get", path),
            self.api.call_api,
            path,
            "GET",
            header_params={"Accept": "application/json"},
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            none_on=(_NOT_FOUND,),
        )
        schemas = (found or {}).get("components", {}).get("schemas", {})
        jobs = [schema for name, schema in schemas.items() if name.endswith(".TrainJob")]
        if not jobs:
            raise ConfigError(
                f"trainer.num_nodes: Kubeflow Trainer is not in this cluster ({GROUP}/{VERSION} has no TrainJob); "
                "install Kubeflow Trainer 2.1 or newer, or set it to 1"
            )
        fields = jobs[0].get("properties", {}).get("spec", {}).get("properties", {})
        return next((field for field in PATCH_FIELDS if field in fields), PATCH_FIELDS[0])

    def check_runtime(self, kind: str, name: str) -> None:
        """ConfigError where the training runtime is missing."""
        plural = RUNTIME_PLURALS[kind]
        place = () if kind == "ClusterTrainingRuntime" else (self.namespace,)
        read = self.objects.get_namespaced_custom_object if place else self.objects.get_cluster_custom_object
        if self.ask(("get", plural), read, GROUP, VERSION, *place, plural, name, none_on=(_NOT_FOUND,)) is None:
            where = f" in namespace {self.namespace}" if place else ""
            raise ConfigError(
                f"INTERN_TRAINING_RUNTIME: there is no {kind} {name}{where}; "
                "upgrade the release with trainingRuntime.enabled: always, or name another one"
            )

    def own_pod(self) -> dict[str, Any] | None:
        """This process's pod as plain values; None outside a cluster."""
        name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
        if not self.is_pod or not name:
            return None
        read = self.core.read_namespaced_pod
        answer = self.ask(("get", "pods"), read, name, self.namespace, _preload_content=False, none_on=(_NOT_FOUND,))
        return None if answer is None else json.loads(answer.data)

    def create(self, manifest: dict[str, Any]) -> dict[str, Any] | None:
        """Makes a TrainJob; None where one of that name is there."""
        make = self.objects.create_namespaced_custom_object
        return self.ask(("create", JOBS), make, GROUP, VERSION, self.namespace, JOBS, manifest, none_on=(_CONFLICT,))

    def find(self, name: str) -> dict[str, Any] | None:
        """The TrainJob of that name, if there is one."""
        read = self.objects.get_namespaced_custom_object
        return self.ask(("get", JOBS), read, GROUP, VERSION, self.namespace, JOBS, name, none_on=(_NOT_FOUND,))

    def delete(self, name: str, uid: str) -> None:
        """Removes this very TrainJob; its name is free once its pods are gone."""
        from kubernetes import client

        options = client.V1DeleteOptions(propagation_policy="Foreground", preconditions={"uid": uid})
        remove = self.objects.delete_namespaced_custom_object
        gone = (_NOT_FOUND, _CONFLICT)  # a conflict: another one has the name by now
        self.ask(("delete", JOBS), remove, GROUP, VERSION, self.namespace, JOBS, name, body=options, none_on=gone)

    def list_jobs(self, **selection: Any) -> Any:
        """TrainJobs as the client's list call; also what a watch calls."""
        return self.objects.list_namespaced_custom_object(GROUP, VERSION, self.namespace, JOBS, **selection)

    def list_pods(self, **selection: Any) -> Any:
        """Pods as the client's list call; also what a watch calls."""
        return self.core.list_namespaced_pod(self.namespace, **selection)

    def log(self, pod: str, **options: Any) -> Any:
        """A pod's log as an open answer."""
        read = self.core.read_namespaced_pod_log
        return read(pod, self.namespace, container=CONTAINER, timestamps=True, _preload_content=False, **options)

    def ask(
        self,
        right: tuple[str, str],
        call: Callable[..., Any],
        *arguments: Any,
        none_on: Sequence[int] = (),
        **options: Any,
    ) -> Any:
        """A call of the client, tried again where the server is away.

        Args:
            right: verb and resource, for the message where it is refused.
            call: of the client.
            arguments: of the call.
            none_on: statuses that give None.
            options: of the call.

        Raises:
            AccessError, ConfigError, RetryableError: as ``fault`` says.
        """
        import urllib3
        from kubernetes.client import ApiException

        for wait_s in (*RETRY_WAITS_S, None):
            try:
                return call(*arguments, _request_timeout=TIMEOUT_S, **options)
            except ApiException as error:
                if error.status in none_on:
                    return None
                fault, is_away = self.fault(error, right), error.status == 429 or error.status >= 500
            except urllib3.exceptions.HTTPError as error:
                fault, is_away = RetryableError(_no_answer(type(error).__name__)), True
            if not is_away or wait_s is None:
                raise fault from None
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    def answer(self, method: str, path: str, body: Any = None, timeout_s: float = TIMEOUT_S) -> tuple[int, Any]:
        """What the server answers to one request, without another try: its status, and its JSON where that is 2xx.

        The status is 0, with the kind of fault in place of JSON, where no answer came.
        """
        import urllib3
        from kubernetes.client import ApiException

        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            value, status, _ = self.api.call_api(
                path,
                method,
                body=body,
                header_params=headers,
                response_type="object",
                auth_settings=["BearerToken"],
                _request_timeout=timeout_s,
            )
        except ApiException as error:
            return error.status, None
        except urllib3.exceptions.HTTPError as error:
            return 0, type(error).__name__
        return status, value

    def fault(self, error: Any, right: tuple[str, str]) -> InternError:
        """What the server refused, as an error for people."""
        message = _message(error)
        if error.status == 403 and "exceeded quota" in message:
            return RetryableError(f"{message}; free some of it or raise it, then the same command resumes")
        if error.status == 403:
            account = _ACCOUNT.search(message)
            return AccessError(
                f"service account {account.group(1) if account else 'of this step'} may not {right[0]} {right[1]} in "
                f"namespace {self.namespace}; set rbac.create to true and name it in rbac.pipelineServiceAccounts"
            )
        if error.status == 401:
            return AccessError("the Kubernetes API refuses this step's token (401); start the step again")
        if error.status == 429 or error.status >= 500:
            return RetryableError(_no_answer(f"{error.status}: {message}"))
        return ConfigError(f"the Kubernetes API refuses to {right[0]} {right[1]} ({error.status}): {message}")


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity such as ``64Gi`` or ``500m`` as a number."""
    from kubernetes.utils import parse_quantity

    return parse_quantity(text)


def is_expired(error: Any) -> bool:
    """Whether a watch has to start from a new list (410)."""
    return error.status == _GONE


def _load(configuration: Any) -> tuple[str, bool]:
    """Fills the client's configuration; gives the namespace and whether this process is a pod."""
    from kubernetes import config

    namespace_path = ACCOUNT_FOLDER / "namespace"
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and namespace_path.exists():
            config.load_incluster_config(client_configuration=configuration)
            return namespace_path.read_text().strip(), True
        if os.environ.get("KUBECONFIG"):
            path = os.environ["KUBECONFIG"]  # the client would take what the variable was when it was imported
            config.load_kube_config(path, client_configuration=configuration)
            return config.list_kube_config_contexts(path)[1]["context"].get("namespace", "default"), False
    except config.ConfigException as error:
        raise ConfigError(f"KUBECONFIG: {' '.join(str(error).split())}; correct the file") from None
    raise ConfigError(
        "trainer.num_nodes: more than one node needs a cluster with Kubeflow Trainer; run the step there, "
        "name a cluster in KUBECONFIG, or set it to 1"
    )


def _message(error: Any) -> str:
    try:
        text = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        text = str(error.body or error.reason)
    return " ".join(text.split())[:400]


def _no_answer(cause: str) -> str:
    return f"no answer from the Kubernetes API ({cause}); the same command resumes"
