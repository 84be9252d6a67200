"""The data report as a component."""

from typing import Optional

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from intern_components.base import component


@component
def data_report(
    settings: str,
    manifest: Input[Artifact],
    result: Output[Artifact],
    page: Output[HTML],
    data: Optional[Input[Dataset]] = None,
):
    """Writes a page about a manifest, or about a dataset made of one, and every step before it.

    Args:
        settings: JSON object of the stages' configs by name; empty for none.
        manifest: Ref of the manifest or dataset.
        result: Ref of the report.
        page: The page itself.
        data: Ref, or list of Refs, of the datasets made of the manifest.
    """
    from intern_vision.data_steps import report_step

    report_step(settings, manifest, data, result.path, page.path)
