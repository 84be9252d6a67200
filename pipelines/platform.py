"""What a cluster adds to the pipelines; the only file that may import ``kfp.kubernetes``.

The local runner ignores what ``step`` sets. What differs between clusters is in ``Platform`` and is put into the
compiled form by ``finish``: the definitions of the pipelines stay the same everywhere, and the local runner, which
would honour retries and sleep, sees none.
"""

import re
from pathlib import Path
from typing import Literal

from kfp import dsl, kubernetes

import intern_vision
from intern_components.base import IMAGE
from intern_pipelines import ir
from intern_vision.config import Config
from intern_vision.errors import ConfigError
from intern_vision.presets import PRESETS

S3_SECRET = "intern-s3"
"""Secret with the object store's keys."""

SETTINGS = "intern-settings"
"""ConfigMap with the addresses of the store and of MLflow."""

MLFLOW_SECRET = "intern-mlflow"
"""Secret with MLflow's login."""

AUTHORITIES = "intern-ca"
"""ConfigMap with the certificates of private authorities; the setting ``ca-bundle`` names the file."""

AUTHORITIES_FOLDER = "/etc/intern/ca"

_SECRET_KEYS = {"access-key": "AWS_ACCESS_KEY_ID", "secret-key": "AWS_SECRET_ACCESS_KEY"}
_SETTING_KEYS = {
    "s3-endpoint": "INTERN_S3_ENDPOINT",
    "s3-region": "AWS_DEFAULT_REGION",
    "store": "INTERN_STORE",
    "mlflow-uri": "MLFLOW_TRACKING_URI",
}
_LOGIN_KEYS = {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"}
_OPTIONAL_SETTING_KEYS = (
    {
        "s3-checksums": "AWS_REQUEST_CHECKSUM_CALCULATION",
        "ca-bundle": "AWS_CA_BUNDLE",
        "training-runtime": "INTERN_TRAINING_RUNTIME",
    },
    {"s3-checksums": "AWS_RESPONSE_CHECKSUM_VALIDATION", "ca-bundle": "MLFLOW_TRACKING_SERVER_CERT_PATH"},
)
IMAGE_PARAMETER = "step_image"
"""Run parameter with the image of the steps; its name sorts behind those of the pipelines in the form."""

_MAX_RETRY_WAIT_S = 600
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTP]i|[kMGTP]|m)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")


class Toleration(Config):
    """A taint that the pods of training steps tolerate, as Kubernetes writes it.

    Attributes:
        key: the taint's key; empty for every key.
        operator: ``Exists``, or ``Equal`` with ``value``.
        value: the taint's value.
        effect: the taint's effect; empty for every effect.
    """

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class Platform(Config):
    """What a cluster wants of the pods of steps; fixed while compiling.

    Kubernetes quantities are texts such as ``8`` or ``32Gi``. Where a field says *training*, it is for the steps that
    start ranks; the others are small and run anywhere.

    Attributes:
        image: default of the run parameter ``step_image``; empty takes ``INTERN_IMAGE``.
        gpus: of a training step; it starts as many ranks. 0 trains on the CPU.
        gpu_type: resource name of a GPU.
        cpu, memory: requests of a training step, and memory's limit; empty sets none.
        shared_memory: size of ``/dev/shm`` of a training step; it counts against the memory limit.
        node_selector: labels of nodes for training steps.
        tolerations: taints that training steps tolerate.
        pull_secrets: names of Secrets with which nodes pull the image; beside those of the service account.
        run_as_non_root: refuse an image whose user is root.
        labels: of the pods of all steps, beside the project's own.
        num_retries: how often a failed step starts again; it resumes from its last checkpoint.
        retry_wait_s: before the first of them; it doubles, up to ten minutes.
        deadline_s: of a whole run; 0 for none.
        time_to_live_s: how long a finished run's pods stay; 0 leaves it to Kubeflow.
    """

    image: str = ""
    gpus: int = 0
    gpu_type: str = "nvidia.com/gpu"
    cpu: str = ""
    memory: str = ""
    shared_memory: str = "2Gi"
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    run_as_non_root: bool = True
    labels: dict[str, str] = {}
    num_retries: int = 3
    retry_wait_s: int = 30
    deadline_s: int = 0
    time_to_live_s: int = 0

    def faults(self) -> list[str]:
        """Counts are not negative, and quantities and names are such that Kubernetes takes them."""
        counts = ("gpus", "num_retries", "retry_wait_s", "deadline_s", "time_to_live_s")
        found = [
            f"{name}: expected a number >= 0, got {getattr(self, name)}" for name in counts if getattr(self, name) < 0
        ]
        for name in ("cpu", "memory", "shared_memory"):
            value = getattr(self, name)
            if value and not _QUANTITY.fullmatch(value):
                found.append(f"{name}: expected a Kubernetes quantity such as 8 or 32Gi, got {value!r}")
        if not self.shared_memory:
            found.append("shared_memory: expected a quantity such as 2Gi, got none")
        for name in ("labels", "node_selector"):
            for key, value in getattr(self, name).items():
                if not (_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)):
                    found.append(f"{name}: {key}={value} is no label that Kubernetes takes")
        return found


def read_platform(path: Path | None) -> Platform:
    """A cluster's settings from a JSON file; the defaults where there is none.

    Raises:
        ConfigError: the file cannot be read, or a setting is wrong; one line a fault.
    """
    if path is None:
        return Platform()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--platform: {path} cannot be read ({type(error).__name__}); name a JSON file") from None
    return Platform.from_json(text, at=path.name)


def step(task: dsl.PipelineTask, name: str, *, trains: bool = False) -> dsl.PipelineTask:
    """Names a task and gives its pod addresses and credentials; training pods also get shared memory.

    Kubeflow's own cache is off: it knows neither that an alias moved nor that the code in an image changed,
    and a stage finds its committed output by itself. Secrets are optional: with a cloud role there are none, and where
    one is missing by mistake the step says so, while a pod that waits for a Secret says nothing.

    Args:
        task: a component in a pipeline.
        name: what the UI shows.
        trains: whether the step runs ranks, which exchange tensors through ``/dev/shm``.
    """
    task.set_display_name(name)
    task.set_caching_options(False)
    kubernetes.use_secret_as_env(task, secret_name=S3_SECRET, secret_key_to_env=_SECRET_KEYS, optional=True)
    kubernetes.use_secret_as_env(task, secret_name=MLFLOW_SECRET, secret_key_to_env=_LOGIN_KEYS, optional=True)
    kubernetes.use_config_map_as_env(task, config_map_name=SETTINGS, config_map_key_to_env=_SETTING_KEYS)
    for keys in _OPTIONAL_SETTING_KEYS:
        kubernetes.use_config_map_as_env(task, config_map_name=SETTINGS, config_map_key_to_env=keys, optional=True)
    kubernetes.use_field_path_as_env(task, env_name="INTERN_KFP_RUN_ID", field_path="metadata.labels['pipeline/runid']")
    kubernetes.use_config_map_as_volume(task, config_map_name=AUTHORITIES, mount_path=AUTHORITIES_FOLDER, optional=True)
    if trains:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=Platform().shared_memory
        )
    return task


def finish(spec: ir.Spec, kubernetes_spec: ir.Spec, platform: Platform) -> None:
    """Puts a cluster's settings into a compiled pipeline, and what the SDK cannot say: the choices of parameters.

    A failed step is started again and resumes from its last checkpoint. Settings may be put in again, over the same or
    over the defaults.

    Args:
        spec: the first document of a compiled pipeline; it is changed.
        kubernetes_spec: the second; it is changed.
        platform: the settings.
    """
    for _, tasks, _ in ir.dags(spec):
        for task in tasks.values():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                task["retryPolicy"] = _retry_policy(platform)
    parameters = spec["root"].setdefault("inputDefinitions", {}).setdefault("parameters", {})
    if "preset" in parameters:
        parameters["preset"]["literals"] = list(PRESETS)
    image = {
        "defaultValue": platform.image or parameters.get(IMAGE_PARAMETER, {}).get("defaultValue", IMAGE),
        "description": "Image that runs the steps; name it by digest where results must be repeated.",
        "isOptional": True,
        "parameterType": "STRING",
    }
    placeholder = ir.pass_down(spec, IMAGE_PARAMETER, image)
    single = kubernetes_spec["platforms"]["kubernetes"]
    for label, pod in single["deploymentSpec"]["executors"].items():
        container = spec["deploymentSpec"]["executors"][label]["container"]
        container["image"] = placeholder
        single["deploymentSpec"]["executors"][label] = _pod(label, pod, platform)
        if "emptyDirMounts" in pod:
            _add_training(container, platform)
    ends = {"activeDeadlineSeconds": platform.deadline_s, "resourceTtlOnCompletion": platform.time_to_live_s}
    if any(ends.values()):
        single["pipelineConfig"] = {name: value for name, value in ends.items() if value}


def _retry_policy(platform: Platform) -> ir.Spec:
    return {
        "maxRetryCount": platform.num_retries,
        "backoffDuration": f"{platform.retry_wait_s}s",
        "backoffFactor": 2.0,
        "backoffMaxDuration": f"{max(_MAX_RETRY_WAIT_S, platform.retry_wait_s)}s",
    }


def _pod(label: str, pod: ir.Spec, platform: Platform) -> ir.Spec:
    """A step's pod with the cluster's settings, checked by the message that the server reads it into."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2

    own = {
        "app.kubernetes.io/part-of": "intern-vision",
        "app.kubernetes.io/version": intern_vision.__version__,
        "app.kubernetes.io/component": re.sub(r"^exec-|-\d+$", "", label),
    }
    changed = dict(pod)
    changed["podMetadata"] = {"labels": own | platform.labels}
    if platform.run_as_non_root:
        changed["securityContext"] = {"runAsNonRoot": True}
    if platform.pull_secrets:
        changed["imagePullSecret"] = [_pull_secret(name) for name in platform.pull_secrets]
    if "emptyDirMounts" in pod:
        changed["emptyDirMounts"] = [mount | {"sizeLimit": platform.shared_memory} for mount in pod["emptyDirMounts"]]
        if platform.node_selector:
            changed["nodeSelector"] = {"labels": platform.node_selector}
        if platform.tolerations:
            changed["tolerations"] = [
                {key: value for key, value in each.to_dict().items() if value} for each in platform.tolerations
            ]
    message = json_format.ParseDict(changed, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    return json_format.MessageToDict(message)


def _pull_secret(name: str) -> ir.Spec:
    return {"secretName": name, "secretNameParameter": {"runtimeValue": {"constant": name}}}


def _add_training(container: ir.Spec, platform: Platform) -> None:
    """Resources of a step that trains, in the fields that kfp 2.17 writes and its server reads."""
    resources: ir.Spec = {}
    if platform.cpu:
        resources["resourceCpuRequest"] = platform.cpu
    if platform.memory:
        resources |= {"resourceMemoryRequest": platform.memory, "resourceMemoryLimit": platform.memory}
    if platform.gpus:
        resources["accelerator"] = {"resourceType": platform.gpu_type, "resourceCount": str(platform.gpus)}
        # A run parameter could not set it: the server resolves none in variables.
        others = [each for each in container.get("env", ()) if each["name"] != "INTERN_NUM_RANKS"]
        container["env"] = [*others, {"name": "INTERN_NUM_RANKS", "value": str(platform.gpus)}]
    if resources:
        container["resources"] = resources
