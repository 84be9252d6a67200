"""The pretrain pipeline: search, amateur, experts and generalists, and the models they are compared with."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model

from intern_components.choices import choices
from intern_components.gather import gather
from intern_components.prepare import prepare
from intern_components.search import search
from intern_components.select import select
from intern_components.train import train
from intern_pipelines.platform import step


class Pretrained(NamedTuple):
    """What pretraining gives: the chosen generalist, and the list of all models."""

    generalist: Model
    models: Artifact


@dsl.pipeline(name="intern-upstream", display_name="INTERN upstream stages")
def upstream_stages(preset: str, overrides: str, data: Input[Dataset]) -> Pretrained:
    """GV-A, Up-A, Up-E and Up-G on one upstream dataset, and the models they are compared with.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
    """
    run = {"preset": preset, "overrides": overrides}
    found = step(search(data=data, **run), "search", trains=True)
    genotype = found.outputs["result"]
    amateur = step(train(use="amateur", data=data, genotype=genotype, **run), "amateur", trains=True)
    local = train(use="amateur_local", data=data, amateur=amateur.outputs["result"], **run)
    step(local, "amateur local", trains=True)
    amateurs = {"amateur": amateur.outputs["result"], "amateur_local": local.outputs["result"]}
    with dsl.ParallelFor(step(choices(what="experts", **run), "experts").output, name="experts") as family:
        expert = step(train(use="expert", item=family, data=data, **amateurs, **run), "expert", trains=True)
    experts = step(gather(items=dsl.Collected(expert.outputs["result"])), "gather experts").outputs["result"]
    with dsl.ParallelFor(step(choices(what="generalists", **run), "generalists").output, name="generalists") as name:
        candidate = train(use="generalist", item=name, data=data, experts=experts, **amateurs, **run)
        step(candidate, "generalist", trains=True)
    with dsl.ParallelFor(step(choices(what="others", **run), "other models").output, name="other-models") as name:
        other = step(train(use="other", item=name, data=data, genotype=genotype, **run), "other model", trains=True)
    rest = gather(
        items=dsl.Collected(other.outputs["result"]),
        first=amateurs["amateur"],
        second=amateurs["amateur_local"],
        third=experts,
    )
    step(rest, "gather models")
    candidates = dsl.Collected(candidate.outputs["result"])
    chosen = select(data=data, candidates=candidates, rest=rest.outputs["result"], **run)
    step(chosen, "select")
    return Pretrained(generalist=chosen.outputs["result"], models=chosen.outputs["models"])


@dsl.pipeline(name="intern-pretrain", display_name="INTERN pretrain")
def pretrain(preset: str = "nano", overrides: str = "") -> Model:
    """Trains a generalist, and the models it is compared with, from made or prepared data.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
    """
    data = step(prepare(preset=preset, overrides=overrides, dataset="upstream"), "prepare upstream")
    stages = upstream_stages(preset=preset, overrides=overrides, data=data.outputs["result"])
    return stages.outputs["generalist"]
