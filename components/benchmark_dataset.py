"""Every arm on one dataset of the benchmark, as a component."""

from kfp.dsl import Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def benchmark_dataset(
    preset: str,
    overrides: str,
    dataset: str,
    data_root: str,
    protocols: str,
    arms: Input[Artifact],
    data: Output[Dataset],
    scores: Output[Artifact],
    gaps: Output[Artifact],
):
    """Prepares a dataset, adapts every arm to it and scores them; a failure becomes a row of the table.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        dataset: Name of the dataset.
        data_root: Folder that holds a folder a dataset; empty for the made world.
        protocols: Names of protocols with commas between them.
        arms: List of the Refs of the weights.
        data: List of the dataset's Ref, empty where it could not be read.
        scores: List of the Refs of the scores.
        gaps: List of what went wrong.
    """
    from intern_vision.benchmark_steps import benchmark_dataset

    outputs = {"data": data.path, "scores": scores.path, "gaps": gaps.path}
    benchmark_dataset(preset, overrides, dataset, data_root, protocols, arms.path, outputs)
