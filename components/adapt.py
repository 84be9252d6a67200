"""Down-A on one dataset, with its test scores, as a component."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from intern_components.base import component


@component
def adapt(
    preset: str,
    overrides: str,
    dataset: str,
    arm: str,
    model: Input[Model],
    data: Input[Dataset],
    result: Output[Model],
    scores: Output[Artifact],
):
    """Adapts an upstream model to one dataset and scores it on the test images.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        dataset: Name of the downstream set.
        arm: ``intern`` or ``clip``.
        model: The upstream weights.
        data: The downstream dataset.
        result: Ref of the adapted model.
        scores: Ref of its scores.
    """
    from intern_vision.steps import adapt_and_evaluate

    adapt_and_evaluate(preset, overrides, dataset, arm, model.path, data.path, result.path, scores.path)
