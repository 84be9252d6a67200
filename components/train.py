"""Every upstream training stage as one component: amateur, baseline, expert and generalist."""

from typing import List, Optional

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from intern_components.base import component


@component
def train(
    stage: str,
    preset: str,
    overrides: str,
    data: Input[Dataset],
    result: Output[Model],
    item: str = "",
    genotype: Optional[Input[Artifact]] = None,
    amateur: Optional[Input[Model]] = None,
    experts: Optional[Input[List[Model]]] = None,
):
    """Trains an upstream model with DeepSpeed.

    Args:
        stage: ``amateur``, ``clip``, ``expert`` or ``generalist``.
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
        result: Ref of the weights.
        item: The expert's task family.
        genotype: The backbone to train, for ``amateur`` and ``clip``.
        amateur: Weights to start from, for ``expert`` and ``generalist``.
        experts: Weights to join or distil, for ``generalist``.
    """
    from intern_vision.steps import paths, run_step

    inputs = {"data": paths(data), "genotype": paths(genotype), "amateur": paths(amateur), "experts": paths(experts)}
    run_step(stage, preset, overrides, item=item, inputs=inputs, output=result.path)
