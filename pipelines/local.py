"""Runs one pipeline through ``kfp.local`` in a process of its own: ``python -m intern_pipelines.local NAME ARGS ROOT``.

A process of its own because the local runner replaces ``print`` and leaves temporary files,
and because a whole process group can be stopped.
"""

import importlib
import json
import os
import signal
import sys
import warnings
from typing import Any

PIPELINES = {
    "data": "data",
    "search": "search",
    "pretrain": "pretrain",
    "adapt": "adapt",
    "benchmark": "benchmark",
    "intern": "intern",
}
"""Module below ``intern_pipelines`` by pipeline name; the function is called like the pipeline."""


def load_pipeline(name: str) -> Any:
    """The pipeline's function."""
    return getattr(importlib.import_module(f"intern_pipelines.{PIPELINES[name]}"), name)


def main(name: str, arguments: str, root: str) -> int:
    """Runs a pipeline; 0 where every step succeeded.

    Args:
        name: one of ``PIPELINES``.
        arguments: the pipeline's parameters as a JSON object.
        root: folder for the steps' small output files.
    """
    in_docker = os.environ.get("INTERN_WHERE") == "docker"

    def ask_to_stop(number: int, frame: Any) -> None:
        if in_docker:
            from intern_pipelines import docker_runner

            docker_runner.ask_to_stop(os.environ["INTERN_RUN_DIR"])

    # Steps of this process group get the signal too and end by themselves, containers are told; this process outlives
    # them to say so.
    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    from kfp import local

    if in_docker:
        from intern_pipelines.docker_runner import make_runner

        runner = make_runner()
    else:
        runner = local.SubprocessRunner(use_venv=False)
    local.init(runner=runner, pipeline_root=root, raise_on_error=True)
    try:
        load_pipeline(name)(**json.loads(arguments))
    except RuntimeError as error:
        print(f"pipeline {name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
