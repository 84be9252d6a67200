"""Codebook of upstream images: what lets downstream images be drawn anew for multi-stage fine-tuning (MF)."""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.train.launch import run_ranks
from intern_vision.train.settings import CodebookConfig, TrainerConfig

if TYPE_CHECKING:
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.workspace import Workspace


class Config(base.Config):
    """How the codebook is learned.

    Attributes:
        name: what the result is called.
        codebook: the auto-encoder.
        trainer: the loop's settings.
        augment: how images are cropped; its size must be the codebook's.
        num_validation_images: images of the validation split that the facts are measured on.
    """

    name: str = "codebook"
    codebook: CodebookConfig = CodebookConfig()
    trainer: TrainerConfig = TrainerConfig(num_steps=1_000, batch_size=32, learning_rate=2e-3, weight_decay=0.0)
    augment: AugmentConfig = AugmentConfig(colour_probability=0, grey_probability=0)
    num_validation_images: int = Field(default=512, ge=1)

    def faults(self) -> list[str]:
        """One image size, and one view."""
        faults = []
        if self.augment.image_size_px != self.codebook.image_size_px:
            faults.append(
                f"augment.image_size_px must be codebook.image_size_px {self.codebook.image_size_px}, "
                f"got {self.augment.image_size_px}"
            )
        if self.augment.num_views != 1:
            faults.append(f"augment.num_views must be 1, got {self.augment.num_views}")
        return faults


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Learns a codebook from the images of the input ``data``.

    Where a dataset has validation images, the facts ``psnr_db`` (peak signal to noise of restored images) and
    ``used_codes`` (share of the book they need) say how good it is.
    """
    run_ranks("represent", config, context)
    facts = measure(config, inputs, context)
    context.facts |= facts
    if facts:
        context.progress.say(f"codebook: {facts['psnr_db']:.1f} dB, {facts['used_codes']:.0%} of the codes in use")
    return context.commit("weights", config.name)


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    import torch

    from intern_vision.models.quantised import QuantisedAutoencoder
    from intern_vision.train.represented import CodebookObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import upstream_augment, upstream_infos, upstream_source

    torch.manual_seed(config.trainer.seed)
    return TrainJob(
        objective=CodebookObjective(QuantisedAutoencoder(config.codebook)),
        source=upstream_source(workspace, ()),
        transform=upstream_augment(upstream_infos(workspace, ()), config.augment),
        config=config.trainer,
        identity=config.to_dict(),
    )


def measure(config: Config, inputs: Inputs, context: StageContext) -> dict[str, float]:
    """``psnr_db`` and ``used_codes`` on validation images of the first dataset that has some; else empty."""
    import torch

    from intern_vision.data.augment import Resize
    from intern_vision.data.loader import ShardSource, evaluation_batches, load_info
    from intern_vision.models.quantised import QuantisedAutoencoder
    from intern_vision.train.features import compute_device

    uri = next((ref.uri for ref in inputs.many("data") if load_info(context.store, ref.uri).num_val), "")
    if not uri:
        return {}
    model = QuantisedAutoencoder.load(context.output_dir).to(compute_device())
    source = ShardSource(context.store, uri, cache_dir=context.cache_dir, split="val", fields=())
    resize = Resize(config.augment, num_concepts=len(source.info.concept_names))
    squared, num_images, used = 0.0, 0, set()
    for batch in evaluation_batches(source, 64, resize):
        image_BCHW = batch["image_BCHW"].to(compute_device())
        with torch.inference_mode():
            used |= set(model.indices(model.encode(image_BCHW)).unique().tolist())
        error_BCHW = model.restore(image_BCHW).float() - image_BCHW.float()
        squared += float(error_BCHW.square().mean((1, 2, 3)).sum())
        num_images += len(image_BCHW)
        if num_images >= config.num_validation_images:
            break
    return {
        "psnr_db": 10 * math.log10(255**2 / max(squared / num_images, 1e-9)),
        "used_codes": len(used) / config.codebook.num_codes,
    }
