"""The annotate stage as a component."""

from typing import Optional

from kfp.dsl import Artifact, Input, Output

from intern_components.base import component


@component
def annotate(
    question: str,
    model: str,
    settings: str,
    manifest: Input[Artifact],
    result: Output[Artifact],
    labels: Optional[Input[Artifact]] = None,
):
    """Chooses what people should look at next; without a question the manifest stays as it is.

    Args:
        question: What people verify: label or box; empty asks nothing.
        model: Weights that propose labels, ``models:/NAME@ALIAS`` or an address.
        settings: JSON object of the stages' configs by name; empty for none.
        manifest: Ref of the manifest.
        result: Ref of the manifest, with the tasks beside it.
        labels: Ref of the label step's output: images count for the concepts above theirs.
    """
    from intern_vision.data_steps import data_step

    own = {"texts": {"question": question}, "inputs": {"manifest": manifest, "labels": labels}}
    data_step("annotate", settings, result.path, **own, weights={"model": model}, unless_empty="question")
