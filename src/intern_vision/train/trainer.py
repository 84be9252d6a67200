"""The only training loop. It knows no task, only ``objective(batch)``."""

import collections
import time
from collections.abc import Callable
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

    def train(self) -> None:
        """Runs to ``num_steps``.

        Raises:
            TrainingError: the loss is not finite; names the step and sample keys.
            RetryableError: the process was asked to stop; a checkpoint was saved first.
            CheckpointError: the checkpoint found belongs to another config.
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

    def _report(self, done: int, interval: "_Interval") -> bool:
        """Agrees over the ranks on finiteness, means and stopping; returns whether to stop."""
        means, bad_step, stop = interval.reduce(self.context)
        if bad_step >= 0:
            keys = interval.keys_of(bad_step)
            raise TrainingError(
                f"loss is not finite at step {bad_step}; samples on rank {self.context.rank}: "
                f"{', '.join(keys[:NUM_KEYS_IN_ERROR])}{', ...' if len(keys) > NUM_KEYS_IN_ERROR else ''}; "
                "check these samples or lower trainer.learning_rate"
            )
        if self.context.rank == 0:
            means["learning_rate"] = self.engine.get_lr()[0]
            self.context.on_event({"event": "step", "done": done, "total": self.config.num_steps, "metrics": means})
        interval.reset()
        return stop

    def _save(self, done: int) -> None:
        if self.checkpoints is None:
            return
        self.engine.save_checkpoint(
            str(self.checkpoints.local_dir),
            tag=f"step-{done}",
            client_state={"step": done, "identity": self.job.identity},
            save_latest=False,
        )
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
        folder, state = self.engine.load_checkpoint(str(self.checkpoints.local_dir), tag=f"step-{steps[-1]}")
        if folder is None:
            raise CheckpointError(f"{self.checkpoints.uri}/step-{steps[-1]}: DeepSpeed cannot load this checkpoint")
        changes = changed_fields(state["identity"], self.job.identity)
        if changes:
            raise CheckpointError(
                f"{self.checkpoints.uri}: the checkpoint was made with another config ({'; '.join(changes)}); "
                "restore these values or start under another name"
            )
        self.context.on_event({"event": "resumed", "done": state["step"], "total": self.config.num_steps})
        return state["step"]


class _Interval:
    """What happened since the last report, kept on the device."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self._recent: collections.deque[tuple[int, list[str]]] = collections.deque(maxlen=num_steps)
        self._device = device
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_added = 0
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

    def reduce(self, context: RankContext) -> tuple[dict[str, float], int, bool]:
        """Means over ranks, this rank's first bad step (or the world's, where only others saw one), stop flag."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        flags = torch.stack([self._first_bad_step.float(), sums.new_tensor(float(context.should_stop()))])
        if context.num_ranks > 1:
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        own_bad_step = int(self._first_bad_step)
        means = (sums / (self._num_added * context.num_ranks)).tolist()
        values = dict(zip(names, means, strict=True))
        elapsed_s = time.perf_counter() - self._started
        values["steps_per_s"] = self._num_added / elapsed_s
        values["waiting_for_data_share"] = self.waiting_s / elapsed_s
        return values, own_bad_step if own_bad_step >= 0 else int(flags[0]), bool(flags[1] > 0)

    def keys_of(self, step: int) -> list[str]:
        return next((keys for recent_step, keys in self._recent if recent_step == step), [])


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


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _barrier(context: RankContext) -> None:
    if context.num_ranks > 1:
        torch.distributed.barrier()
