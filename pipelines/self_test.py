"""A round trip through MLflow and its files: a run, a file, a model and an alias, read back and removed again."""

import os
import secrets
import tempfile
from pathlib import Path

from intern_vision.errors import ConfigError, InternError
from intern_vision.mlflow_model import mlflow_faults, quiet_mlflow
from intern_vision.mlflow_rest import Server

EXPERIMENT = "intern-self-test"
ALIAS = "candidate"


def mlflow_round_trip() -> list[str]:
    """Writes to the MLflow server that the environment names and returns a line for each thing that worked.

    Raises:
        ConfigError: the environment names none.
        InternError: it gave back something else than it was given.
        AccessError, RetryableError: it refuses, or is away.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ConfigError("MLFLOW_TRACKING_URI: expected the address of an MLflow server, got none")
    # Fails at once, where MLflow's own client tries for minutes.
    Server(uri).get("mlflow/experiments/get", experiment_id="0")
    with quiet_mlflow(), mlflow_faults(), tempfile.TemporaryDirectory() as folder:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            return _RoundTrip(MlflowClient(tracking_uri=uri, registry_uri=uri), Path(folder)).go()
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise InternError(f"MLflow at {uri}: {' '.join(str(error).split())[:300]}") from None
            raise


class _RoundTrip:
    """One round trip; what it makes is removed also where it fails."""

    def __init__(self, client: object, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.name = f"{EXPERIMENT}-{secrets.token_hex(4)}"
        self.payload = secrets.token_bytes(4096)
        self.done: list[str] = []

    def go(self) -> list[str]:
        experiment_id = self._experiment()
        run_id = self.client.create_run(experiment_id, run_name=self.name).info.run_id
        model_id = ""
        try:
            self._run(run_id)
            model_id = self.client.create_logged_model(experiment_id, self.name, run_id).model_id
            self._model(run_id, model_id)
        finally:
            self._remove(run_id, model_id)
        return self.done

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        return found.experiment_id if found else self.client.create_experiment(EXPERIMENT)

    def _run(self, run_id: str) -> None:
        (self.folder / "payload.bin").write_bytes(self.payload)
        self.client.log_param(run_id, "self_test", self.name)
        self.client.log_metric(run_id, "answer", 42.0)
        self.client.log_artifact(run_id, str(self.folder / "payload.bin"))
        run = self.client.get_run(run_id)
        self._same("the run's metric", run.data.metrics.get("answer"), 42.0)
        self._same("the run's parameter", run.data.params.get("self_test"), self.name)
        back = self.client.download_artifacts(run_id, "payload.bin", str(self._new_folder("run")))
        self._same("the run's file", Path(back).read_bytes(), self.payload)

    def _model(self, run_id: str, model_id: str) -> None:
        from mlflow.artifacts import download_artifacts

        self.client.log_model_artifact(model_id, str(self.folder / "payload.bin"))
        self.client.finalize_logged_model(model_id, "READY")
        self.client.create_registered_model(self.name)
        version = self.client.create_model_version(self.name, f"models:/{model_id}", run_id, model_id=model_id)
        self.client.set_registered_model_alias(self.name, ALIAS, version.version)
        found = self.client.get_model_version_by_alias(self.name, ALIAS)
        self._same("the registered model", found.version, version.version)
        back = download_artifacts(f"models:/{self.name}@{ALIAS}", dst_path=str(self._new_folder("model")))
        self._same("the model's file", (Path(back) / "payload.bin").read_bytes(), self.payload)

    def _remove(self, run_id: str, model_id: str) -> None:
        from mlflow.exceptions import MlflowException

        removals = [lambda: self.client.delete_registered_model(self.name), lambda: self.client.delete_run(run_id)]
        if model_id:
            removals.append(lambda: self.client.delete_logged_model(model_id))
        for remove in removals:
            try:
                remove()
            except MlflowException as error:
                self.done.append(f"left behind: {' '.join(str(error).split())[:200]}")

    def _new_folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def _same(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise InternError(f"{what}: MLflow gave back something else than it was given; look at its log")
        self.done.append(f"{what} came back")
