"""The annotate stage as a component."""

from kfp.dsl import Artifact, Input, Output

from intern_components.base import component


@component
def annotate(model: str, settings: str, manifest: Input[Artifact], result: Output[Artifact]):
    """Chooses what people should look at next, or takes their answers up.

    Args:
        model: Weights that propose labels, ``models:/NAME@ALIAS`` or an address.
        settings: JSON object of the stages' configs by name; empty for none.
        manifest: Ref of the manifest.
        result: Ref of the manifest with tasks or answers.
    """
    from intern_vision.data_steps import data_step

    data_step("annotate", settings, result.path, inputs={"manifest": manifest}, model=model)
