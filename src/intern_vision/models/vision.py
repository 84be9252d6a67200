"""VisionModel: a backbone with its heads (and, for an amateur, its text tower) as one thing to save and load.

B batch, C channels, H W height and width, L tokens, D embedding width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intern_vision.config import Config, changed_fields
from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import Prediction, TaskHead, build_head
from intern_vision.models.central import CentralModel
from intern_vision.models.features import Features
from intern_vision.models.genotype import Genotype
from intern_vision.models.layers import normalise
from intern_vision.models.metanet import MetaNet
from intern_vision.models.text import TextEncoder
from intern_vision.task import Task

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "model.json"


class HeadSpec(Config):
    """A head of a model: its task and its settings.

    Attributes:
        task: family and label names.
        config: sizes and loss weights.
        frozen_features: whether the head standardises the features of a frozen backbone.
    """

    task: Task
    config: HeadConfig = HeadConfig()
    frozen_features: bool = False


class TextSpec(Config):
    """The text tower of Up-A; ``num_blocks`` 0 is a bag of words.

    Attributes:
        vocab_size: number of token ids.
        context_length: tokens a caption is cut or padded to.
        width: token width.
        num_blocks: transformer blocks.
        num_heads: attention heads.
        pooling: ``end`` (the end-of-text token) or ``mean``.
        embedding_width: width of the space shared with images.
    """

    vocab_size: int = Field(ge=4)
    context_length: int = Field(ge=2)
    width: int = Field(ge=1)
    num_blocks: int = Field(ge=0)
    num_heads: int = Field(ge=1)
    pooling: Literal["end", "mean"]
    embedding_width: int = Field(ge=1)


class ModelSpec(Config):
    """Everything needed to build a model without its weights; saved beside them.

    Attributes:
        genotype: the backbone.
        image_size_px: height and width the model was trained at.
        experts: names of the joined experts of a central model (Up-G); empty for one backbone.
        main: the expert whose features leave the central model.
        heads: heads by name.
        text: the text tower, for an amateur.
    """

    genotype: Genotype
    image_size_px: int = Field(ge=8)
    experts: tuple[str, ...] = ()
    main: str = ""
    heads: dict[str, HeadSpec] = {}
    text: TextSpec | None = None

    def faults(self) -> list[str]:
        """A central model needs a main expert among its experts."""
        if self.experts and self.main not in self.experts:
            return [f"main must be one of {', '.join(self.experts)}"]
        return []


class VisionModel(nn.Module):
    """A backbone with heads by name.

    Args:
        spec: what to build.

    Attributes:
        backbone: ``MetaNet`` or ``CentralModel``; gives ``Features``.
        heads: ``TaskHead`` by name.
        text: text tower and the image projection into its space, or None.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Builds modules with fresh weights."""
        super().__init__()
        self.spec = spec
        if spec.experts:
            experts = {name: MetaNet(spec.genotype) for name in spec.experts}
            self.backbone: nn.Module = CentralModel(experts, spec.main)
        else:
            self.backbone = MetaNet(spec.genotype)
        self.heads = nn.ModuleDict({name: self._new_head(head) for name, head in spec.heads.items()})
        self.text = TextTower(self.backbone.vector_width, spec.text) if spec.text else None

    def _new_head(self, head: HeadSpec) -> TaskHead:
        backbone = self.backbone
        return build_head(
            head.task, backbone.channels, backbone.strides, backbone.vector_width, head.config, head.frozen_features
        )

    def forward(self, image_BCHW: Tensor) -> Features:
        """Features of uint8 images in [0, 255]."""
        return self.backbone(normalise(image_BCHW).contiguous(memory_format=torch.channels_last))

    def save(self, folder: Path) -> None:
        """Writes ``weights.safetensors`` and ``model.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / SPEC_FILE).write_text(self.spec.to_json())

    @classmethod
    def load(cls, folder: Path) -> "VisionModel":
        """Reads what ``save`` wrote, in eval mode; CheckpointError where the two files do not fit."""
        model = cls(read_spec(folder))
        model.load_tensors(read_tensors(folder), source=str(folder))
        return model.eval()

    def load_tensors(self, tensors: dict[str, Tensor], *, source: str) -> None:
        """Takes exactly these weights; CheckpointError names what is missing, unknown or of another shape."""
        own = self.state_dict()
        faults = [f"missing {name}" for name in own if name not in tensors]
        faults += [f"unknown {name}" for name in tensors if name not in own]
        faults += [
            f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ]
        if faults:
            shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
            raise CheckpointError(f"{source}: weights of another architecture: {shown}")
        self.load_state_dict(tensors)

    def load_part(self, folder: Path, prefix: str, *, into: str = "") -> None:
        """Takes the weights below ``prefix`` (such as ``backbone`` or ``heads.detect``) from a saved model.

        Args:
            folder: a folder that ``save`` wrote.
            prefix: dotted module name in the saved model.
            into: dotted module name here; the same where empty.

        Raises:
            CheckpointError: the saved model has another genotype or other shapes.
        """
        into = into or prefix
        changes = changed_fields(read_spec(folder).genotype.to_dict(), self.spec.genotype.to_dict())
        if changes:
            raise CheckpointError(
                f"{folder}: weights of another architecture: genotype {'; '.join(changes)[:300]}; "
                "use the genotype the weights were trained with"
            )
        tensors = {
            into + name.removeprefix(prefix): tensor
            for name, tensor in read_tensors(folder).items()
            if name.startswith(prefix + ".")
        }
        own = self.state_dict()
        self.load_tensors(own | tensors, source=f"{folder}/{prefix}")

    @torch.inference_mode()
    def predict(
        self, images: Sequence[NDArray[np.uint8]], head: str | None = None, *, batch_size: int = 64
    ) -> dict[str, list[Prediction]]:
        """Predictions by head name for RGB images of any size.

        Args:
            images: ``(height, width, 3)`` uint8 arrays.
            head: one head; None asks all of them.
            batch_size: images a forward pass.

        Returns:
            One prediction an image and head, in the image's own pixels.

        Raises:
            ConfigError: no head has this name.
        """
        from intern_vision.data.augment import resize_image
        from intern_vision.heads.resize import resize_prediction

        if head is not None and head not in self.heads:
            raise ConfigError(f"head: expected one of {', '.join(self.heads)}, got {head!r}")
        names = list(self.heads) if head is None else [head]
        size_px = self.spec.image_size_px
        found: dict[str, list[Prediction]] = {name: [] for name in names}
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            stacked = np.stack([resize_image(image, size_px) for image in chunk])
            features = self(torch.from_numpy(stacked).permute(0, 3, 1, 2))
            for name in names:
                task_head = self.heads[name]
                predictions = task_head.predict(task_head(features), (size_px, size_px))
                found[name] += [
                    resize_prediction(prediction, (size_px, size_px), image.shape[:2])
                    for prediction, image in zip(predictions, chunk, strict=True)
                ]
        return found


class TextTower(nn.Module):
    """The text encoder of Up-A with the image projection into the joint space and the temperature.

    Args:
        vector_width: width of the backbone's pooled vector.
        spec: sizes.
    """

    def __init__(self, vector_width: int, spec: TextSpec) -> None:
        """Builds modules with fresh weights; the temperature starts at 1 / 0.07 as in CLIP."""
        super().__init__()
        self.encoder = TextEncoder(
            spec.vocab_size,
            spec.context_length,
            spec.width,
            spec.num_blocks,
            spec.num_heads,
            spec.embedding_width,
            spec.pooling,
        )
        self.projection = nn.Linear(vector_width, spec.embedding_width, bias=False)
        # One element and not a scalar: DeepSpeed cannot broadcast a tensor without dimensions.
        self.log_scale = nn.Parameter(torch.full((1,), float(np.log(1 / 0.07))))

    def scale(self) -> Tensor:
        """The learned temperature's inverse, a scalar of at most 100."""
        return self.log_scale.exp().clamp(max=100.0).squeeze()


def best_labelled_dir(folder: Path) -> Path:
    """The folder itself, or the model adapted with the largest share of the labels below it."""
    shares = sorted(folder.glob(f"p*/{SPEC_FILE}"), key=lambda path: float(path.parent.name[1:]))
    return shares[-1].parent if shares else folder


def read_spec(folder: Path) -> ModelSpec:
    """The spec beside a model's weights; CheckpointError where there is none."""
    path = folder / SPEC_FILE
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; expected a folder written by a training stage")
    return ModelSpec.from_json(path.read_text(), at=str(path))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """A model's weights by name; CheckpointError where the file is missing or damaged."""
    path = folder / WEIGHTS_FILE
    try:
        tensors: dict[str, Any] = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from None
    return tensors
