"""What a cluster adds to the pipelines; the only file that may import ``kfp.kubernetes``.

The local runner ignores the settings of ``step``. Retries are added to the compiled form
alone, because the local runner would honour them and sleep.
"""

from typing import Any

from kfp import dsl, kubernetes

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
    {"s3-checksums": "AWS_REQUEST_CHECKSUM_CALCULATION", "ca-bundle": "AWS_CA_BUNDLE"},
    {"s3-checksums": "AWS_RESPONSE_CHECKSUM_VALIDATION", "ca-bundle": "MLFLOW_TRACKING_SERVER_CERT_PATH"},
)
_SHM_SIZE = "2Gi"
_RETRY = {
    "maxRetryCount": 3,
    "backoffDuration": "30s",
    "backoffFactor": 2.0,
    "backoffMaxDuration": "600s",
}


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
    kubernetes.use_config_map_as_volume(task, config_map_name=AUTHORITIES, mount_path=AUTHORITIES_FOLDER, optional=True)
    if trains:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=_SHM_SIZE
        )
    return task


def finish(spec: dict[str, Any]) -> dict[str, Any]:
    """Adds to a compiled pipeline what the SDK cannot say: retries of every step, and choices for the UI.

    A failed step is started again and resumes from its last checkpoint.
    """
    for dag in (spec["root"], *spec["components"].values()):
        for task in dag.get("dag", {}).get("tasks", {}).values():
            component = spec["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                task["retryPolicy"] = dict(_RETRY)
    parameters = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    if "preset" in parameters:
        parameters["preset"]["literals"] = list(PRESETS)
    return spec
