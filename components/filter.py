"""The filter stage as a component."""

from typing import Optional

from kfp.dsl import Artifact, Input, Output

from intern_components.base import component


@component
def filter(
    rules: str,
    model: str,
    settings: str,
    manifest: Input[Artifact],
    result: Output[Artifact],
    labels: Optional[Input[Artifact]] = None,
):
    """Takes rows that break a rule out of a manifest; without rules it stays as it is.

    Args:
        rules: JSON array of rules; empty for none.
        model: Amateur that scores image and text, ``models:/NAME@ALIAS`` or an address; empty for none.
        settings: JSON object of the stages' configs by name; empty for none.
        manifest: Ref of the manifest.
        result: Ref of the manifest with what is left.
        labels: Ref of the label step's output, whose concepts caps count.
    """
    from intern_vision.data_steps import data_step

    own = {"given": {"rules": rules}, "inputs": {"manifest": manifest, "labels": labels}}
    data_step("filter", settings, result.path, **own, weights={"model": model}, unless_empty="rules")
