"""The adapt and benchmark pipelines: a registered model on a person's own data, or on every downstream set."""

from typing import List

from kfp import dsl
from kfp.dsl import HTML

from intern_components.adapt import adapt as adapt_component
from intern_components.export import export
from intern_components.find import find
from intern_components.prepare import prepare
from intern_components.report import report
from intern_pipelines.platform import step
from intern_vision.run_config import CANDIDATE

DEFAULT_MODEL = "models:/intern-generalist@candidate"


@dsl.pipeline(name="intern-adapt", display_name="INTERN adapt")
def adapt(
    datasets: List[str], model: str = DEFAULT_MODEL, preset: str = "nano", overrides: str = "", arm: str = CANDIDATE
) -> HTML:
    """Adapts a registered model to datasets, scores, registers and reports.

    Args:
        datasets: Names of the datasets; own data's path is set in overrides (``downstream.path``).
        model: Registered model to start from, ``models:/NAME@ALIAS``.
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        arm: What the model is called in the table.
    """
    found = step(find(model=model), "find model")
    with dsl.ParallelFor(datasets, name="datasets") as dataset:
        data = step(prepare(preset=preset, overrides=overrides, dataset=dataset), "prepare")
        adapted = adapt_component(
            preset=preset,
            overrides=overrides,
            case=f"{dataset}/{arm}",
            models=found.outputs["result"],
            datasets=data.outputs["result"],
        )
        step(adapted, "adapt", trains=True)
    registered = export(
        preset=preset,
        overrides=overrides,
        adapted=dsl.Collected(adapted.outputs["result"]),
        scores=dsl.Collected(adapted.outputs["scores"]),
    )
    step(registered, "register")
    written = report(
        preset=preset,
        overrides=overrides,
        downstream=dsl.Collected(data.outputs["result"]),
        scores=dsl.Collected(adapted.outputs["scores"]),
        registered=registered.outputs["result"],
    )
    step(written, "report")
    return written.outputs["page"]
