"""The models that a benchmark compares, as a component."""

from kfp.dsl import Artifact, Output

from intern_components.base import component


@component
def benchmark_arms(model: str, arm: str, baseline: str, architecture: str, result: Output[Artifact]):
    """Finds or imports the weights that are compared.

    Args:
        model: ``models:/NAME@ALIAS``, or the address of committed weights on the store.
        arm: What the model is called in the table.
        baseline: Another model, or a file of public weights; empty for none.
        architecture: Architecture of such a file.
        result: List of the Refs of the weights.
    """
    from intern_vision.benchmark_steps import benchmark_arms

    benchmark_arms(model, arm, baseline, architecture, result.path)
