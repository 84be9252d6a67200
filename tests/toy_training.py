"""A contrastive toy without BatchNorm, small enough for any number of trainings, and a main for its ranks."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import torch
import torch.nn.functional as F
from helpers import trainer_config
from torch import nn

from intern_vision.data.augment import crop_affine
from intern_vision.data.settings import AugmentConfig
from intern_vision.data.text import mask_tokens
from intern_vision.errors import InternError
from intern_vision.models.genotype import TOY_XCA
from intern_vision.models.metanet import MetaNet
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.store import open_store
from intern_vision.train import engine
from intern_vision.train.batch_norm import synchronise_batch_norms
from intern_vision.train.checkpoint import Checkpoints
from intern_vision.train.dense_objective import PatchObjective, PixelObjective
from intern_vision.train.image_text import ImageTextObjective
from intern_vision.train.launch import start_distributed
from intern_vision.train.losses import contrastive_loss, gather_rows
from intern_vision.train.objective import Objective
from intern_vision.train.settings import LocalConfig, SignalWeights
from intern_vision.train.trainer import RankContext, Trainer, TrainJob

WIDTH = 6
NUM_SAMPLES = 40
VOCAB_SIZE, MASK_ID, LENGTH = 300, 297, 16
LOCAL_KINDS = {"pixpro": PixelObjective, "masked": PatchObjective}
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


class SpikingSource(ToySource):
    """From its ``at``-th read on, ``num_spikes`` reads are scaled: a loss out of the ordinary, then none."""

    def __init__(self, at: int, num_spikes: int, scale: float) -> None:
        self.num_reads, self.at, self.num_spikes, self.scale = 0, at, num_spikes, scale

    def __getitem__(self, index: int):
        self.num_reads += 1
        sample = super().__getitem__(index)
        is_spike = self.at <= self.num_reads < self.at + self.num_spikes
        return sample | {"image_row": sample["image_row"] * np.float32(self.scale)} if is_spike else sample


class ToyXca(Objective):
    """MN-B15's operators in 0.14 million parameters, regressing a row from an image.

    BatchNorm keeps its statistics: those of a batch would be a rank's own.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        backbone = MetaNet(TOY_XCA.with_overrides({"layer_scale_init": 0.1}))
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
        super().__init__(nn.ModuleDict({"backbone": backbone, "head": nn.Linear(backbone.vector_width, WIDTH)}))

    def train(self, mode: bool = True) -> "ToyXca":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, batch):
        row_BD = self.model["head"](self.model["backbone"](batch["picture"]).vector_BD)
        return {"row": (row_BD - batch["text_row"]).square().mean()}, {}


class ImageSource(ToySource):
    """Random rows with a random image."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.random.default_rng((index, 1)).standard_normal((3, 32, 32)).astype(np.float32)
        return super().__getitem__(index) | {"picture": image}


def xca_job(**settings: Any) -> TrainJob:
    job = toy_job("mean", ImageSource(), **{"learning_rate": 1e-3, "weight_decay": 0.1, "log_every": 3} | settings)
    job.objective = ToyXca()
    return job


def resume_job(zero_stage: int) -> TrainJob:
    """With an average of the weights; the operators of MN-B15 where the weights are partitioned."""
    make = xca_job if zero_stage == 3 else toy_job
    return make(zero_stage=zero_stage, log_every=3, ema_decay=0.9)


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


def fresh_amateur(genotype=None):
    torch.manual_seed(0)
    text = TextSpec(vocab_size=VOCAB_SIZE, **helpers.TEXT.to_dict())
    genotype = helpers.GENOTYPE.with_overrides(genotype or {})
    return VisionModel(ModelSpec(genotype=genotype, image_size_px=helpers.SIZE_PX, text=text))


def image_text(weights=None, queue_rows=32, genotype=None, **settings):
    return ImageTextObjective(fresh_amateur(genotype), weights or SignalWeights(), queue_rows=queue_rows, **settings)


def local_objective(kind, num_updates=10, genotype=None, **changes):
    model = fresh_amateur(genotype)
    small = LocalConfig(hidden_width=12, projection_width=8, num_prototypes=10)
    return LOCAL_KINDS[kind](model, copy.deepcopy(model), small.with_overrides(changes), num_updates)


def affines_of(num_images, seed=0):
    """Crops of images of 50 x 40 pixels."""
    config, rng = AugmentConfig(image_size_px=helpers.SIZE_PX), np.random.default_rng(seed)
    return torch.from_numpy(np.stack([crop_affine(config, 50, 40, rng.random(5)) for _ in range(num_images)])).float()


def local_batch(num_images=6):
    batch = {name: value for name, value in batch_of(num_images).items() if "token" not in name}
    return batch | {"affine_B23": affines_of(num_images), "second_affine_B23": affines_of(num_images, seed=1)}


def only(**weights):
    return SignalWeights(**{name: 0.0 for name in SIGNALS} | {"image_text": 1.0} | weights)


def batch_of(num_pairs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_pairs, 3, helpers.SIZE_PX, helpers.SIZE_PX)

    def tokens():
        ids = torch.randint(1, MASK_ID, (num_pairs, LENGTH), generator=generator)
        ids[:, 0], ids[:, 9], ids[:, 10:] = MASK_ID + 1, MASK_ID + 2, 0
        return ids

    batch = {
        "image_BCHW": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "second_image_BCHW": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "tokens_BL": tokens(),
        "second_tokens_BL": tokens(),
        "keys": [str(pair) for pair in range(num_pairs)],
    }
    rng = np.random.default_rng(seed)
    rows = [mask_tokens(row.numpy(), rng, mask_id=MASK_ID, share=0.3) for row in batch["tokens_BL"]]
    masked, targets = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return batch | {"masked_tokens_BL": masked, "token_targets_BL": targets}


def joint_gradients(folder: Path) -> None:
    """Losses, gradients and buffers of Up-A on this rank's share of a batch, as the engine averages them.

    In training mode: every BatchNorm, also the backbone's, sees the images of all ranks.
    """
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    batch = {name: value for name, value in (batch_of(8) | local_batch(8)).items() if torch.is_tensor(value)}
    share = {name: value.chunk(num_ranks)[rank] for name, value in batch.items()}
    still = {"genotype": {"drop_path": 0.0}}
    objectives = {contrast: image_text(contrast=contrast, **still) for contrast in ("softmax", "sigmoid")}
    for kind, objective in (objectives | {"pixpro": local_objective("pixpro", **still)}).items():
        synchronise_batch_norms(objective)
        losses, _ = objective(share)
        sum(losses.values()).backward()
        found = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
        found |= {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        if num_ranks > 1:
            for tensor in found.values():
                torch.distributed.all_reduce(tensor)
                tensor /= num_ranks
        found |= {name: buffer for name, buffer in objective.named_buffers() if "num_batches" not in name}
        torch.save(found, folder / f"joint-{kind}-{num_ranks}-{rank}.pt")


def start_ranks(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What each of two ranks of this file's main found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, str(folder), *arguments]
    ranks = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def train_on_ranks(folder: Path, index_to_poison: int) -> dict[str, Any]:
    """What needs two real ranks, in one start."""
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    for kind in ("clip", "mean"):
        for zero_stage in range(4):
            job = toy_job(kind, zero_stage=zero_stage)
            events, weights = run_toy_whole(job)
            found[f"{kind}{zero_stage}_losses"] = [event["metrics"]["loss"] for event in events]
            torch.save(weights, folder / f"{kind}{zero_stage}-{rank}.pt")
    joint_gradients(folder)
    # What was allocated and never written is NaN then, not what the memory happens to hold.
    torch.use_deterministic_algorithms(True)
    found["unwritten"] = error_of(toy_job("mean", zero_stage=3))
    torch.use_deterministic_algorithms(False)
    found["poisoned"] = error_of(toy_job("mean", PoisonedSource(index_to_poison), log_every=6))
    return found


def resume_on_ranks(folder: Path) -> dict[str, Any]:
    """Stops where one rank goes on, and goes on where one rank stopped."""
    rank = torch.distributed.get_rank()
    found: dict[str, Any] = {}
    for zero_stage in range(4):
        stopped = toy_checkpoints(folder / f"two-{zero_stage}")
        found[f"stopped{zero_stage}"] = error_of(resume_job(zero_stage), checkpoints=stopped, stop_at=1)
        events, weights = run_toy_whole(resume_job(zero_stage), toy_checkpoints(folder / f"one-{zero_stage}"))
        found[f"resumed{zero_stage}"] = events
        torch.save(weights, folder / f"resumed{zero_stage}-{rank}.pt")
    # Rank 1 alone sees the spike, in the sixth step; both go back.
    spiking = SpikingSource(4 * 5 + 1, rank, 1e3)
    settings = {"num_steps": 9, "checkpoint_every": 2, "divergence_margin": 10.0, "zero_stage": 3}
    found["rolled_back"] = run_toy(toy_job("mean", spiking, **settings), toy_checkpoints(folder / "spike"))
    return found


def main(folder: Path, *arguments: str) -> None:
    """Trains with a poisoned sample's index as the argument, resumes without one."""
    engine.PERSISTENT_ELEMENTS = 0  # toys are small: partition every parameter
    start_distributed()
    found = train_on_ranks(folder, int(arguments[0])) if arguments else resume_on_ranks(folder)
    (folder / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)
