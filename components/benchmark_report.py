"""The benchmark's table and page as a component."""

from typing import List

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def benchmark_report(
    preset: str,
    overrides: str,
    datasets: str,
    data_root: str,
    arms: Input[Artifact],
    data: Input[List[Dataset]],
    scores: Input[List[Artifact]],
    gaps: Input[List[Artifact]],
    result: Output[Artifact],
    page: Output[HTML],
):
    """Joins the scores of all datasets to one table.

    Args:
        preset: Name of the run's preset, which overrides may change.
        overrides: JSON object of changes; empty for none.
        datasets: Names as asked for, with commas between them; empty for all.
        data_root: Folder that holds a folder a dataset, or nothing.
        arms: List of the Refs of the weights.
        data: The datasets.
        scores: The scores on them.
        gaps: What went wrong.
        result: Ref of the report.
        page: The report itself.
    """
    from intern_vision.benchmark_steps import benchmark_report

    inputs = dict(arms=arms, data=data, scores=scores, gaps=gaps)
    benchmark_report(preset, overrides, datasets, data_root, inputs, result.path, page.path)
