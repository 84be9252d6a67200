"""The dedup stage as a component."""

from kfp.dsl import Artifact, Input, Output

from intern_components.base import component


@component
def dedup(against: str, model: str, settings: str, manifest: Input[Artifact], result: Output[Artifact]):
    """Takes duplicates, and images of benchmark sets, out of a manifest.

    Args:
        against: JSON array of the addresses of datasets and manifests whose images must not be in it; empty for none.
        model: Weights whose embeddings find further duplicates, ``models:/NAME@ALIAS`` or an address; empty for none.
        settings: JSON object of the stages' configs by name; empty for none.
        manifest: Ref of the manifest.
        result: Ref of the manifest without them.
    """
    from intern_vision.data_steps import data_step

    own = {"inputs": {"manifest": manifest}, "addresses": {"against": against}}
    data_step("dedup", settings, result.path, **own, weights={"model": model})
