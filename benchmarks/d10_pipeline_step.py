"""D10: a pipeline step over an empty component, for stages that need no torch.

Both run through kfp's local subprocess runner. One of our steps finds its output committed and only reads
the record; the other makes a small dataset, and the stage's own CPU seconds are taken off. What is left is
the price of the step: starting Python is in both, importing the package and reading the preset is ours.
CPU seconds of this process and its children are compared, since nothing is waited for.
"""

import contextlib
import io
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

from kfp import dsl, local

from benchmarks.measure import Figure, Settings, cpu_s, interleave, median_difference, run_script
from intern_components.prepare import prepare
from intern_vision.stages.base import Record, read_record, read_ref
from intern_vision.store import open_store

TARGET_S = 0.15


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def empty(text: str) -> str:
    """Does nothing."""
    return text


class Steps:
    """Steps run one at a time, each in a process of its own.

    Args:
        folder: of the store, the state and kfp's files.
    """

    def __init__(self, folder: str) -> None:
        # A step's environment is this process's: no server, and a store of its own.
        for name in [name for name in os.environ if name.startswith(("INTERN_", "MLFLOW_"))]:
            del os.environ[name]
        os.environ |= {"INTERN_STORE": f"file://{folder}/store", "INTERN_STATE": f"{folder}/state"}
        # Without stored bytecode every step would compile the package anew, which no installed image does.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=f"{folder}/kfp", raise_on_error=True)
        self.stage_cpu_s: list[float] = []
        self._seeds = itertools.count(1)

    def empty(self) -> None:
        """An empty component."""
        empty(text="nothing")

    def cached(self) -> None:
        """A prepare step whose output is committed (from the second call on)."""
        self._prepare(seed=0)

    def made(self) -> None:
        """A prepare step that renders a few images; keeps the CPU seconds that the stage itself took."""
        self.stage_cpu_s.append(self._prepare(seed=next(self._seeds)).cpu_s)

    def _prepare(self, seed: int) -> Record:
        overrides = json.dumps({"downstream": {"num_train": 8, "num_test": 8, "seed": seed}})
        task = prepare(preset="smoke", overrides=overrides, dataset="flower")
        ref = read_ref(task.outputs["result"].path)
        return read_record(open_store(ref.uri), ref.uri)


def quietly(arm: Callable[[], Any]) -> Callable[[], None]:
    """The arm without what kfp prints, and with its elapsed time on the attribute ``walls_s``."""

    def run() -> None:
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            arm()
        run.walls_s.append(time.perf_counter() - started)

    run.walls_s = []
    return run


def measure(settings: Settings) -> list[Figure]:
    """Both steps less the empty component."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(folder)
        arms = {name: quietly(getattr(steps, name)) for name in ("empty", "cached", "made")}
        seconds = interleave(arms, settings.num_rounds, cpu_s)
    # The unmeasured first run is in the lists of the arms, too.
    seconds["made"] = [step - stage for step, stage in zip(seconds["made"], steps.stage_cpu_s[1:], strict=True)]
    walls_s = {name: statistics.median(arm.walls_s[1:]) for name, arm in arms.items()}
    limit = "importing pydantic and building the preset's configs"
    return [
        Figure(
            name="D10 cached step",
            value=median_difference(seconds, "cached", "empty"),
            target=TARGET_S,
            unit="s",
            reference=f"CPU over an empty component ({_text(seconds['empty'])} s); "
            f"elapsed {walls_s['cached']:.2f} and {walls_s['empty']:.2f} s",
            limit=limit,
        ),
        Figure(
            name="D10 step without its stage",
            value=median_difference(seconds, "made", "empty"),
            target=TARGET_S,
            unit="s",
            reference=f"CPU over an empty component, prepare's own {_text(steps.stage_cpu_s)} s taken off; "
            f"elapsed {walls_s['made']:.2f} s",
            limit=f"{limit}; at exit, taking down the stage's own imports",
        ),
    ]


def _text(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f}"


if __name__ == "__main__":
    run_script(measure, __doc__.splitlines()[0])
