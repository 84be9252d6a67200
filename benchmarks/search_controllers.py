"""Compares search controllers on the made world at equal numbers of evaluations, and what they find with the preset.

Shared weights are trained once; then every controller searches with them under several seeds. Some trials are also
trained from scratch, to see how well the shared weights rank genotypes. One controller searches once more with short
trainings in place of shared weights, for quality alone within the template's cost, and trains its finalists for longer;
what it finds and the template are then trained from scratch with equal steps on other images.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.measure import hardware
from intern_vision.data.settings import AugmentConfig
from intern_vision.models.genotype import Genotype, num_macs
from intern_vision.ref import Ref
from intern_vision.search.evaluate import ProxyEvaluator, ProxyTask, SupernetEvaluator, supernet_job
from intern_vision.search.reward import hypervolume
from intern_vision.search.space import SpaceConfig
from intern_vision.search.supernet import SUPERNET_FILE
from intern_vision.stages import prepare, search
from intern_vision.stages.base import Inputs, read_record, run_stage
from intern_vision.store import join_uri, open_store
from intern_vision.train.launch import start_distributed
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.trainer import RankContext, Trainer

CONTROLLERS = ("random", "tpe", "nsga2", "ppo")
SEEDS = (0, 1, 2)


class Scores:
    """Qualities that the shared weights give, each genotype scored once for all controllers."""

    def __init__(self, evaluator: SupernetEvaluator) -> None:
        self._evaluator = evaluator
        self._known: dict[Genotype, float] = {}
        self.seconds: list[float] = []

    def quality(self, genotype: Genotype) -> float:
        """The shared weights' quality."""
        if genotype not in self._known:
            started = time.process_time()
            self._known[genotype] = self._evaluator.quality(genotype)
            self.seconds.append(time.process_time() - started)
        return self._known[genotype]


def search_config(arguments: argparse.Namespace, seed: int, controller: str, num_steps: int) -> search.Config:
    """A space around the nano genotype with every operator and down-sampling kind, no dearer than the template."""
    return search.Config(
        space=SpaceConfig(expansions=(2, 3, 4), width_factors=(0.5, 0.75, 1, 1.25), block_offsets=(-2, -1, 0, 1)),
        num_trials=arguments.trials,
        controller=controller,
        evaluator="supernet",
        num_paths=1,
        trainer=TrainerConfig(
            num_steps=num_steps,
            batch_size=32,
            learning_rate=1e-3,
            gradient_clip=1.0,  # paths that are drawn for the first time give steps far larger than the others
            log_every=20,
            checkpoint_every=0,
            seed=seed,
        ),
        augment=AugmentConfig(image_size_px=64, scale_min=0.6, hflip_probability=0.0, hue=0.0),
        seed=seed,
    )


def train(job: Any) -> None:
    """Trains in this process and prints the loss."""

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            print(f"  step {event['done']}/{event['total']} loss {event['metrics']['loss']:.4f}", flush=True)

    Trainer(job, RankContext(on_event=report)).train()


def run_controller(config: search.Config, scores: Scores) -> dict[str, Any]:
    """One search; its trials, the best reward after each and the CPU seconds the controller itself took."""
    found = search.make_search(config)
    started, waited_s = time.process_time(), 0.0
    while len(found.trials) < config.num_trials:
        genotype = found.candidates()[0].genotype
        before = time.process_time()
        quality = scores.quality(genotype)
        waited_s += time.process_time() - before
        found.tell(quality)
    best = np.maximum.accumulate([trial["reward"] for trial in found.trials])
    points = [(found.reward.ratio(trial["num_macs"]), trial["quality"]) for trial in found.trials]
    return {
        "best": float(best[-1]),
        "area": float(best.mean()),
        "hypervolume": hypervolume(points, config.max_macs_ratio),
        "controller_s": time.process_time() - started - waited_s,
        "trials": found.trials,
        "genotype": found.best["genotype"],
    }


def shared_weights(arguments: argparse.Namespace, task: ProxyTask, row: dict[str, Any]) -> Scores:
    """Scores by shared weights; these are trained where the folder does not hold them."""
    config = search_config(arguments, 0, "random", arguments.supernet_steps)
    made = search.make_search(config)
    path = arguments.folder / SUPERNET_FILE
    if not path.exists():
        started = time.process_time()
        job = supernet_job(config, task, made.space, made.reward)
        train(job)
        job.objective.save(arguments.folder)
        row["supernet_s"] = time.process_time() - started
    return Scores(SupernetEvaluator(task, made.space, path, num_batches=1, bf16=True))


def run_controllers(arguments: argparse.Namespace, scores: Scores) -> list[dict[str, Any]]:
    """Every controller with every seed."""
    rows = []
    for seed in arguments.seeds:
        row: dict[str, Any] = {"seed": seed}
        for name in CONTROLLERS:
            row[name] = run_controller(search_config(arguments, seed, name, 1), scores)
            print(f"seed {seed} {name}: best {row[name]['best']:.4f} area {row[name]['area']:.4f}", flush=True)
        rows.append(row)
    return rows


def search_by_training(arguments: argparse.Namespace, data: Ref, seed: int) -> dict[str, Any]:
    """One search that trains its candidates, for the best quality that costs no more than the template."""
    config = search_config(arguments, seed, arguments.searcher, arguments.proxy_steps).with_overrides(
        {
            "evaluator": "proxy",
            "cost_exponent": 0.0,
            "num_trials": arguments.proxy_trials,
            "num_finalists": arguments.num_finalists,
            "finalist_steps": arguments.final_steps,
        }
    )
    ref = run_stage("search", config, Inputs({"data": (data,)}), name=f"by-training-{seed}")
    store = open_store(ref.uri)
    files = [search.GENOTYPE_FILE, search.TRIALS_FILE, *([search.FINALS_FILE] if arguments.num_finalists else [])]
    found = {Path(file).stem: json.loads(store.read(join_uri(ref.uri, file))) for file in files}
    return found | {"cpu_s": read_record(store, ref.uri).cpu_s}


def train_from_scratch(
    arguments: argparse.Namespace, task: ProxyTask, genotypes: dict[str, Genotype], seed: int
) -> dict[str, dict[str, float]]:
    """Validation quality of each genotype after equal steps."""
    config = search_config(arguments, seed, "random", arguments.final_steps)
    evaluator = ProxyEvaluator(task, config.trainer, seed, train)
    found = {}
    for name, genotype in genotypes.items():
        before = time.process_time()
        quality = evaluator.quality(genotype)
        macs = num_macs(genotype, genotype.image_size_px)
        found[name] = {"quality": quality, "cpu_s": time.process_time() - before, "num_macs": macs}
        print(f"seed {seed} from scratch, {name}: {found[name]}", flush=True)
    return found


def rank_correlation(arguments: argparse.Namespace, task: ProxyTask, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of the shared weights' quality with a short training's, over random trials."""
    proxy = ProxyEvaluator(task, search_config(arguments, 0, "random", arguments.proxy_steps).trainer, 0, train)
    chosen = trials[: arguments.num_ranked]
    shared = [trial["quality"] for trial in chosen]
    started = time.process_time()
    trained = [proxy.quality(Genotype.from_dict(trial["genotype"])) for trial in chosen]
    result = spearmanr(shared, trained)
    return {
        "shared": shared,
        "trained": trained,
        "spearman": float(result.statistic),
        "p_value": float(result.pvalue),
        "proxy_s": (time.process_time() - started) / len(chosen),
    }


def main() -> None:
    """Measures and prints the table; everything measured goes into ``figures.json``, part by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6_000, help="training images of the made world")
    parser.add_argument("--val-images", type=int, default=200, help="validation images")
    parser.add_argument("--supernet-steps", type=int, default=400, help="steps of the shared weights' training")
    parser.add_argument("--trials", type=int, default=40, help="candidates a controller may evaluate")
    parser.add_argument("--num-ranked", type=int, default=8, help="genotypes trained to check the ranking")
    parser.add_argument("--proxy-steps", type=int, default=100, help="steps of those trainings")
    parser.add_argument("--proxy-trials", type=int, default=24, help="candidates of the search by training")
    parser.add_argument("--num-finalists", type=int, default=6, help="of them, trained for --final-steps; 0 for none")
    parser.add_argument("--final-steps", type=int, default=400, help="steps of the trainings from scratch")
    parser.add_argument("--searcher", default="tpe", choices=CONTROLLERS, help="who searches by training")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="seeds")
    parser.add_argument("--folder", type=Path, default=Path("search_controllers"), help="for weights and figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_distributed()
    # The second images are for the last comparison alone: no search has seen them.
    data, other_data = (upstream(arguments, seed) for seed in (0, 1))
    task, other_task = task_of(arguments, data), task_of(arguments, other_data)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"hardware": hardware()}

    def keep() -> None:
        (arguments.folder / "figures.json").write_text(json.dumps(figures, indent=1))

    scores = shared_weights(arguments, task, figures)
    keep()
    rows = figures["rows"] = run_controllers(arguments, scores)
    figures["score_s"] = statistics.median(scores.seconds)
    keep()
    if arguments.num_ranked:
        figures["ranks"] = rank_correlation(arguments, task, rows[0]["random"]["trials"][1:])
        keep()
    template = search.make_search(search_config(arguments, 0, "random", 1)).space.template
    for row in rows:
        row["trained"] = search_by_training(arguments, data, row["seed"])
        found = Genotype.from_dict(row["trained"]["genotype"])
        row["final"] = train_from_scratch(arguments, other_task, {"template": template, "found": found}, row["seed"])
        keep()
    print_table(figures)


def upstream(arguments: argparse.Namespace, seed: int) -> Ref:
    """The made world's upstream images."""
    config = prepare.Config(dataset="upstream", num_train=arguments.images, num_val=arguments.val_images, seed=seed)
    return run_stage("prepare", config, Inputs(), name=f"upstream-{seed}")


def task_of(arguments: argparse.Namespace, data: Ref) -> ProxyTask:
    """The concepts of these images."""
    return ProxyTask(
        open_store(data.uri),
        data.uri,
        Path(tempfile.gettempdir()) / "search-controllers-cache",
        "multilabel",
        search_config(arguments, 0, "ppo", 1).augment,
    )


def print_table(figures: dict[str, Any]) -> None:
    """Mean and standard deviation over the seeds."""
    rows = figures["rows"]
    for controller in CONTROLLERS:
        for what in ("best", "area", "hypervolume", "controller_s"):
            print(f"{controller:8s} {what:12s} {_spread([row[controller][what] for row in rows])}")
    for name in rows[0]["final"]:
        ratios = [row["final"][name]["num_macs"] / row["final"]["template"]["num_macs"] for row in rows]
        qualities = [row["final"][name]["quality"] for row in rows]
        print(
            f"from scratch, {name}: {_spread(qualities)} at {', '.join(f'{ratio:.2f}' for ratio in ratios)} of the cost"
        )
    if "ranks" in figures:
        print(f"Spearman {figures['ranks']['spearman']:.2f} (p {figures['ranks']['p_value']:.3f})")
    print(f"a score takes {figures['score_s']:.2f} CPU-s; {figures['hardware']}")


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} +- {deviation:.4f}"


if __name__ == "__main__":
    main()
