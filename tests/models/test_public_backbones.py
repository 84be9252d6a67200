"""Public architectures against plain functional re-implementations, under the names of the public state dicts."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
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


class Fresh:
    """Random tensors by public name, made when first asked for."""

    def __init__(self, seed=0):
        self.tensors, self.generator = {}, torch.Generator().manual_seed(seed)

    def __call__(self, name, *shape, scale=0.1, around=0.0):
        if name not in self.tensors:
            self.tensors[name] = around + scale * torch.randn(shape, generator=self.generator)
        return self.tensors[name]

    def norm(self, name, width):
        around = {"weight": 1.0, "bias": 0.0}
        return {key: self(f"{name}.{key}", width, around=value) for key, value in around.items()}

    def batch_norm(self, x, name):
        width = x.shape[1]
        mean = self(f"{name}.running_mean", width)
        var = self(f"{name}.running_var", width, around=1.0).abs_()
        self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, var, **self.norm(name, width))

    def conv(self, x, name, out, kernel, stride=1):
        weight = self(f"{name}.weight", out, x.shape[1], kernel, kernel, scale=1 / math.sqrt(x.shape[1] * kernel**2))
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2)

    def linear(self, x, name, out):
        width = x.shape[-1]
        weight = self(f"{name}.weight", out, width, scale=1 / math.sqrt(width))
        return F.linear(x, weight, self(f"{name}.bias", out))

    def layer_norm(self, x, name, eps):
        return F.layer_norm(x, x.shape[-1:], **self.norm(name, x.shape[-1]), eps=eps)


def plain_resnet(fresh, x, spec):
    """As torchvision's state dict is named: (maps, vector)."""
    x = F.max_pool2d(F.relu(fresh.batch_norm(fresh.conv(x, "conv1", spec.width, 7, 2), "bn1")), 3, 2, 1)
    maps = []
    for stage, num_blocks in enumerate(spec.num_blocks):
        width = spec.width * 2**stage
        for block in range(num_blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            if spec.bottleneck:
                y = F.relu(fresh.batch_norm(fresh.conv(x, f"{name}.conv1", width, 1), f"{name}.bn1"))
                y = F.relu(fresh.batch_norm(fresh.conv(y, f"{name}.conv2", width, 3, stride), f"{name}.bn2"))
                y = fresh.batch_norm(fresh.conv(y, f"{name}.conv3", 4 * width, 1), f"{name}.bn3")
            else:
                y = F.relu(fresh.batch_norm(fresh.conv(x, f"{name}.conv1", width, 3, stride), f"{name}.bn1"))
                y = fresh.batch_norm(fresh.conv(y, f"{name}.conv2", width, 3), f"{name}.bn2")
            if y.shape != x.shape:
                x = fresh.conv(x, f"{name}.downsample.0", y.shape[1], 1, stride)
                x = fresh.batch_norm(x, f"{name}.downsample.1")
            x = F.relu(x + y)
        maps.append(x)
    fresh.linear(x.mean((2, 3)), "fc", 10)
    return maps, x.mean((2, 3))


def plain_clip_resnet(fresh, x, spec):
    """As open_clip's ``visual.`` part is named."""
    half = spec.width // 2
    for number, (out, stride) in enumerate(((half, 2), (half, 1), (spec.width, 1)), 1):
        x = F.relu(fresh.batch_norm(fresh.conv(x, f"visual.conv{number}", out, 3, stride), f"visual.bn{number}"))
    x = F.avg_pool2d(x, 2)
    maps = []
    for stage, num_blocks in enumerate(spec.num_blocks):
        width = spec.width * 2**stage
        for block in range(num_blocks):
            name, stride = f"visual.layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = F.relu(fresh.batch_norm(fresh.conv(x, f"{name}.conv1", width, 1), f"{name}.bn1"))
            y = F.relu(fresh.batch_norm(fresh.conv(y, f"{name}.conv2", width, 3), f"{name}.bn2"))
            y = F.avg_pool2d(y, stride) if stride > 1 else y
            y = fresh.batch_norm(fresh.conv(y, f"{name}.conv3", 4 * width, 1), f"{name}.bn3")
            if block == 0:
                x = F.avg_pool2d(x, stride) if stride > 1 else x
                x = fresh.batch_norm(fresh.conv(x, f"{name}.downsample.0", 4 * width, 1), f"{name}.downsample.1")
            x = F.relu(x + y)
        maps.append(x)
    width = x.shape[1]
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
    tokens = tokens + fresh("visual.attnpool.positional_embedding", len(tokens), width)[:, None]
    for part in ("q", "k", "v"):
        fresh.linear(tokens, f"visual.attnpool.{part}_proj", width)
    fresh.linear(tokens, "visual.attnpool.c_proj", spec.vector_width)
    weights = {f"{p}_proj_weight": fresh.tensors[f"visual.attnpool.{p}_proj.weight"] for p in "qkv"}
    vector, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, width, spec.num_heads, None,
        torch.cat([fresh.tensors[f"visual.attnpool.{p}_proj.bias"] for p in "qkv"]),
        None, None, False, 0.0,
        fresh.tensors["visual.attnpool.c_proj.weight"], fresh.tensors["visual.attnpool.c_proj.bias"],
        training=False, use_separate_proj_weight=True, need_weights=False, **weights,
    )  # fmt: skip
    for name in ("text_projection", "logit_scale", "transformer.resblocks.0.ln_1.weight", "token_embedding.weight"):
        fresh(name, 3)  # the text tower, which is not taken
    return maps, vector[0]


def plain_vit(fresh, x, spec):
    """As timm's or open_clip's state dict is named: (tokens after every block, vector)."""
    clip = spec.kind == "clip_vit"
    eps, width = (1e-5 if clip else 1e-6), spec.width
    patch = "visual.conv1" if clip else "patch_embed.proj"
    weight = fresh(f"{patch}.weight", width, 3, spec.patch_size_px, spec.patch_size_px)
    bias = None if clip else fresh(f"{patch}.bias", width)
    tokens = F.conv2d(x, weight, bias, stride=spec.patch_size_px).flatten(2).transpose(1, 2)
    if clip:
        first = fresh("visual.class_embedding", width)[None, None]
        position = fresh("visual.positional_embedding", tokens.shape[1] + 1, width)
    else:
        first = fresh("cls_token", 1, 1, width)
        position = fresh("pos_embed", 1, tokens.shape[1] + 1, width)
    tokens = torch.cat([first.expand(len(x), 1, width), tokens], 1) + position
    if clip:
        tokens = fresh.layer_norm(tokens, "visual.ln_pre", eps)
    after = []
    for number in range(spec.num_blocks[0]):
        block = f"visual.transformer.resblocks.{number}" if clip else f"blocks.{number}"
        norms = ("ln_1", "ln_2") if clip else ("norm1", "norm2")
        qkv, out = ("attn.in_proj_", "attn.out_proj") if clip else ("attn.qkv.", "attn.proj")
        y = fresh.layer_norm(tokens, f"{block}.{norms[0]}", eps)
        fused = F.linear(
            y,
            fresh(f"{block}.{qkv}weight", 3 * width, width, scale=0.3),
            fresh(f"{block}.{qkv}bias", 3 * width),
        )
        q, k, v = (part.unflatten(2, (spec.num_heads, -1)).transpose(1, 2) for part in fused.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + fresh.linear(y, f"{block}.{out}", width)
        names = ("mlp.c_fc", "mlp.c_proj") if clip else ("mlp.fc1", "mlp.fc2")
        y = fresh.linear(fresh.layer_norm(tokens, f"{block}.{norms[1]}", eps), f"{block}.{names[0]}", 4 * width)
        y = y * torch.sigmoid(1.702 * y) if spec.quick_gelu else F.gelu(y)
        tokens = tokens + fresh.linear(y, f"{block}.{names[1]}", width)
        after.append(tokens)
    vector = fresh.layer_norm(tokens, "visual.ln_post" if clip else "norm", eps)[:, 0]
    if clip:
        fresh("visual.proj", width, 5)
        fresh("logit_scale", 1)
    else:
        fresh.linear(vector, "head", 10)
    return after, vector


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
