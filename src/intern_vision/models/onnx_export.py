"""A model as an ONNX file: image to raw head outputs. B batch, H W height and width, X any further axes."""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from intern_vision.errors import ConfigError, TrainingError
from intern_vision.models.vision import VisionModel

# The first operator set with Gelu as one operator.
OPSET = 20
INPUT_NAME = "image_BCHW"
METADATA_KEY = "intern.heads"
# Largest |torch - onnxruntime| over max(1, largest |torch|) of an output.
MAX_DIFFERENCE = 1e-4
CHECKED_BATCH_SIZES = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A written file and how well it agrees with the model it was made from.

    Attributes:
        path: the file; weights beyond 2 GB lie beside it in ``<name>.data``.
        opset: ONNX operator set.
        image_size_px: height and width of the images it takes.
        num_bytes: size with the weights.
        outputs: shape of each output without the batch axis, by name.
        max_difference: largest difference of any output to torch's on random images, relative to
            ``max(1, largest absolute value)``.
    """

    path: Path
    opset: int
    image_size_px: int
    num_bytes: int
    outputs: dict[str, tuple[int, ...]]
    max_difference: float


class RawOutputs(nn.Module):
    """uint8 images to a flat tuple of float32 outputs: what an ONNX graph can hold of a model.

    Args:
        model: in eval mode.
        heads: names of the heads; none gives the backbone's features.

    Attributes:
        names: of the outputs, known after a first forward pass: ``<head>.<output>``, such as ``classify.logits_BK``
            or ``detect.heatmap_BKHW``; of features ``map_<k>_BCHW`` and ``vector_BD``.
    """

    def __init__(self, model: VisionModel, heads: Sequence[str]) -> None:
        """Keeps the model itself, not a copy."""
        super().__init__()
        self.model, self.heads = model, tuple(heads)
        self.names: tuple[str, ...] = ()

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Outputs ``(B, ...)`` of images ``(B, 3, H, W)``, 0 to 255; normalisation is part of the graph."""
        outputs: dict[str, Tensor] = {}
        if self.heads:
            for name, features in self.model.head_features(image_BCHW, self.heads).items():
                outputs |= {f"{name}.{key}": value for key, value in self.model.heads[name](features).items()}
        else:
            features = self.model(image_BCHW)
            outputs = {f"map_{level}_BCHW": map_BCHW for level, map_BCHW in enumerate(features.maps)}
            outputs["vector_BD"] = features.vector_BD
        self.names = tuple(outputs)
        return tuple(value.float() for value in outputs.values())


def export_onnx(model: VisionModel, path: Path, head: str = "") -> OnnxFile:
    """Writes a model as ONNX and compares onnxruntime with torch on random images.

    The graph takes ``image_BCHW``, uint8 RGB of the model's own image size and any number of images, and gives the
    heads' raw outputs: logits of ``classify`` and ``multilabel``, maps of the other families, before any choice of
    peaks or resizing. The metadata entry ``intern.heads`` is JSON: family and label names by head.

    Args:
        model: weights; put into eval mode.
        path: the file to write; an older one is replaced once the new one has passed the comparison.
        head: one head; empty for all. A model without heads gives its features.

    Raises:
        ConfigError: no head has this name, or the packages of the extra ``onnx`` are not installed.
        TrainingError: the file's outputs are not those of the model; nothing is written.
    """
    if head and head not in model.heads:
        raise ConfigError(f"head: expected one of {', '.join(model.heads) or 'none'}, got {head!r}")
    _check_installed()
    names = [head] if head else list(model.heads)
    raw = RawOutputs(model.eval(), names).eval()
    images = _random_images(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".intern-onnx-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        expected = [_run_torch(raw, image_BCHW) for image_BCHW in images]
        metadata = {METADATA_KEY: json.dumps({name: model.spec.heads[name].task.to_dict() for name in names})}
        _write(raw, written, images[-1], metadata)
        difference = _largest_difference(raw.names, expected, _run_onnx(written, images))
        files = list(Path(folder).iterdir())
        num_bytes = sum(file.stat().st_size for file in files)
        for file in files:
            os.replace(file, path.parent / file.name)
    shapes = {name: tuple(value.shape[1:]) for name, value in zip(raw.names, expected[0], strict=True)}
    return OnnxFile(
        path=path,
        opset=OPSET,
        image_size_px=model.spec.image_size_px,
        num_bytes=num_bytes,
        outputs=shapes,
        max_difference=difference,
    )


def _check_installed() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"onnx: {error.name} is not installed; pip install 'intern-vision[onnx]'") from None


def _random_images(model: VisionModel) -> list[Tensor]:
    """uint8 noise, the same at every call; one tensor for each of ``CHECKED_BATCH_SIZES``."""
    size_px, generator = model.spec.image_size_px, torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (batch, 3, size_px, size_px), generator=generator, dtype=torch.uint8)
        for batch in CHECKED_BATCH_SIZES
    ]


@torch.inference_mode()
def _run_torch(raw: RawOutputs, image_BCHW: Tensor) -> list[NDArray[np.float32]]:
    return [value.numpy() for value in raw(image_BCHW)]


def _run_onnx(path: Path, images: Sequence[Tensor]) -> list[list[NDArray[np.float32]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, {INPUT_NAME: image_BCHW.numpy()}) for image_BCHW in images]


def _write(raw: RawOutputs, path: Path, image_BCHW: Tensor, metadata: Mapping[str, str]) -> None:
    with _quiet():
        program = torch.onnx.export(
            raw,
            (image_BCHW,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT_NAME],
            output_names=list(raw.names),
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None  # with dynamo the exporter gives a program or raises
        program.model.metadata_props.update(metadata)
        program.save(str(path))


def _largest_difference(
    names: Sequence[str], expected: Sequence[Sequence[NDArray[Any]]], got: Sequence[Sequence[NDArray[Any]]]
) -> float:
    largest = 0.0
    for expected_batch, got_batch in zip(expected, got, strict=True):
        for name, one, other in zip(names, expected_batch, got_batch, strict=True):
            difference = float(np.abs(one - other).max() / max(1.0, np.abs(one).max()))
            # Written so that a difference that is not a number fails too.
            if not difference <= MAX_DIFFERENCE:
                raise TrainingError(
                    f"onnx: output {name} differs from torch by {difference:.2g}, more than {MAX_DIFFERENCE:g}; "
                    "nothing was written"
                )
            largest = max(largest, difference)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about packages it does not need off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
