"""One round of a search in parallel steps: which candidates the steps that follow shall evaluate."""

import json

from intern_vision import config as base
from intern_vision.errors import ConfigError
from intern_vision.ref import Ref
from intern_vision.stages import search
from intern_vision.stages.base import Inputs, StageContext

CANDIDATES_FILE = "candidates.json"
NUM_ROUNDS = 3
"""Rounds of the search pipeline, which are written out when it is compiled."""
ROUND_SIZE = 4
"""Candidates a round."""


class Config(base.Config):
    """What is proposed.

    Attributes:
        search: the whole search; its ``round_size`` is the number of candidates.
    """

    search: search.Config


def step_config(config: search.Config, use: str, item: str = "") -> tuple[str, base.Config]:
    """The stage and config of one step of a search in rounds, from the settings of a search in one step.

    Args:
        config: the search; its budget is replaced by the rounds', and candidates are trained one by one.
        use: ``search_round``, ``search_trial`` or ``search_end``, which is the stage ``search`` with all results.
        item: the candidate's number in its round, for ``search_trial``.

    Raises:
        ConfigError: another use, or an item that is no number.
    """
    from intern_vision.stages import search_trial

    rounds = {"num_trials": NUM_ROUNDS * ROUND_SIZE, "round_size": ROUND_SIZE, "evaluator": "proxy"}
    whole = config.with_overrides(rounds)
    if use == "search_round":
        return use, Config(search=whole)
    if use == "search_end":
        return "search", whole
    if use != "search_trial" or not item.isdecimal():
        raise ConfigError(f"search step: expected search_round, search_end or search_trial 0, 1, ..., got {use} {item}")
    return use, search_trial.Config.from_dict({"search": whole.to_dict(), "number": int(item)}, at=use)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Proposes from the round before (input ``round``) and its candidates' ``results``; from nothing in the first.

    The controller's state follows from the trials so far, which are proposed again. The result's folder holds these
    as ``trials.json``, and the genotypes to evaluate as ``candidates.json``.

    Raises:
        CheckpointError: the results are not those of the candidates that this search proposes.
    """
    made = search.make_search(config.search)
    made.replay(search.earlier_trials(inputs, context))
    candidates = [candidate.genotype.to_dict() for candidate in made.candidates()]
    (context.output_dir / CANDIDATES_FILE).write_text(json.dumps(candidates, indent=1))
    (context.output_dir / search.TRIALS_FILE).write_text(json.dumps(made.trials, indent=1))
    context.facts |= {"num_trials": len(made.trials), "num_candidates": len(candidates)}
    number = len(made.trials) // config.search.round_size
    return context.commit("genotype", f"candidates-{number}")
