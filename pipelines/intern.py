"""The intern pipeline: data, upstream stages, adaptation of every arm to every downstream set, registry and report."""

from kfp import dsl
from kfp.dsl import HTML

from intern_components.adapt import adapt
from intern_components.choices import choices
from intern_components.export import export
from intern_components.gather import gather
from intern_components.prepare import prepare
from intern_components.report import report
from intern_pipelines.platform import step
from intern_pipelines.pretrain import upstream_stages
from intern_vision.run_config import CANDIDATE


@dsl.pipeline(name="intern", display_name="INTERN")
def intern(preset: str = "nano", overrides: str = "") -> HTML:
    """Runs INTERN end to end on the made world and compares it with a CLIP baseline.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
    """
    run = {"preset": preset, "overrides": overrides}
    upstream = step(prepare(dataset="upstream", **run), "prepare upstream")
    stages = upstream_stages(data=upstream.outputs["result"], **run)
    stages.set_display_name("upstream stages")
    names = step(choices(what="downstream_sets", **run), "downstream sets").output
    with dsl.ParallelFor(names, name="downstream-sets") as dataset:
        downstream = step(prepare(dataset=dataset, **run), "prepare downstream")
    datasets = step(gather(items=dsl.Collected(downstream.outputs["result"])), "gather datasets").outputs["result"]
    with dsl.ParallelFor(step(choices(what="cases", **run), "cases").output, name="cases") as case:
        adapted = adapt(case=case, models=stages.outputs["models"], datasets=datasets, **run)
        step(adapted, "adapt", trains=True)
    registered = export(
        generalist=stages.outputs["generalist"],
        adapted=dsl.Collected(adapted.outputs["result"]),
        scores=dsl.Collected(adapted.outputs["scores"]),
        arm=CANDIDATE,
        **run,
    )
    step(registered, "register")
    written = report(
        upstream=upstream.outputs["result"],
        downstream=dsl.Collected(downstream.outputs["result"]),
        scores=dsl.Collected(adapted.outputs["scores"]),
        registered=registered.outputs["result"],
        selected=stages.outputs["generalist"],
        **run,
    )
    step(written, "report")
    return written.outputs["page"]
