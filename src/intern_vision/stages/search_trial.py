"""One candidate of a round of a search: its quality after a short training."""

import json

from pydantic import Field

from intern_vision import config as base
from intern_vision.errors import ConfigError
from intern_vision.models.genotype import Genotype
from intern_vision.ref import Ref
from intern_vision.stages import search
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.stages.search_round import CANDIDATES_FILE


class Config(base.Config):
    """Which candidate, and how it is evaluated.

    Attributes:
        search: the whole search.
        number: the candidate's place in its round, 0-based.
    """

    search: search.Config
    number: int = Field(ge=0)

    def faults(self) -> list[str]:
        """Scoring by shared weights takes no step of its own; the candidate must be one of the round's."""
        faults = []
        if self.search.evaluator != "proxy":
            faults.append("search.evaluator: expected proxy where each candidate is a step of its own")
        if self.number >= self.search.round_size:
            faults.append(f"number: expected less than search.round_size {self.search.round_size}, got {self.number}")
        return faults


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Evaluates a candidate of the input ``round`` on the input ``data``; the folder holds ``trial.json``."""
    candidates = json.loads((context.fetch(inputs.one("round")) / CANDIDATES_FILE).read_text())
    if config.number >= len(candidates):
        raise ConfigError(f"number: the round has {len(candidates)} candidates, got {config.number}")
    evaluator = search.make_evaluator(config.search, inputs, context, search.make_search(config.search))
    genotype = Genotype.from_dict(candidates[config.number])
    quality = evaluator.quality(genotype)
    trial = {"number": config.number, "genotype": genotype.to_dict(), "quality": quality}
    (context.output_dir / search.TRIAL_FILE).write_text(json.dumps(trial))
    context.facts["quality"] = quality
    return context.commit("scores", f"trial-{config.number}")
