"""The promotion stage as a component."""

from typing import List

from kfp.dsl import Artifact, Input, Output

from intern_components.base import component


@component
def promote(model: str, arm: str, gate: str, scores: Input[List[Artifact]], result: Output[Artifact]):
    """Adds scores to a registered version and, with a gate, makes it the champion where it passes.

    Args:
        model: Registered model, ``models:/NAME@ALIAS``.
        arm: What it is called in the scores.
        gate: JSON object of what it must reach; empty promotes nothing.
        scores: The scores of all datasets.
        result: Ref of the verdict.
    """
    from intern_vision.benchmark_steps import promote

    promote(model, arm, gate, scores, result.path)
