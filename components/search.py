"""The search stage as a component."""

from typing import List, Optional

from kfp.dsl import Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def search(
    preset: str,
    overrides: str,
    data: Input[Dataset],
    result: Output[Artifact],
    last: Optional[Input[Artifact]] = None,
    results: Optional[Input[List[Artifact]]] = None,
):
    """Searches the architecture (GV-A), or concludes rounds that other steps evaluated.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
        result: Ref of the genotype.
        last: The last round, where there were rounds.
        results: Its evaluated candidates.
    """
    from intern_vision.steps import paths, run_step

    inputs = {"data": paths(data), "round": paths(last), "results": paths(results)}
    run_step("search_end" if last else "search", preset, overrides, inputs=inputs, output=result.path)
