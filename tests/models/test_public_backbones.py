"""Public architectures against plain functional re-implementations, under the names of the public state dicts."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from plain_networks import Fresh, plain_clip_resnet, plain_resnet, plain_vit
from safetensors.torch import save_file

from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.models.public_backbones import (
    CLIP_MEAN,
    CLIP_STD,
    PUBLIC_BACKBONES,
    PublicBackbone,
    load_public_backbone,
    make_public_backbone,
    public_backbone,
)
from intern_vision.models.vision import ModelSpec, VisionModel, make_backbone
from intern_vision.models.vit import resized_position

RESNET18 = PublicBackbone(kind="resnet", num_blocks=(2, 2, 2, 2), width=8, bottleneck=False)
RESNET50 = PublicBackbone(kind="resnet", num_blocks=(2, 1, 2, 1), width=8)
CLIP_RESNET = PublicBackbone(
    kind="clip_resnet", num_blocks=(1, 2, 1, 1), width=8, num_heads=4, vector_width=12, position_size_px=64
)
VIT = PublicBackbone(kind="vit", num_blocks=(4,), width=16, num_heads=2, patch_size_px=8, position_size_px=32)
CLIP_VIT = PublicBackbone(
    kind="clip_vit", num_blocks=(6,), width=16, num_heads=2, patch_size_px=16, position_size_px=64, quick_gelu=True
)


def images(size_px, num=2):
    return torch.randn(num, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def loaded(fresh, spec, path):
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in fresh.tensors.items()}, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in fresh.tensors.items()}}, path)
    network = make_public_backbone(spec)
    load_public_backbone(network, path, spec)
    return network.eval()


@torch.inference_mode()
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("spec", [RESNET18, RESNET50, CLIP_RESNET], ids=["basic", "bottleneck", "clip"])
def test_resnets_equal_a_plain_one(spec, suffix, tmp_path):
    fresh, x = Fresh(), images(64)
    maps, vector = (plain_clip_resnet if spec.kind == "clip_resnet" else plain_resnet)(fresh, x, spec)
    network = loaded(fresh, spec, tmp_path / f"weights{suffix}")
    features = network(x)
    for ours, theirs in zip(features.maps, maps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.vector_BD, vector, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(list(network.levels(x)), list(features.maps))


@torch.inference_mode()
@pytest.mark.parametrize("spec", [VIT, CLIP_VIT], ids=["timm", "open_clip"])
def test_transformers_equal_a_plain_one(spec, tmp_path):
    fresh, x = Fresh(), images(spec.position_size_px)
    after, vector = plain_vit(fresh, x, spec)
    network = loaded(fresh, spec, tmp_path / "weights.safetensors")
    features = network(x)
    torch.testing.assert_close(features.vector_BD, vector, atol=1e-5, rtol=1e-5)
    num_blocks, side = spec.num_blocks[0], spec.position_size_px // spec.patch_size_px
    for level, stride in enumerate((4, 8, 16, 32)):
        tokens = after[num_blocks * (level + 1) // 4 - 1][:, 1:]
        plain = tokens.transpose(1, 2).unflatten(2, (side, side))
        size = math.ceil(spec.position_size_px / stride)
        plain = plain if size == side else F.interpolate(plain, size=(size, size), mode="bilinear")
        torch.testing.assert_close(features.maps[level], plain, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("size_px", [(33, 70), (96, 64)])
@pytest.mark.parametrize(
    "spec", [RESNET18, CLIP_RESNET, VIT, CLIP_VIT], ids=["resnet", "clip_resnet", "vit", "clip_vit"]
)
def test_maps_have_the_stated_channels_and_strides_at_any_size(spec, size_px):
    network = make_public_backbone(spec).eval()
    features = network(torch.randn(1, 3, *size_px))
    for map_BCHW, channels, stride in zip(features.maps, network.channels, network.strides, strict=True):
        assert map_BCHW.shape == (1, channels, *(math.ceil(size / stride) for size in size_px))
    assert features.vector_BD.shape == (1, network.vector_width)


@pytest.mark.parametrize(
    "spec", [RESNET50, CLIP_RESNET, VIT, CLIP_VIT], ids=["resnet", "clip_resnet", "vit", "clip_vit"]
)
def test_depths_of_parameters_grow_from_input_to_output(spec):
    network = make_public_backbone(spec)
    depths = [network.layer_index(name) for name, _ in network.named_parameters()]
    assert set(depths) >= set(range(network.num_layers - 1)) and max(depths) < network.num_layers
    seen = []

    def note(name):
        return lambda module, inputs, output: seen.append(network.layer_index(f"{name}.weight"))

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "downsample" not in name:
            module.register_forward_hook(note(name))
    network(torch.randn(1, 3, 64, 64))
    assert seen == sorted(seen) and seen[0] == 0


def test_a_position_embedding_of_another_size_is_interpolated():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    position = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, columns], -1).flatten(0, 1)])
    assert resized_position(position, torch.Size((4, 4))) is position
    wide = resized_position(position, torch.Size((4, 8)))
    assert wide.shape == (33, 2) and torch.equal(wide[0], position[0])
    grid = wide[1:].unflatten(0, (4, 8))
    # Each axis keeps its own order, and the inside of a linear ramp stays linear.
    assert (grid[:, 1:, 1] >= grid[:, :-1, 1]).all() and (grid[1:, :, 0] > grid[:-1, :, 0]).all()
    torch.testing.assert_close(grid[:, 3, 1], torch.full((4,), 1.25), atol=0.05, rtol=0)


def test_activation_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    network, x = make_public_backbone(VIT), images(32)
    gradients = []
    for checkpoint_activations in (False, True):
        network.checkpoint_activations = checkpoint_activations
        network.zero_grad()
        sum(map_BCHW.square().mean() for map_BCHW in network(x).maps).backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def test_a_model_keeps_the_normalisation_of_its_weights(tmp_path):
    spec = CLIP_VIT.with_overrides({"mean": list(CLIP_MEAN), "std": list(CLIP_STD)})
    model = VisionModel(ModelSpec(backbone=spec, image_size_px=64)).eval()
    model.save(tmp_path)
    again = VisionModel.load(tmp_path)
    assert again.spec == model.spec
    image_BCHW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    expected = model.backbone((image_BCHW.float() / 255 - mean) / std).vector_BD
    torch.testing.assert_close(again(image_BCHW).vector_BD, expected, atol=1e-5, rtol=1e-5)


def test_a_spec_has_one_architecture(tmp_path):
    from intern_vision.models.genotype import TOY_SA

    for both in ({}, {"genotype": TOY_SA.to_dict(), "backbone": VIT.to_dict()}):
        with pytest.raises(ConfigError, match="give genotype or backbone, not both"):
            ModelSpec.from_dict({"image_size_px": 64, **both})
    assert type(make_backbone(ModelSpec(backbone=VIT, image_size_px=64))).__name__ == "VisionTransformer"
    VisionModel(ModelSpec(backbone=VIT, image_size_px=64)).save(tmp_path)
    with pytest.raises(CheckpointError, match="weights of another architecture: backbone"):
        VisionModel(ModelSpec(genotype=TOY_SA, image_size_px=64)).load_part(tmp_path, "backbone")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("layer4.")], r"missing layer4\.0\.conv1.*; and \d+ more"),
        (lambda t: t.update({"layer5.0.weight": torch.ones(1)}), "unknown layer5.0.weight"),
        (lambda t: t.update({"bn1.weight": torch.ones(3)}), r"bn1\.weight is \(3,\), not \(8,\)"),
    ],
)
def test_missing_and_foreign_weights_are_told_in_one_line(change, message, tmp_path):
    fresh = Fresh()
    plain_resnet(fresh, images(64), RESNET18)
    change(fresh.tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        loaded(fresh, RESNET18, tmp_path / "weights.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


class Evil:
    """Runs code where it is unpickled carelessly."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_file_with_code_is_refused(tmp_path, capsys):
    path = tmp_path / "weights.pt"
    torch.save({"conv1.weight": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt: cannot be read as plain tensors"):
        load_public_backbone(make_public_backbone(RESNET18), path, RESNET18)
    assert "unpickled" not in capsys.readouterr().out
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_public_backbone(make_public_backbone(RESNET18), path, RESNET18)
    with pytest.raises(CheckpointError, match="no such file"):
        load_public_backbone(make_public_backbone(RESNET18), tmp_path / "none.pt", RESNET18)


# Parameters without a classifier: ResNet-50's 25,557,032 less 2,049,000 for 1,000 classes, and so on.
@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("vit_tiny_16", 5_524_416),
        ("vit_base_16", 85_798_656),
        ("clip_rn50", 38_316_896),
        ("clip_vit_base_32", 87_849_216 - 768 * 512),
    ],
)
def test_named_architectures_have_their_published_size(name, num_parameters):
    with torch.device("meta"):
        network = make_public_backbone(public_backbone(name))
    assert sum(p.numel() for p in network.parameters()) == num_parameters


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="clip_rn50x16"):
        public_backbone("resnet51")
    for spec in PUBLIC_BACKBONES.values():
        assert PublicBackbone.from_json(spec.to_json()) == spec
    with pytest.raises(ConfigError, match="num_blocks: expected 4 positive numbers"):
        RESNET18.with_overrides({"num_blocks": [2, 2]})
    with pytest.raises(ConfigError, match="num_heads: expected a divisor of 16"):
        VIT.with_overrides({"num_heads": 3})


def library(name):
    """The library, or a skip: beside a CPU-only torch, torchvision raises RuntimeError on import."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name}: {error}")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision(name, tmp_path):
    theirs = getattr(library("torchvision.models"), name)(weights=None).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    spec = public_backbone(name)
    ours = make_public_backbone(spec).eval()
    load_public_backbone(ours, tmp_path / "weights.safetensors", spec)
    x = images(96)
    torch.testing.assert_close(theirs.fc(ours(x).vector_BD), theirs(x), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_equals_timm(tmp_path):
    theirs = library("timm").create_model("vit_tiny_patch16_224", pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    spec = public_backbone("vit_tiny_16")
    ours = make_public_backbone(spec).eval()
    load_public_backbone(ours, tmp_path / "weights.safetensors", spec)
    x = images(224)
    torch.testing.assert_close(theirs.head(ours(x).vector_BD), theirs(x), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(("model", "name"), [("RN50", "clip_rn50"), ("ViT-B-32", "clip_vit_base_32")])
def test_equals_open_clip(model, name, tmp_path):
    theirs = library("open_clip").create_model(model, pretrained=None).eval()
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "weights.safetensors")
    spec = public_backbone(name)
    ours = make_public_backbone(spec).eval()
    load_public_backbone(ours, tmp_path / "weights.safetensors", spec)
    x = images(224)
    vector = ours(x).vector_BD
    projected = vector @ theirs.visual.proj if name.startswith("clip_vit") else vector
    torch.testing.assert_close(projected, theirs.visual(x), atol=1e-4, rtol=1e-4)
