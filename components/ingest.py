"""The ingest stage as a component."""

from kfp.dsl import Artifact, Output

from intern_components.base import component


@component
def ingest(sources: str, settings: str, result: Output[Artifact]):
    """Takes images and annotations of sources up into a manifest.

    Args:
        sources: JSON array of sources, each an object with at least ``uri``.
        settings: JSON object of the stages' configs by name; empty for none.
        result: Ref of the manifest.
    """
    from intern_vision.data_steps import data_step

    data_step("ingest", settings, result.path, given={"sources": sources})
