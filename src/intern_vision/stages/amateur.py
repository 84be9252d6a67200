"""Up-A (Amateur): one backbone from captioned images; with the image-text signal alone it is the CLIP baseline."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.train.launch import run_ranks
from intern_vision.train.settings import SignalWeights, TrainerConfig

if TYPE_CHECKING:
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.workspace import Workspace


class TextConfig(base.Config):
    """The text tower; ``num_blocks`` 0 is a bag of words, which small runs learn from fastest.

    Attributes:
        context_length: tokens of a caption.
        width: token width.
        num_blocks: causal transformer blocks.
        num_heads: attention heads.
        pooling: ``end`` (end-of-text token) or ``mean``.
        embedding_width: width of the space shared with images.
    """

    context_length: int = Field(default=77, ge=4)
    width: int = Field(default=512, ge=8)
    num_blocks: int = Field(default=12, ge=0)
    num_heads: int = Field(default=8, ge=1)
    pooling: Literal["end", "mean"] = "end"
    embedding_width: int = Field(default=1024, ge=8)


class Config(base.Config):
    """How an amateur is trained.

    Attributes:
        name: what the result is called.
        trainer: the loop's settings.
        signals: which supervision counts how much.
        text: the text tower.
        augment: how views are made; ``num_views`` follows from the signals.
        queue_rows: length of the nearest-neighbour queue (DeCLIP: 65,536).
    """

    name: str = "amateur"
    trainer: TrainerConfig
    signals: SignalWeights = SignalWeights()
    text: TextConfig = TextConfig()
    augment: AugmentConfig
    queue_rows: int = Field(default=65_536, ge=1)

    def faults(self) -> list[str]:
        """Views and signals must agree."""
        wanted = self.signals.num_views
        if self.augment.num_views != wanted:
            return [f"augment.num_views must be {wanted} for these signals, got {self.augment.num_views}"]
        return []


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Trains on the input ``data`` with the backbone of the input ``genotype``."""
    run_ranks("amateur", config, context)
    return context.commit("weights", config.name)


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
    from intern_vision.train.objective import ImageTextObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import (
        chosen_genotype,
        dataset_tokenizer,
        upstream_augment,
        upstream_info,
        upstream_source,
    )

    tokenizer = dataset_tokenizer(workspace)
    text = TextSpec(vocab_size=tokenizer.vocab_size, **config.text.to_dict())
    spec = ModelSpec(genotype=chosen_genotype(workspace), image_size_px=config.augment.image_size_px, text=text)
    return TrainJob(
        objective=ImageTextObjective(
            VisionModel(spec), config.signals, mask_id=tokenizer.mask_id, queue_rows=config.queue_rows
        ),
        source=upstream_source(workspace, ("caption",)),
        transform=upstream_augment(upstream_info(workspace), config.augment, tokenizer, text.context_length),
        config=config.trainer,
        identity=config.to_dict(),
    )
