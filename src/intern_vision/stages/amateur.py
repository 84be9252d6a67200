"""Up-A (Amateur): one backbone from captioned images; with the image-text signal alone it is the CLIP baseline."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import DataError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.store import Store, join_uri
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
        contrast: ``softmax`` (CLIP, DeCLIP) or ``sigmoid`` (SigLIP's pairwise loss, arXiv 2303.15343).
        mask_share: share of a caption's tokens that ``text_self`` hides.
        contrast_masked: whether the caption with hidden tokens is also the one contrasted, as in DeCLIP.
        log_scale_range: smallest and largest log scale of the contrast; DeCLIP: 3 to 6 on YFCC.
        sync_batch_norm: whether the backbone's BatchNorms see the images of all ranks.
    """

    name: str = "amateur"
    trainer: TrainerConfig
    signals: SignalWeights = SignalWeights()
    text: TextConfig = TextConfig()
    augment: AugmentConfig
    queue_rows: int = Field(default=65_536, ge=1)
    contrast: Literal["softmax", "sigmoid"] = "softmax"
    mask_share: float = Field(default=0.15, gt=0, le=1)
    contrast_masked: bool = True
    log_scale_range: tuple[float, float] = (-10.0, 10.0)
    sync_batch_norm: bool = True

    def faults(self) -> list[str]:
        """Views and signals must agree, and the range must not be empty."""
        faults = []
        wanted = self.signals.num_views
        if self.augment.num_views != wanted:
            faults.append(f"augment.num_views must be {wanted} for these signals, got {self.augment.num_views}")
        low, high = self.log_scale_range
        if low > high:
            faults.append(f"log_scale_range must be smallest and largest, got {low:g} and {high:g}")
        return faults

    @property
    def image_passes(self) -> int:
        """Image passes of the training; every view of an image is one."""
        return self.trainer.num_samples * self.signals.num_views


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Trains on the input ``data`` with the backbone of the input ``genotype``."""
    tokenizer_uri = join_uri(captioned_uri(context.store, inputs), TOKENIZER_FILE)
    run_ranks("amateur", config, context)
    # Beside the weights, because without it nobody can ask them anything.
    context.store.get(tokenizer_uri, context.output_dir / TOKENIZER_FILE)
    return context.commit("weights", config.name)


def captioned_uri(store: Store, inputs: Inputs) -> str:
    """Address of the first dataset of the input ``data`` with captions; DataError where none has any."""
    from intern_vision.data.loader import load_info

    refs = inputs.many("data")
    for ref in refs:
        if "caption" in load_info(store, ref.uri).fields:
            return ref.uri
    names = ", ".join(ref.name for ref in refs) or "no dataset"
    raise DataError(f"inputs.data: {names}: no captions; an amateur needs a dataset of captioned images")


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
    from intern_vision.train.batch_norm import synchronise_batch_norms
    from intern_vision.train.image_text import ImageTextObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import (
        chosen_genotype,
        dataset_tokenizer,
        upstream_augment,
        upstream_infos,
        upstream_source,
    )

    tokenizer = dataset_tokenizer(workspace)
    text = TextSpec(vocab_size=tokenizer.vocab_size, **config.text.to_dict())
    spec = ModelSpec(genotype=chosen_genotype(workspace), image_size_px=config.augment.image_size_px, text=text)
    model = VisionModel(spec)
    if config.sync_batch_norm:
        synchronise_batch_norms(model)
    objective = ImageTextObjective(
        model,
        config.signals,
        queue_rows=config.queue_rows,
        contrast=config.contrast,
        contrast_masked=config.contrast_masked,
        log_scale_range=config.log_scale_range,
    )
    mask_share = config.mask_share if config.signals.text_self else 0.0
    return TrainJob(
        objective=objective,
        source=upstream_source(workspace, ("caption",)),
        transform=upstream_augment(
            upstream_infos(workspace, ("caption",)), config.augment, tokenizer, text.context_length, mask_share
        ),
        config=config.trainer,
        identity=config.to_dict(),
    )
