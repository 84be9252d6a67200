"""Import: a file of public weights (torchvision, timm, open_clip) becomes committed weights, usable as an amateur."""

from pathlib import Path

from pydantic import Field

from intern_vision import config as base
from intern_vision.errors import ConfigError
from intern_vision.models.public_backbones import PUBLIC_BACKBONES, PublicBackbone, public_backbone
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.store import file_sha256


class Config(base.Config):
    """Which file, and what it holds.

    Attributes:
        name: what the result is called.
        architecture: a name of ``PUBLIC_BACKBONES``; empty where ``backbone`` says the sizes.
        backbone: sizes of an architecture without a name.
        path: the file, ``.safetensors`` or a ``.pt``/``.pth`` of tensors only.
        sha256: the file's digest, as ``sha256sum`` prints it: the result is found again by it, and
            a file that was exchanged is noticed.
        image_size_px: height and width that images are given at.
    """

    name: str = "amateur"
    architecture: str = ""
    backbone: PublicBackbone | None = None
    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    image_size_px: int = Field(default=224, ge=32)

    def faults(self) -> list[str]:
        """One way of saying the architecture, and a known name."""
        if bool(self.architecture) == (self.backbone is not None):
            return ["give architecture or backbone, not both"]
        if self.architecture and self.architecture not in PUBLIC_BACKBONES:
            return [f"architecture must be one of {', '.join(PUBLIC_BACKBONES)}"]
        return []


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Checks the file, takes its image backbone and commits it as weights without heads."""
    from intern_vision.models.public_backbones import load_public_backbone
    from intern_vision.models.vision import ModelSpec, VisionModel

    path = Path(config.path)
    if not path.is_file():
        raise ConfigError(f"import_weights.path: {path} is no file; give the path of the downloaded weights")
    digest = file_sha256(path)
    if digest != config.sha256:
        raise ConfigError(f"import_weights.sha256: {path} has {digest}, not {config.sha256}; check the download")
    backbone = config.backbone or public_backbone(config.architecture)
    model = VisionModel(ModelSpec(backbone=backbone, image_size_px=config.image_size_px))
    load_public_backbone(model.backbone, path, backbone)
    model.save(context.output_dir)
    context.facts["num_parameters"] = sum(parameter.numel() for parameter in model.backbone.parameters())
    return context.commit("weights", config.name)
