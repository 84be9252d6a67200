"""Controllers: who proposes the next candidate.

All have two verbs, ask and tell, and follow from a seed and what they were told: asking and telling the same things
again leads to the same state.
"""

import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from intern_vision.search.space import Choices, Space

ControllerKind = Literal["tpe", "nsga2", "ppo", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a controller is told of a candidate.

    Attributes:
        reward: to be maximised; negative beyond the cap.
        quality: 0 to 1; 0 where the candidate was too dear to evaluate.
        cost_ratio: multiply-adds over the target's.
        fits: whether the cost is within the cap.
        is_known: whether the candidate was told before, so that asking for it brought nothing new.
    """

    reward: float
    quality: float
    cost_ratio: float
    fits: bool
    is_known: bool = False


class Controller(Protocol):
    """Proposes choices and learns from outcomes."""

    def ask(self) -> Choices:
        """The next candidate; several may be asked for before any is told."""
        ...

    def tell(self, choices: Choices, outcome: Outcome) -> None:
        """Takes the outcome of a candidate, whether it was asked for or not."""
        ...


def make_controller(kind: ControllerKind, space: Space, seed: int, num_trials: int) -> Controller:
    """The controller of a kind.

    Args:
        kind: ``tpe`` and ``nsga2`` are Optuna's, ``ppo`` is the recurrent policy, ``random`` is uniform.
        space: what to decide.
        seed: of every random number.
        num_trials: candidates that will be evaluated; decides how long TPE explores first.
    """
    if kind == "random":
        return RandomController(space, seed)
    if kind == "ppo":
        from intern_vision.search.ppo import PolicyController

        return PolicyController(space, seed)
    return OptunaController(kind, space, seed, num_trials)


class RandomController:
    """Every choice uniform and independent: the baseline of the others.

    Args:
        space: what to decide.
        seed: of the draws.
    """

    def __init__(self, space: Space, seed: int) -> None:
        """Seeds the generator."""
        self._space = space
        self._rng = random.Random(seed)

    def ask(self) -> Choices:
        """See ``Controller``."""
        return tuple(self._rng.randrange(len(decision.options)) for decision in self._space.decisions)

    def tell(self, choices: Choices, outcome: Outcome) -> None:
        """Learns nothing."""


class OptunaController:
    """Optuna's TPE on the reward, or its NSGA-II on quality and cost with the cap as a constraint.

    Args:
        kind: the sampler.
        space: what to decide; ordered options are integers to Optuna, the others categories.
        seed: of the sampler.
        num_trials: candidates that will be evaluated.
    """

    def __init__(self, kind: Literal["tpe", "nsga2"], space: Space, seed: int, num_trials: int) -> None:
        """Opens a study in memory."""
        import optuna
        from optuna.distributions import CategoricalDistribution, IntDistribution

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._kind, self._space = optuna, kind, space
        self._distributions: dict[str, Any] = {}
        for decision in space.decisions:
            last = len(decision.options) - 1
            self._distributions[decision.name] = (
                IntDistribution(0, last) if decision.ordered else CategoricalDistribution(range(last + 1))
            )
        num_first = max(2, min(20, num_trials // 4))
        if kind == "tpe":
            sampler: Any = optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_first)
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
        else:
            sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=num_first)
            self._study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        self._asked: dict[Choices, deque[Any]] = {}

    def ask(self) -> Choices:
        """See ``Controller``."""
        trial = self._study.ask(self._distributions)
        choices = tuple(int(trial.params[decision.name]) for decision in self._space.decisions)
        self._asked.setdefault(choices, deque()).append(trial)
        return choices

    def tell(self, choices: Choices, outcome: Outcome) -> None:
        """See ``Controller``."""
        if not self._asked.get(choices):
            # Somebody else's candidate, such as the template: the study takes it as its own.
            params = {decision.name: index for decision, index in zip(self._space.decisions, choices, strict=True)}
            self._study.enqueue_trial(params)
            asked = self.ask()
            assert asked == choices, "the study gives what was enqueued"
        trial = self._asked[choices].popleft()
        if self._kind == "nsga2":
            trial.set_constraint("cost", 0.0 if outcome.fits else -outcome.reward)
        values = outcome.reward if self._kind == "tpe" else [outcome.quality, outcome.cost_ratio]
        self._study.tell(trial, values)
