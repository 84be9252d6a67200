import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from intern_vision.errors import ConfigError
from intern_vision.models.necks import ChannelStandardizer, DenseDecoder, FeaturePyramid

CHANNELS, STRIDES = (8, 12, 16), (4, 8, 16)


def maps_of(height_px: int, width_px: int) -> list[torch.Tensor]:
    return [
        torch.randn(2, channels, -(-height_px // stride), -(-width_px // stride))
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(17, 70), st.integers(17, 70))
def test_levels_keep_their_sizes_for_any_image_size(height_px, width_px):
    pyramid = FeaturePyramid(CHANNELS, STRIDES, 16, all_levels=True)
    maps = maps_of(height_px, width_px)
    levels = pyramid.levels(maps)
    assert [level.shape for level in levels] == [(2, 16, *x.shape[-2:]) for x in maps]
    torch.testing.assert_close(pyramid(maps), levels[0])


def test_the_finest_map_sees_every_level():
    torch.manual_seed(0)
    pyramid, maps = FeaturePyramid(CHANNELS, STRIDES, 16), maps_of(64, 64)
    for x in maps:
        x.requires_grad_()
    pyramid(maps).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in maps)
    assert all(parameter.grad is not None for parameter in pyramid.parameters())


def test_top_down_sum_equals_a_plain_loop():
    torch.manual_seed(0)
    pyramid, maps = FeaturePyramid(CHANNELS, STRIDES, 16), maps_of(64, 64)
    top, middle, fine = (lateral(x) for lateral, x in zip(reversed(pyramid.laterals), reversed(maps), strict=True))
    double = nn.Upsample(scale_factor=2, mode="nearest")
    torch.testing.assert_close(pyramid(maps), pyramid.smooths[0](fine + double(middle + double(top))))


@pytest.mark.parametrize("strides", [(4, 8), (4, 4, 8), (16, 8, 4)])
def test_strides_that_do_not_fit_are_refused(strides):
    with pytest.raises(ConfigError, match="strides: expected one strictly growing stride a level"):
        FeaturePyramid(CHANNELS, strides, 16)


def test_decoder_doubles():
    assert DenseDecoder(16, 5)(torch.randn(2, 16, 7, 9)).shape == (2, 5, 14, 18)


@pytest.mark.parametrize("spatial", [(), (5, 3)])
def test_standardizer_learns_the_statistics_of_all_batches(spatial):
    torch.manual_seed(0)
    scale = torch.tensor([0.1, 3.0, 50.0]).view(1, 3, *[1] * len(spatial))
    x = (torch.randn(40, 3, *spatial) + 7) * scale
    standardize = ChannelStandardizer(3)
    torch.testing.assert_close(standardize.eval()(x), x / (1 + 1e-5) ** 0.5)
    standardize.train()
    for part in x.split(8):
        standardize(part)
    flat = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(standardize.mean_C, flat.mean(1))
    torch.testing.assert_close(standardize.var_C, flat.var(1, correction=0))
    out = standardize.eval()(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_standardizer_takes_one_vector_at_a_time():
    torch.manual_seed(0)
    x, standardize = torch.randn(50, 4), ChannelStandardizer(4)
    assert all(standardize(x[i : i + 1]).isfinite().all() for i in range(50))
    torch.testing.assert_close(standardize.var_C, x.var(0, correction=0))
    assert standardize.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
