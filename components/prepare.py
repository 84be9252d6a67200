"""The prepare stage as a component."""

from kfp.dsl import Dataset, Output

from intern_components.base import component


@component
def prepare(preset: str, overrides: str, dataset: str, result: Output[Dataset]):
    """Makes a dataset of shards on the store.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        dataset: ``upstream`` or the name of a downstream set.
        result: Ref of the dataset.
    """
    from intern_vision.steps import run_step

    run_step("prepare", preset, overrides, item=dataset, output=result.path)
