"""The search itself: who may be evaluated next, what was found, and how a stopped search takes up where it was.

What is known costs nothing: a candidate beyond the cap, or one that was evaluated before, is told to the controller
at once and another one is asked for. So every controller gets the same number of evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.models.genotype import Genotype, num_macs, num_parameters
from intern_vision.search.controllers import Controller, Outcome
from intern_vision.search.reward import Reward
from intern_vision.search.space import Choices, Space

MAX_FREE_ASKS = 2_000
"""Candidates without news that are asked for before a controller is taken to have nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A genotype to be evaluated.

    Attributes:
        choices: as the controller made them.
        genotype: what they stand for.
        num_macs: multiply-adds of one image.
    """

    choices: Choices
    genotype: Genotype
    num_macs: int


@dataclass(slots=True, kw_only=True)
class Search:
    """Rounds of candidates; a round's candidates are asked for before any of them is told.

    Attributes:
        space: what is decided.
        controller: who decides.
        reward: what counts.
        round_size: candidates a round.
        trials: what was evaluated so far, as ``trials.json`` holds it.
    """

    space: Space
    controller: Controller
    reward: Reward
    round_size: int
    trials: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[Genotype, dict[str, Any]] = field(default_factory=dict)
    _pending: list[Candidate] = field(default_factory=list)
    _has_started: bool = False

    def candidates(self) -> tuple[Candidate, ...]:
        """What is left to evaluate of this round; a new round begins where nothing is.

        Raises:
            ConfigError: no candidate within the cap can be found.
        """
        while len(self._pending) < self.round_size and len(self.trials) % self.round_size == 0:
            self._pending.append(self._next())
        return tuple(self._pending)

    def tell(self, quality: float) -> dict[str, Any]:
        """Takes the quality of the first candidate that is left, 0 to 1, and returns its trial."""
        candidate = self._pending.pop(0)
        trial = {
            "choices": self.space.named(candidate.choices),
            "genotype": candidate.genotype.to_dict(),
            "num_macs": candidate.num_macs,
            "num_parameters": num_parameters(candidate.genotype),
            "quality": quality,
            "reward": self.reward(quality, candidate.num_macs),
        }
        self.trials.append(trial)
        self._known[candidate.genotype] = trial
        self._tell(candidate, trial)
        return trial

    def replay(self, trials: Sequence[dict[str, Any]]) -> None:
        """Takes the trials of an earlier attempt: proposes them again, without evaluating them.

        Raises:
            CheckpointError: they are not what this search proposes.
        """
        for number, trial in enumerate(trials):
            if trial["genotype"] != self.candidates()[0].genotype.to_dict():
                raise CheckpointError(
                    f"trial {number}: it is not what this search proposes here; "
                    "restore the search's config or start under another name"
                )
            self.tell(trial["quality"])

    @property
    def best(self) -> dict[str, Any]:
        """The trial of highest reward."""
        return max(self.trials, key=lambda trial: trial["reward"])

    def finalists(self, number: int) -> list[int]:
        """Places of the trials of highest reward, best first; the template's is always one of them if it is a trial.

        So whoever trains them for longer and takes the best does not end with less than the template.
        """
        places = sorted(range(len(self.trials)), key=lambda place: -self.trials[place]["reward"])
        template = self.space.template.to_dict()
        own = next((place for place in places if self.trials[place]["genotype"] == template), None)
        found = places[:number]
        if found and own is not None and own not in found:
            found[-1] = own
        return found

    def final(self, place: int, quality: float) -> dict[str, Any]:
        """What is known of a finalist after its longer training, which gave ``quality``."""
        trial = self.trials[place]
        reward = self.reward(quality, trial["num_macs"])
        return {"trial": place, "num_macs": trial["num_macs"], "quality": quality, "reward": reward}

    def _next(self) -> Candidate:
        if not self._has_started:
            self._has_started = True
            template = self._candidate(self.space.encode(self.space.template))
            if self.reward.fits(template.num_macs):
                return template
            self._tell(template)
        known = None
        for _ in range(MAX_FREE_ASKS):
            candidate = self._candidate(self.controller.ask())
            if not self.reward.fits(candidate.num_macs):
                self._tell(candidate)
            elif candidate.genotype in self._known:
                known = candidate
                self._tell(candidate, self._known[candidate.genotype], is_known=True)
            elif all(candidate.genotype != other.genotype for other in self._pending):
                return candidate
        if known is None:
            raise ConfigError(
                f"max_macs_ratio: none of {MAX_FREE_ASKS} candidates costs at most {self.reward.max_ratio:g} times the "
                "template; raise it or give smaller choices"
            )
        return known

    def _candidate(self, choices: Choices) -> Candidate:
        genotype = self.space.decode(choices)
        return Candidate(choices=choices, genotype=genotype, num_macs=num_macs(genotype, genotype.image_size_px))

    def _tell(self, candidate: Candidate, trial: dict[str, Any] | None = None, *, is_known: bool = False) -> None:
        reward = self.reward.penalty(candidate.num_macs) if trial is None else trial["reward"]
        outcome = Outcome(
            reward=reward,
            quality=0.0 if trial is None else trial["quality"],
            cost_ratio=self.reward.ratio(candidate.num_macs),
            fits=trial is not None,
            is_known=is_known,
        )
        self.controller.tell(candidate.choices, outcome)
