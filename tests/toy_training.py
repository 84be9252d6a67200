"""A contrastive toy without BatchNorm, small enough for any number of trainings, and a main for its ranks."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import torch
import torch.nn.functional as F
from helpers import trainer_config
from torch import nn

from intern_vision.errors import InternError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.store import open_store
from intern_vision.train.checkpoint import Checkpoints
from intern_vision.train.launch import start_distributed
from intern_vision.train.losses import contrastive_loss, gather_rows
from intern_vision.train.objective import ImageTextObjective, Objective
from intern_vision.train.settings import SignalWeights
from intern_vision.train.trainer import RankContext, Trainer, TrainJob

WIDTH = 6
NUM_SAMPLES = 40
VOCAB_SIZE, MASK_ID, LENGTH = 300, 297, 16
SIGNALS = ("image_text", "multi_view", "image_self", "text_self", "neighbour")


class ToyClip(Objective):
    """Two linear towers and a temperature under CLIP's loss; ``mean`` takes each sample for itself instead."""

    def __init__(self, kind: str = "clip", seed: int = 0) -> None:
        torch.manual_seed(seed)
        model = nn.ModuleDict({"image": nn.Linear(WIDTH, 4), "text": nn.Linear(WIDTH, 4)})
        model.log_scale = nn.Parameter(torch.full((1,), 1.0))
        super().__init__(model)
        self.kind = kind

    def forward(self, batch):
        image_BD = self.model["image"](batch["image_row"])
        text_BD = self.model["text"](batch["text_row"])
        if self.kind == "mean":
            return {"mean": (image_BD - text_BD).square().sum(1).mean()}, {}
        rows = [gather_rows(F.normalize(rows_BD, dim=-1)) for rows_BD in (image_BD, text_BD)]
        return {"clip": contrastive_loss(*rows, self.model.log_scale.exp().squeeze())}, {}


class ToySource:
    """Random rows by index."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = np.random.default_rng(index).standard_normal((2, WIDTH)).astype(np.float32)
        return {"key": f"toy-{index:02d}", "image_row": rows[0], "text_row": rows[1]}


class PoisonedSource(ToySource):
    """One sample is not a number."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return sample | {"image_row": sample["image_row"] * np.nan} if index == self.index else sample


def toy_job(kind: str = "clip", source: ToySource | None = None, identity: dict | None = None, **settings) -> TrainJob:
    return TrainJob(
        objective=ToyClip(kind),
        source=source or ToySource(),
        transform=lambda sample, rng: sample,
        config=trainer_config(**{"num_steps": 6, "learning_rate": 0.05} | settings),
        identity=identity or {},
    )


def weights_of(job: TrainJob) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in job.objective.model.state_dict().items()}


def run_toy(job: TrainJob, checkpoints: Checkpoints | None = None, stop_at: int = 0) -> list[dict[str, Any]]:
    """Trains here; asked to stop at report number ``stop_at``, 1-based. Returns the events."""
    return run_toy_whole(job, checkpoints, stop_at)[0]


def run_toy_whole(
    job: TrainJob, checkpoints: Checkpoints | None = None, stop_at: int = 0
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The events, and all weights whatever the ZeRO stage."""
    start_distributed()
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    events: list[dict[str, Any]] = []
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == stop_at

    context = RankContext(
        rank=rank, num_ranks=num_ranks, local_rank=rank, on_event=events.append, should_stop=should_stop
    )
    trainer = Trainer(job, context, checkpoints)
    trainer.train()
    with trainer.whole_weights():
        return events, weights_of(job)


def toy_checkpoints(folder: Path, **settings: Any) -> Checkpoints:
    local_dir = folder / f"local-{os.getpid()}" if "RANK" not in os.environ else folder / "local"
    local_dir.mkdir(parents=True, exist_ok=True)
    root = f"file://{folder}/store"
    return Checkpoints(open_store(root), f"{root}/checkpoints", local_dir, **settings)


def error_of(job: TrainJob, **settings: Any) -> dict[str, str]:
    try:
        run_toy(job, **settings)
    except InternError as error:
        return {"type": type(error).__name__, "message": str(error)}
    return {}


def image_text(weights=None, queue_rows=32, **genotype):
    torch.manual_seed(0)
    text = TextSpec(vocab_size=VOCAB_SIZE, **helpers.TEXT.to_dict())
    spec = ModelSpec(genotype=helpers.GENOTYPE.with_overrides(genotype), image_size_px=helpers.SIZE_PX, text=text)
    return ImageTextObjective(VisionModel(spec), weights or SignalWeights(), mask_id=MASK_ID, queue_rows=queue_rows)


def only(**weights):
    return SignalWeights(**{name: 0.0 for name in SIGNALS} | {"image_text": 1.0} | weights)


def batch_of(num_pairs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_pairs, 3, helpers.SIZE_PX, helpers.SIZE_PX)

    def tokens():
        ids = torch.randint(1, MASK_ID, (num_pairs, LENGTH), generator=generator)
        ids[:, 0], ids[:, 9], ids[:, 10:] = MASK_ID + 1, MASK_ID + 2, 0
        return ids

    return {
        "image_BCHW": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "second_image_BCHW": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "tokens_BL": tokens(),
        "second_tokens_BL": tokens(),
        "keys": [str(pair) for pair in range(num_pairs)],
    }


def joint_gradients(folder: Path) -> None:
    """Losses and gradients of the contrasts on this rank's share of a batch, averaged as the engine does."""
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    objective = image_text(only(multi_view=0.3, neighbour=0.2)).eval()  # eval: BatchNorm takes each image alone
    batch = {name: value for name, value in batch_of(8).items() if torch.is_tensor(value)}
    losses, _ = objective({name: value.chunk(num_ranks)[rank] for name, value in batch.items()})
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    if num_ranks > 1:
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
            gradient /= num_ranks
    values = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
    torch.save(gradients | values | {"queue": objective.queue.rows_QD}, folder / f"joint-{num_ranks}-{rank}.pt")


def main(folder: Path, index_to_poison: int) -> None:
    """What needs two real ranks, in one start."""
    start_distributed()
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    for kind in ("clip", "mean"):
        for zero_stage in range(4):
            job = toy_job(kind, zero_stage=zero_stage)
            events, weights = run_toy_whole(job)
            found[f"{kind}{zero_stage}_losses"] = [event["metrics"]["loss"] for event in events]
            torch.save(weights, folder / f"{kind}{zero_stage}-{rank}.pt")
    joint_gradients(folder)
    found["poisoned"] = error_of(toy_job("mean", PoisonedSource(index_to_poison), log_every=6))
    found["stopped"] = error_of(toy_job(log_every=3), checkpoints=toy_checkpoints(folder / "zero0"), stop_at=1)
    found["stopped_zero1"] = error_of(
        toy_job(log_every=3, zero_stage=1), checkpoints=toy_checkpoints(folder / "zero1"), stop_at=1
    )
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
