"""D1: a step of our trainer over a plain loop on the bare DeepSpeed engine.

Both train the same backbone on the same batches with the same optimizer and schedule, and both take the
batches from the same loader over samples that lie in memory. What the trainer adds is what a run needs:
seeds, means of the losses, the check for finite weights and the report.

B batch, C channels, H W height and width, K concepts.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Figure, Settings, interleave, median_ratio, run_script
from intern_vision.data.loader import make_loader
from intern_vision.heads import HeadConfig
from intern_vision.models.genotype import NANO, num_macs
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task
from intern_vision.train.launch import import_deepspeed, start_distributed
from intern_vision.train.objective import MultiTaskObjective
from intern_vision.train.schedule import parameter_groups, warmup_cosine
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.trainer import RankContext, Trainer, TrainJob

NUM_CONCEPTS = 48
IMAGE_SIZE_PX = 64
LOG_EVERY = 20
"""As in the presets: a report is part of every twentieth step."""


class MemorySource:
    """Random images with random concepts, made once."""

    def __init__(self, num_samples: int) -> None:
        rng = np.random.default_rng(0)
        shape = (num_samples, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
        self._images = rng.integers(0, 256, shape, dtype=np.uint8)
        self._concepts = (rng.random((num_samples, NUM_CONCEPTS)) < 0.1).astype(np.float32)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"key": f"sample-{index}", "image": self._images[index], "concepts": self._concepts[index]}


def make_job(config: TrainerConfig) -> TrainJob:
    """Trains the nano backbone on concepts, as the multi-label expert does."""
    task = Task(family="multilabel", class_names=tuple(f"concept-{k}" for k in range(NUM_CONCEPTS)))
    heads = {"multilabel": HeadSpec(task=task, config=HeadConfig())}
    torch.manual_seed(0)
    model = VisionModel(ModelSpec(genotype=NANO, image_size_px=IMAGE_SIZE_PX, heads=heads))
    return TrainJob(
        objective=MultiTaskObjective(model),
        source=MemorySource(4 * config.batch_size),
        transform=lambda sample, rng: sample,
        config=config,
    )


class Autocast(nn.Module):
    """bfloat16 inside the engine, which switches an outer autocast off."""

    def __init__(self, objective: nn.Module, device_type: str) -> None:
        super().__init__()
        self.objective = objective
        self.device_type = device_type

    def forward(self, batch: dict[str, Any]) -> Any:
        """The objective's losses and values."""
        with torch.autocast(self.device_type, dtype=torch.bfloat16):
            return self.objective(batch)


def plain_loop(job: TrainJob) -> Callable[[], None]:
    """What one would write without the trainer: an engine, batches, forward, backward, step."""
    config = job.config
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    objective = job.objective.to(device)
    groups = parameter_groups(
        objective, learning_rate=config.learning_rate, weight_decay=config.weight_decay, learning_rate_scales={}
    )
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, config.num_steps, 0))
    engine, *_ = import_deepspeed().initialize(
        model=Autocast(objective, device.type),
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,
        config={"train_micro_batch_size_per_gpu": config.batch_size, "steps_per_print": 2**31},
    )

    def run() -> None:
        engine.train()
        for batch in loader(job):
            batch = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
            losses, _ = engine(batch)
            engine.backward(sum(losses.values()))
            engine.step()

    return run


def loader(job: TrainJob) -> Any:
    """The batches that the trainer takes, too."""
    config = job.config
    return make_loader(
        job.source,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=0,
        num_steps=config.num_steps,
        rank=0,
        num_ranks=1,
        transform=job.transform,
        num_threads=config.num_loader_threads,
    )


def clock() -> float:
    """CPU seconds; on a GPU, whose work they do not count, elapsed seconds at which its work is done."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def matmul_flops_per_s(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product in this process."""
    size = 8192 if torch.cuda.is_available() else 1024
    left = torch.randn(size, size, device="cuda" if torch.cuda.is_available() else "cpu", dtype=dtype)
    seconds = interleave({"matmul": lambda: left @ left}, 5, clock)["matmul"]
    return 2 * size**3 / min(seconds)


def measure(settings: Settings) -> list[Figure]:
    """The trainer's steps over the plain loop's."""
    logging.disable(logging.WARNING)
    # Threads that wait for each other burn CPU seconds and would blur the ratio.
    torch.set_num_threads(1)
    start_distributed()
    num_steps, batch_size = (2, 4) if settings.quick else (LOG_EVERY, 32)
    config = TrainerConfig(
        num_steps=num_steps, batch_size=batch_size, learning_rate=1e-3, warmup_share=0.0, log_every=LOG_EVERY
    )
    trainer = Trainer(make_job(config), RankContext())
    arms = {"trainer": trainer.train, "plain": plain_loop(make_job(config))}
    # Twice the rounds asked for: the difference is small beside the noise of a shared machine.
    seconds = interleave(arms, 2 * settings.num_rounds, clock)
    # Backward costs twice the forward pass; a multiply-add is two operations.
    flops = 3 * 2 * num_macs(NANO, IMAGE_SIZE_PX) * batch_size * num_steps
    least_s = flops / matmul_flops_per_s(torch.bfloat16)
    share = least_s / min(seconds["trainer"])
    step_ms = 1e3 * min(seconds["trainer"]) / num_steps
    return [
        Figure(
            name="D1 trainer step",
            value=median_ratio(seconds, "trainer", "plain"),
            target=1.03,
            reference=f"10-line loop on the bare DeepSpeed engine, nano backbone, batch {batch_size}, bf16",
            limit=f"multiply-adds at this process's matrix-product rate: {share:.0%} of the {step_ms:.0f} ms step",
        )
    ]


if __name__ == "__main__":
    run_script(measure, __doc__.splitlines()[0])
