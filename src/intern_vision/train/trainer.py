"""The only training loop. It knows no task, only ``objective(batch)``."""

import collections
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from intern_vision.config import changed_fields
from intern_vision.data.loader import Source, make_loader
from intern_vision.errors import CheckpointError, ConfigError, RetryableError, TrainingError
from intern_vision.train.checkpoint import Checkpoints
from intern_vision.train.objective import Objective
from intern_vision.train.schedule import parameter_groups, warmup_cosine
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
        identity: plain values that a checkpoint must agree with (the stage's config).
    """

    objective: Objective
    source: Source
    transform: Callable[..., dict[str, Any]]
    config: TrainerConfig
    learning_rate_scales: dict[str, float] = field(default_factory=dict)
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


class _Autocast(nn.Module):
    """Runs the objective under autocast inside DeepSpeed's engine, which switches an outer one off."""

    def __init__(self, objective: Objective, device: torch.device, enabled: bool) -> None:
        super().__init__()
        self.objective = objective
        self._device_type = device.type
        self._enabled = enabled

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._enabled):
            return self.objective(batch)


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
        self.engine, self.device = _start_engine(job, context)
        self._history: list[dict[str, Any]] = []

    def train(self) -> None:
        """Runs to ``num_steps``.

        Raises:
            TrainingError: the loss or the weights are not finite; names the step and sample keys.
            RetryableError: the process was asked to stop; a checkpoint was saved first.
            CheckpointError: the checkpoint found belongs to another config or, under ZeRO, to
                another number of ranks.
        """
        config, context = self.config, self.context
        first_step = self._resume()
        num_micro_steps = config.num_steps * config.num_accumulation
        loader = make_loader(
            self.job.source,
            batch_size=config.batch_size // config.num_accumulation,
            seed=config.seed,
            start_step=first_step * config.num_accumulation,
            num_steps=num_micro_steps - first_step * config.num_accumulation,
            rank=context.rank,
            num_ranks=context.num_ranks,
            transform=self.job.transform,
            num_threads=config.num_loader_threads,
        )
        interval = _Interval(config.log_every, self.device)
        self.engine.train()
        batches = iter(loader)
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
        self._close_checkpoints()

    def _one_step(self, step: int, batches: Any, interval: "_Interval") -> None:
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

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Every rank holds all weights inside, also under ZeRO stage 3; all ranks must enter."""
        if self.config.zero_stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(self.engine.module.parameters())):
            yield

    def _report(self, done: int, interval: "_Interval") -> bool:
        """Agrees over the ranks on finiteness, means and stopping; returns whether to stop."""
        if not _is_finite(self.engine.module):
            interval.mark_bad(done - 1)
        means, bad_step, stop = interval.reduce(self.context)
        if bad_step >= 0:
            raise self._not_finite(bad_step, interval)
        if self.context.rank == 0:
            metrics = means | {"learning_rate": self.engine.get_lr()[0]}
            self._history.append({"done": done, "metrics": metrics})
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

    def _not_finite(self, bad_step: int, interval: "_Interval") -> TrainingError:
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
        tag = f"step-{done}"
        self.engine.save_checkpoint(str(self.checkpoints.local_dir), tag=tag, save_latest=False)
        if self.context.rank == 0:
            state = {
                "step": done,
                "num_ranks": self.context.num_ranks,
                "identity": self.job.identity,
                "history": self._history,
            }
            (self.checkpoints.local_dir / tag / STATE_FILE).write_text(json.dumps(state))
        _barrier(self.context)
        if self.context.local_rank == 0:
            self.checkpoints.upload(done)

    def _close_checkpoints(self) -> None:
        if self.checkpoints is not None and self.context.local_rank == 0:
            self.checkpoints.close()

    def _resume(self) -> int:
        if self.checkpoints is None:
            return 0
        # Only one rank a node touches the store; the others learn the step through the barrier and the folder.
        if self.context.local_rank == 0:
            self.checkpoints.download_latest()
        _barrier(self.context)
        steps = sorted(int(p.name.removeprefix("step-")) for p in self.checkpoints.local_dir.glob("step-*"))
        if not steps:
            return 0
        tag = f"step-{steps[-1]}"
        local_dir = self.checkpoints.local_dir / tag
        state = json.loads((local_dir / STATE_FILE).read_text())
        self._check_fits(state)
        loaded, _ = self.engine.load_checkpoint(str(self.checkpoints.local_dir), tag=tag)
        if loaded is None:
            raise CheckpointError(f"{self.checkpoints.uri}/{tag}: DeepSpeed cannot load this checkpoint")
        _barrier(self.context)
        if self.context.local_rank == 0:
            shutil.rmtree(local_dir)
        self._history = state["history"]
        if self.context.rank == 0:
            for row in self._history:
                self.context.on_event({"event": "past_step", **row})
            self.context.on_event({"event": "resumed", "done": state["step"], "total": self.config.num_steps})
        return state["step"]

    def _check_fits(self, state: dict[str, Any]) -> None:
        """CheckpointError where DeepSpeed could not load the checkpoint, or would load the wrong one."""
        assert self.checkpoints is not None
        changes = changed_fields(state["identity"], self.job.identity)
        if changes:
            raise CheckpointError(
                f"{self.checkpoints.uri}: the checkpoint was made with another config ({'; '.join(changes)}); "
                "restore these values or start under another name"
            )
        if self.config.zero_stage and state["num_ranks"] != self.context.num_ranks:
            raise CheckpointError(
                f"{self.checkpoints.uri}: the checkpoint was made by {state['num_ranks']} ranks and this run has "
                f"{self.context.num_ranks}; under ZeRO stage {self.config.zero_stage} start as many ranks as before"
            )


class _Interval:
    """What happened since the last report, kept on the device."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self._recent: collections.deque[tuple[int, list[str]]] = collections.deque(maxlen=num_steps)
        self._device = device
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_added = 0
        self._weights_fault_step = -1
        self._first_bad_step = torch.full((), -1, device=self._device, dtype=torch.long)
        self.waiting_s = 0.0
        self._started = time.perf_counter()

    def add(
        self, step: int, keys: list[str], loss: Tensor, losses: dict[str, Tensor], values: dict[str, Tensor]
    ) -> None:
        self._recent.append((step, keys))
        is_first_bad = ~torch.isfinite(loss) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first_bad, step, self._first_bad_step)
        for name, value in {"loss": loss, **{f"loss/{k}": v for k, v in losses.items()}, **values}.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_added += 1

    def mark_bad(self, step: int) -> None:
        """Notes that the weights were not finite after ``step``."""
        self._weights_fault_step = step
        self._first_bad_step = torch.where(self._first_bad_step < 0, step, self._first_bad_step)

    def reduce(self, context: RankContext) -> tuple[dict[str, float], int, bool]:
        """Means over ranks, the first step at which any rank saw a fault (-1: none), and the stop flag."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        # The first of all ranks as a maximum, so that one reduction serves both flags.
        earliness = torch.where(self._first_bad_step < 0, -torch.inf, -self._first_bad_step.double())
        flags = torch.stack([earliness, earliness.new_tensor(float(context.should_stop()))])
        if context.num_ranks > 1:
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        means = (sums / (self._num_added * context.num_ranks)).tolist()
        first_bad, stop = flags.tolist()
        bad_step = -1 if first_bad == -float("inf") else int(-first_bad)
        return dict(zip(names, means, strict=True)), bad_step, stop > 0

    def speed(self) -> dict[str, float]:
        """How fast this rank went: what differs from run to run."""
        elapsed_s = time.perf_counter() - self._started
        return {"steps_per_s": self._num_added / elapsed_s, "waiting_for_data_share": self.waiting_s / elapsed_s}

    def fault_at(self, step: int) -> tuple[str, list[str]]:
        """What this rank saw first at ``step`` (empty: nothing) and its samples of that step."""
        if int(self._first_bad_step) != step:
            return "", []
        what = "weights are not finite after the update" if step == self._weights_fault_step else "loss is not finite"
        keys = [key for recent_step, recent_keys in self._recent if recent_step == step for key in recent_keys]
        return what, keys


def _start_engine(job: TrainJob, context: RankContext) -> tuple[Any, torch.device]:
    from intern_vision.train.launch import import_deepspeed

    deepspeed = import_deepspeed()
    config = job.config
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", context.local_rank) if cuda else torch.device("cpu")
    module = _Autocast(job.objective.to(device), device, config.precision == "bf16")
    groups = parameter_groups(
        module,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        learning_rate_scales={f"objective.{k}": v for k, v in job.learning_rate_scales.items()},
    )
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=config.zero_stage == 0)
    num_warmup_steps = int(config.warmup_share * config.num_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, config.num_steps, num_warmup_steps)
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": config.batch_size // (context.num_ranks * config.num_accumulation),
            "gradient_accumulation_steps": config.num_accumulation,
            "gradient_clipping": config.gradient_clip,
            "zero_optimization": {"stage": config.zero_stage},
            "steps_per_print": 2**31,
        },
    )
    return engine, device


def _is_finite(module: nn.Module) -> bool:
    """Whether all trained weights are; under ZeRO stage 3 this rank's part of them."""
    parts = [getattr(p, "ds_tensor", p).detach() for p in module.parameters() if p.requires_grad]
    # An infinite or NaN element makes the sum so; one number a tensor is moved instead of a mask.
    return bool(torch.stack([part.float().sum() for part in parts]).isfinite().all())


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _barrier(context: RankContext) -> None:
    if context.num_ranks > 1:
        torch.distributed.barrier()
