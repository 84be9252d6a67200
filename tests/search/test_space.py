import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from intern_vision.errors import ConfigError
from intern_vision.models.genotype import ATTENTION_OPERATORS, GENOTYPES, Genotype, num_macs, num_parameters
from intern_vision.models.metanet import MetaNet
from intern_vision.search.space import Space, SpaceConfig

SPACES = {
    name: Space(GENOTYPES[name], SpaceConfig(), size_px)
    for name, size_px in (("nano", 64), ("toy_sa", 64), ("toy_xca", 64), ("mn_b4", 224), ("uninet_b1", 224))
}


def choices_in(space: Space) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(0, len(decision.options) - 1) for decision in space.decisions))


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
def test_every_list_of_choices_is_a_network_that_encodes_back(name, data):
    space = SPACES[name]
    choices = data.draw(choices_in(space))
    genotype = space.decode(choices)
    assert space.decode(space.encode(genotype)) == genotype
    assert Genotype.from_dict(genotype.to_dict()) == genotype, "it passes the checks that decoding leaves out"
    assert num_macs(genotype, genotype.image_size_px) > 0
    assert space.indices(space.named(choices)) == choices
    for gene, template in zip(genotype.stages, space.template.stages, strict=True):
        assert gene.stride == template.stride and gene.num_blocks >= 1
        if gene.operator in ATTENTION_OPERATORS:
            assert gene.width % genotype.head_size == 0


@pytest.mark.parametrize("name", ["nano", "toy_sa", "toy_xca"])
def test_cost_in_closed_form_equals_a_traced_count(name):
    space = SPACES[name]
    rng = random.Random(1)
    for _ in range(4):
        genotype = space.decode([rng.randrange(len(decision.options)) for decision in space.decisions])
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net = MetaNet(genotype).eval()
            net(torch.empty(1, 3, 64, 64))
        assert counter.get_total_flops() == 2 * num_macs(genotype, 64)
        assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters(genotype)


@pytest.mark.parametrize("name", SPACES)
def test_template_lies_in_its_space(name):
    space = SPACES[name]
    assert space.decode(space.encode(space.template)) == space.template
    assert space.template.stages == GENOTYPES[name].stages
    assert space.named(space.encode(space.template))["width_factor_0"] == 1


def test_options_are_the_paper_s_where_they_fit():
    space = SPACES["mn_b4"]
    for stage, gene in enumerate(space.template.stages):
        assert space.options("width_factor", stage) == (0.5, 0.75, 1, 1.25, 1.5)
        assert set(space.options("expansion", stage)) == {2, 3, 4, 5, 6, gene.expansion}
        assert space.options("block_offset", stage) == tuple(o for o in range(-2, 3) if gene.num_blocks + o >= 1)
        assert len(space.options("downsampling", stage)) == (4 if gene.stride == 2 else 1)
    # 112, 112, 56 and 28 pixels make more tokens than a mixer may see; heads of 48 do not divide the stem's 32.
    assert ["mixer" in space.options("operator", stage) for stage in range(6)] == [False] * 4 + [True, True]
    assert ["attention" in space.options("operator", stage) for stage in range(6)] == [False] + [True] * 5
    assert space.size > 1e17


def test_only_what_has_two_options_is_decided():
    config = SpaceConfig(
        operators=("attention", "cross_covariance"),
        searched_operators="last",
        expansions=(3,),
        width_factors=(1.0,),
        block_offsets=(0,),
        downsamplings=("block",),
    )
    space = Space(GENOTYPES["nano"], config, 64)
    # The template's own values stay choices: expansions 2 and 4.
    assert {decision.name: decision.options for decision in space.decisions} == {
        "expansion_0": (2, 3),
        "operator_2": ("attention", "cross_covariance"),
        "expansion_2": (3, 4),
    }
    assert space.size == 8


def test_widths_are_whole_heads_only_where_heads_are():
    space = SPACES["nano"]
    template = space.named(space.encode(space.template))
    half = template | {"width_factor_1": 0.75}
    # The attention stage behind it splits the 48 channels it would get, unless a module stands between.
    assert space.decode(space.indices(half)).stages[1].width == 64
    assert space.decode(space.indices(half | {"downsampling_2": "local"})).stages[1].width == 48
    assert space.decode(space.indices(half | {"operator_2": "mbconv"})).stages[1].width == 48


def test_foreign_genotypes_and_names_are_refused():
    space = SPACES["nano"]
    stages = [stage.to_dict() for stage in space.template.stages]
    stages[0] = stages[0] | {"expansion": 7}
    foreign = Genotype.from_dict(space.template.to_dict() | {"stages": stages})
    with pytest.raises(ConfigError, match=r"genotype.stages.0: lies outside the search space in expansion"):
        space.encode(foreign)
    with pytest.raises(ConfigError, match="the space has 3 stages, got 6"):
        space.encode(GENOTYPES["mn_b4"])
    with pytest.raises(ConfigError, match="not of this search space: expansion_0, colour"):
        space.indices(space.named(space.encode(space.template)) | {"expansion_0": 9, "colour": 1})
    with pytest.raises(ConfigError, match="expansions: expected numbers of at least 1"):
        SpaceConfig.from_dict({"expansions": [0.5]})
