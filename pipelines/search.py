"""The search pipeline: rounds of candidate genotypes, each of which is trained and scored by a step of its own."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input

from intern_components.prepare import prepare
from intern_components.search import search as search_component
from intern_components.search_round import search_round
from intern_components.search_trial import search_trial
from intern_pipelines.platform import step
from intern_vision.stages.search_round import NUM_ROUNDS, ROUND_SIZE


@dsl.pipeline(name="intern-search-rounds", display_name="INTERN search rounds")
def search_rounds(preset: str, overrides: str, data: Input[Dataset]) -> Artifact:
    """GV-A in parallel: the controller proposes a round's candidates, learns from their scores and proposes again.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        data: The upstream dataset.
    """
    known = {}
    for number in range(NUM_ROUNDS):
        proposed = search_round(preset=preset, overrides=overrides, data=data, **known)
        step(proposed, f"round {number + 1}")
        with dsl.ParallelFor([str(index) for index in range(ROUND_SIZE)], name=f"round-{number + 1}") as candidate:
            trial = search_trial(
                preset=preset,
                overrides=overrides,
                candidate=candidate,
                data=data,
                candidates=proposed.outputs["result"],
            )
            step(trial, "candidate", trains=True)
        known = {"last": proposed.outputs["result"], "results": dsl.Collected(trial.outputs["result"])}
    found = search_component(preset=preset, overrides=overrides, data=data, **known)
    return step(found, "conclude", trains=True).outputs["result"]


@dsl.pipeline(name="intern-search", display_name="INTERN search")
def search(preset: str = "nano", overrides: str = "") -> Artifact:
    """Searches a genotype on the made world with parallel candidates.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
    """
    data = step(prepare(preset=preset, overrides=overrides, dataset="upstream"), "prepare upstream")
    found = search_rounds(preset=preset, overrides=overrides, data=data.outputs["result"])
    found.set_display_name("search rounds")
    return found.output
