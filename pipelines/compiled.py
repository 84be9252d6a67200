"""Compiled pipelines: YAML that a Kubeflow Pipelines cluster takes, equal for equal sources."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import yaml

import intern_vision
from intern_pipelines import ir
from intern_pipelines.local import PIPELINES, load_pipeline
from intern_pipelines.platform import Platform, finish
from intern_vision.errors import ConfigError

OBJECTS_FOLDER = "kubernetes"
"""Below the folder of compiled pipelines: the same ones as Kubernetes objects."""


def write_all(folder: Path, platform: Platform | None = None, *, objects: bool = False) -> list[Path]:
    """Writes every pipeline to ``<folder>/<name>.yaml``, and as objects below it, and returns the paths.

    Args:
        folder: made where missing.
        platform: the cluster's settings.
        objects: also write ``<folder>/kubernetes/<name>.yaml``.
    """
    platform = platform or Platform()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in PIPELINES:
        documents = compile_pipeline(name, platform)
        written.append(_write(documents, folder / f"{name}.yaml"))
        if objects:
            written.append(write_objects(documents, folder / OBJECTS_FOLDER / f"{name}.yaml"))
    return written


def compile_pipeline(name: str, platform: Platform | None = None) -> list[dict[str, Any]]:
    """A pipeline's two documents: the pipeline, and what only Kubernetes needs.

    Raises:
        ConfigError: a step would read an input that it is not given; a fault of the pipeline's definition.
    """
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(load_pipeline(name), str(target))
        spec, kubernetes_spec = yaml.safe_load_all(target.read_text())
    finish(spec, kubernetes_spec, platform or Platform())
    found = ir.faults(spec)
    if found:
        raise ConfigError("\n".join(f"pipeline {name}: {text}" for text in found))
    return [spec, kubernetes_spec]


def rewrite_all(compiled: Path, folder: Path, platform: Platform) -> list[Path]:
    """Writes compiled pipelines with a cluster's settings into another folder, and returns the paths, sorted.

    Args:
        compiled: folder of pipelines as ``write_all`` gives them without settings.
        folder: exists.
        platform: the cluster's settings; without an image of its own, each file's stays the default.

    Raises:
        ConfigError: a file is no compiled pipeline.
    """
    return [_rewrite(path, folder, platform) for path in sorted(compiled.glob("*.yaml"))]


def write_objects(documents: list[dict[str, Any]], path: Path) -> Path:
    """Writes a compiled pipeline as Pipeline and PipelineVersion, for a server that keeps them in Kubernetes.

    A version never changes once it is there: a digest of its text is part of its name.

    Args:
        documents: as ``compile_pipeline`` gives them.
        path: of the file; its folder is made where missing.
    """
    from google.protobuf import json_format
    from kfp.compiler import pipeline_spec_builder
    from kfp.compiler.compiler_utils import KubernetesManifestOptions
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec, kubernetes_spec = documents
    name, described = spec["pipelineInfo"]["name"], spec["pipelineInfo"].get("description", "")
    digest = hashlib.sha256(_text(documents).encode()).hexdigest()[:8]
    version = f"{intern_vision.__version__}-{digest}"
    options = KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_display_name=spec["pipelineInfo"].get("displayName", name),
        pipeline_version_name=f"{name}-{version}".lower().replace(".", "-").replace("+", "-"),
        pipeline_version_display_name=version,
        include_pipeline_manifest=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pipeline_spec_builder.write_pipeline_spec_to_file(
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec()),
        described,
        json_format.ParseDict(kubernetes_spec, pipeline_spec_pb2.PlatformSpec()),
        str(path),
        options,
        kubernetes_manifest_format=True,
    )
    return path


def _write(documents: list[dict[str, Any]], path: Path) -> Path:
    path.write_text(_text(documents))
    return path


def _text(documents: list[dict[str, Any]]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=True, width=120)


def _rewrite(path: Path, folder: Path, platform: Platform) -> Path:
    try:
        spec, kubernetes_spec = documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        finish(spec, kubernetes_spec, platform)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, ValueError, yaml.YAMLError):
        raise ConfigError(f"{path}: expected a compiled pipeline; write it with intern compile") from None
    return _write(documents, folder / path.name)
