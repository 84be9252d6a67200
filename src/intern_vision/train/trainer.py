"""The only training loop. It knows no task, only ``objective(batch)``."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from intern_vision.config import changed_fields
from intern_vision.data.loader import Source, make_loader
from intern_vision.errors import CheckpointError, ConfigError, RetryableError, TrainingError
from intern_vision.train.checkpoint import Checkpoints
from intern_vision.train.ema import WeightAverage
from intern_vision.train.engine import set_progress, start_engine
from intern_vision.train.engine_state import EngineState
from intern_vision.train.guard import DivergenceGuard
from intern_vision.train.interval import Interval
from intern_vision.train.objective import Objective
from intern_vision.train.settings import TrainerConfig

NUM_KEYS_IN_ERROR = 8
STATE_FILE = "state.json"


@dataclass(slots=True, kw_only=True)
class TrainJob:
    """One training: what to minimise, on which samples, how.

    Attributes:
        objective: the module that turns a batch into losses.
        source: random access to samples, see ``intern_vision.data.loader``.
        transform: sample and generator to the arrays of one example.
        config: the trainer's settings.
        learning_rate_scales: factor on the learning rate by parameter-name prefix of ``objective``.
        start_steps: step that parameters are trained from, by name prefix; before it they keep their values.
        identity: plain values that a checkpoint must agree with (the stage's config).
    """

    objective: Objective
    source: Source
    transform: Callable[..., dict[str, Any]]
    config: TrainerConfig
    learning_rate_scales: dict[str, float] = field(default_factory=dict)
    start_steps: dict[str, int] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class RankContext:
    """The process a trainer runs in.

    Attributes:
        rank: this process's number, 0-based.
        num_ranks: processes that take part.
        local_rank: number within this node.
        on_event: takes plain values to report; called on rank 0 only.
        should_stop: says whether somebody asked this process to stop.
    """

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    on_event: Callable[[dict[str, Any]], None] = lambda event: None
    should_stop: Callable[[], bool] = lambda: False


class Trainer:
    """Trains one objective with a DeepSpeed engine; resumes from the newest complete checkpoint.

    Args:
        job: what to train.
        context: the process it runs in.
        checkpoints: where to save and resume; None trains without.
    """

    def __init__(self, job: TrainJob, context: RankContext, checkpoints: Checkpoints | None = None) -> None:
        self.job = job
        self.config = job.config
        self.context = context
        self.checkpoints = checkpoints
        per_step = context.num_ranks * self.config.num_accumulation
        if self.config.batch_size % per_step:
            raise ConfigError(
                f"trainer.batch_size: expected a multiple of ranks x micro-batches = {per_step}, "
                f"got {self.config.batch_size}"
            )
        self.engine, self.device = start_engine(job, context)
        decay = self.config.ema_decay
        self._average = WeightAverage(self.engine.module, decay) if decay else None
        self._state = EngineState(self.engine, self.config.zero_stage, self._average)
        self._guard = DivergenceGuard(self.config.divergence_margin, self.config.max_rollbacks)
        self._history: list[dict[str, Any]] = []
        self._earlier_cpu_s = 0.0

    def train(self) -> None:
        """Runs to ``num_steps``.

        Raises:
            TrainingError: the loss or the weights are not finite, or the loss diverged; names the
                step, the loss terms and sample keys. With a divergence guard, only once it gave up.
            RetryableError: the process was asked to stop; a checkpoint was saved first.
            CheckpointError: the checkpoint found belongs to another config.
        """
        step = self._resume()
        while step < self.config.num_steps:
            try:
                step = self._train_from(step)
            except TrainingError as error:
                step = self._roll_back(error)
        self._close_checkpoints()

    def _train_from(self, first_step: int) -> int:
        config, context = self.config, self.context
        batches = make_loader(
            self.job.source,
            batch_size=config.batch_size // config.num_accumulation,
            seed=config.seed,
            start_step=first_step * config.num_accumulation,
            num_steps=(config.num_steps - first_step) * config.num_accumulation,
            rank=context.rank,
            num_ranks=context.num_ranks,
            transform=self.job.transform,
            num_threads=config.num_loader_threads,
        )
        interval = Interval(config.log_every, self.device)
        self.engine.train()
        for step in range(first_step, config.num_steps):
            self._one_step(step, batches, interval)
            done = step + 1
            logs = done % config.log_every == 0 or done == config.num_steps
            saves = bool(config.checkpoint_every) and done % config.checkpoint_every == 0 and done < config.num_steps
            if logs or saves:
                stop = self._report(done, interval)
                if saves or (stop and done < config.num_steps):
                    self._save(done)
                if stop and done < config.num_steps:
                    self._close_checkpoints()
                    raise RetryableError(f"stopped at step {done} of {config.num_steps}; the same command resumes")
        return config.num_steps

    def _one_step(self, step: int, batches: Any, interval: Interval) -> None:
        for micro_step in range(self.config.num_accumulation):
            waited_from = time.perf_counter()
            batch = next(batches)
            interval.waiting_s += time.perf_counter() - waited_from
            # Every random number of a step follows from (seed, step, rank): a resumed run draws the same.
            torch.manual_seed(
                ((self.config.seed * 1_000_003 + step) * self.config.num_accumulation + micro_step) * 4099
                + self.context.rank
            )
            keys = batch["keys"]
            losses, values = self.engine(_to_device(batch, self.device))
            loss = torch.stack(list(losses.values())).sum()
            self.engine.backward(loss)
            self.engine.step()
            interval.add(step, keys, loss.detach(), losses, values)
        if self._average is not None:
            self._average.update()

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Every rank holds all weights inside, also under ZeRO stage 3; all ranks must enter.

        With ``ema_decay`` set they are the moving averages.
        """
        with ExitStack() as stack:
            if self._average is not None:
                stack.enter_context(self._average.in_place())
            if self.config.zero_stage == 3:
                from deepspeed.runtime.zero import GatheredParameters

                stack.enter_context(GatheredParameters(list(self.engine.module.parameters())))
            yield

    def keep_average(self) -> None:
        """Leaves the moving averages, where there are any, in place of the weights: training is over."""
        if self._average is not None:
            self._average.swap()

    def _report(self, done: int, interval: Interval) -> bool:
        """Agrees over the ranks on faults, means and stopping; returns whether to stop."""
        if not self._state.is_finite():
            interval.mark_bad(done - 1)
        means, bad_step, largest_loss, stop = interval.reduce(self.context)
        if bad_step >= 0:
            raise self._not_finite(bad_step, interval)
        fault = self._guard.fault(largest_loss, [row["metrics"]["loss"] for row in self._history])
        if fault:
            raise TrainingError(f"{fault}, within the steps up to {done}; lower trainer.learning_rate")
        metrics = means | {"learning_rate": self.engine.get_lr()[0]}
        self._history.append({"done": done, "metrics": metrics})
        if self.context.rank == 0:
            self.context.on_event(
                {
                    "event": "step",
                    "done": done,
                    "total": self.config.num_steps,
                    "metrics": metrics,
                    "speed": interval.speed(),
                }
            )
        interval.reset()
        return stop

    def _not_finite(self, bad_step: int, interval: Interval) -> TrainingError:
        """The same error on every rank, with the samples of the rank that saw the fault first."""
        found = [(self.context.rank, *interval.fault_at(bad_step))]
        if self.context.num_ranks > 1:
            gathered: list[Any] = [None] * self.context.num_ranks
            torch.distributed.all_gather_object(gathered, found[0])
            found = gathered
        rank, what, keys = next(fault for fault in found if fault[1])
        return TrainingError(
            f"{what} at step {bad_step}; samples on rank {rank}: "
            f"{', '.join(keys[:NUM_KEYS_IN_ERROR])}{', ...' if len(keys) > NUM_KEYS_IN_ERROR else ''}; "
            "check these samples or lower trainer.learning_rate"
        )

    def _save(self, done: int) -> None:
        if self.checkpoints is None:
            return
        folder = self.checkpoints.local_dir / f"step-{done}"
        folder.mkdir(parents=True, exist_ok=True)
        self._state.save(folder)
        cpu_s = self.cpu_s()
        if self.context.rank == 0:
            state = {
                "step": done,
                "cpu_s": cpu_s,
                "num_rollbacks": self._guard.num_rollbacks,
                "num_averaged": self._average.num_updates if self._average else 0,
                "identity": self.job.identity,
                "history": self._history,
            }
            (folder / STATE_FILE).write_text(json.dumps(state))
        _barrier(self.context)
        if self.context.local_rank == 0:
            self.checkpoints.upload(done)

    def cpu_s(self) -> float:
        """Processor seconds of all ranks, and of those that this training goes on from; all ranks must call."""
        spent_s = torch.tensor(time.process_time(), device=self.device)
        if self.context.num_ranks > 1:
            torch.distributed.all_reduce(spent_s)
        return self._earlier_cpu_s + float(spent_s)

    def _close_checkpoints(self) -> None:
        if self.checkpoints is not None and self.context.local_rank == 0:
            self.checkpoints.close()

    def _resume(self) -> int:
        state = self._load_latest()
        if not state:
            return 0
        self._guard.num_rollbacks, self._earlier_cpu_s = state["num_rollbacks"], state["cpu_s"]
        set_progress(self.engine, self.config, state["step"], self._guard.rate_factor)
        if self.context.rank == 0:
            for row in self._history:
                self.context.on_event({"event": "past_step", **row})
            spent = {"done": state["step"], "total": self.config.num_steps, "cpu_s": state["cpu_s"]}
            self.context.on_event({"event": "resumed", **spent})
        return state["step"]

    def _roll_back(self, error: TrainingError) -> int:
        """Goes back to the last checkpoint with a lower learning rate; gives its step, or raises where it may not."""
        guard = self._guard
        if not guard.margin:
            raise error
        if guard.num_rollbacks >= guard.max_rollbacks:
            raise TrainingError(f"{error}; gave up after trainer.max_rollbacks {guard.max_rollbacks}") from None
        self._close_checkpoints()  # what is still being uploaded may be the newest
        _barrier(self.context)
        state = self._load_latest()
        if not state:
            raise TrainingError(f"{error}; no checkpoint to go back to, so lower trainer.checkpoint_every") from None
        guard.num_rollbacks += 1
        set_progress(self.engine, self.config, state["step"], guard.rate_factor)
        if self.context.rank == 0:
            self.context.on_event(
                {
                    "event": "rolled_back",
                    "done": state["step"],
                    "num_rollbacks": guard.num_rollbacks,
                    "cause": str(error),
                }
            )
        return state["step"]

    def _load_latest(self) -> dict[str, Any]:
        """Takes the newest complete checkpoint and gives its plain values; empty where there is none."""
        if self.checkpoints is None:
            return {}
        # Only one rank a node touches the store; the others learn the step through the barrier and the folder.
        if self.context.local_rank == 0:
            self.checkpoints.download_latest()
        _barrier(self.context)
        steps = sorted(int(p.name.removeprefix("step-")) for p in self.checkpoints.local_dir.glob("step-*"))
        if not steps:
            return {}
        local_dir = self.checkpoints.local_dir / f"step-{steps[-1]}"
        state = json.loads((local_dir / STATE_FILE).read_text())
        changes = changed_fields(state["identity"], self.job.identity)
        if changes:
            raise CheckpointError(
                f"{self.checkpoints.uri}: the checkpoint was made with another config ({'; '.join(changes)}); "
                "restore these values or start under another name"
            )
        self._state.load(local_dir)
        if self._average is not None:
            self._average.num_updates = state["num_averaged"]
        self._history = state["history"]
        _barrier(self.context)
        if self.context.local_rank == 0:
            shutil.rmtree(local_dir)
        return state


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _barrier(context: RankContext) -> None:
    if context.num_ranks > 1:
        torch.distributed.barrier()
