"""Commands that the chart's pods run, and people too: ``intern cluster doctor``, ``register`` and ``test``."""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

import intern_vision
from intern_vision.console import reporting_errors, show, show_checks
from intern_vision.errors import ConfigError
from intern_vision.options import AsJson, Debug

KfpUrl = Annotated[
    str, typer.Option("--kfp-url", envvar="INTERN_KFP_URL", help="Address of Kubeflow Pipelines' API server.")
]
KfpNamespace = Annotated[
    str,
    typer.Option("--kfp-namespace", envvar="INTERN_KFP_NAMESPACE", help="Profile's namespace in multi-user Kubeflow."),
]


def register(app: typer.Typer) -> None:
    """Adds this module's commands as a group."""
    group = typer.Typer(help="What a cluster has, and what runs on it.", no_args_is_help=True)
    group.command()(doctor)
    group.command(name="register")(register_pipelines)
    group.command(name="test")(test)
    app.add_typer(group, name="cluster")


def doctor(
    s3: Annotated[bool, typer.Option("--s3/--no-s3", help="Write to and read from the object store.")] = True,
    create_bucket: Annotated[bool, typer.Option("--create-bucket", help="Make its bucket where missing.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Ask MLflow, with its login.")] = True,
    kfp_url: KfpUrl = "",
    kfp_namespace: KfpNamespace = "",
    trainer: Annotated[bool, typer.Option("--trainer", help="Kubeflow Trainer's API must be there.")] = False,
    runtime: Annotated[str, typer.Option("--runtime", help="Training runtime that must be there.")] = "",
    runtime_scope: Annotated[str, typer.Option("--runtime-scope", help="cluster or namespace.")] = "cluster",
    namespace: Annotated[str, typer.Option("--namespace", help="Where steps and training jobs run.")] = "default",
    step_account: Annotated[
        list[str] | None, typer.Option("--step-account", help="Service account of steps; may be given again.")
    ] = None,
    my_rights: Annotated[bool, typer.Option("--my-rights", help="You may install the chart there.")] = False,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs that one node must have.")] = 0,
    gpu_type: Annotated[str, typer.Option("--gpu-type", help="Resource name of a GPU.")] = "nvidia.com/gpu",
    image: Annotated[str, typer.Option("--image", help="Image that nodes must be able to pull.")] = "",
    pods: Annotated[bool, typer.Option("--pods", help="No pod of the project is stuck.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a cluster: object store, MLflow, Kubeflow and rights; exit code 2 where something must be mended."""
    from intern_pipelines.cluster_doctor import RUNTIME_PLURALS, Wanted, checks

    with reporting_errors(debug, as_json):
        if runtime_scope not in RUNTIME_PLURALS:
            raise ConfigError(f"--runtime-scope: expected cluster or namespace, got {runtime_scope!r}")
        wanted = Wanted(
            s3=s3,
            create_bucket=create_bucket,
            mlflow=mlflow,
            kfp_url=kfp_url,
            kfp_namespace=kfp_namespace,
            trainer=trainer,
            runtime=runtime,
            runtime_scope=runtime_scope,
            namespace=namespace,
            step_accounts=tuple(step_account or ()),
            my_rights=my_rights,
            gpus=gpus,
            gpu_type=gpu_type,
            image=image,
            pods=pods,
        )
        found = checks(wanted)
    show_checks(found, as_json)


def register_pipelines(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of compiled pipelines.")],
    kfp_url: KfpUrl,
    kfp_namespace: KfpNamespace = "",
    version: Annotated[str, typer.Option("--version", help="Version to register.")] = intern_vision.__version__,
    platform: Annotated[
        Path | None, typer.Option("--platform", help="JSON file with the cluster's settings, which are put in.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Upload compiled pipelines to Kubeflow Pipelines; what is there already stays as it is."""
    from intern_pipelines.compiled import rewrite_all
    from intern_pipelines.kubeflow import Kubeflow
    from intern_pipelines.platform import read_platform

    with reporting_errors(debug, as_json):
        settings = read_platform(platform) if platform else None
        with tempfile.TemporaryDirectory() as changed:
            paths = rewrite_all(folder, Path(changed), settings) if settings else sorted(folder.glob("*.yaml"))
            if not paths:
                raise ConfigError(f"{folder}: holds no *.yaml; write them with intern compile --out {folder}")
            kubeflow = Kubeflow(kfp_url, kfp_namespace)
            found = [kubeflow.register(path, version) for path in paths]
        lines = [f"{'new' if each.is_new else 'there':5}  {each.pipeline}  {each.version}" for each in found]
        show({"pipelines": [vars(each) for each in found]}, lines, as_json)


def test(
    smoke: Annotated[
        Path | None, typer.Option("--smoke", exists=True, help="Compiled pipeline to run with preset smoke.")
    ] = None,
    kfp_url: KfpUrl = "",
    kfp_namespace: KfpNamespace = "",
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Seconds to wait for the smoke run.")] = 3600.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Log a run, a file and a model, read them back and remove them; with --smoke also run a pipeline."""
    from intern_pipelines.self_test import mlflow_round_trip

    with reporting_errors(debug, as_json):
        if smoke and not kfp_url:
            raise ConfigError("--kfp-url: --smoke needs the address of Kubeflow Pipelines' API server")
        lines = mlflow_round_trip()
        if smoke:
            from intern_pipelines.kubeflow import Kubeflow

            kubeflow = Kubeflow(kfp_url, kfp_namespace)
            name = f"smoke-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
            run_id = kubeflow.start(smoke, {"preset": "smoke"}, name)
            lines.append(f"run {run_id} {kubeflow.wait(run_id, timeout_s).lower()}")
        show({"done": lines}, lines, as_json)
