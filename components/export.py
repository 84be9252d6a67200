"""The export stage as a component."""

from typing import List, Optional

from kfp.dsl import Artifact, Input, Model, Output

from intern_components.base import component


@component
def export(
    preset: str,
    overrides: str,
    adapted: Input[List[Model]],
    scores: Input[List[Artifact]],
    result: Output[Artifact],
    generalist: Optional[Input[Model]] = None,
    arm: str = "",
):
    """Registers the models in MLflow.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        adapted: Every adapted model.
        scores: Their scores.
        result: Ref of the list of registered versions.
        generalist: The generalist's weights; left out where they are registered already.
        arm: Registers only the adapted models of this arm; empty for all.
    """
    from intern_vision.steps import paths, run_step

    inputs = {"generalist": paths(generalist), "adapted": paths(adapted), "scores": paths(scores)}
    run_step("export", preset, overrides, model=arm, inputs=inputs, output=result.path)
