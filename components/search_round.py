"""One round of a search in parallel steps, as a component."""

from typing import List, Optional

from kfp.dsl import Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def search_round(
    preset: str,
    overrides: str,
    data: Input[Dataset],
    result: Output[Artifact],
    last: Optional[Input[Artifact]] = None,
    results: Optional[Input[List[Artifact]]] = None,
):
    """Proposes the candidates of the next round (GV-A).

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
        result: Ref of the candidates.
        last: The round before; left out in the first.
        results: Its evaluated candidates.
    """
    from intern_vision.steps import paths, run_step

    inputs = {"data": paths(data), "round": paths(last), "results": paths(results)}
    run_step("search_round", preset, overrides, inputs=inputs, output=result.path)
