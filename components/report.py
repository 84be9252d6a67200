"""The report stage as a component."""

from typing import List, Optional

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

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
    selected: Optional[Input[Model]] = None,
):
    """Writes the run's report.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        downstream: The downstream datasets.
        scores: Every arm's scores.
        registered: The registered versions.
        result: Ref of the report.
        page: The report itself.
        upstream: The upstream dataset.
        selected: The chosen generalist.
    """
    from intern_vision.steps import paths, write_report

    inputs = {"data": paths(upstream) + paths(downstream), "scores": paths(scores)}
    inputs |= {"registered": paths(registered), "selected": paths(selected)}
    write_report(preset, overrides, inputs, result.path, page.path)
