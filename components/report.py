"""The report stage as a component."""

from typing import List, Optional

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def report(
    preset: str,
    overrides: str,
    downstream: Input[List[Dataset]],
    scores: Input[List[Artifact]],
    registered: Input[Artifact],
    result: Output[Artifact],
    page: Output[HTML],
    upstream: Optional[Input[Dataset]] = None,
    baseline_scores: Optional[Input[List[Artifact]]] = None,
):
    """Writes the run's report.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        downstream: The downstream datasets.
        scores: INTERN's scores.
        registered: The registered versions.
        result: Ref of the report.
        page: The report itself.
        upstream: The upstream dataset.
        baseline_scores: The baseline's scores.
    """
    from intern_vision.steps import paths, write_report

    inputs = {"data": paths(upstream) + paths(downstream), "scores": paths(scores) + paths(baseline_scores)}
    inputs |= {"registered": paths(registered)}
    write_report(preset, overrides, inputs, result.path, page.path)
