"""Search (GV-A): a genotype from the space around a template, within a multiply-add budget.

The reward is MnasNet's, quality x (cost / target)^-0.07 (arXiv 1807.11626), with multiply-adds as cost. Quality is
the validation score of a short training of each candidate, or of its slice of shared weights that are trained once.
Trials are kept in the store one by one, so a search that was stopped goes on where it was.

The best trials may be trained once more for longer, as finalists; then these trainings decide.

Given the inputs ``round`` and ``results``, the stage takes the trials from there: the rounds of a pipeline, whose
candidates were evaluated by steps of their own, end in it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import MissingObjectError
from intern_vision.models.genotype import GENOTYPES, Genotype, num_macs
from intern_vision.ref import Ref
from intern_vision.search.controllers import ControllerKind, make_controller
from intern_vision.search.driver import Search
from intern_vision.search.reward import Reward, hypervolume
from intern_vision.search.space import Space, SpaceConfig
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.store import Store, join_uri
from intern_vision.task import Family
from intern_vision.train.settings import TrainerConfig

if TYPE_CHECKING:
    from intern_vision.search.evaluate import Evaluator, ProxyTask
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.workspace import Workspace

TRIALS_FILE = "trials.json"
FINALS_FILE = "finals.json"
GENOTYPE_FILE = "genotype.json"
PICTURE_FILE = "pareto.png"
TRIAL_FILE = "trial.json"

FEW_TRIALS = SpaceConfig(
    operators=("attention", "cross_covariance"),
    searched_operators="last",
    expansions=(2, 3, 4),
    width_factors=(0.75, 1.0, 1.25),
    block_offsets=(-1, 0, 1),
    downsamplings=("block",),
)
"""A space close to the template, for a handful of proxy trainings; ``SpaceConfig()`` is the whole one."""


class Config(base.Config):
    """The space, the budget, who proposes and how candidates are scored.

    Attributes:
        template: name of the genotype that the space lies around; its own trial comes first.
        space: the choices.
        num_trials: candidates to evaluate; 1 evaluates and takes the template itself.
        controller: ``ppo`` (the paper's recurrent policy), Optuna's ``tpe`` or ``nsga2``, or ``random``.
        round_size: candidates that are proposed before any of them is evaluated.
        evaluator: ``proxy`` trains each candidate; ``supernet`` trains shared weights once.
        num_paths: genotypes that a step of the supernet's training takes.
        num_calibration_batches: batches for a candidate's BatchNorm statistics in the supernet.
        max_macs_ratio: largest cost over the template's; dearer candidates are not evaluated.
        cost_exponent: exponent of the cost in the reward.
        num_finalists: best trials that are trained again from other fresh weights, the template among them, and
            decide; 0 lets the trials decide.
        finalist_steps: steps of those trainings.
        family: the task of the training.
        trainer: the training of each candidate, or of the supernet.
        augment: how its images are changed.
        seed: of the controller, the fresh weights and the supernet's paths.
    """

    template: str = "nano"
    space: SpaceConfig = FEW_TRIALS
    num_trials: int = Field(default=8, ge=1)
    controller: ControllerKind = "tpe"
    round_size: int = Field(default=1, ge=1)
    evaluator: Literal["proxy", "supernet"] = "proxy"
    num_paths: int = Field(default=1, ge=1)
    num_calibration_batches: int = Field(default=2, ge=1)
    max_macs_ratio: float = Field(default=1.0, gt=0)
    cost_exponent: float = Field(default=-0.07, le=0)
    num_finalists: int = Field(default=0, ge=0)
    finalist_steps: int = Field(default=0, ge=0)
    family: Family = "multilabel"
    trainer: TrainerConfig
    augment: AugmentConfig
    seed: int = Field(default=0, ge=0)

    def faults(self) -> list[str]:
        """The template must be known, and finalists need steps."""
        faults = []
        if self.template not in GENOTYPES:
            faults.append(f"template must be one of {', '.join(GENOTYPES)}, got {self.template!r}")
        if self.num_finalists and not self.finalist_steps:
            faults.append("finalist_steps must be above 0 where there are num_finalists")
        if self.num_finalists == 1:
            faults.append("num_finalists must be 0 or at least 2, because the template is always one of them, got 1")
        return faults


def make_search(config: Config) -> Search:
    """A fresh search; no torch unless the controller needs it."""
    space = Space(GENOTYPES[config.template], config.space, config.augment.image_size_px)
    reward = Reward(
        target_macs=num_macs(space.template, space.template.image_size_px),
        exponent=config.cost_exponent,
        max_ratio=config.max_macs_ratio,
    )
    controller = make_controller(config.controller, space, config.seed, config.num_trials)
    return Search(space=space, controller=controller, reward=reward, round_size=config.round_size)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Searches on the input ``data``.

    The result's folder holds ``genotype.json``, ``trials.json`` and ``pareto.png``, and with finalists
    ``finals.json``.
    """
    search = make_search(config)
    trials_uri = join_uri(context.output_uri, TRIALS_FILE)
    given = earlier_trials(inputs, context)
    search.replay((given or _known_list(context, trials_uri))[: config.num_trials])
    num_evaluations = config.num_trials + min(config.num_finalists, config.num_trials)
    if len(search.trials) < config.num_trials:
        evaluator = make_evaluator(config, inputs, context, search)
        context.progress.restart_clock(len(search.trials))
    while len(search.trials) < config.num_trials:
        trial = search.tell(evaluator.quality(search.candidates()[0].genotype))
        context.store.put(json.dumps(search.trials).encode(), trials_uri)
        context.progress.step(len(search.trials), num_evaluations, f"reward {trial['reward']:.4f}")
    return _conclude(config, search, _train_finalists(config, inputs, context, search), context)


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training of the supernet, as a rank runs it."""
    from intern_vision.search.evaluate import supernet_job

    search = make_search(config)
    task = _task(config, workspace.store, workspace.inputs, workspace.cache_dir)
    return supernet_job(config, task, search.space, search.reward)


def make_evaluator(config: Config, inputs: Inputs, context: StageContext, search: Search) -> "Evaluator":
    """The evaluator asked for; trains the supernet first where it is not on the store yet."""
    from intern_vision.search.evaluate import ProxyEvaluator, SupernetEvaluator
    from intern_vision.train.launch import train_in_process

    task = _task(config, context.store, inputs, context.cache_dir)
    if config.evaluator == "proxy":
        return ProxyEvaluator(task, config.trainer, config.seed, lambda job: train_in_process(job, context))
    return SupernetEvaluator(
        task,
        search.space,
        _supernet_path(config, context),
        num_batches=config.num_calibration_batches,
        bf16=config.trainer.precision == "bf16",
    )


def finals_config(config: Config) -> Config:
    """The settings of the finalists' trainings: longer, and with other random numbers than the trials'."""
    trainer = config.trainer.with_overrides({"num_steps": config.finalist_steps, "seed": config.trainer.seed + 1})
    return config.with_overrides({"evaluator": "proxy", "trainer": trainer.to_dict(), "seed": config.seed + 1})


def earlier_trials(inputs: Inputs, context: StageContext) -> list[dict[str, Any]]:
    """Trials of the rounds before: those that the input ``round`` knew, and its candidates' ``results``."""
    before = inputs.optional("round")
    if before is None:
        return []
    trials = json.loads((context.fetch(before) / TRIALS_FILE).read_text())
    return trials + [json.loads((context.fetch(ref) / TRIAL_FILE).read_text()) for ref in inputs.many("results")]


def _task(config: Config, store: Store, inputs: Inputs, cache_dir: Path) -> "ProxyTask":
    from intern_vision.search.evaluate import ProxyTask

    return ProxyTask(store, inputs.one("data").uri, cache_dir, config.family, config.augment)


def _train_finalists(config: Config, inputs: Inputs, context: StageContext, search: Search) -> list[dict[str, Any]]:
    """The finalists' results; those of an earlier attempt are not trained again."""
    uri = join_uri(context.output_uri, FINALS_FILE)
    places = search.finalists(config.num_finalists)
    finals = _known_list(context, uri)
    if len(finals) < len(places):
        evaluator = make_evaluator(finals_config(config), inputs, context, search)
        context.progress.restart_clock(len(search.trials) + len(finals))
    for place in places[len(finals) :]:
        genotype = Genotype.from_dict(search.trials[place]["genotype"])
        finals.append(search.final(place, evaluator.quality(genotype)))
        context.store.put(json.dumps(finals).encode(), uri)
        done, reward = len(search.trials) + len(finals), finals[-1]["reward"]
        context.progress.step(done, len(search.trials) + len(places), f"finalist's reward {reward:.4f}")
    return finals


def _known_list(context: StageContext, uri: str) -> list[dict[str, Any]]:
    try:
        return json.loads(context.store.read(uri))
    except MissingObjectError:
        return []


def _supernet_path(config: Config, context: StageContext) -> Path:
    """Shared weights that an earlier attempt trained, or fresh ones.

    They lie beside their training's checkpoints and go with them: they are a means, and no part of the output.
    """
    from intern_vision.search.supernet import SUPERNET_FILE
    from intern_vision.train.launch import HISTORY_FILE, run_ranks

    path = context.scratch_dir / SUPERNET_FILE
    uri = join_uri(context.output_uri, "checkpoints", SUPERNET_FILE)
    try:
        context.store.get(uri, path)
    except MissingObjectError:
        run_ranks("search", config, context)
        (context.output_dir / SUPERNET_FILE).rename(path)
        (context.output_dir / HISTORY_FILE).unlink()
        context.store.put(path, uri)
    return path


def _conclude(config: Config, search: Search, finals: list[dict[str, Any]], context: StageContext) -> Ref:
    from intern_vision.search.picture import draw_trials

    reward = search.reward
    # A finalist's result has quality and reward, as a trial has; `trial` says whose they are.
    best = max(finals, key=lambda final: final["reward"]) if finals else search.best
    place = best["trial"] if finals else search.trials.index(best)
    chosen = search.trials[place]
    (context.output_dir / GENOTYPE_FILE).write_text(Genotype.from_dict(chosen["genotype"]).to_json())
    (context.output_dir / TRIALS_FILE).write_text(json.dumps(search.trials, indent=1))
    if finals:
        (context.output_dir / FINALS_FILE).write_text(json.dumps(finals, indent=1))
    (context.output_dir / PICTURE_FILE).write_bytes(draw_trials(search, place, [final["trial"] for final in finals]))
    points = [(reward.ratio(trial["num_macs"]), trial["quality"]) for trial in search.trials]
    context.facts |= {
        "num_trials": len(search.trials),
        "num_finalists": len(finals),
        "best_trial": place,
        "best_reward": best["reward"],
        "best_quality": best["quality"],
        "hypervolume": hypervolume(points, reward.max_ratio),
        "num_macs": chosen["num_macs"],
        "num_parameters": chosen["num_parameters"],
    }
    return context.commit("genotype", f"genotype-{config.template}")
