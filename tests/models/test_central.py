import copy

import pytest
import torch
from torch import nn

from intern_vision.errors import ConfigError
from intern_vision.models.central import CentralModel, Transfer
from intern_vision.models.genotype import MN_B4, MN_B15, NANO, TOY_SA, TOY_XCA
from intern_vision.models.metanet import MetaNet


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def wake(transfers):
    """Gives every transfer a part in the output, as training does."""
    for module in transfers.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CentralModel({"classify": MetaNet(TOY_SA), "detect": MetaNet(TOY_SA)}, "classify")


@pytest.fixture
def x():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("channels", "count"),
    [((64, 128, 192), 501_632), ((256, 512, 768), 8_003_072), ((256, 512, 1024), 10_232_832)],
)
def test_published_transfer_sizes(channels, count):
    with torch.device("meta"):
        assert num_parameters(Transfer(channels, channels)) == count


def test_size_of_the_whole_model():
    with torch.device("meta"):
        model = CentralModel({"global": MetaNet(MN_B4), "patch": MetaNet(MN_B4)}, "global")
    assert num_parameters(model) == 2 * 30_424_992 + 2 * 501_632
    with torch.device("meta"):
        model = CentralModel({"global": MetaNet(MN_B15), "patch": MetaNet(MN_B15)}, "global")
    assert num_parameters(model) / 1e9 == pytest.approx(2.02, abs=0.005)


def test_level_k_reads_levels_1_to_k():
    transfer = Transfer((4, 6, 8), (5, 7, 9))
    assert [len(paths) for paths in transfer.levels] == [1, 2, 3]
    maps = [torch.randn(2, width, size, size) for width, size in ((4, 15), (6, 8), (8, 4))]
    for level, shape in enumerate([(2, 5, 15, 15), (2, 7, 8, 8), (2, 9, 4, 4)]):
        assert transfer(level, maps).shape == shape
        assert not transfer(level, maps).any()
    wake(transfer)
    transfer.eval()
    changed = [maps[0], maps[1], maps[2] + 1]
    assert torch.equal(transfer(1, changed), transfer(1, maps))
    assert not torch.equal(transfer(2, changed), transfer(2, maps))


@pytest.mark.parametrize("genotypes", [(TOY_SA, TOY_SA), (TOY_XCA, TOY_SA, TOY_XCA), (NANO, NANO)])
def test_fresh_model_is_the_main_expert_bit_for_bit(genotypes, x):
    torch.manual_seed(0)
    experts = {f"expert{index}": MetaNet(genotype) for index, genotype in enumerate(genotypes)}
    for expert in experts.values():
        expert.train()(x)  # makes the BatchNorm statistics differ from their first values
    model = CentralModel(experts, "expert0").eval()
    for name, expert in experts.items():
        got, expected = model.view(name)(x), expert(x)
        assert all(torch.equal(a, b) for a, b in zip(got.maps, expected.maps, strict=True))
        assert torch.equal(got.vector_BD, expected.vector_BD)
        assert torch.equal(model(x, name).vector_BD, expected.vector_BD)


def test_no_gradient_reaches_a_source(model, x):
    wake(model.transfers)
    model(x).vector_BD.square().sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in with_gradient if name.startswith("experts")} == {"classify"}
    assert {name.split(".")[1] for name in with_gradient if name.startswith("transfers")} == {"classify"}
    assert {name for name, _ in model.named_parameters() if name.startswith("transfers.classify")} <= with_gradient


def test_a_source_is_read_only(model, x):
    before = copy.deepcopy(model.experts["detect"].state_dict())
    model.train()
    model.experts["detect"].stem.eval()
    model(x)
    assert all(torch.equal(value, before[name]) for name, value in model.experts["detect"].state_dict().items())
    assert not model.experts["detect"].stem.training
    assert model.experts["detect"].segments.training
    assert model.training


def test_transfers_change_every_level_but_take_nothing_from_the_coarsest(model, x):
    wake(model.transfers)
    model.eval()
    alone = model.experts["classify"](x)
    fused = model(x)
    assert all(not torch.allclose(a, b) for a, b in zip(fused.maps, alone.maps, strict=True))
    nn.init.normal_(model.experts["detect"].segments[-1][0].position.weight)
    assert torch.equal(model(x).vector_BD, fused.vector_BD)


def test_a_view_holds_what_it_needs_and_shares_it(model, x):
    view = model.view("detect")
    assert list(view.transfers) == ["classify"]
    assert view.experts is model.experts
    assert (view.channels, view.strides, view.vector_width) == (model.channels, model.strides, model.vector_width)
    wake(view.transfers)
    model.eval()
    assert torch.equal(view(x).vector_BD, model(x, "detect").vector_BD)


def test_sets_of_batch_norms(x):
    torch.manual_seed(0)
    experts = {"global": MetaNet(TOY_SA), "patch": MetaNet(TOY_SA)}
    plain = copy.deepcopy(experts["global"]).eval()
    model = CentralModel(experts, "global", {"global": ("classify", "dense")})
    assert model.bn_sets == ("classify", "dense")
    assert torch.equal(model.eval()(x).vector_BD, plain(x).vector_BD)
    model.train()
    model.use_bn_set("dense")
    model(3 * x + 1).vector_BD.square().sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(".sets.dense." in name and name.startswith("experts.global") for name in touched)
    assert any(".sets.dense." in name and name.startswith("transfers.global") for name in touched)
    assert not any(".sets.classify." in name for name in touched)
    model.eval()
    dense = model(x).vector_BD
    model.use_bn_set("classify")
    assert torch.equal(model(x).vector_BD, plain(x).vector_BD)
    assert not torch.allclose(dense, plain(x).vector_BD)
    assert torch.equal(model(x, "patch").vector_BD, model.experts["patch"](x).vector_BD)

    again = CentralModel({"global": MetaNet(TOY_SA), "patch": MetaNet(TOY_SA)}, "global", {"global": model.bn_sets})
    again.load_state_dict(model.state_dict())
    again.eval().use_bn_set("dense")
    assert torch.equal(again(x).vector_BD, dense)


def test_a_source_uses_its_first_set(x):
    torch.manual_seed(0)
    experts = {"global": MetaNet(TOY_SA), "patch": MetaNet(TOY_SA)}
    model = CentralModel(experts, "global", {"patch": ("classify", "dense")})
    wake(model.transfers)
    model.eval()
    expected = model(x).vector_BD
    patch = model.view("patch")
    patch.use_bn_set("dense")
    patch.train()
    patch(3 * x)
    model.eval()
    assert torch.equal(model(x).vector_BD, expected)
    assert model.experts["patch"].stem[1].active == "dense"


def test_layer_index(model):
    assert model.layer_index("experts.detect.stem.0.weight") == 0
    assert model.layer_index("experts.detect.segments.3.1.attention.qkv.weight") == model.num_layers - 2
    assert model.layer_index("transfers.detect.classify.levels.0.0.0.weight") == model.num_layers - 1


def test_faults(model):
    nets = {"a": MetaNet(TOY_SA), "b": MetaNet(NANO)}
    with pytest.raises(ConfigError, match="expected equal strides"):
        CentralModel(nets, "a")
    with pytest.raises(ConfigError, match="expected 2 to 4, got 1"):
        CentralModel({"a": nets["a"]}, "a")
    with pytest.raises(ConfigError, match="main: expected one of classify, detect, got 'segment'"):
        model.view("segment")
    with pytest.raises(ConfigError, match="'classify' has no set 'dense'; its sets: none"):
        model.use_bn_set("dense")
