"""The intern pipeline: data, upstream stages, adaptation of both arms to every downstream set, registry and report."""

from typing import List

from kfp import dsl
from kfp.dsl import HTML

from intern_components.adapt import adapt
from intern_components.export import export
from intern_components.prepare import prepare
from intern_components.report import report
from intern_pipelines.platform import step
from intern_pipelines.pretrain import upstream_stages
from intern_vision.presets import BASELINE, CANDIDATE, DOWNSTREAM_SETS


@dsl.pipeline(name="intern", display_name="INTERN")
def intern(preset: str = "nano", overrides: str = "", downstream_sets: List[str] = list(DOWNSTREAM_SETS)) -> HTML:
    """Runs INTERN end to end on the made world and compares it with a CLIP baseline.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        downstream_sets: Names of the downstream sets.
    """
    upstream = step(prepare(preset=preset, overrides=overrides, dataset="upstream"), "prepare upstream")
    stages = upstream_stages(preset=preset, overrides=overrides, data=upstream.outputs["result"])
    stages.set_display_name("upstream stages")
    with dsl.ParallelFor(downstream_sets, name="downstream-sets") as dataset:
        downstream = step(prepare(preset=preset, overrides=overrides, dataset=dataset), "prepare downstream")
        ours, theirs = (
            step(
                adapt(
                    preset=preset,
                    overrides=overrides,
                    dataset=dataset,
                    arm=arm,
                    model=stages.outputs[output],
                    data=downstream.outputs["result"],
                ),
                f"adapt {arm}",
                trains=True,
            )
            for arm, output in ((CANDIDATE, "generalist"), (BASELINE, "clip"))
        )
    registered = export(
        preset=preset,
        overrides=overrides,
        generalist=stages.outputs["generalist"],
        adapted=dsl.Collected(ours.outputs["result"]),
        scores=dsl.Collected(ours.outputs["scores"]),
    )
    step(registered, "register")
    written = report(
        preset=preset,
        overrides=overrides,
        upstream=upstream.outputs["result"],
        downstream=dsl.Collected(downstream.outputs["result"]),
        scores=dsl.Collected(ours.outputs["scores"]),
        baseline_scores=dsl.Collected(theirs.outputs["scores"]),
        registered=registered.outputs["result"],
    )
    step(written, "report")
    return written.outputs["page"]
