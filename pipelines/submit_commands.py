"""``intern submit``: starts a run on Kubeflow Pipelines, says where to look at it, and waits for it where asked."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from intern_pipelines.cluster_commands import KfpNamespace, KfpUrl
from intern_vision.console import reporting_errors, show
from intern_vision.errors import ConfigError
from intern_vision.options import AsJson, Debug

INTERRUPTED = 130
DEFAULT_TIMEOUT_S = 14 * 24 * 3600.0


def register(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command()(submit)


def submit(
    pipeline: Annotated[
        str, typer.Argument(help="A file of intern compile, or the name of a registered pipeline, such as intern.")
    ],
    kfp_url: KfpUrl = "",
    kfp_namespace: KfpNamespace = "",
    ui_url: Annotated[str, typer.Option("--ui-url", help="Address of its web page, where it is another.")] = "",
    mlflow_url: Annotated[
        str, typer.Option("--mlflow-url", envvar="MLFLOW_TRACKING_URI", help="Address of MLflow as you reach it.")
    ] = "",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE; may be given again.")
    ] = None,
    version: Annotated[str, typer.Option("--version", help="Registered version; the newest where empty.")] = "",
    experiment: Annotated[str, typer.Option("--experiment", help="Experiment of Kubeflow Pipelines.")] = "intern",
    name: Annotated[str, typer.Option("--name", help="Name of the run; the pipeline's and the time where empty.")] = "",
    service_account: Annotated[str, typer.Option("--service-account", help="Account of the steps' pods.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; a failed run ends with code 1.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait, and show the steps' logs.")] = False,
    attach: Annotated[str, typer.Option("--attach", help="Id of a run to wait for, in place of a new one.")] = "",
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Seconds to wait at most.")] = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Start a pipeline on Kubeflow Pipelines; Ctrl-C while waiting leaves the run alone."""
    with reporting_errors(debug, as_json):
        from intern_pipelines import submission
        from intern_pipelines.kubeflow import Kubeflow

        if not kfp_url:
            raise ConfigError("--kfp-url: name the address of Kubeflow Pipelines, or set INTERN_KFP_URL")
        kubeflow = Kubeflow(kfp_url, kfp_namespace, ui_url)
        run_id = attach or _start(
            kubeflow,
            pipeline,
            parameter or [],
            version,
            experiment,
            name or submission.default_name(pipeline),
            service_account,
        )
        _say(f"run        {run_id}\npage       {kubeflow.page(run_id)}")
        state, waits = "", wait or follow or bool(attach)
        if waits:
            state = _waited(kubeflow, run_id, timeout_s, follow)
        mlflow = submission.mlflow_page(kubeflow.run(run_id), mlflow_url)
        lines = [f"MLflow     {mlflow}"] if mlflow else []
        lines += (
            [f"ended      {state.lower()}"] if waits else [f"wait       intern submit {pipeline} --attach {run_id}"]
        )
        show({"run_id": run_id, "page": kubeflow.page(run_id), "mlflow": mlflow, "state": state}, lines, as_json)


def _start(
    kubeflow: Any,
    pipeline: str,
    parameters: list[str],
    version: str,
    experiment: str,
    name: str,
    service_account: str,
) -> str:
    from intern_pipelines.kubeflow import read_spec
    from intern_pipelines.submission import parse_parameters

    source: Any = Path(pipeline)
    if source.suffix in (".yaml", ".yml") or os.sep in pipeline:
        if version:
            raise ConfigError("--version: a file has none; leave it out, or name a registered pipeline")
        spec = read_spec(source)
    else:
        source = kubeflow.find(pipeline, version)
        spec = source.spec
    arguments = parse_parameters(spec, parameters)
    return kubeflow.start(source, arguments, name, experiment=experiment, service_account=service_account)


def _waited(kubeflow: Any, run_id: str, timeout_s: float, follow: bool) -> str:
    """The run's last state; Ctrl-C ends this process alone."""
    from intern_pipelines.submission import Followed

    followed = Followed(lambda pod, start: kubeflow.log(run_id, pod, start), _say)
    try:
        return kubeflow.wait(run_id, timeout_s, followed.look if follow else lambda run: None)
    except KeyboardInterrupt:
        _say(f"run {run_id} goes on without this terminal; stop it at {kubeflow.page(run_id)}")
        raise SystemExit(INTERRUPTED) from None


def _say(text: str) -> None:
    """Progress goes to standard error: standard output is for the result."""
    print(text, file=sys.stderr, flush=True)
