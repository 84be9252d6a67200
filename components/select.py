"""The choice of the generalist as a component."""

from typing import List

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from intern_components.base import component


@component
def select(
    preset: str,
    overrides: str,
    data: Input[Dataset],
    candidates: Input[List[Model]],
    rest: Input[Artifact],
    result: Output[Model],
    models: Output[Artifact],
):
    """Takes the candidate that errs least on validation images.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
        candidates: The generalists.
        rest: List of the Refs of all other models.
        result: Ref of the chosen generalist.
        models: List of the Refs of all models, the chosen one first.
    """
    from intern_vision.steps import gather_refs, paths, run_step

    inputs = {"data": [data.path], "candidates": paths(candidates)}
    run_step("select", preset, overrides, inputs=inputs, output=result.path)
    gather_refs([result.path, *paths(candidates), rest.path], models.path)
