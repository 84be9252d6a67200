"""The label stage on a manifest as a component."""

from kfp.dsl import Artifact, Input, Output

from intern_components.base import component


@component
def label(amateur: str, settings: str, manifest: Input[Artifact], result: Output[Artifact]):
    """Merges the sources' class names into one label system and notes each row's concepts.

    Args:
        amateur: Amateur whose text tower proposes matches, ``models:/NAME@ALIAS`` or an address; empty for none.
        settings: JSON object of the stages' configs by name; empty for none.
        manifest: Ref of the manifest.
        result: Ref of the manifest with concepts.
    """
    from intern_vision.data_steps import data_step

    data_step("label", settings, result.path, inputs={"manifest": manifest}, weights={"amateur": amateur})
