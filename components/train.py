"""Every upstream training stage as one component."""

from typing import Optional

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from intern_components.base import component


@component
def train(
    use: str,
    preset: str,
    overrides: str,
    data: Input[Dataset],
    result: Output[Model],
    item: str = "",
    genotype: Optional[Input[Artifact]] = None,
    amateur: Optional[Input[Model]] = None,
    amateur_local: Optional[Input[Model]] = None,
    experts: Optional[Input[Artifact]] = None,
):
    """Trains an upstream model with DeepSpeed.

    Args:
        use: ``amateur``, ``amateur_local``, ``expert``, ``generalist`` or ``other``.
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
        result: Ref of the weights.
        item: The expert's task family, or the name of the generalist or other model.
        genotype: The backbone of models that start from nothing.
        amateur: Up-A-G's weights.
        amateur_local: Up-A-L's weights.
        experts: List of the experts' Refs.
    """
    from intern_vision.steps import train_step

    inputs = dict(data=data, genotype=genotype, experts=experts, amateur=amateur, amateur_local=amateur_local)
    train_step(use, preset, overrides, item, inputs, result.path)
