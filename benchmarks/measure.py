"""What the scripts share: interleaved rounds, ratios, the printed line and the command line of a script.

Two things are compared in the same process, one after the other and again, so that whatever else the
machine does falls on both. The clock is CPU seconds unless waiting is what is measured.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_ROUNDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number beside its target.

    Attributes:
        name: the figure's number and subject, for example ``D1 trainer step``.
        value: measured.
        target: limit of a pass.
        at_most: whether the value must not exceed the target; else it must not fall below.
        unit: ``x`` for a ratio, ``s`` for seconds.
        reference: what the value is a ratio to, or a difference from.
        limit: what bounds the figure, with the measured bound where there is one.
    """

    name: str
    value: float
    target: float
    at_most: bool = True
    unit: str = "x"
    reference: str
    limit: str

    @property
    def passes(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target if self.at_most else self.value >= self.target

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Name, value, target, verdict, reference and limit as text."""
        sign = "<=" if self.at_most else ">="
        verdict = "pass" if self.passes else "MISS"
        digits = 3 if self.at_most else 2
        value, target = f"{self.value:.{digits}f} {self.unit}", f"{sign} {self.target:g} {self.unit}"
        return self.name, value, target, verdict, self.reference, self.limit

    def line(self) -> str:
        """The figure in one line."""
        name, value, target, verdict, reference, limit = self.cells()
        return f"{name}: {value} ({target}: {verdict}), reference: {reference}; limit: {limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much a script measures.

    Attributes:
        num_rounds: times each thing is measured.
        quick: the smallest amount of work that gives a number, for tests.
    """

    num_rounds: int = DEFAULT_ROUNDS
    quick: bool = False


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def interleave(
    arms: Mapping[str, Callable[[], object]], num_rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each arm in each round; every arm runs once before, unmeasured.

    The order turns from round to round, so that no arm always follows the same one.
    """
    names = list(arms)
    for name in names:
        arms[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(num_rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            started = clock()
            arms[name]()
            seconds[name].append(clock() - started)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], arm: str, reference: str) -> float:
    """Median over the rounds of one arm's seconds over another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[arm], seconds[reference], strict=True))


def median_difference(seconds: Mapping[str, list[float]], arm: str, reference: str) -> float:
    """Median over the rounds of one arm's seconds less another's in the same round."""
    return statistics.median(a - b for a, b in zip(seconds[arm], seconds[reference], strict=True))


def hardware() -> str:
    """The machine in one line: cores, processor, what it has for bfloat16, load, versions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    processor = fields.get("model name", platform.machine()) + (f" with {', '.join(flags)}" if flags else "")
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, {processor}, load {load:.1f}, Python {platform.python_version()}"


def run_script(measure: Callable[[Settings], list[Figure]], description: str) -> None:
    """The command line of a script: measures, prints a line a figure and the machine."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="times each thing is measured")
    parser.add_argument("--quick", action="store_true", help="the smallest amount of work; the number means little")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {arguments.rounds}")
    figures = measure(Settings(num_rounds=arguments.rounds, quick=arguments.quick))
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures]))
        return
    for figure in figures:
        print(figure.line())
    print(hardware())
