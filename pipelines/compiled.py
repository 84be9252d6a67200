"""Compiled pipelines: YAML that a Kubeflow Pipelines cluster takes, equal for equal sources."""

import tempfile
from pathlib import Path
from typing import Any

import yaml

from intern_pipelines.local import PIPELINES, load_pipeline
from intern_pipelines.platform import finish


def write_all(folder: Path) -> list[Path]:
    """Writes every pipeline to ``<folder>/<name>.yaml`` and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write(name, folder / f"{name}.yaml") for name in PIPELINES]


def write(name: str, path: Path) -> Path:
    """Compiles one pipeline; the first document is the pipeline, the second what only Kubernetes needs."""
    documents = compile_pipeline(name)
    path.write_text(yaml.safe_dump_all(documents, sort_keys=True, width=120))
    return path


def compile_pipeline(name: str) -> list[dict[str, Any]]:
    """The compiled documents of a pipeline with retries and choices added."""
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(load_pipeline(name), str(target))
        spec, *platforms = list(yaml.safe_load_all(target.read_text()))
    return [finish(spec), *platforms]
