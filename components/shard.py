"""The shard stage as a component."""

from typing import Optional

from kfp.dsl import Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def shard(settings: str, manifest: Input[Artifact], result: Output[Dataset], labels: Optional[Input[Artifact]] = None):
    """Writes a manifest's usable images as the dataset of shards that trainings read.

    Args:
        settings: JSON object of the stages' configs by name; with ``by_source`` under ``shard`` a dataset a source.
        manifest: Ref of the manifest.
        result: Ref of the dataset, or list of Refs.
        labels: Ref of the label step's output, which gives the classes of several sources common names.
    """
    from intern_vision.data_steps import shard_step

    shard_step(settings, manifest, labels, result.path)
