"""One candidate of a round of a search, as a component."""

from kfp.dsl import Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def search_trial(
    preset: str,
    overrides: str,
    candidate: str,
    data: Input[Dataset],
    candidates: Input[Artifact],
    result: Output[Artifact],
):
    """Trains and scores one candidate genotype.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        candidate: The candidate's number within its round, 0-based.
        data: The upstream dataset.
        candidates: The round's candidates.
        result: Ref of the candidate's score.
    """
    from intern_vision.steps import run_step

    inputs = {"data": [data.path], "round": [candidates.path]}
    run_step("search_trial", preset, overrides, item=candidate, inputs=inputs, output=result.path)
