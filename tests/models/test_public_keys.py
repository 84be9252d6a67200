import re

import pytest
import torch
from hypothesis import given, settings
from random_genotypes import genotypes
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from intern_vision.errors import CheckpointError
from intern_vision.models.genotype import GENOTYPES, MN_B4, MN_B15, TOY_SA, TOY_XCA, UNINETS, num_parameters
from intern_vision.models.metanet import MetaNet
from intern_vision.models.public_keys import load_public, public_names, public_state_dict

SMALL_UNINET = UNINETS["uninet_b0"].with_overrides(
    {
        "head_size": 8,
        "image_size_px": 64,
        "stages": [
            stage.to_dict() | {"width": width, "num_blocks": blocks}
            for stage, width, blocks in zip(
                UNINETS["uninet_b0"].stages, (8, 16, 16, 24, 24, 32), (1, 1, 1, 1, 1, 2), strict=True
            )
        ],
    }
)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def filled(genotype, seed=0):
    """A public state dict with every tensor random; variances positive."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in public_state_dict(genotype).items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.randint(1, 1000, shape, generator=generator)
        else:
            tensors[name] = 0.3 * torch.randn(shape, generator=generator)
            if name.endswith("running_var"):
                tensors[name] = tensors[name].abs() + 0.5
    return tensors


SMALL_MIXER = TOY_SA.with_overrides(
    {
        "image_size_px": 64,
        "stages": [
            stage.to_dict() | {"operator": "mixer" if index == 3 else stage.operator, "num_blocks": 2}
            for index, stage in enumerate(TOY_SA.stages[:4])
        ],
    }
)


class PublicNet:
    """The released networks' forward pass in evaluation mode, read off public tensor names."""

    def __init__(self, tensors, genotype):
        self.tensors, self.genotype = tensors, genotype

    def weights(self, name):
        return self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")

    def conv(self, name, x, stride=1):
        weight, bias = self.weights(name)
        groups = x.shape[1] // weight.shape[1]
        return functional.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, name, x):
        mean, variance = self.tensors[f"{name}.running_mean"], self.tensors[f"{name}.running_var"]
        return functional.batch_norm(x, mean, variance, *self.weights(name))

    def layer_norm(self, name, x):
        return functional.layer_norm(x, x.shape[-1:], *self.weights(name))

    def linear(self, name, x):
        return functional.linear(x, *self.weights(name))

    def residual(self, at, x, stride):
        if f"{at}.residual.1.weight" in self.tensors:
            return self.conv(f"{at}.residual.1", functional.max_pool2d(x, 3, stride, 1))
        return self.conv(f"{at}.residual.0", x) if f"{at}.residual.0.weight" in self.tensors else x

    def gate(self, at, x):
        gate = self.conv(f"{at}.fc2", self.conv(f"{at}.fc1", x.mean((2, 3), keepdim=True)).relu())
        return x * functional.relu6(gate + 3) / 6

    def mbconv(self, at, x, stride):
        y = x
        if f"{at}.b1.1.weight" in self.tensors:
            y = self.conv(f"{at}.b1.1", self.norm(f"{at}.b1.0", y))
            y = functional.gelu(self.norm(f"{at}.b1.2", y))
        y = functional.gelu(self.norm(f"{at}.b2.1", self.conv(f"{at}.b2.0", y, stride)))
        y = self.norm(f"{at}.b2.5", self.conv(f"{at}.b2.4", self.gate(f"{at}.b2.3", y)))
        return self.residual(at, x, stride) + y

    def fused_mbconv(self, at, x, stride):
        y, rest = x, stride
        if f"{at}.b1.1.weight" in self.tensors:
            y, rest = self.conv(f"{at}.b1.1", self.norm(f"{at}.b1.0", y), stride), 1
            y = functional.gelu(self.norm(f"{at}.b1.2", y))
        y = self.norm(f"{at}.b2.2", self.conv(f"{at}.b2.1", self.gate(f"{at}.b2.0", y), rest))
        return self.residual(at, x, stride) + y

    def attend(self, at, x):
        size = self.genotype.head_size
        q, k, v = self.linear(f"{at}.qkv", x).chunk(3, -1)
        q, k, v = (each.unflatten(2, (-1, size)).transpose(1, 2) for each in (q, k, v))
        if f"{at}.temperature" in self.tensors:
            q, k = functional.normalize(q, dim=2), functional.normalize(k, dim=2)
            weights = (q.transpose(2, 3) @ k * self.tensors[f"{at}.temperature"]).softmax(-1)
            mixed = torch.einsum("bgij,bgnj->bgni", weights, v)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.linear(f"{at}.proj", mixed.transpose(1, 2).flatten(2))

    def attention(self, at, x, stride):
        x = x + self.conv(f"{at}.pos_embed", x)
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.layer_norm(f"{at}.norm1", tokens)
        if f"{at}.norm2.weight" not in self.tensors:
            pooled = functional.max_pool2d(normed.transpose(1, 2).unflatten(2, x.shape[2:]), 3, stride, 1)
            branch = self.tensors[f"{at}.gamma_1"] * self.attend(f"{at}.attn", pooled.flatten(2).transpose(1, 2))
            return self.residual(at, x, stride) + branch.transpose(1, 2).unflatten(2, pooled.shape[2:])
        tokens = tokens + self.tensors[f"{at}.gamma_1"] * self.attend(f"{at}.attn", normed)
        hidden = functional.gelu(self.linear(f"{at}.mlp.fc1", self.layer_norm(f"{at}.norm2", tokens)))
        tokens = tokens + self.tensors[f"{at}.gamma_2"] * self.linear(f"{at}.mlp.fc2", hidden)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])

    cross_covariance = attention

    def mlp(self, at, x):
        return self.linear(f"{at}.fc2", functional.gelu(self.linear(f"{at}.fc1", x)))

    def mixer(self, at, x, stride):
        tokens = x.flatten(2).transpose(1, 2)
        branch = self.mlp(f"{at}.mlp_tokens", self.layer_norm(f"{at}.norm1", tokens).transpose(1, 2))
        if f"{at}.gamma_1" in self.tensors:
            x = x + (branch * self.tensors[f"{at}.gamma_1"][:, None]).unflatten(2, x.shape[2:])
        else:
            x = self.conv(f"{at}.r1.1", functional.max_pool2d(x, 3, stride, 1))
            x = x + branch.unflatten(2, x.shape[2:])
        tokens = x.flatten(2).transpose(1, 2)
        branch = self.mlp(f"{at}.mlp_channels", self.layer_norm(f"{at}.norm2", tokens))
        if f"{at}.gamma_2" in self.tensors:
            return x + (branch * self.tensors[f"{at}.gamma_2"]).transpose(1, 2).unflatten(2, x.shape[2:])
        shortcut = self.conv(f"{at}.r2.1", functional.max_pool2d(x, 3, 1, 1))
        return shortcut + branch.transpose(1, 2).unflatten(2, x.shape[2:])

    def local_path(self, at, x, stride):
        return self.conv(f"{at}.2", self.norm(f"{at}.1", self.conv(f"{at}.0", x, stride)))

    def local(self, at, x, stride):
        return self.local_path(f"{at}.downsample", x, stride) + self.residual(at, x, stride)

    def local_global(self, at, x, stride):
        local, size = self.local_path(f"{at}.q", x, stride), self.genotype.head_size
        q = self.layer_norm(f"{at}.q_norm", local.flatten(2).transpose(1, 2))
        k, v = self.linear(f"{at}.kv", self.layer_norm(f"{at}.kv_norm", x.flatten(2).transpose(1, 2))).chunk(2, -1)
        q, k, v = (each.unflatten(2, (-1, size)).transpose(1, 2) for each in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.residual(at, x, stride) + self.linear(f"{at}.proj", mixed).transpose(1, 2).unflatten(
            2, local.shape[2:]
        )

    def __call__(self, x):
        x = functional.gelu(self.norm("stem.1", self.conv("stem.0", x, 2)))
        for index, shape in enumerate(self.genotype.blocks(64)):
            x = getattr(self, shape.operator)(f"blocks.{index}", x, shape.stride)
        return functional.gelu(self.norm("head.1", self.conv("head.0", x))).mean((2, 3))


@pytest.mark.parametrize(
    ("genotype", "height_px"), [(TOY_SA, 45), (TOY_XCA, 45), (SMALL_UNINET, 45), (SMALL_MIXER, 64)]
)
def test_loaded_weights_compute_what_the_public_network_computes(genotype, height_px):
    tensors = filled(genotype)
    net = MetaNet(genotype).eval()
    net.load_state_dict(load_public(tensors, genotype))
    x = torch.randn(2, 3, height_px, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net(x).vector_BD, PublicNet(tensors, genotype)(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mn_b4", "mn_b7", "mn_b15", "uninet_b0", "uninet_b6"])
def test_every_key_of_a_released_model_maps_once(name):
    genotype = GENOTYPES[name]
    with torch.device("meta"):
        own = MetaNet(genotype).state_dict()
    names, shapes = public_names(genotype), public_state_dict(genotype)
    assert list(names) == list(own)
    assert len(set(names.values())) == len(names) == len(shapes)
    assert all(shapes[names[key]] == tensor.shape for key, tensor in own.items())
    learned = [shape.numel() for key, shape in shapes.items() if not key.endswith(STATISTICS)]
    assert sum(learned) == num_parameters(genotype)
    num_modules = sum(1 for _ in genotype.blocks(224))
    assert {int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")} == set(range(num_modules))
    pattern = (
        r"(stem|head)\.[01]\.\w+|blocks\.\d+\.(residual\.[01]|b1\.[012]|b2\.[0-5](\.fc[12])?|norm[12]|pos_embed"
        r"|attn\.(qkv|proj)|mlp\.fc[12]|downsample\.[012]|q\.[012]|q_norm|kv_norm|kv|proj)\.\w+"
        r"|blocks\.\d+\.(gamma_[12]|attn\.temperature)"
    )
    assert [key for key in shapes if not re.fullmatch(pattern, key)] == []


def test_known_keys_of_the_released_models():
    b4, b15, uninet = (public_state_dict(GENOTYPES[name]) for name in ("mn_b4", "mn_b15", "uninet_b0"))
    for shapes, expected in (
        (
            b4,
            {
                "stem.0.weight": (32, 3, 3, 3),
                "blocks.0.b2.0.weight": (32, 1, 3, 3),
                "blocks.2.residual.1.weight": (64, 32, 1, 1),
                "blocks.2.b1.1.weight": (128, 32, 1, 1),
                "blocks.2.b2.3.fc1.weight": (32, 128, 1, 1),
                "blocks.2.b2.5.running_var": (64,),
                "blocks.17.attn.qkv.weight": (576, 192),
                "blocks.23.attn.proj.weight": (384, 192),
                "blocks.34.mlp.fc1.weight": (1920, 384),
                "blocks.34.gamma_2": (384,),
                "head.0.weight": (1280, 384, 1, 1),
            },
        ),
        (
            b15,
            {
                "blocks.0.b2.0.fc1.weight": (24, 96, 1, 1),
                "blocks.0.b2.1.weight": (128, 96, 3, 3),
                "blocks.4.b1.1.weight": (512, 128, 3, 3),
                "blocks.4.b2.0.fc2.weight": (512, 128, 1, 1),
                "blocks.46.attn.temperature": (12, 1, 1),
                "blocks.69.attn.temperature": (24, 1, 1),
            },
        ),
        (
            uninet,
            {
                "blocks.1.downsample.0.weight": (24, 1, 3, 3),
                "blocks.1.downsample.2.weight": (48, 24, 1, 1),
                "blocks.14.residual.0.weight": (128, 128, 1, 1),
                "blocks.14.kv.weight": (256, 128),
                "blocks.19.residual.1.weight": (256, 128, 1, 1),
                "blocks.19.q_norm.weight": (256,),
            },
        ),
    ):
        assert {key: tuple(shapes[key]) for key in expected} == expected
    for absent in ("blocks.0.b1.1.weight", "blocks.23.mlp.fc1.weight", "blocks.23.gamma_2", "classifier.weight"):
        assert absent not in b4


@given(genotypes())
@settings(max_examples=8)
def test_round_trip_of_any_genotype_is_exact(genotype):
    tensors = filled(genotype)
    net = MetaNet(genotype)
    net.load_state_dict(load_public(tensors, genotype))
    own, names = net.state_dict(), public_names(genotype)
    assert {public: own[name].tolist() for name, public in names.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("wrapping", ["plain", "parallel", "whole_model", "classifier"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_files_as_trainers_write_them(wrapping, suffix, tmp_path):
    tensors, path = filled(TOY_SA), tmp_path / f"public.{suffix}"
    saved = {
        "plain": tensors,
        "parallel": {f"module.{name}": tensor for name, tensor in tensors.items()},
        "whole_model": {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        | {"head.fc.weight": torch.zeros(10, 1280)},
        "classifier": tensors | {"classifier.weight": torch.zeros(10, 1280), "classifier.bias": torch.zeros(10)},
    }[wrapping]
    if suffix == "pth":
        torch.save({"state_dict": saved, "meta": {"epoch": 3}}, path)
    else:
        save_file(saved, path)
    found, expected = load_public(path, TOY_SA), load_public(tensors, TOY_SA)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_missing_batch_counters_are_zero():
    tensors = {name: tensor for name, tensor in filled(TOY_SA).items() if not name.endswith("num_batches_tracked")}
    found = load_public(tensors, TOY_SA)
    assert found["stem.1.num_batches_tracked"] == 0
    MetaNet(TOY_SA).load_state_dict(found)


def test_foreign_weights_are_one_line():
    tensors = filled(TOY_SA)
    del tensors["blocks.0.b2.0.weight"]
    tensors["blocks.99.norm1.weight"] = torch.zeros(3)
    tensors["head.0.weight"] = torch.zeros(1280, 48)
    with pytest.raises(CheckpointError) as error:
        load_public(tensors, TOY_SA)
    assert str(error.value) == (
        "public checkpoint: weights of another architecture: missing blocks.0.b2.0.weight; "
        "unknown blocks.99.norm1.weight; head.0.weight is (1280, 48), not (1280, 48, 1, 1)"
    )
    with pytest.raises(CheckpointError, match=r"missing stem.0.weight; .*; and \d+ more$"):
        load_public({}, MN_B15)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code from a file was run",))


def test_unreadable_files_are_one_line(tmp_path):
    trap, text, module = tmp_path / "trap.pth", tmp_path / "text.safetensors", tmp_path / "list.pth"
    torch.save({"state_dict": Trap()}, trap)
    text.write_text("no tensors")
    torch.save([nn.Parameter(torch.zeros(1))], module)
    for path in (trap, text, module, tmp_path / "absent.pth"):
        with pytest.raises(CheckpointError) as error:
            load_public(path, MN_B4)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
