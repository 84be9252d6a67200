"""Steps of the benchmark pipeline: which sets and models, one set after the other, one table, promotion."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intern_vision.events import Progress
from intern_vision.ref import Ref
from intern_vision.steps import copy_page, guarded, paths, read_inputs, write_json, write_ref


def benchmark_sets(preset: str, overrides: str, datasets: str, data_root: str) -> list[str]:
    """Names of the datasets that were asked for and are there; see ``intern_vision.benchmark``."""

    def work() -> list[str]:
        from intern_vision import benchmark
        from intern_vision.presets import resolve

        selected = benchmark.selected_sets(resolve(preset, overrides), datasets, data_root)
        return benchmark.present_sets(selected, data_root)

    return guarded("benchmark-sets", work)


def benchmark_arms(model: str, arm: str, baseline: str, architecture: str, output: str) -> None:
    """Writes the Refs of the weights that the benchmark compares, each under its arm's name."""

    def work() -> tuple[Ref, ...]:
        from intern_vision.benchmark import find_arms

        return find_arms(model, arm, baseline, architecture)

    write_json([ref.to_dict() for ref in guarded("benchmark-arms", work)], output)


def benchmark_dataset(
    preset: str, overrides: str, dataset: str, data_root: str, protocols: str, arms: str, outputs: Mapping[str, str]
) -> None:
    """Scores every arm on one dataset; what fails is a row of the table instead of the end of the run.

    Args:
        preset: name of the run's preset.
        overrides: JSON object of changes to it.
        dataset: name of the dataset.
        data_root: folder that holds ``<dataset>/``; empty for the made world.
        protocols: names of protocols with commas between them.
        arms: file with the Refs of the arms.
        outputs: files for the Refs of ``data`` and ``scores`` and for the ``gaps``.
    """

    def work() -> Any:
        from intern_vision.benchmark import parse_protocols, score_dataset
        from intern_vision.presets import resolve
        from intern_vision.stages.base import read_refs

        run = resolve(preset, overrides)
        return score_dataset(run, dataset, data_root, parse_protocols(protocols), read_refs(arms))

    found = guarded(f"benchmark-{dataset}", work)
    write_json([found.data.to_dict()] if found.data else [], outputs["data"])
    write_json([ref.to_dict() for ref in found.scores], outputs["scores"])
    write_json([gap.to_dict() for gap in found.gaps], outputs["gaps"])


def benchmark_report(
    preset: str,
    overrides: str,
    datasets: str,
    data_root: str,
    inputs: Mapping[str, Any],
    output: str,
    page: str,
) -> None:
    """Joins the scores of all datasets to one table and copies its page to the file ``page``.

    Args:
        preset: name of the run's preset.
        overrides: JSON object of changes to it.
        datasets: names as asked for, with commas between them; empty for all.
        data_root: folder that holds them.
        inputs: artifacts ``data``, ``scores``, ``gaps`` and ``arms``.
        output: file for the report's Ref.
        page: file for the page.
    """

    def work() -> Ref:
        from intern_vision.benchmark import join_scores
        from intern_vision.presets import resolve

        files = {name: paths(artifacts) for name, artifacts in inputs.items()}
        gaps = [gap for file in files.pop("gaps") for gap in json.loads(Path(file).read_text())]
        refs = read_inputs(files)
        return join_scores(resolve(preset, overrides), datasets, data_root, refs, gaps)

    ref = guarded("report", work)
    write_ref(ref, output, "report")
    copy_page(ref, page)


def promote(model: str, arm: str, gate: str, scores: Any, output: str) -> None:
    """Adds the scores to the registered version and, with a gate, makes it the champion where it passes.

    Not a stage: what the registry says changes without any input of a stage, so the answer is never taken from before.

    Args:
        model: ``models:/NAME@ALIAS``; weights that are not registered have nothing to promote.
        arm: what the model is called in the scores.
        gate: JSON object, see ``intern_vision.promotion.Gate``; empty promotes nothing.
        scores: artifacts with the Refs of the scores.
        output: file for the verdicts, a JSON list.
    """

    def work() -> list[dict[str, Any]]:
        from intern_vision.bench.scores import read_scores
        from intern_vision.config import parse_json_object
        from intern_vision.promotion import Gate, add_scores, check_passed
        from intern_vision.promotion import promote as ask

        if not model.startswith("models:/"):
            return []
        refs = read_inputs({"scores": paths(scores)}).many("scores")
        found = add_scores(model, arm, [read_scores(ref) for ref in refs])
        if not gate:
            return []
        verdict = ask(found.name, Gate.from_dict(parse_json_object(gate, "gate")), version=found.version)
        Progress("promote").say(verdict.to_line())
        check_passed(verdict)
        return [verdict.to_dict()]

    write_json(guarded("promote", work), output)
