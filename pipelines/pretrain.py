"""The pretrain pipeline: search, amateur, experts and generalist, and the baseline beside them."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from intern_components.prepare import prepare
from intern_components.search import search
from intern_components.train import train
from intern_pipelines.platform import step

FAMILIES = ["multilabel", "detect", "segment", "depth"]


class Pretrained(NamedTuple):
    """What pretraining gives."""

    clip: Model
    amateur: Model
    generalist: Model


@dsl.pipeline(name="intern-upstream", display_name="INTERN upstream stages")
def upstream_stages(preset: str, overrides: str, data: Input[Dataset]) -> Pretrained:
    """GV-A, Up-A, Up-E and Up-G on one upstream dataset, and the baseline with as many image passes.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
    """
    found = step(search(preset=preset, overrides=overrides, data=data), "search", trains=True)
    genotype = found.outputs["result"]
    amateur = train(stage="amateur", preset=preset, overrides=overrides, data=data, genotype=genotype)
    step(amateur, "amateur", trains=True)
    with dsl.ParallelFor(FAMILIES, name="experts") as family:
        expert = train(
            stage="expert",
            preset=preset,
            overrides=overrides,
            data=data,
            item=family,
            amateur=amateur.outputs["result"],
        )
        step(expert, "expert", trains=True)
    generalist = train(
        stage="generalist",
        preset=preset,
        overrides=overrides,
        data=data,
        amateur=amateur.outputs["result"],
        experts=dsl.Collected(expert.outputs["result"]),
    )
    step(generalist, "generalist", trains=True)
    clip = train(stage="clip", preset=preset, overrides=overrides, data=data, genotype=genotype)
    step(clip, "clip baseline", trains=True)
    return Pretrained(
        clip=clip.outputs["result"], amateur=amateur.outputs["result"], generalist=generalist.outputs["result"]
    )


@dsl.pipeline(name="intern-pretrain", display_name="INTERN pretrain")
def pretrain(preset: str = "nano", overrides: str = "") -> Model:
    """Trains a generalist and the baseline from made or prepared data.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
    """
    data = step(prepare(preset=preset, overrides=overrides, dataset="upstream"), "prepare upstream")
    stages = upstream_stages(preset=preset, overrides=overrides, data=data.outputs["result"])
    return stages.outputs["generalist"]
