"""The search stage as a component."""

from kfp.dsl import Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def search(preset: str, overrides: str, data: Input[Dataset], result: Output[Artifact]):
    """Searches the architecture (GV-A).

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
        result: Ref of the genotype.
    """
    from intern_vision.steps import run_step

    run_step("search", preset, overrides, inputs={"data": [data.path]}, output=result.path)
