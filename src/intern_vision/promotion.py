"""Promotion: the alias ``champion`` moves to a version only when its scores pass a gate.

Scores are the tags ``intern.metric.<protocol>/<name>`` of a version; those that end in ``/error`` are compared with the
champion's, lower being better in every family.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import Field

from intern_vision.bench.scores import Scores
from intern_vision.config import Config
from intern_vision.errors import ConfigError, MissingObjectError
from intern_vision.mlflow_rest import clean_key
from intern_vision.registry import (
    CHAMPION_ALIAS,
    RegisteredModel,
    find_model,
    find_version,
    log_scores,
    set_champion,
    split_name,
)

_ERROR_SUFFIX = "/error"
_DATASET_KIND = "dataset"


class Gate(Config):
    """What a candidate must reach.

    Attributes:
        tolerance: by how much an error may exceed the champion's, in the error's own unit: a share of 1, or metres.
        minimum: lowest allowed value of scores by name, for example ``{"10/top1": 0.9}``.
        maximum: highest allowed value of scores by name, for example ``{"100/error": 0.1}``.
        same_data: whether candidate and champion must have been made and scored with the same datasets; errors on
            other test images say nothing about each other.
    """

    tolerance: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    minimum: dict[str, float] = {}
    maximum: dict[str, float] = {}
    same_data: bool = True

    def faults(self) -> list[str]:
        """Limits are numbers, and a score's lowest value is not above its highest."""
        faults = [
            f"{field}.{name}: expected a number, got {value}"
            for field in ("minimum", "maximum")
            for name, value in getattr(self, field).items()
            if value != value
        ]
        return faults + [
            f"minimum.{name}: expected at most maximum.{name} {self.maximum[name]:g}, got {value:g}"
            for name, value in self.minimum.items()
            if name in self.maximum and value > self.maximum[name]
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate said about a version.

    Attributes:
        candidate: the version.
        champion: what it was compared with; None where there is none yet.
        shortfalls: one line for each score that fell short; empty when the gate is passed.
        moved: whether the alias ``champion`` was moved to the candidate.
    """

    candidate: RegisteredModel
    champion: RegisteredModel | None
    shortfalls: tuple[str, ...]
    moved: bool = False

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "name": self.candidate.name,
            "version": self.candidate.version,
            "champion": "" if self.champion is None else f"{self.champion.name} version {self.champion.version}",
            "passed": not self.shortfalls,
            "moved": self.moved,
            "shortfalls": list(self.shortfalls),
        }

    def to_line(self) -> str:
        """The verdict in words."""
        name = f"{self.candidate.name} version {self.candidate.version}"
        if self.shortfalls:
            return f"{name} does not pass: {'; '.join(self.shortfalls)}"
        if not self.moved:
            return f"{name} is the {CHAMPION_ALIAS} already"
        compared = "" if self.champion is None else f", compared with {self.champion.name} v{self.champion.version}"
        return f"{name} is the {CHAMPION_ALIAS} now{compared}"


def promote(model: str, gate: Gate, *, version: str = "", baseline: str = "") -> Verdict:
    """Asks the gate about a registered version and, where it passes, makes it its name's champion.

    Args:
        model: ``NAME@ALIAS`` or ``NAME``, which means ``NAME@candidate``.
        gate: what it must reach.
        version: the version in the alias's place, for example one registered a moment ago; empty for the alias.
        baseline: ``NAME@ALIAS`` to compare with; empty for the name's own champion, of which there may be none.

    Raises:
        ConfigError: a name is malformed, or no server is named.
        MissingObjectError: the candidate or a named baseline is not registered.
        AccessError: credentials are refused.
        RetryableError: the server is away.
    """
    name, alias = split_name(model)
    candidate = find_version(name, version) if version else find_model(name, alias)
    current = _champion(name)
    champion = find_model(*split_name(baseline)) if baseline else current
    found = shortfalls(candidate, champion, gate)
    moved = not found and (current is None or candidate.version != current.version)
    if moved:
        set_champion(candidate, replaced="" if current is None else current.version)
    return Verdict(candidate=candidate, champion=champion, shortfalls=found, moved=moved)


def add_scores(model: str, arm: str, scores: Iterable[Scores]) -> RegisteredModel:
    """Adds errors that were measured after a version was registered, as ``<dataset>/<protocol>/error``.

    Args:
        model: ``NAME@ALIAS`` or ``NAME``.
        arm: what it is called in the scores; those of other arms are left out.
        scores: on any number of datasets.

    Returns:
        The version with them.

    Raises:
        ConfigError, MissingObjectError, AccessError, RetryableError: as ``promote``.
    """
    found = find_model(*split_name(model))
    errors = {
        f"{each.dataset}/{protocol}/error": score.error
        for each in scores
        if each.model == arm
        for protocol, score in each.protocols.items()
    }
    log_scores(found, errors)
    return find_version(found.name, found.version)


def check_passed(*verdicts: Verdict) -> None:
    """Raises ConfigError, one line a version, where a gate was not passed."""
    lines = [verdict.to_line() for verdict in verdicts if verdict.shortfalls]
    if lines:
        raise ConfigError("\n".join(lines))


def shortfalls(candidate: RegisteredModel, champion: RegisteredModel | None, gate: Gate) -> tuple[str, ...]:
    """One line for each score of a candidate that a gate does not accept; empty where all pass."""
    scores = candidate.scores
    if not scores:
        return ("it has no scores; evaluate it before it is registered",)
    lines = [
        *_limits("minimum", gate.minimum, scores, lambda value, limit: value >= limit),
        *_limits("maximum", gate.maximum, scores, lambda value, limit: value <= limit),
    ]
    if champion is None:
        return tuple(lines)
    if gate.same_data and _data(candidate) != _data(champion):
        lines.append(
            f"made with other images than {champion.name} version {champion.version}, so errors do not compare; "
            "score both on the same, or set gate.same_data to false"
        )
        return tuple(lines)
    for name, before in champion.scores.items():
        if name.endswith(_ERROR_SUFFIX) and not scores.get(name, float("nan")) <= before + gate.tolerance:
            got = f"is {scores[name]:.4g}" if name in scores else "is missing"
            lines.append(f"{name} {got}, version {champion.version} has {before:.4g} (tolerance {gate.tolerance:g})")
    return tuple(lines)


def _limits(
    field: str, limits: Mapping[str, float], scores: Mapping[str, float], accepts: Callable[[float, float], bool]
) -> Iterator[str]:
    for name, limit in limits.items():
        # Tags have lost the characters that MLflow does not take, such as the plus of ``10+ft``.
        value = scores.get(clean_key(name))
        if value is None:
            yield f"gate.{field}.{name}: it has no such score; it has {', '.join(sorted(scores))[:200]}"
        elif not accepts(value, limit):
            bound = "at least" if field == "minimum" else "at most"
            yield f"gate.{field}.{name}: expected {bound} {limit:g}, got {value:.4g}"


def _champion(name: str) -> RegisteredModel | None:
    try:
        return find_model(name, CHAMPION_ALIAS)
    except MissingObjectError:
        return None


def _data(model: RegisteredModel) -> set[str]:
    """Digests of the datasets among a version's parents."""
    kinds = {key.removesuffix(".kind"): value for key, value in model.tags.items() if key.endswith(".kind")}
    return {model.tags[f"{parent}.digest"] for parent, kind in kinds.items() if kind == _DATASET_KIND}
