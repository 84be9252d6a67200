"""The data pipeline: the upstream dataset and every downstream dataset."""

from typing import List

from kfp import dsl
from kfp.dsl import Dataset

from intern_components.prepare import prepare
from intern_pipelines.platform import step
from intern_vision.presets import DOWNSTREAM_SETS


@dsl.pipeline(name="intern-data", display_name="INTERN data")
def data(preset: str = "nano", overrides: str = "", downstream_sets: List[str] = list(DOWNSTREAM_SETS)) -> Dataset:
    """Prepares datasets on the store.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        downstream_sets: Names of the downstream sets.
    """
    upstream = step(prepare(preset=preset, overrides=overrides, dataset="upstream"), "prepare upstream")
    with dsl.ParallelFor(downstream_sets, name="downstream-sets") as dataset:
        step(prepare(preset=preset, overrides=overrides, dataset=dataset), "prepare downstream")
    return upstream.outputs["result"]
