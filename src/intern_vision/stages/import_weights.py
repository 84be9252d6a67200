"""Import: a file of public weights (torchvision, timm, open_clip, MetaNet) becomes weights usable as an amateur."""

from pathlib import Path

from pydantic import Field

from intern_vision import config as base
from intern_vision.errors import ConfigError
from intern_vision.models.genotype import GENOTYPES, Genotype
from intern_vision.models.public_backbones import PUBLIC_BACKBONES, PublicBackbone, public_backbone
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.store import file_sha256


class Config(base.Config):
    """Which file, and what it holds.

    Attributes:
        name: what the result is called.
        architecture: a name of ``PUBLIC_BACKBONES`` or of a genotype (``mn_b4``, ``mn_b15``, ``uninet_b0``...), which
            takes a public MetaNet checkpoint; empty where ``backbone`` or ``genotype`` says the sizes.
        backbone: sizes of an architecture without a name.
        genotype: a MetaNet without a name.
        path: the file, ``.safetensors`` or a ``.pt``/``.pth`` of tensors only.
        sha256: the file's digest, as ``sha256sum`` prints it: the result is found again by it, and
            a file that was exchanged is noticed.
        image_size_px: height and width that images are given at.
    """

    name: str = "amateur"
    architecture: str = ""
    backbone: PublicBackbone | None = None
    genotype: Genotype | None = None
    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    image_size_px: int = Field(default=224, ge=32)

    def faults(self) -> list[str]:
        """One way of saying the architecture, and a known name."""
        ways = (bool(self.architecture), self.backbone is not None, self.genotype is not None)
        if sum(ways) != 1:
            return ["give one of architecture, backbone and genotype"]
        if self.architecture and self.architecture not in (*PUBLIC_BACKBONES, *GENOTYPES):
            return [f"architecture must be one of {', '.join((*PUBLIC_BACKBONES, *GENOTYPES))}"]
        return []

    @property
    def sizes(self) -> PublicBackbone | Genotype:
        """What is built: with the name, backbone or genotype that is given."""
        if self.architecture in GENOTYPES:
            return GENOTYPES[self.architecture]
        return self.backbone or self.genotype or public_backbone(self.architecture)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Checks the file, takes its image backbone and commits it as weights without heads."""
    from intern_vision.models.public_backbones import load_public_backbone
    from intern_vision.models.public_keys import load_public
    from intern_vision.models.vision import ModelSpec, VisionModel

    path = Path(config.path)
    if not path.is_file():
        raise ConfigError(f"import_weights.path: {path} is no file; give the path of the downloaded weights")
    digest = file_sha256(path)
    if digest != config.sha256:
        raise ConfigError(f"import_weights.sha256: {path} has {digest}, not {config.sha256}; check the download")
    sizes = config.sizes
    if isinstance(sizes, Genotype):
        model = VisionModel(ModelSpec(genotype=sizes, image_size_px=config.image_size_px))
        model.backbone.load_state_dict(load_public(path, sizes))
    else:
        model = VisionModel(ModelSpec(backbone=sizes, image_size_px=config.image_size_px))
        load_public_backbone(model.backbone, path, sizes)
    model.save(context.output_dir)
    context.facts["num_parameters"] = sum(parameter.numel() for parameter in model.backbone.parameters())
    return context.commit("weights", config.name)
