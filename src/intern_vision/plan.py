"""What a run will cost before it starts: parameters, memory a GPU, storage, image passes, FLOPs, GPU-hours.

Closed forms alone: no model is built, so MN-B15 is planned in milliseconds. Sources of the
formulas: ``intern_vision.models.cost`` (parameters, multiply-adds) and ``intern_vision.plan_memory``.

What is left out: heads but for linear classifiers (their size depends on the data), the search's
supernet, adaptation and scoring. The backward pass counts twice the forward one, and activation
checkpointing one forward more.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from intern_vision import config as base
from intern_vision.errors import ConfigError
from intern_vision.models.genotype import GENOTYPES, Genotype, num_macs, num_parameters
from intern_vision.plan_memory import (
    HEADROOM,
    Activations,
    backbone_activations,
    contrast_bytes,
    state_bytes,
    text_activations,
    text_macs,
    text_parameters,
    transfer_parameters,
)
from intern_vision.run_config import RunConfig
from intern_vision.stages import amateur, amateur_local, expert, generalist
from intern_vision.train.settings import TrainerConfig

GIGABYTE = 10**9
NUM_KEPT_CHECKPOINTS = 2
VOCAB_SIZE = 49_409  # CLIP's, with a mask token; a dataset's own is smaller
FORWARD_AND_BACKWARD = 3


class Machine(base.Config):
    """What a run is planned for.

    Attributes:
        num_gpus: GPUs that train together.
        gpu_memory_gb: memory of one, 1e9 bytes.
        flops_per_s: its peak in bfloat16; 3.12e14 is an A100's.
        efficiency: share of the peak that a training reaches.
        num_classes: labels of the linear classification heads.
    """

    num_gpus: int = 8
    gpu_memory_gb: float = 80.0
    flops_per_s: float = 3.12e14
    efficiency: float = 0.4
    num_classes: int = 1_000

    def faults(self) -> list[str]:
        """Every number is positive, and an efficiency is a share."""
        faults = [f"{name}: expected a number > 0, got {value:g}" for name, value in self if value <= 0]
        return faults + ([f"efficiency: expected at most 1, got {self.efficiency:g}"] if self.efficiency > 1 else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One use of a training stage, as the plan sees it.

    Attributes:
        name: the step, for example ``expert-detect``.
        trainer: its trainer's settings.
        image_size_px: height and width of its images.
        num_parameters: learned parameters that it holds, all of them.
        macs_per_sample: forward multiply-adds a sample, of what is trained.
        forward_macs_per_sample: those of teachers and sources, which have no backward pass.
        image_passes: through backbones.
        activations: of one sample.
        batch_bytes: what a whole batch of all ranks costs each rank besides.
    """

    name: str
    trainer: TrainerConfig
    image_size_px: int
    num_parameters: int
    macs_per_sample: int
    forward_macs_per_sample: int = 0
    image_passes: int
    activations: Activations
    batch_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The plan of one training.

    Attributes:
        name: the step.
        num_parameters: learned parameters.
        macs_per_image: forward multiply-adds of one image through the backbone it is trained with.
        image_passes: through backbones.
        samples_per_gpu: samples of a micro-batch on one GPU.
        zero_stage: as configured.
        checkpoint_activations: as configured.
        activation_bytes: a GPU, without activation checkpointing.
        checkpointed_activation_bytes: a GPU, with it.
        state_bytes: a GPU, for weights, gradients and optimizer, by ZeRO stage.
        gpu_bytes: a GPU, as configured, with a fifth on top for what is not counted.
        fits: whether that is at most the GPU's memory.
        storage_bytes: of the checkpoints that are kept, and of the result.
        flops: floating-point operations of the whole training.
        gpu_hours: at the efficiency asked for.
    """

    name: str
    num_parameters: int
    macs_per_image: int
    image_passes: int
    samples_per_gpu: int
    zero_stage: int
    checkpoint_activations: bool
    activation_bytes: int
    checkpointed_activation_bytes: int
    state_bytes: dict[int, int]
    gpu_bytes: int
    fits: bool
    storage_bytes: int
    flops: float
    gpu_hours: float


def plan(run: RunConfig, machine: Machine) -> list[Row]:
    """The plan of every training of a run, in the order of the pipeline.

    Raises:
        ConfigError: a batch does not divide over the GPUs; names the step.
    """
    return [_row(training, run, machine) for training in trainings(run, machine.num_classes)]


def trainings(run: RunConfig, num_classes: int) -> Iterator[Training]:
    """Every use of a training stage; the genotype is the search's template, which no found one exceeds by default."""
    genotype = GENOTYPES[run.search.template]
    for name, config in run.baselines.items():
        yield _amateur(name, config, genotype)
    yield _amateur("amateur", run.amateur, genotype)
    if run.amateur_local.image_passes:
        yield _amateur_local(run.amateur_local, genotype)
    for family, config in run.experts.items():
        yield _expert(f"expert-{family}", config, genotype, num_classes)
    for name, config in (run.generalists | run.controls).items():
        if config.image_passes and not config.merges:
            yield _generalist(f"generalist-{name}", config, genotype, num_classes)


def _amateur(name: str, config: amateur.Config, genotype: Genotype) -> Training:
    text, signals, size_px = config.text, config.signals, config.augment.image_size_px
    bf16 = config.trainer.precision == "bf16"
    num_views = signals.num_views
    num_texts = 1 + bool(signals.multi_view or signals.neighbour)
    width = text.embedding_width
    parameters = num_parameters(genotype) + genotype.vector_width * width + 1
    parameters += text_parameters(text.width, text.num_blocks, VOCAB_SIZE, text.context_length, width)
    if signals.image_self:
        parameters += 4 * width**2 + 8 * width
    if signals.text_self:
        parameters += (text.width + 1) * VOCAB_SIZE
    num_contrasts = 1 + 3 * bool(signals.multi_view) + 4 * bool(signals.neighbour)
    per_text = text_activations(text.width, text.num_blocks, text.num_heads, text.context_length, bf16=bf16)
    trainer = config.trainer
    return Training(
        name=name,
        trainer=trainer,
        image_size_px=size_px,
        num_parameters=parameters,
        macs_per_sample=num_views * num_macs(genotype, size_px)
        + num_texts * text_macs(text.width, text.num_blocks, text.context_length, width),
        image_passes=config.image_passes,
        activations=backbone_activations(genotype, size_px, bf16=bf16) * num_views + per_text * num_texts,
        batch_bytes=contrast_bytes(trainer.batch_size // trainer.num_accumulation, num_contrasts),
    )


def _amateur_local(config: amateur_local.Config, genotype: Genotype) -> Training:
    size_px, num_views = config.augment.image_size_px, config.augment.num_views
    macs = num_macs(genotype, size_px)
    return Training(
        name="amateur-local",
        trainer=config.trainer,
        image_size_px=size_px,
        # The momentum teacher's weights are no part of the optimizer, but lie on every GPU.
        num_parameters=num_parameters(genotype),
        macs_per_sample=num_views * macs,
        forward_macs_per_sample=config.passes_per_sample[1] * macs,
        image_passes=config.image_passes,
        activations=backbone_activations(genotype, size_px, bf16=config.trainer.precision == "bf16") * num_views,
        batch_bytes=4 * num_parameters(genotype),
    )


def _expert(name: str, config: expert.Config, genotype: Genotype, num_classes: int) -> Training:
    size_px = config.augment.image_size_px
    heads = sum(_classifier(family, genotype, num_classes) for family in config.all_families)
    return Training(
        name=name,
        trainer=config.trainer,
        image_size_px=size_px,
        num_parameters=num_parameters(genotype) + heads,
        macs_per_sample=num_macs(genotype, size_px),
        image_passes=config.image_passes,
        activations=backbone_activations(genotype, size_px, bf16=config.trainer.precision == "bf16"),
    )


def _generalist(name: str, config: generalist.Config, genotype: Genotype, num_classes: int) -> Training:
    size_px, trainer = config.augment.image_size_px, config.trainer
    macs, parameters = num_macs(genotype, size_px), num_parameters(genotype)
    num_trained, num_forward = config.passes_per_sample
    total = parameters
    if config.mode == "central":
        # Every joined expert is the main one of some view, and there is a transfer for each ordered pair.
        num_experts = len(config.joined_families)
        channels = genotype.channels[:-1]
        total = num_experts * parameters + num_experts * (num_experts - 1) * transfer_parameters(channels, channels)
    heads = sum(_classifier(family, genotype, num_classes) for family in config.families)
    return Training(
        name=name,
        trainer=trainer,
        image_size_px=size_px,
        num_parameters=total + heads,
        macs_per_sample=num_trained * macs,
        forward_macs_per_sample=num_forward * macs,
        image_passes=config.image_passes,
        activations=backbone_activations(genotype, size_px, bf16=trainer.precision == "bf16") * num_trained,
        batch_bytes=4 * parameters * num_forward if config.mode == "squeeze" else 0,
    )


def _classifier(family: str, genotype: Genotype, num_classes: int) -> int:
    return (genotype.vector_width + 1) * num_classes if family in ("classify", "multilabel") else 0


def _row(training: Training, run: RunConfig, machine: Machine) -> Row:
    trainer, num_gpus = training.trainer, machine.num_gpus
    if trainer.batch_size % (num_gpus * trainer.num_accumulation):
        raise ConfigError(
            f"{training.name}: trainer.batch_size {trainer.batch_size} must be a multiple of GPUs x micro-batches = "
            f"{num_gpus} x {trainer.num_accumulation}; choose --num-gpus or override the batch"
        )
    num_samples = trainer.batch_size // (num_gpus * trainer.num_accumulation)
    activations = training.activations * num_samples
    average = bool(trainer.ema_decay)
    states = state_bytes(training.num_parameters, num_gpus, average=average, bf16=trainer.precision == "bf16")
    kept = activations.checkpointed if trainer.checkpoint_activations else activations.whole
    gpu_bytes = int((1 + HEADROOM) * (states[trainer.zero_stage] + kept + training.batch_bytes))
    forwards = FORWARD_AND_BACKWARD + trainer.checkpoint_activations
    flops = 2.0 * trainer.num_samples * (training.macs_per_sample * forwards + training.forward_macs_per_sample)
    per_parameter = 12 + 4 * average
    num_checkpoints = NUM_KEPT_CHECKPOINTS if trainer.checkpoint_every else 0
    return Row(
        name=training.name,
        num_parameters=training.num_parameters,
        macs_per_image=num_macs(GENOTYPES[run.search.template], training.image_size_px),
        image_passes=training.image_passes,
        samples_per_gpu=num_samples,
        zero_stage=trainer.zero_stage,
        checkpoint_activations=trainer.checkpoint_activations,
        activation_bytes=activations.whole + training.batch_bytes,
        checkpointed_activation_bytes=activations.checkpointed + training.batch_bytes,
        state_bytes=states,
        gpu_bytes=gpu_bytes,
        fits=gpu_bytes <= machine.gpu_memory_gb * GIGABYTE,
        storage_bytes=training.num_parameters * (num_checkpoints * per_parameter + 4),
        flops=flops,
        gpu_hours=flops / (machine.flops_per_s * machine.efficiency) / 3600,
    )


def summary(rows: list[Row]) -> dict[str, Any]:
    """The sums of a plan, and whether every step fits."""
    return {
        "image_passes": sum(row.image_passes for row in rows),
        "flops": sum(row.flops for row in rows),
        "gpu_hours": sum(row.gpu_hours for row in rows),
        "storage_bytes": sum(row.storage_bytes for row in rows),
        "fits": all(row.fits for row in rows),
    }


def to_json(rows: list[Row]) -> dict[str, Any]:
    """Plain values of a plan."""
    return {"steps": [asdict(row) for row in rows], "total": summary(rows)}


def to_lines(rows: list[Row], machine: Machine) -> list[str]:
    """A plan as a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{machine.num_gpus} GPUs of {machine.gpu_memory_gb:g} GB", title_justify="left")
    for title in ("step", "parameters", "GMAC an image", "samples a GPU", "activations GB", "checkpointed GB"):
        table.add_column(title, justify="left" if title == "step" else "right")
    for title in ("ZeRO 0/1/2/3 GB", "recipe", "GPU GB", "storage GB", "image passes", "FLOPs", "GPU-hours"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.num_parameters / 1e6:,.1f} M",
            f"{row.macs_per_image / 1e9:.2f}",
            f"{row.samples_per_gpu}",
            f"{row.activation_bytes / GIGABYTE:.2f}",
            f"{row.checkpointed_activation_bytes / GIGABYTE:.2f}",
            " / ".join(f"{size / GIGABYTE:.2f}" for size in row.state_bytes.values()),
            f"ZeRO {row.zero_stage}{', checkpointed' if row.checkpoint_activations else ''}",
            f"{row.gpu_bytes / GIGABYTE:.1f}{'' if row.fits else ' too much'}",
            f"{row.storage_bytes / GIGABYTE:.2f}",
            f"{row.image_passes:,}",
            f"{row.flops:.2e}",
            f"{row.gpu_hours:,.1f}" if row.gpu_hours >= 1 else f"{row.gpu_hours:.4f}",
        )
    console = Console(width=220)
    with console.capture() as captured:
        console.print(table)
    total = summary(rows)
    text = f"{total['flops']:.2e} FLOPs, {total['gpu_hours']:,.2f} GPU-hours at {machine.efficiency:.0%} of the peak"
    too_big = [row.name for row in rows if not row.fits]
    verdict = f"does not fit: {', '.join(too_big)}" if too_big else "every step fits"
    return [captured.get().rstrip(), f"together {total['image_passes']:,} image passes, {text}; {verdict}"]
