import json
import time

import pytest
import torch
from hypothesis import given, settings
from random_genotypes import genotypes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from intern_vision.errors import ConfigError
from intern_vision.models import cost
from intern_vision.models.cost import squeeze_width
from intern_vision.models.downsampling import LocalGlobalDownsampling
from intern_vision.models.genotype import (
    GENOTYPES,
    MN_B4,
    MN_B7,
    MN_B15,
    NANO,
    TOY_SA,
    TOY_XCA,
    UNINETS,
    Cost,
    Genotype,
    StageGene,
    costs,
    num_macs,
    num_parameters,
)
from intern_vision.models.layers import CrossCovarianceAttention, SelfAttention, SqueezeExcite
from intern_vision.models.metanet import MetaNet

MIXER = Genotype(
    stem_width=8,
    stages=(
        StageGene(operator="mbconv", expansion=2, width=16, num_blocks=1, stride=2),
        StageGene(operator="mixer", expansion=1.5, width=24, num_blocks=2, stride=2),
    ),
    image_size_px=36,
)


def counted(genotype: Genotype, size_px: int) -> Cost:
    """The built model's costs: hooks on every module, on the meta device."""
    macs, elementwise = [], []

    def count(module, args, output):
        x = args[0]
        if isinstance(module, nn.Conv2d):
            macs.append(output.numel() * module.weight[0].numel())
        elif isinstance(module, nn.Linear):
            macs.append(output.numel() * module.in_features)
        elif isinstance(module, SelfAttention):
            macs.append(2 * x.shape[1] ** 2 * x.shape[2])
        elif isinstance(module, CrossCovarianceAttention):
            macs.append(2 * x.shape[1] * x.shape[2] * module.head_size)
        elif isinstance(module, LocalGlobalDownsampling):
            macs.append(2 * output[0].numel() * x.shape[2] * x.shape[3])
        elif isinstance(module, nn.BatchNorm2d):
            elementwise.append(2 * x.numel())
        elif isinstance(module, nn.LayerNorm):
            elementwise.append(5 * x.numel())
        elif isinstance(module, SqueezeExcite):
            elementwise.append(x.numel())

    with torch.device("meta"):
        net = MetaNet(genotype).eval()
        for module in net.modules():
            module.register_forward_hook(count)
        last_BCHW = net(torch.empty(1, 3, size_px, size_px)).maps[-1]
    elementwise.append((genotype.head_width or last_BCHW.shape[1]) * last_BCHW.shape[2] * last_BCHW.shape[3])
    return Cost(sum(parameter.numel() for parameter in net.parameters()), sum(macs), sum(elementwise))


def total(genotype: Genotype, size_px: int) -> Cost:
    return sum(costs(genotype, size_px), Cost())


def test_published_parameter_counts():
    assert num_parameters(MN_B4, 1000) == 31_705_992
    assert num_parameters(MN_B4) == 30_424_992
    assert num_parameters(MN_B15, 1000) == 1_003_706_020
    assert num_parameters(MN_B15) == 1_002_425_020


@pytest.mark.parametrize(
    ("genotype", "parameters_m", "gmacs", "total_gmacs"),
    [
        (
            MN_B4,
            (0.001, 0.004, 0.164, 2.677, 2.209, 1.796, 23.080, 0.494),
            (0.011, 0.033, 0.307, 0.924, 0.281, 0.437, 1.149, 0.024),
            3.166,
        ),
        (
            MN_B15,
            (0.003, 0.597, 16.639, 89.532, 72.093, 56.835, 764.757, 1.969),
            (0.033, 7.091, 43.470, 29.384, 8.633, 11.346, 37.671, 0.096),
            137.722,
        ),
    ],
)
def test_stage_table(genotype, parameters_m, gmacs, total_gmacs):
    table = costs(genotype, 224)
    assert tuple(round(cost.num_parameters / 1e6, 3) for cost in table) == parameters_m
    assert tuple(round(cost.num_macs / 1e9, 3) for cost in table) == gmacs
    assert round(num_macs(genotype, 224) / 1e9, 3) == total_gmacs


def test_mn_b7_has_the_published_size():
    assert round(num_parameters(MN_B7, 21_842) / 1e6, 1) == 100.2
    products = sum(
        2 * block.out_size_px**4 * block.in_width for block in MN_B7.blocks(224) if block.operator == "attention"
    )
    assert round((num_macs(MN_B7, 224) - products + 1280 * 21_842) / 1e9, 2) == 7.26
    assert round((num_macs(MN_B7, 224) + 1280 * 21_842) / 1e9, 3) == 7.455


@pytest.mark.parametrize(
    ("name", "parameters_m", "gflops"),
    [
        ("uninet_b0", 11.451, 0.555),
        ("uninet_b1", 11.451, 1.118),
        ("uninet_b2", 16.211, 2.159),
        ("uninet_b3", 24.02, 4.258),
        ("uninet_b4", 43.796, 9.429),
        ("uninet_b5", 72.883, None),
        ("uninet_b6", 117, None),
    ],
)
def test_uninet_has_the_published_size(name, parameters_m, gflops):
    genotype = UNINETS[name]
    digits = 0 if parameters_m == 117 else 3
    assert round(num_parameters(genotype, 1000) / 1e6, digits) == parameters_m
    assert (genotype.taps, genotype.strides) == ((1, 2, 4, 5), (4, 8, 16, 32))
    cost = total(genotype, genotype.image_size_px)
    if gflops:
        assert round((cost.num_macs + cost.num_elementwise_ops + 1280 * 1000) / 1e9, 3) == gflops


@pytest.mark.parametrize(("size_px", "gmacs"), [(256, 4.18), (288, 5.35), (384, 9.93), (512, 18.95)])
def test_mn_b4_macs_by_image_size(size_px, gmacs):
    assert num_macs(MN_B4, size_px) / 1e9 == pytest.approx(gmacs, abs=0.006)


@pytest.mark.parametrize(
    ("name", "size_px"),
    [("mn_b4", 224), ("mn_b15", 224), ("nano", 64), ("toy_sa", 75), ("toy_xca", 75), ("uninet_b0", 160)],
)
def test_closed_form_equals_flop_counter(name, size_px):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        MetaNet(GENOTYPES[name]).eval()(torch.empty(1, 3, size_px, size_px))
    assert counter.get_total_flops() == 2 * num_macs(GENOTYPES[name], size_px)


@pytest.mark.parametrize(
    ("genotype", "size_px"), [(MIXER, 36), (NANO, 225), (TOY_XCA, 33), (UNINETS["uninet_b1"], 224)]
)
def test_closed_form_equals_module(genotype, size_px):
    assert total(genotype, size_px) == counted(genotype, size_px)


@given(genotypes())
@settings(max_examples=20)
def test_closed_form_equals_module_for_any_genotype(genotype):
    assert total(genotype, genotype.image_size_px) == counted(genotype, genotype.image_size_px)
    assert num_parameters(genotype) == total(genotype, genotype.image_size_px).num_parameters


def test_cost_is_a_hundred_times_cheaper_than_counting_a_built_model():
    def seconds(function, times):
        start = time.perf_counter()
        for _ in range(times):
            function()
        return (time.perf_counter() - start) / times

    def closed_form():
        cost._stage.cache_clear()  # A candidate none of whose stages was seen before.
        num_macs(MN_B4, 224)

    closed_form_s = min(seconds(closed_form, 20) for _ in range(3))
    assert 100 * closed_form_s < seconds(lambda: counted(MN_B4, 224), 1)


def test_taps_are_the_last_stage_of_each_stride():
    assert MN_B4.taps == MN_B15.taps == (1, 2, 4, 5)
    assert MN_B4.strides == (4, 8, 16, 32)
    assert MN_B4.channels == (64, 128, 192, 384)
    assert MN_B15.channels == (256, 512, 768, 1536)
    assert (NANO.strides, NANO.channels, NANO.vector_width) == ((4, 8, 16), (32, 64, 192), 384)


def test_blocks_and_drop_path():
    blocks = list(MN_B15.blocks(224))
    assert (MN_B4.num_blocks, len(blocks)) == (35, 70)
    assert [blocks[0].drop_path, blocks[-1].drop_path] == [0, 0.3]
    assert blocks[1].drop_path == pytest.approx(0.3 / 69)
    assert [block.out_size_px for block in MN_B4.blocks(225)][-1] == 8


def test_down_sampling_modules_take_no_part_in_drop_path():
    genotype = UNINETS["uninet_b0"].with_overrides({"drop_path": 0.22})
    shapes = list(genotype.blocks(160))
    assert (genotype.num_blocks, len(shapes)) == (23, 28)
    assert [shape.operator for shape in shapes if shape.operator != genotype.stages[shape.stage].operator] == [
        *["local"] * 3,
        *["local_global"] * 2,
    ]
    blocks = [shape for shape in shapes if not shape.operator.startswith("local")]
    assert [block.drop_path for block in blocks] == pytest.approx([0.01 * index for index in range(23)])
    assert all(block.stride == 1 for block in blocks)
    assert [(block.in_width, block.out_width) for block in blocks if block.is_transition] == [(32, 24)]


def test_sizes_of_the_small_genotypes():
    assert num_parameters(TOY_SA) == pytest.approx(0.14e6, rel=0.05)
    assert num_parameters(TOY_XCA) == pytest.approx(0.14e6, rel=0.05)
    assert 1.7e6 <= num_parameters(NANO) <= 2.2e6


def test_squeeze_width_is_a_multiple_of_8_not_far_below_a_quarter():
    assert [squeeze_width(width) for width in (8, 32, 96, 128, 176, 1152)] == [8, 8, 24, 32, 48, 288]
    for width in range(8, 4000, 4):
        assert squeeze_width(width) % 8 == 0
        assert squeeze_width(width) >= 0.9 * (width // 4)


def test_json_round_trip():
    assert Genotype.from_json(json.dumps(json.loads(MN_B15.to_json()))) == MN_B15


def stage_values(**values):
    return {"operator": "mbconv", "expansion": 2, "width": 16, "num_blocks": 1, "stride": 2} | values


@pytest.mark.parametrize(
    ("values", "stages", "fault"),
    [
        (
            {"stem_width": 10, "head_size": 8},
            [stage_values(operator="attention"), stage_values(width=8)],
            "stages.0: input width 10 must be a multiple of head_size 8",
        ),
        (
            {"head_size": 16},
            [stage_values(width=24, downsampling="local_global"), stage_values(width=8)],
            "stages.0: width 24 must be a multiple of head_size 16",
        ),
        (
            {},
            [stage_values(width=8), stage_values(width=8, stride=1, downsampling="local")],
            "stages.1: downsampling 'local' has nothing to do at stride 1 and width 8, "
            "use 'block', or 'local_global' to mix all tokens",
        ),
        (
            {},
            [stage_values(expansion=0.1), stage_values()],
            "stages.0: expansion 0.1 leaves no hidden channel, make it at least 1 / 8",
        ),
        (
            {},
            [stage_values(stride=1)],
            "stages: expected a last stage at stride 4 or coarser, give two stages stride 2",
        ),
        (
            {"image_size_px": 7},
            [stage_values(), stage_values()],
            "image_size_px: 7 px is smaller than the coarsest stride (8 px), "
            "use larger images or fewer stages of stride 2",
        ),
    ],
)
def test_impossible_shapes_are_one_line(values, stages, fault):
    with pytest.raises(ConfigError) as error:
        Genotype.from_dict({"stem_width": 8, "stages": stages} | values)
    assert str(error.value) == f"Genotype: {fault}"


def test_a_stride_1_module_between_equal_widths_may_mix_tokens():
    stages = [stage_values(), stage_values(stride=1, downsampling="local_global")]
    genotype = Genotype.from_dict({"stem_width": 16, "head_size": 8, "stages": stages})
    assert [shape.stride for shape in genotype.blocks(32)] == [2, 1, 1]


def test_costs_refuse_other_sizes():
    with pytest.raises(ConfigError, match="built for 36 px, got 64 px"):
        num_macs(MIXER, 64)
    with pytest.raises(ConfigError, match="image_size_px: 31 x 31 px is smaller than the coarsest stride, 32 px"):
        num_macs(MN_B4, 31)
