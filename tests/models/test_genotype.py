import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from intern_vision.errors import ConfigError
from intern_vision.models.genotype import (
    GENOTYPES,
    MN_B4,
    MN_B15,
    NANO,
    TOY_SA,
    TOY_XCA,
    Genotype,
    StageGene,
    costs,
    num_macs,
    num_parameters,
    squeeze_width,
)
from intern_vision.models.metanet import MetaNet

MIXER = Genotype(
    stem_width=8,
    stages=(
        StageGene(operator="mbconv", expansion=2, width=16, num_blocks=1, stride=2),
        StageGene(operator="mixer", expansion=1.5, width=24, num_blocks=2, stride=2),
    ),
    image_size_px=36,
)


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


@pytest.mark.parametrize(("size_px", "gmacs"), [(256, 4.18), (288, 5.35), (384, 9.93), (512, 18.95)])
def test_mn_b4_macs_by_image_size(size_px, gmacs):
    assert num_macs(MN_B4, size_px) / 1e9 == pytest.approx(gmacs, abs=0.006)


@pytest.mark.parametrize(
    ("genotype", "size_px"),
    [*((genotype, 224) for genotype in GENOTYPES.values()), (NANO, 64), (TOY_SA, 75), (TOY_XCA, 75), (MIXER, 36)],
)
def test_closed_form_equals_module(genotype, size_px):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = MetaNet(genotype).eval()
        net(torch.empty(1, 3, size_px, size_px))
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters(genotype)
    assert counter.get_total_flops() == 2 * num_macs(genotype, size_px)


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


def test_faults():
    with pytest.raises(ConfigError, match="stages.0: input width 10 must be a multiple of head_size 8"):
        Genotype.from_dict(
            {
                "stem_width": 10,
                "head_size": 8,
                "stages": [{"operator": "attention", "expansion": 2, "width": 16, "num_blocks": 1, "stride": 2}],
            }
        )
    with pytest.raises(ConfigError, match="stages: expected a last stage at stride 4"):
        Genotype.from_dict(
            {
                "stem_width": 8,
                "stages": [{"operator": "mbconv", "expansion": 2, "width": 16, "num_blocks": 1, "stride": 1}],
            }
        )
    with pytest.raises(ConfigError, match="built for 36 px, got 64 px"):
        num_macs(MIXER, 64)
