import copy

import pytest
import torch
from helpers import GENOTYPE
from torch import nn

from intern_vision.errors import ConfigError
from intern_vision.models.central import CentralModel, Transfer, view_tensors
from intern_vision.models.genotype import MN_B4, MN_B15, NANO, TOY_SA, TOY_XCA
from intern_vision.models.metanet import MetaNet
from intern_vision.task import View


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
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


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
        got, expected = model(x, View(main=name)), expert(x)
        assert all(torch.equal(a, b) for a, b in zip(got.maps, expected.maps, strict=True))
        assert torch.equal(got.vector_BD, expected.vector_BD)


def test_a_fresh_path_gives_nothing_but_can_learn_in_every_layer():
    torch.manual_seed(0)
    transfer = Transfer((4, 6, 8), (5, 7, 9))
    convs = [module for module in transfer.modules() if isinstance(module, nn.Conv2d)]
    assert all(0 < conv.weight.abs().mean() < 2e-3 and conv.bias is None for conv in convs)
    maps = [torch.randn(4, width, size, size) for width, size in ((4, 16), (6, 8), (8, 4))]
    targets = [torch.randn(4, width, size, size) for width, size in ((5, 16), (7, 8), (9, 4))]
    before = copy.deepcopy(transfer.state_dict())
    optimizer = torch.optim.SGD(transfer.parameters(), lr=1.0)
    for _ in range(4):
        optimizer.zero_grad()
        sum((transfer(k, maps) - target).square().mean() for k, target in enumerate(targets)).backward()
        optimizer.step()
    assert not [name for name, value in transfer.named_parameters() if torch.equal(value, before[name])]


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


def test_views_of_one_call_are_those_of_single_calls(model, x):
    wake(model.transfers)
    model.eval()
    views = [View(main="classify"), View(main="detect")]
    together = model.forward_views(x, views)
    assert model.sources(views) == ("classify", "detect") and model.sources(views[:1]) == ("detect",)
    for view, features in zip(views, together, strict=True):
        alone = model(x, view)
        assert torch.equal(features.vector_BD, alone.vector_BD)
        assert all(torch.equal(a, b) for a, b in zip(features.maps, alone.maps, strict=True))


def test_every_expert_learns_from_its_own_view_alone(model, x):
    wake(model.transfers)
    for own in model.experts:
        model.zero_grad(set_to_none=True)
        views = [View(main=name) for name in model.experts]
        features = dict(zip(model.experts, model.train().forward_views(x, views), strict=True))
        features[own].vector_BD.square().sum().backward()
        owners = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert owners == {own}


def test_attached_transfers_reach_the_source_and_leave_its_statistics(model, x):
    wake(model.transfers)
    model.attached = True
    before = copy.deepcopy(dict(model.experts["detect"].named_buffers()))
    model.train()(x).vector_BD.square().sum().backward()
    source = model.experts["detect"]
    assert source.stem[0].weight.grad.abs().sum() > 0
    assert source.segments[-1][0].position.weight.grad is None  # the coarsest level is never read
    assert all(torch.equal(value, before[name]) for name, value in source.named_buffers())
    with torch.no_grad():
        assert not model(x).vector_BD.requires_grad


def test_an_expert_that_is_never_the_main_one_stays_frozen(x):
    torch.manual_seed(0)
    experts = {name: MetaNet(GENOTYPE) for name in ("a", "b", "c")}
    model = CentralModel(experts, "a", mains=("a", "b")).requires_grad_(True)
    assert list(model.transfers) == ["a", "b"]
    assert not any(parameter.requires_grad for parameter in model.experts["c"].parameters())
    views = [View(main="a"), View(main="b")]
    sum(features.vector_BD.square().sum() for features in model.forward_views(x, views)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_sets_of_batch_norms(x):
    torch.manual_seed(0)
    experts = {"global": MetaNet(GENOTYPE), "patch": MetaNet(GENOTYPE)}
    plain = copy.deepcopy(experts["global"]).eval()
    sets = {"global": ("classify", "dense")}
    classify, dense, patch = View(main="global"), View(main="global", bn_set="dense"), View(main="patch")
    model = CentralModel(experts, "global", sets)
    assert torch.equal(model.eval()(x).vector_BD, plain(x).vector_BD)
    model.train()
    model(3 * x + 1, dense).vector_BD.square().sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(".sets.dense." in name and name.startswith("experts.global") for name in touched)
    assert any(".sets.dense." in name and name.startswith("transfers.global") for name in touched)
    assert not any(".sets.classify." in name for name in touched)
    model.eval()
    dense_BD = model(x, dense).vector_BD
    assert not torch.allclose(dense_BD, plain(x).vector_BD)
    # In any order of views: without a set named it is the first.
    for views in ([classify, dense, patch], [dense, patch, classify]):
        found = dict(zip(views, model.forward_views(x, views), strict=True))
        assert torch.equal(found[classify].vector_BD, plain(x).vector_BD)
        assert torch.equal(found[dense].vector_BD, dense_BD)
        assert torch.equal(found[patch].vector_BD, model.experts["patch"](x).vector_BD)

    again = CentralModel({"global": MetaNet(GENOTYPE), "patch": MetaNet(GENOTYPE)}, "global", sets)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x, dense).vector_BD, dense_BD)


def test_a_source_uses_its_first_set(x):
    torch.manual_seed(0)
    experts = {"global": MetaNet(GENOTYPE), "patch": MetaNet(GENOTYPE)}
    model = CentralModel(experts, "global", {"patch": ("classify", "dense")})
    wake(model.transfers)
    model.eval()
    expected = model(x).vector_BD
    model.train()(3 * x, View(main="patch", bn_set="dense"))
    assert torch.equal(model.eval()(x).vector_BD, expected)


def test_one_view_can_be_taken_out_of_the_model(x):
    torch.manual_seed(0)
    experts = {name: MetaNet(GENOTYPE) for name in ("a", "b", "c")}
    sets = {"a": ("classify", "dense"), "b": ("one", "two")}
    model = CentralModel(experts, "a", sets)
    wake(model.transfers)
    views = [View(main="a"), View(main="a", bn_set="dense"), View(main="b", bn_set="two"), View(main="c")]
    for scale, view in enumerate(views, 1):
        model.train()(scale * x, view)  # makes every set's statistics its own
    model.eval()
    for view in views:
        alone = CentralModel({name: MetaNet(GENOTYPE) for name in experts}, view.main, mains=(view.main,))
        alone.load_state_dict(view_tensors(model.state_dict(), view, sets))
        assert torch.equal(alone.eval()(x).vector_BD, model(x, view).vector_BD)
        assert num_parameters(alone) < num_parameters(model)


def test_layer_index(model):
    assert model.layer_index("experts.detect.stem.0.weight") == 0
    assert model.layer_index("experts.detect.segments.3.1.attention.qkv.weight") == model.num_layers - 2
    assert model.layer_index("transfers.detect.classify.levels.0.0.0.weight") == model.num_layers - 1


def test_faults(model):
    nets = {"a": MetaNet(TOY_SA), "b": MetaNet(NANO)}
    with pytest.raises(ConfigError, match="expected equal strides"):
        CentralModel(nets, "a")
    with pytest.raises(ConfigError, match="expected at least 2, got 1"):
        CentralModel({"a": nets["a"]}, "a")
    with pytest.raises(ConfigError, match="mains: expected one of a, c, got 'b'"):
        CentralModel({"a": nets["a"], "c": MetaNet(TOY_SA)}, "a", mains=("a", "b"))
    with pytest.raises(ConfigError, match="main: expected one of classify, detect, got 'segment'"):
        CentralModel(dict(model.experts), "segment")
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ConfigError, match="view.main: expected one of classify, detect, got 'segment'"):
        model(x, View(main="segment"))
    with pytest.raises(ConfigError, match="expert 'classify' has no set 'dense'; its sets: none"):
        model(x, View(main="classify", bn_set="dense"))
