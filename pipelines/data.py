"""The data pipeline: the upstream dataset and every downstream dataset."""

from kfp import dsl
from kfp.dsl import Dataset

from intern_components.choices import choices
from intern_components.prepare import prepare
from intern_pipelines.platform import step


@dsl.pipeline(name="intern-data", display_name="INTERN data")
def data(preset: str = "nano", overrides: str = "") -> Dataset:
    """Prepares datasets on the store.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
    """
    run = {"preset": preset, "overrides": overrides}
    upstream = step(prepare(dataset="upstream", **run), "prepare upstream")
    names = step(choices(what="downstream_sets", **run), "downstream sets").output
    with dsl.ParallelFor(names, name="downstream-sets") as dataset:
        step(prepare(dataset=dataset, **run), "prepare downstream")
    return upstream.outputs["result"]
