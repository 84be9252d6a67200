"""VisionModel: a backbone with its heads (and, for an amateur, its text tower) as one thing to save and load.

B batch, C channels, H W height and width, L tokens, D embedding width.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intern_vision.bench.protocol import protocol_rank
from intern_vision.config import Config, changed_fields
from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import Prediction, TaskHead, build_head
from intern_vision.models.central import CentralModel, view_tensors
from intern_vision.models.features import Features
from intern_vision.models.genotype import Genotype
from intern_vision.models.layers import normalise
from intern_vision.models.metanet import MetaNet
from intern_vision.models.public_backbones import PublicBackbone, make_public_backbone
from intern_vision.models.tensors import check_tensors
from intern_vision.models.text import TextEncoder
from intern_vision.task import Family, Task, View, is_vector_family

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "model.json"


class HeadSpec(Config):
    """A head of a model: its task and its settings.

    Attributes:
        task: family and label names.
        config: sizes and loss weights.
        frozen_features: whether the head standardises the features of a frozen backbone.
        sources: for heads trained on several datasets: the datasets it learns from by name, each with the classes
            that are annotated there; empty for one dataset that annotates everything.
    """

    task: Task
    config: HeadConfig = HeadConfig()
    frozen_features: bool = False
    sources: dict[str, tuple[str, ...]] = {}

    def faults(self) -> list[str]:
        """A source may annotate only classes that the head has, and none is of no use but to depth."""
        faults = []
        for source, names in self.sources.items():
            strange = [name for name in names if name not in self.task.class_names]
            if strange:
                faults.append(f"sources.{source}: the head has no class {strange[0]!r}")
            elif not names and self.task.family != "depth":
                faults.append(f"sources.{source}: expected at least one class, got none; leave the source out")
        return faults


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
        quick_gelu: CLIP's approximation of GELU.
    """

    vocab_size: int = Field(ge=4)
    context_length: int = Field(ge=2)
    width: int = Field(ge=1)
    num_blocks: int = Field(ge=0)
    num_heads: int = Field(ge=1)
    pooling: Literal["end", "mean"]
    embedding_width: int = Field(ge=1)
    quick_gelu: bool = False


class ModelSpec(Config):
    """Everything needed to build a model without its weights; saved beside them.

    Attributes:
        genotype: the backbone, a MetaNet.
        backbone: a public architecture in its place.
        image_size_px: height and width the model was trained at.
        experts: names of the joined experts of a central model (Up-G); empty for one backbone.
        main: the main expert where no view says otherwise.
        views: the central model's main expert and BatchNorm set by family.
        heads: heads by name.
        text: the text tower, for an amateur.
    """

    genotype: Genotype | None = None
    backbone: PublicBackbone | None = None
    image_size_px: int = Field(ge=8)
    experts: tuple[str, ...] = ()
    main: str = ""
    views: dict[Family, View] = {}
    heads: dict[str, HeadSpec] = {}
    text: TextSpec | None = None

    def faults(self) -> list[str]:
        """One architecture; main experts are experts, and of several BatchNorm sets a view names one."""
        known = ", ".join(self.experts) or "none"
        faults = [] if (self.genotype is None) != (self.backbone is None) else ["give genotype or backbone, not both"]
        if self.experts and self.backbone:
            faults.append("experts are joined between MetaNets: give genotype instead of backbone")
        faults += [
            f"views.{family}.main must be one of {known}"
            for family, view in self.views.items()
            if view.main not in self.experts
        ]
        faults += [
            f"views.{family}.bn_set must be one of {', '.join(self.bn_sets[view.main])}"
            for family, view in self.views.items()
            if view.main in self.bn_sets and not view.bn_set
        ]
        if self.experts and self.main not in self.mains:
            faults.append(f"main must be one of {', '.join(self.mains)}")
        return faults

    @property
    def architecture(self) -> dict[str, Any]:
        """``genotype`` or ``backbone``, whichever there is: what another spec with this backbone is made with."""
        return {"genotype": self.genotype} if self.backbone is None else {"backbone": self.backbone}

    @property
    def mains(self) -> tuple[str, ...]:
        """The experts that some view makes the main one; all where there are no views."""
        used = {view.main for view in self.views.values()}
        return tuple(name for name in self.experts if name in used or not used)

    @property
    def bn_sets(self) -> dict[str, tuple[str, ...]]:
        """Names of the BatchNorm sets of each expert that has several, sorted: saved views have no order."""
        names: dict[str, set[str]] = {}
        for view in self.views.values():
            if view.bn_set:
                names.setdefault(view.main, set()).add(view.bn_set)
        return {main: tuple(sorted(sets)) for main, sets in names.items()}

    def view_of(self, family: Family) -> View:
        """The view for a family: its own, else that of the first family that reads the same kind of features."""
        alike = (other for other in get_args(Family) if is_vector_family(other) == is_vector_family(family))
        known = (self.views[other] for other in (family, *alike) if other in self.views)
        return next(known, View(main=self.main))

    def for_family(self, family: Family) -> "ModelSpec":
        """The spec to deploy for a family: a central model of its view alone; unchanged for one backbone.

        ``VisionModel.load_part`` takes the weights for it from the whole central model.
        """
        if not self.experts:
            return self
        main = self.view_of(family).main
        return self.model_copy(update={"main": main, "views": {family: View(main=main)}})


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
            experts = {name: make_backbone(spec) for name in spec.experts}
            self.backbone: nn.Module = CentralModel(experts, spec.main, spec.bn_sets, spec.mains)
        else:
            self.backbone = make_backbone(spec)
        self.heads = nn.ModuleDict({name: self._new_head(head) for name, head in spec.heads.items()})
        self.text = TextTower(self.backbone.vector_width, spec.text) if spec.text else None

    def _new_head(self, head: HeadSpec) -> TaskHead:
        backbone = self.backbone
        return build_head(
            head.task, backbone.channels, backbone.strides, backbone.vector_width, head.config, head.frozen_features
        )

    def forward(self, image_BCHW: Tensor) -> Features:
        """Features of uint8 images in [0, 255]."""
        return self.backbone(self.normalised(image_BCHW))

    def normalised(self, image_BCHW: Tensor) -> Tensor:
        """What the backbone is given for uint8 images in [0, 255]: float32 by its own mean and deviation."""
        public = self.spec.backbone
        x_BCHW = normalise(image_BCHW, public.mean, public.std) if public else normalise(image_BCHW)
        return x_BCHW.contiguous(memory_format=torch.channels_last)

    @property
    def views(self) -> tuple[View, ...]:
        """The distinct views that the heads read; the default one where there are no heads."""
        families = [head.task.family for head in self.heads.values()]
        return tuple(dict.fromkeys(map(self.spec.view_of, families))) or (View(main=self.spec.main),)

    @property
    def num_sources(self) -> int:
        """Backbones that are read besides those of the views, each once an image."""
        return len(self.backbone.sources(self.views)) if self.spec.experts else 0

    def view_features(self, image_BCHW: Tensor, views: Sequence[View]) -> dict[View, Features]:
        """Features of uint8 images in [0, 255] as each view gives them; one backbone has one view."""
        if not self.spec.experts:
            return dict.fromkeys(views, self(image_BCHW))
        x_BCHW = self.normalised(image_BCHW)
        return dict(zip(views, self.backbone.forward_views(x_BCHW, views), strict=True))

    def head_features(self, image_BCHW: Tensor, names: Sequence[str]) -> dict[str, Features]:
        """What each of these heads reads in uint8 images in [0, 255]: the features of its family's view."""
        views = {name: self.spec.view_of(self.heads[name].task.family) for name in names}
        found = self.view_features(image_BCHW, tuple(dict.fromkeys(views.values())))
        return {name: found[view] for name, view in views.items()}

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

    @classmethod
    def load_family(cls, folder: Path, family: Family) -> "VisionModel":
        """The model of one family out of what ``save`` wrote: its view and its heads, in eval mode.

        Raises:
            ConfigError: the saved model has no head of this family.
        """
        spec = read_spec(folder)
        heads = {name: head for name, head in spec.heads.items() if head.task.family == family}
        if not heads:
            raise ConfigError(f"family: expected one of {', '.join(spec.heads) or 'none'}, got {family!r}")
        model = cls(spec.for_family(family).model_copy(update={"heads": heads, "text": None}))
        for part in ("backbone", *(f"heads.{name}" for name in heads)):
            model.load_part(folder, part)
        return model.eval()

    def load_tensors(self, tensors: dict[str, Tensor], *, source: str) -> None:
        """Takes exactly these weights; CheckpointError names what is missing, unknown or of another shape."""
        check_tensors(tensors, {name: tensor.shape for name, tensor in self.state_dict().items()}, source=source)
        self.load_state_dict(tensors)

    def load_part(self, folder: Path, prefix: str, *, into: str = "") -> None:
        """Takes the weights below ``prefix`` (such as ``backbone`` or ``heads.detect``) from a saved model.

        Of a central model's backbone, a model of one view alone takes what it needs.

        Args:
            folder: a folder that ``save`` wrote.
            prefix: dotted module name in the saved model.
            into: dotted module name here; the same where empty.

        Raises:
            CheckpointError: the saved model has another genotype or other shapes.
        """
        into = into or prefix
        saved = read_spec(folder)
        kinds = {name: part.to_dict() for name, part in saved.architecture.items()}
        changes = changed_fields(kinds, {name: part.to_dict() for name, part in self.spec.architecture.items()})
        if changes:
            raise CheckpointError(
                f"{folder}: weights of another architecture: {'; '.join(changes)[:300]}; "
                "use the architecture the weights were trained with"
            )
        tensors = {
            name.removeprefix(prefix + "."): tensor
            for name, tensor in read_tensors(folder).items()
            if name.startswith(prefix + ".")
        }
        is_one_view = len(self.spec.views) == 1 and not self.spec.bn_sets
        if prefix == into == "backbone" and is_one_view and saved.experts == self.spec.experts:
            (family,) = self.spec.views
            tensors = view_tensors(tensors, saved.view_of(family), saved.bn_sets)
        tensors = {f"{into}.{name}": tensor for name, tensor in tensors.items()}
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
        from intern_vision.heads.resize import predict_at

        if head is not None and head not in self.heads:
            raise ConfigError(f"head: expected one of {', '.join(self.heads)}, got {head!r}")
        names = list(self.heads) if head is None else [head]
        size_px = self.spec.image_size_px
        found: dict[str, list[Prediction]] = {name: [] for name in names}
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            stacked = np.stack([resize_image(image, size_px) for image in chunk])
            for name, features in self.head_features(torch.from_numpy(stacked).permute(0, 3, 1, 2), names).items():
                task_head = self.heads[name]
                sizes_px = [image.shape[:2] for image in chunk]
                found[name] += predict_at(task_head, task_head(features), (size_px, size_px), sizes_px)
        return found


def make_backbone(spec: ModelSpec) -> nn.Module:
    """One backbone of a model, with fresh weights: a MetaNet, or the public architecture."""
    return MetaNet(spec.genotype) if spec.backbone is None else make_public_backbone(spec.backbone)


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
            spec.quick_gelu,
        )
        self.projection = nn.Linear(vector_width, spec.embedding_width, bias=False)
        # One element and not a scalar: DeepSpeed cannot broadcast a tensor without dimensions.
        self.log_scale = nn.Parameter(torch.full((1,), float(np.log(1 / 0.07))))

    def scale(self, log_min: float = -math.inf, log_max: float = math.inf) -> Tensor:
        """The learned temperature's inverse, a scalar of at most 100, its logarithm kept in a range.

        The gradient passes the range's ends, so a parameter beyond one finds its way back. The parameter itself is
        not changed: under ZeRO its master copy is elsewhere.
        """
        log_scale = self.log_scale + (self.log_scale.clamp(log_min, log_max) - self.log_scale).detach()
        return log_scale.exp().clamp(max=100.0).squeeze()


def best_labelled_dir(folder: Path) -> Path:
    """The folder itself, or the model adapted with the largest share of the labels below it, fine-tuned if one is."""
    found = sorted(folder.glob(f"p*/{SPEC_FILE}"), key=lambda path: protocol_rank(path.parent.name[1:]))
    return found[-1].parent if found else folder


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
