"""The benchmark pipeline: a model, and a baseline under the same code, on every dataset; one table."""

from kfp import dsl
from kfp.dsl import HTML

from intern_components.benchmark_arms import benchmark_arms
from intern_components.benchmark_dataset import benchmark_dataset
from intern_components.benchmark_report import benchmark_report
from intern_components.benchmark_sets import benchmark_sets
from intern_components.promote import promote
from intern_pipelines.adapt import DEFAULT_MODEL
from intern_pipelines.platform import step
from intern_vision.run_config import CANDIDATE


@dsl.pipeline(name="intern-benchmark", display_name="INTERN benchmark")
def benchmark(
    model: str = DEFAULT_MODEL,
    baseline: str = "",
    architecture: str = "",
    data_root: str = "",
    datasets: str = "",
    protocols: str = "10,100",
    preset: str = "nano",
    overrides: str = "",
    arm: str = CANDIDATE,
    gate: str = "",
) -> HTML:
    """Scores a registered model, and a baseline, on every dataset that is there.

    Args:
        model: Registered model, ``models:/NAME@ALIAS``.
        baseline: Another registered model, or a file of public weights; empty for none.
        architecture: Architecture of such a file, for example ``clip_rn50x16``.
        data_root: Folder that holds a folder a dataset; empty for the made world's sets.
        datasets: Names with commas between them; empty for all.
        protocols: Names of protocols with commas between them.
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        arm: What the model is called in the table.
        gate: JSON object of what the model must reach to become the champion; empty promotes nothing.
    """
    run = {"preset": preset, "overrides": overrides}
    where = {"data_root": data_root, **run}
    arms = step(benchmark_arms(model=model, arm=arm, baseline=baseline, architecture=architecture), "find models")
    names = step(benchmark_sets(datasets=datasets, **where), "datasets").output
    with dsl.ParallelFor(names, name="datasets") as dataset:
        scored = benchmark_dataset(dataset=dataset, protocols=protocols, arms=arms.outputs["result"], **where)
        step(scored, "adapt and score", trains=True)
    written = benchmark_report(
        datasets=datasets,
        arms=arms.outputs["result"],
        data=dsl.Collected(scored.outputs["data"]),
        scores=dsl.Collected(scored.outputs["scores"]),
        gaps=dsl.Collected(scored.outputs["gaps"]),
        **where,
    )
    step(written, "report")
    promoted = promote(model=model, arm=arm, gate=gate, scores=dsl.Collected(scored.outputs["scores"]))
    step(promoted.after(written), "promote")
    return written.outputs["page"]
