"""Settings of trainings and of what is trained; free of torch, so that a config costs nothing to read."""

import math
from typing import Literal

from pydantic import Field

from intern_vision.config import PACE, Config


def count_image_passes(num_samples: int, num_trained: int, num_forward: int = 0) -> int:
    """Image passes, forward and back, that a training's passes through backbones are worth.

    A forward pass alone counts a third: a layer's backward pass has two products of the forward's size.

    Args:
        num_samples: samples of the training.
        num_trained: passes forward and back a sample.
        num_forward: passes forward alone a sample, as of a teacher.
    """
    return round(num_samples * (num_trained + num_forward / 3))


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
        checkpoint_activations: recompute a block's activations in the backward pass: a third more
            arithmetic, a fraction of the memory.
        divergence_margin: a loss further than this above its running mean, or one that is not a number,
            sends the training back to its last checkpoint and lowers the learning rate by 0.3 %
            (DeCLIP's solver: 10); 0 = off.
        max_rollbacks: how often that may happen before the training ends.
        ema_decay: decay of the moving average of the weights, in [0, 1), that is exported instead of
            the last weights; 0 = off.
        num_nodes: machines of a cluster that train together, each with as many ranks (docs/multi-node.md);
            1 = this one. It decides how long a training takes, not what it makes.
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
    checkpoint_activations: bool = False
    divergence_margin: float = Field(default=0.0, ge=0)
    max_rollbacks: int = Field(default=10, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    num_nodes: int = Field(default=1, ge=1, json_schema_extra=PACE)

    def faults(self) -> list[str]:
        """The batch must divide into micro-batches; the divergence guard needs checkpoints."""
        faults = []
        if self.batch_size % self.num_accumulation:
            faults.append(
                f"batch_size {self.batch_size} must be a multiple of num_accumulation {self.num_accumulation}"
            )
        elif self.batch_size // self.num_accumulation % self.num_nodes:
            faults.append(
                f"batch_size {self.batch_size} must be a multiple of num_nodes {self.num_nodes} x num_accumulation "
                f"{self.num_accumulation}"
            )
        if self.divergence_margin and not self.checkpoint_every:
            faults.append("divergence_margin needs checkpoint_every > 0: there must be a state to go back to")
        return faults

    @property
    def num_samples(self) -> int:
        """Samples of the whole training."""
        return self.num_steps * self.batch_size


class SignalWeights(Config):
    """Weights of the Up-A signals; 0 switches one off.

    The defaults are DeCLIP's (arXiv 2110.05208; code Sense-GVT/DeCLIP): 0.4 times the mean of the four
    contrasts between two views and two captions, which is 0.1 for the plain one and 0.3 for the mean of
    the other three, and 0.2 for each further signal; 1 together.

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


CLIP_SIGNALS = SignalWeights(image_text=1.0, multi_view=0.0, image_self=0.0, text_self=0.0, neighbour=0.0)
"""Plain CLIP (arXiv 2103.00020)."""

DECLIP_88M_SIGNALS = SignalWeights(image_text=0.15, multi_view=0.45)
"""DeCLIP's weights for ViT-B/32 on 88 million pairs: the four contrasts count 0.6."""


class LocalConfig(Config):
    """How feature maps learn from images alone in Up-A-L.

    Attributes:
        num_levels: how many of the backbone's coarsest maps take part.
        hidden_width: channels inside the projection of a map (PixPro: 2048).
        projection_width: channels after it (PixPro: 256).
        momentum: of the teacher at the start; it grows to 1 along a half cosine (PixPro: 0.99).
        local_weight: weight of the pixel or patch loss.
        embedding_weight: weight of 1 minus the cosine to the image embedding of Up-A-G.
        positive_threshold: cells of two views belong together when their centres are nearer than this,
            in diagonals of the larger view's cells (PixPro: 0.7).
        mask_share: share of a masked image's patches that are hidden.
        num_prototypes: outputs that patches are assigned to (iBOT: 8192).
        student_temperature: of the student's softmax over them.
        teacher_temperature: of the teacher's; sharper.
        centre_momentum: of the mean teacher output, which is subtracted so that no prototype takes all.
    """

    num_levels: int = Field(default=2, ge=1)
    hidden_width: int = Field(default=2048, ge=1)
    projection_width: int = Field(default=256, ge=1)
    momentum: float = Field(default=0.99, ge=0, le=1)
    local_weight: float = Field(default=1.0, gt=0)
    embedding_weight: float = Field(default=1.0, ge=0)
    positive_threshold: float = Field(default=0.7, gt=0)
    mask_share: float = Field(default=0.4, gt=0, lt=1)
    num_prototypes: int = Field(default=8192, ge=2)
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: float = Field(default=0.04, gt=0)
    centre_momentum: float = Field(default=0.9, ge=0, lt=1)


class SgdProbeConfig(Config):
    """The published linear probe: momentum SGD over a grid of settings, 512 images a step.

    Defaults: gv-benchmark's configs and its maintainers' grid (issue 6), one rate wider at the top.

    Attributes:
        learning_rates: candidates.
        weight_decays: candidates, on weights and biases.
        momenta: candidates, in [0, 1).
        num_steps: optimizer steps.
        batch_size: images a step; all where there are fewer.
        decay_at: shares of the steps after which the rate falls.
        decay_factor: what it is multiplied by.
        standardise: whether features are shifted and scaled to mean 0 and variance 1; the published probe reads
            them raw.
    """

    learning_rates: tuple[float, ...] = (1e-4, 3.16e-3, 0.1, 30.0)
    weight_decays: tuple[float, ...] = (1e-6, 1e-5, 1e-4)
    momenta: tuple[float, ...] = (0.9, 0.99)
    num_steps: int = Field(default=10_000, ge=1)
    batch_size: int = Field(default=512, ge=1)
    decay_at: tuple[float, ...] = (0.3, 0.6, 0.9)
    decay_factor: float = Field(default=0.1, gt=0, le=1)
    standardise: bool = False

    def faults(self) -> list[str]:
        """Every list of the grid has usable values."""
        faults = []
        for name, fits, expected in (
            ("learning_rates", lambda value: value > 0, "numbers > 0"),
            ("weight_decays", lambda value: value >= 0, "numbers >= 0"),
            ("momenta", lambda value: 0 <= value < 1, "numbers in [0, 1)"),
        ):
            values = getattr(self, name)
            if not values or not all(map(fits, values)):
                faults.append(f"{name}: expected {expected}, got {list(values)}")
        return faults


class ProbeConfig(Config):
    """How the probe is fitted.

    Attributes:
        l2_grid: candidate penalties on standardised features; the best on held-out images is taken (L-BFGS).
        num_splits: random splits the candidates are compared on (L-BFGS).
        validation_share: share of the training images held out in a split (L-BFGS, SGD).
        num_iterations: L-BFGS iterations.
        ridge_grid: candidate penalties on the squared weights of the ridge probe; the best by leaving one out is
            taken.
        sgd: the published recipe.
        num_neighbours: neighbours that vote in the k-NN protocol (DINO, arXiv 2104.14294: 20).
        neighbour_temperature: of their weights ``exp(cosine / temperature)`` (DINO: 0.07).
    """

    l2_grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    num_splits: int = Field(default=3, ge=1)
    validation_share: float = Field(default=0.25, gt=0, lt=1)
    num_iterations: int = Field(default=60, ge=1)
    ridge_grid: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(-4, 13))
    sgd: SgdProbeConfig = SgdProbeConfig()
    num_neighbours: int = Field(default=20, ge=1)
    neighbour_temperature: float = Field(default=0.07, gt=0)

    def faults(self) -> list[str]:
        """Penalties are there and positive."""
        return [
            f"{name}: expected numbers > 0, got {list(getattr(self, name))}"
            for name in ("l2_grid", "ridge_grid")
            if not getattr(self, name) or min(getattr(self, name)) <= 0
        ]


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
        from_probe: whether the head starts from the frozen recipe's (LP-FT) or from fresh weights.
    """

    num_steps_small: int = Field(default=150, ge=1)
    num_steps_large: int = Field(default=350, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    layer_decay: float = Field(default=0.7, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
    from_probe: bool = True


class LoraConfig(Config):
    """Low-rank adapters on the backbone's convolutions and linears (arXiv 2106.09685), trained with the head.

    Attributes:
        rank: of each adapter; at most a matrix' own.
        num_steps_small: optimizer steps below a quarter of the labels.
        num_steps_large: optimizer steps from there on.
        batch_size: images a step.
        learning_rate: of adapters and head.
        weight_decay: AdamW's.
    """

    rank: int = Field(default=8, ge=1)
    num_steps_small: int = Field(default=150, ge=1)
    num_steps_large: int = Field(default=350, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


TuningStage = Literal["probe", "represented", "original"]


class MultiStageConfig(Config):
    """Multi-stage fine-tuning (INTERN's MF; image re-representation of OTA, arXiv 2111.12386).

    The steps, batch and rate are those of ``fine_tune``, so that the two recipes compare at equal cost.

    Attributes:
        stages: which of the three take part: ``probe`` (the head first, on frozen features), ``represented`` (on
            images drawn anew from the upstream codebook), ``original`` (on the images themselves).
        represented_share: share of the steps spent on ``represented`` where ``original`` follows.
        original_rate_factor: factor on the learning rate in ``original`` where ``represented`` went before.
    """

    stages: tuple[TuningStage, ...] = ("probe", "represented", "original")
    represented_share: float = Field(default=0.4, gt=0, lt=1)
    original_rate_factor: float = Field(default=0.5, gt=0, le=1)

    def faults(self) -> list[str]:
        """Stages come in their order, each once, and one of them trains the backbone."""
        order: tuple[TuningStage, ...] = ("probe", "represented", "original")
        wanted = tuple(stage for stage in order if stage in self.stages)
        if self.stages != wanted or not set(wanted) - {"probe"}:
            return [
                f"stages: expected some of {', '.join(order)} in this order, one beside probe, "
                f"got {', '.join(self.stages) or 'none'}"
            ]
        return []


class EnsembleConfig(Config):
    """Weight-space ensemble of the frozen-backbone model and the fine-tuned one (WiSE-FT, arXiv 2109.01903).

    Attributes:
        alphas: candidate shares of the fine-tuned weights; chosen on held-out training images.
        validation_share: share of the training images held out for that choice, with which a second fine-tuning is
            done before the final one.
        fallback_alpha: taken where nothing can be held out (the paper's default: 0.5).
    """

    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    validation_share: float = Field(default=0.25, gt=0, lt=1)
    fallback_alpha: float = Field(default=0.5, ge=0, le=1)

    def faults(self) -> list[str]:
        """Shares lie in [0, 1]."""
        fits = bool(self.alphas) and min(self.alphas) >= 0 and max(self.alphas) <= 1
        return [] if fits else [f"alphas: expected numbers in [0, 1], got {list(self.alphas)}"]


class CodebookConfig(Config):
    """An auto-encoder with a finite book of codes.

    Attributes:
        image_size_px: side of the square images, a multiple of ``2 ** num_halvings``.
        num_halvings: how often the encoder halves them; VQ-GAN has 4.
        levels: for each number of a code how many values it may have; the book has their product (FSQ, arXiv
            2309.15505: 8, 5, 5, 5 for about 1,000 codes).
        width: channels of every layer, a multiple of 8.
    """

    image_size_px: int = Field(default=64, ge=8)
    num_halvings: int = Field(default=2, ge=1)
    levels: tuple[int, ...] = (8, 5, 5, 5)
    width: int = Field(default=32, ge=8, multiple_of=8)

    def faults(self) -> list[str]:
        """The grid of codes is whole, and every number has a choice."""
        faults = []
        cell_px = 2**self.num_halvings
        if self.image_size_px % cell_px:
            faults.append(f"image_size_px: expected a multiple of {cell_px}, got {self.image_size_px}")
        if not self.levels or min(self.levels) < 2:
            faults.append(f"levels: expected whole numbers >= 2, got {list(self.levels)}")
        return faults

    @property
    def num_codes(self) -> int:
        """Codes in the book."""
        return math.prod(self.levels)
