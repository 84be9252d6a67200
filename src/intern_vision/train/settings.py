"""Settings of trainings and of what is trained; free of torch, so that a config costs nothing to read."""

from typing import Literal

from pydantic import Field

from intern_vision.config import Config


class TrainerConfig(Config):
    """How an objective is trained.

    Attributes:
        num_steps: optimizer steps.
        batch_size: samples an optimizer step over all ranks.
        num_accumulation: micro-batches a step; ``batch_size`` counts all of them.
        learning_rate: peak of the warm-up and cosine curve.
        weight_decay: AdamW's, on matrices and convolutions only.
        warmup_share: share of the steps spent warming up, in [0, 1].
        gradient_clip: largest gradient norm; 0 = none.
        zero_stage: DeepSpeed ZeRO stage.
        precision: ``bf16`` runs the objective under bfloat16 autocast with float32 weights.
        log_every: steps between two reports; ranks agree on stopping and finiteness only then.
        checkpoint_every: steps between two checkpoints; 0 = only when asked to stop.
        seed: decides order, augmentation and every random number of the training.
        num_loader_threads: threads that read and augment samples, a rank.
    """

    num_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    num_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_share: float = Field(default=0.08, ge=0, le=1)
    gradient_clip: float = Field(default=0.0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=100, ge=0)
    seed: int = 0
    num_loader_threads: int = Field(default=1, ge=1)

    def faults(self) -> list[str]:
        """The batch must divide into micro-batches."""
        if self.batch_size % self.num_accumulation:
            return [f"batch_size {self.batch_size} must be a multiple of num_accumulation {self.num_accumulation}"]
        return []


class SignalWeights(Config):
    """Weights of the Up-A signals (DeCLIP's defaults); 0 switches one off.

    Attributes:
        image_text: contrast of the first view with the caption; with all else 0 this is CLIP.
        multi_view: mean of the three contrasts of the other view and the other caption.
        image_self: SimSiam between the two views.
        text_self: masked-token prediction.
        neighbour: contrast with the nearest past caption.
    """

    image_text: float = Field(default=0.1, ge=0)
    multi_view: float = Field(default=0.3, ge=0)
    image_self: float = Field(default=0.2, ge=0)
    text_self: float = Field(default=0.2, ge=0)
    neighbour: float = Field(default=0.2, ge=0)

    def faults(self) -> list[str]:
        """Nothing is learned without the image-text contrast."""
        return [] if self.image_text > 0 else ["image_text must be > 0"]

    @property
    def num_views(self) -> int:
        """Views of an image that a batch must hold."""
        return 2 if self.multi_view or self.image_self or self.neighbour else 1


class ProbeConfig(Config):
    """How the probe is fitted.

    Attributes:
        l2_grid: candidate penalties on standardised features; the best on held-out images is taken.
        num_splits: random splits the candidates are compared on.
        validation_share: share of the training images held out in a split.
        num_iterations: L-BFGS iterations.
    """

    l2_grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    num_splits: int = Field(default=3, ge=1)
    validation_share: float = Field(default=0.25, gt=0, lt=1)
    num_iterations: int = Field(default=60, ge=1)


class DenseConfig(Config):
    """Training of a fresh detection, segmentation or depth head on frozen features.

    Attributes:
        num_steps_small: optimizer steps below a quarter of the labels.
        num_steps_large: optimizer steps from there on.
        batch_size: images a step.
        learning_rate: peak.
        weight_decay: AdamW's.
    """

    num_steps_small: int = Field(default=300, ge=1)
    num_steps_large: int = Field(default=500, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)


class FineTuneConfig(Config):
    """Fine-tuning of backbone and head after the probe (LP-FT, arXiv 2202.10054).

    Attributes:
        num_steps_small: optimizer steps below a quarter of the labels.
        num_steps_large: optimizer steps from there on.
        batch_size: images a step.
        learning_rate: of the head and the last block.
        layer_decay: factor on the rate for each block further from the head.
        weight_decay: AdamW's.
    """

    num_steps_small: int = Field(default=150, ge=1)
    num_steps_large: int = Field(default=350, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    layer_decay: float = Field(default=0.7, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
