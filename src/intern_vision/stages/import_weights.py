"""Import: a file of public weights (torchvision, timm, open_clip, MetaNet) becomes weights usable as an amateur."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from intern_vision import config as base
from intern_vision.errors import ConfigError
from intern_vision.models.genotype import GENOTYPES, Genotype
from intern_vision.models.public_backbones import PUBLIC_BACKBONES, PublicBackbone, public_backbone
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.store import file_sha256

if TYPE_CHECKING:
    from intern_vision.data.text import Tokenizer
    from intern_vision.models.vision import VisionModel


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
        vocabulary: CLIP's list of merges (``bpe_simple_vocab_16e6.txt`` or its ``.gz``): with it an open_clip file's
            text tower is taken too, and the result answers in words as an amateur does.
        vocabulary_sha256: the list's digest.
        num_text_heads: attention heads of the text tower; 0: one for 64 channels, as in all published ones.
        image_size_px: height and width that images are given at.
    """

    name: str = "amateur"
    architecture: str = ""
    backbone: PublicBackbone | None = None
    genotype: Genotype | None = None
    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    vocabulary: str = ""
    vocabulary_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    num_text_heads: int = Field(default=0, ge=0)
    image_size_px: int = Field(default=224, ge=32)

    def faults(self) -> list[str]:
        """One way of saying the architecture, and a known name."""
        ways = (bool(self.architecture), self.backbone is not None, self.genotype is not None)
        if sum(ways) != 1:
            return ["give one of architecture, backbone and genotype"]
        if self.architecture and self.architecture not in (*PUBLIC_BACKBONES, *GENOTYPES):
            return [f"architecture must be one of {', '.join((*PUBLIC_BACKBONES, *GENOTYPES))}"]
        if self.vocabulary and (isinstance(self.sizes, Genotype) or not self.sizes.is_clip):
            return ["vocabulary: only an open_clip file has a text tower, leave it out"]
        if bool(self.vocabulary) != bool(self.vocabulary_sha256):
            return ["vocabulary_sha256: expected beside vocabulary, and only there"]
        return []

    @property
    def sizes(self) -> PublicBackbone | Genotype:
        """What is built: with the name, backbone or genotype that is given."""
        if self.architecture in GENOTYPES:
            return GENOTYPES[self.architecture]
        return self.backbone or self.genotype or public_backbone(self.architecture)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Checks the file, takes its image backbone and commits it as weights without heads.

    With a vocabulary the text tower and its tokenizer come along.
    """
    from intern_vision.models.public_keys import load_public
    from intern_vision.models.vision import ModelSpec, VisionModel

    path = _checked_file("path", config.path, "sha256", config.sha256)
    sizes = config.sizes
    if isinstance(sizes, Genotype):
        model = VisionModel(ModelSpec(genotype=sizes, image_size_px=config.image_size_px))
        model.backbone.load_state_dict(load_public(path, sizes))
    else:
        model = _public_model(config, sizes, path)
    if model.text is not None:
        # Beside the weights, because without it nobody can ask them anything.
        _tokenizer(config, model.spec.text.vocab_size).save(context.output_dir / TOKENIZER_FILE)
    model.save(context.output_dir)
    context.facts["num_parameters"] = sum(parameter.numel() for parameter in model.backbone.parameters())
    return context.commit("weights", config.name)


def _public_model(config: Config, sizes: PublicBackbone, path: Path) -> "VisionModel":
    """The image tower of torchvision, timm or open_clip, with a vocabulary the text tower too."""
    from intern_vision.models.public_backbones import load_public_backbone
    from intern_vision.models.public_text import load_public_text, read_public_text
    from intern_vision.models.vision import ModelSpec, VisionModel

    text, tensors = read_public_text(path, sizes, config.num_text_heads) if config.vocabulary else (None, {})
    model = VisionModel(ModelSpec(backbone=sizes, image_size_px=config.image_size_px, text=text))
    load_public_backbone(model.backbone, path, sizes)
    if model.text is not None:
        load_public_text(model.text, tensors, source=str(path))
    return model


def _tokenizer(config: Config, vocab_size: int) -> "Tokenizer":
    from intern_vision.data.text import Tokenizer

    path = _checked_file("vocabulary", config.vocabulary, "vocabulary_sha256", config.vocabulary_sha256)
    return Tokenizer.from_clip(path, vocab_size)


def _checked_file(field: str, address: str, digest_field: str, sha256: str) -> Path:
    """The file that a field names; ConfigError where it is none or another one than the digest says."""
    path = Path(address)
    if not path.is_file():
        raise ConfigError(f"import_weights.{field}: {path} is no file; give the path of the downloaded file")
    digest = file_sha256(path)
    if digest != sha256:
        raise ConfigError(f"import_weights.{digest_field}: {path} has {digest}, not {sha256}; check the download")
    return path
