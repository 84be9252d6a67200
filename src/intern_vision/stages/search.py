"""Search (GV-A): a genotype from the MetaNet space by Optuna, within a multiply-add budget.

The reward is MnasNet's, quality x (cost / target)^-0.07 (arXiv 1807.11626), with multiply-adds as
cost and, as quality, the concept mAP that a short multi-label training reaches on validation images.
Trials are kept in the store, so a search that was stopped goes on where it was.
"""

import json
from typing import Any, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError, MissingObjectError
from intern_vision.heads import HeadConfig
from intern_vision.models.genotype import GENOTYPES, Genotype, StageGene, num_macs, num_parameters
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.store import join_uri
from intern_vision.task import Family
from intern_vision.train.settings import TrainerConfig

TRIALS_FILE = "trials.json"
GENOTYPE_FILE = "genotype.json"


class Config(base.Config):
    """The space, the budget and the proxy training.

    Attributes:
        template: name of the genotype that the space lies around; its own trial comes first.
        num_trials: candidates to train; 1 trains and takes the template itself.
        expansions: choices of every stage's expansion.
        width_factors: choices of the factor on every stage's width.
        block_offsets: choices of what is added to every stage's number of blocks.
        last_operators: choices of the coarsest stage's operator.
        max_macs_ratio: largest cost over the template's; dearer candidates are not trained.
        cost_exponent: exponent of the cost in the reward.
        family: the task of the proxy training.
        trainer: the proxy training.
        augment: how its images are changed.
        seed: of the sampler.
    """

    template: str = "nano"
    num_trials: int = Field(default=8, ge=1)
    expansions: tuple[int, ...] = (2, 3, 4)
    width_factors: tuple[float, ...] = (0.75, 1.0, 1.25)
    block_offsets: tuple[int, ...] = (-1, 0, 1)
    last_operators: tuple[Literal["attention", "cross_covariance"], ...] = ("attention", "cross_covariance")
    max_macs_ratio: float = Field(default=1.1, gt=0)
    cost_exponent: float = -0.07
    family: Family = "multilabel"
    trainer: TrainerConfig
    augment: AugmentConfig
    seed: int = 0

    def faults(self) -> list[str]:
        """The template must be known."""
        known = ", ".join(GENOTYPES)
        return [] if self.template in GENOTYPES else [f"template must be one of {known}, got {self.template!r}"]


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Searches on the input ``data``; the result's folder holds ``genotype.json`` and ``trials.json``."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials_uri = join_uri(context.output_uri, TRIALS_FILE)
    trials = _known_trials(context, trials_uri)
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params=trial["params"], distributions=_distributions(config), value=trial["reward"]
            )
        )
    if not trials:
        study.enqueue_trial(_template_params(config))
    while len(trials) < config.num_trials:
        # A sampler for each trial: a search that was stopped goes on as if it had not been.
        num_random = max(2, config.num_trials // 3)
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(trials), n_startup_trials=num_random)
        trial = study.ask(_distributions(config))
        genotype = decode(config, trial.params)
        result = _evaluate(config, genotype, inputs, context, len(trials))
        study.tell(trial, result["reward"])
        trials.append({"params": trial.params, "genotype": genotype.to_dict(), **result})
        context.store.put(json.dumps(trials).encode(), trials_uri)
        context.progress.step(len(trials), config.num_trials, f"reward {result['reward']:.4f}")
    best = max(trials, key=lambda trial: trial["reward"])
    (context.output_dir / GENOTYPE_FILE).write_text(Genotype.from_dict(best["genotype"]).to_json())
    (context.output_dir / TRIALS_FILE).write_text(json.dumps(trials, indent=1))
    context.facts |= {
        "best_reward": best["reward"],
        "best_trial": trials.index(best),
        "num_trained": sum(trial["trained"] for trial in trials),
        "num_parameters": best["num_parameters"],
    }
    return context.commit("genotype", f"genotype-{config.template}")


def decode(config: Config, params: dict[str, Any]) -> Genotype:
    """The genotype that a trial's parameters stand for."""
    template = GENOTYPES[config.template]
    stages = []
    for index, stage in enumerate(template.stages):
        is_last = index == len(template.stages) - 1
        # Attention splits both its input and its output into heads.
        neighbours = template.stages[index : index + 2]
        has_heads = any(each.operator in ("attention", "cross_covariance") for each in neighbours)
        unit = template.head_size if has_heads else 8
        width = max(unit, round(stage.width * params[f"width_factor_{index}"] / unit) * unit)
        stages.append(
            StageGene(
                operator=params["last_operator"] if is_last else stage.operator,
                expansion=params[f"expansion_{index}"],
                width=width,
                num_blocks=max(1, stage.num_blocks + params[f"block_offset_{index}"]),
                stride=stage.stride,
            )
        )
    return Genotype.from_dict(template.to_dict() | {"stages": [stage.to_dict() for stage in stages]})


def _distributions(config: Config) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution

    space: dict[str, Any] = {"last_operator": CategoricalDistribution(config.last_operators)}
    for index in range(len(GENOTYPES[config.template].stages)):
        space[f"expansion_{index}"] = CategoricalDistribution(config.expansions)
        space[f"width_factor_{index}"] = CategoricalDistribution(config.width_factors)
        space[f"block_offset_{index}"] = CategoricalDistribution(config.block_offsets)
    return space


def _template_params(config: Config) -> dict[str, Any]:
    template = GENOTYPES[config.template]
    params: dict[str, Any] = {"last_operator": template.stages[-1].operator}
    for index, stage in enumerate(template.stages):
        params |= {f"expansion_{index}": stage.expansion, f"width_factor_{index}": 1.0, f"block_offset_{index}": 0}
    unknown = [name for name, value in params.items() if value not in _distributions(config)[name].choices]
    if unknown:
        raise ConfigError(f"search: the template {config.template} lies outside the space in {', '.join(unknown)}")
    return params


def _known_trials(context: StageContext, uri: str) -> list[dict[str, Any]]:
    try:
        return json.loads(context.store.read(uri))
    except MissingObjectError:
        return []


def _evaluate(config: Config, genotype: Genotype, inputs: Inputs, context: StageContext, number: int) -> dict[str, Any]:
    size_px = config.augment.image_size_px
    target_macs = num_macs(GENOTYPES[config.template], size_px)
    macs = num_macs(genotype, size_px)
    result = {"num_macs": macs, "num_parameters": num_parameters(genotype), "trained": False}
    if macs > config.max_macs_ratio * target_macs:
        # Too dear to train: worse than anything trained, and the worse the dearer, so that the sampler learns.
        return {**result, "quality": 0.0, "reward": -macs / target_macs}
    import torch

    from intern_vision.bench.scoring import score_head
    from intern_vision.data.augment import Augment
    from intern_vision.data.loader import ShardSource
    from intern_vision.models.vision import ModelSpec, VisionModel
    from intern_vision.train.launch import train_in_process
    from intern_vision.train.objective import MultiTaskObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import fields_of, head_specs

    uri = inputs.one("data").uri
    source = ShardSource(
        context.store, uri, cache_dir=context.cache_dir, split="train", fields=fields_of((config.family,))
    )
    torch.manual_seed(config.seed)
    model = VisionModel(
        ModelSpec(
            genotype=genotype,
            image_size_px=size_px,
            heads=head_specs(source.info, (config.family,), HeadConfig()),
        )
    )
    job = TrainJob(
        objective=MultiTaskObjective(model),
        source=source,
        transform=Augment(config.augment, num_concepts=len(source.info.concept_names)),
        config=config.trainer,
    )
    train_in_process(job, context)
    validation = ShardSource(
        context.store,
        uri,
        cache_dir=context.cache_dir,
        split="val",
        fields=fields_of((config.family,)),
    )
    metrics, _ = score_head(model.eval(), model.heads[config.family], validation)
    quality = 1.0 - metrics["error"]
    return {
        **result,
        "trained": True,
        "quality": quality,
        "reward": quality * (macs / target_macs) ** config.cost_exponent,
    }
