"""Starts the DeepSpeed engine of a training and says in one line what this machine cannot do."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intern_vision.errors import ConfigError
from intern_vision.train.schedule import parameter_groups, warmup_cosine
from intern_vision.train.settings import TrainerConfig

if TYPE_CHECKING:
    from intern_vision.train.trainer import RankContext, TrainJob

# Smaller parameters stay gathered under ZeRO stage 3: one message each would cost more than their bytes.
PERSISTENT_ELEMENTS = 100_000


class Autocast(nn.Module):
    """Runs the objective under autocast inside DeepSpeed's engine, which switches an outer one off."""

    def __init__(self, objective: nn.Module, device: torch.device, enabled: bool) -> None:
        super().__init__()
        self.objective = objective
        self._device_type = device.type
        self._enabled = enabled

    def forward(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The objective's losses and values."""
        with torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._enabled):
            return self.objective(batch)


def start_engine(job: "TrainJob", context: "RankContext") -> tuple[Any, torch.device]:
    """The engine around the job's objective, and the device it computes on.

    Raises:
        ConfigError: this machine or this model cannot do what the config asks for.
    """
    from intern_vision.train.launch import import_deepspeed

    deepspeed = import_deepspeed()
    config = job.config
    device = _device(context)
    check_device(config, device)
    check_objective(config, job.objective)
    if config.checkpoint_activations:
        checkpoint_activations(job.objective)
    module = Autocast(job.objective.to(device), device, config.precision == "bf16")
    groups = parameter_groups(
        module,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        learning_rate_scales={f"objective.{k}": v for k, v in job.learning_rate_scales.items()},
        start_steps={f"objective.{k}": v for k, v in job.start_steps.items()},
    )
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=config.zero_stage == 0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate_curves(config, optimizer))
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": config.batch_size // (context.num_ranks * config.num_accumulation),
            "gradient_accumulation_steps": config.num_accumulation,
            "gradient_clipping": config.gradient_clip,
            "zero_optimization": {
                "stage": config.zero_stage,
                "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            },
            "steps_per_print": 2**31,
        },
    )
    return engine, device


def set_progress(engine: Any, config: TrainerConfig, step: int, rate_factor: float) -> None:
    """Sets an engine's counters and learning rates as they are after ``step`` optimizer steps.

    Args:
        engine: the DeepSpeed engine.
        config: the trainer's settings.
        step: optimizer steps done.
        rate_factor: factor on the whole learning-rate curve.
    """
    engine.global_steps = step
    engine.micro_steps = step * config.num_accumulation
    engine.global_samples = step * config.batch_size
    schedule = engine.lr_scheduler
    schedule.lr_lambdas = _rate_curves(config, schedule.optimizer, rate_factor)
    schedule.last_epoch, schedule._step_count = step, step + 1
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def check_device(config: TrainerConfig, device: torch.device) -> None:
    """ConfigError where the device cannot compute in the precision asked for."""
    if device.type != "cuda" or config.precision != "bf16":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"trainer.precision: {torch.cuda.get_device_name(device)} does not compute in bf16; "
            'set it to "fp32", or use a GPU of compute capability 8.0 or later'
        )


def check_objective(config: TrainerConfig, objective: nn.Module) -> None:
    """ConfigError where DeepSpeed could not partition or send a parameter."""
    parameters = list(objective.named_parameters())
    if not any(parameter.requires_grad for _, parameter in parameters):
        raise ConfigError("objective: every parameter is frozen; train the backbone or the heads")
    scalars = [name for name, parameter in parameters if parameter.ndim == 0]
    if scalars:
        raise ConfigError(f"objective: {scalars[0]} has no dimension, which DeepSpeed cannot send; give it shape (1,)")
    others = [name for name, p in parameters if config.zero_stage and p.requires_grad and p.dtype != torch.float32]
    if others:
        raise ConfigError(
            f"trainer.zero_stage {config.zero_stage}: {others[0]} is not float32; "
            "keep float32 weights (precision bf16 computes under autocast)"
        )


def checkpoint_activations(objective: nn.Module) -> None:
    """Switches activation checkpointing on in every module that offers it; ConfigError where none does."""
    modules = [module for module in objective.modules() if hasattr(module, "checkpoint_activations")]
    if not modules:
        raise ConfigError("trainer.checkpoint_activations: this model has no module that offers it; set it to false")
    for module in modules:
        module.checkpoint_activations = True


def _rate_curves(
    config: TrainerConfig, optimizer: torch.optim.Optimizer, rate_factor: float = 1.0
) -> list[Callable[[int], float]]:
    """One curve a parameter group: 0 before its first step, then the common one.

    At rate 0 AdamW changes no weight, not by decay either, but its moments are those of training by then.
    """
    num_warmup_steps = int(config.warmup_share * config.num_steps)

    def factor(step: int, start_step: int) -> float:
        return rate_factor * warmup_cosine(step, config.num_steps, num_warmup_steps) if step >= start_step else 0.0

    return [partial(factor, start_step=group["start_step"]) for group in optimizer.param_groups]


def _device(context: "RankContext") -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    if context.local_rank >= num_gpus:
        raise ConfigError(
            f"INTERN_NUM_RANKS: rank {context.local_rank} of this machine has no GPU of its own, there are {num_gpus}; "
            f"start at most {num_gpus} ranks"
        )
    return torch.device("cuda", context.local_rank)
