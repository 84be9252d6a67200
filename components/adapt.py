"""Down-A of one model to one dataset, with its test scores, as a component."""

from kfp.dsl import Artifact, Input, Model, Output

from intern_components.base import component


@component
def adapt(
    preset: str,
    overrides: str,
    case: str,
    models: Input[Artifact],
    datasets: Input[Artifact],
    result: Output[Model],
    scores: Output[Artifact],
):
    """Adapts an upstream model to one dataset and scores it on the test images.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        case: Dataset and model as ``DATASET/ARM``.
        models: Ref or list of Refs of the upstream models.
        datasets: Ref or list of Refs of the downstream datasets.
        result: Ref of the adapted model.
        scores: Ref of its scores.
    """
    from intern_vision.steps import adapt_and_evaluate

    adapt_and_evaluate(preset, overrides, case, models.path, datasets.path, result.path, scores.path)
