"""The benchmark pipeline: a registered model on every downstream set."""

from typing import List

from kfp import dsl
from kfp.dsl import HTML

from intern_pipelines.adapt import DEFAULT_MODEL, adapt
from intern_vision.run_config import CANDIDATE, DOWNSTREAM_SETS


@dsl.pipeline(name="intern-benchmark", display_name="INTERN benchmark")
def benchmark(
    model: str = DEFAULT_MODEL,
    downstream_sets: List[str] = list(DOWNSTREAM_SETS),
    preset: str = "nano",
    overrides: str = "",
    arm: str = CANDIDATE,
) -> HTML:
    """Scores a registered model at 10 % and 100 % of the labels of every downstream set.

    Args:
        model: Registered model, ``models:/NAME@ALIAS``.
        downstream_sets: Names of the downstream sets.
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        arm: What the model is called in the table.
    """
    scored = adapt(datasets=downstream_sets, model=model, preset=preset, overrides=overrides, arm=arm)
    return scored.output
