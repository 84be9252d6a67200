import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.models.boxes import box_iou
from intern_vision.models.regions import (
    anchor_shapes,
    decode_boxes,
    encode_boxes,
    grid_anchors,
    match_boxes,
    roi_align,
    roi_levels,
    sample_balanced,
)

STRIDES = (4, 8, 16)


def random_boxes(*shape, extent_px=64.0, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-0.2, 0.9, (*shape, 2)) * extent_px
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.7, (*shape, 2)) * extent_px], -1)
    return torch.tensor(boxes, dtype=torch.float32)


def test_anchors_equal_a_loop():
    expected = []
    for y in range(3):
        for x in range(5):
            for scale in (4, 8):
                for ratio in (0.5, 1, 2):
                    width, height = 8 * scale / ratio**0.5, 8 * scale * ratio**0.5
                    centre_x, centre_y = (x + 0.5) * 8, (y + 0.5) * 8
                    expected.append(
                        [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
                    )
    got = grid_anchors(anchor_shapes((4, 8), (0.5, 1, 2)), 8, (3, 5))
    torch.testing.assert_close(got, torch.tensor(expected))


def test_coding_is_the_papers_and_inverts():
    boxes, anchors = random_boxes(2, 30, seed=1), random_boxes(2, 30, seed=2)
    deltas = encode_boxes(boxes, anchors, (0.1, 0.2))
    (x0, y0, x1, y1), (ax0, ay0, ax1, ay1) = boxes[1, 7].tolist(), anchors[1, 7].tolist()
    expected = [
        ((x0 + x1) / 2 - (ax0 + ax1) / 2) / (ax1 - ax0) / 0.1,
        ((y0 + y1) / 2 - (ay0 + ay1) / 2) / (ay1 - ay0) / 0.1,
        math.log((x1 - x0) / (ax1 - ax0)) / 0.2,
        math.log((y1 - y0) / (ay1 - ay0)) / 0.2,
    ]
    torch.testing.assert_close(deltas[1, 7], torch.tensor(expected))
    torch.testing.assert_close(decode_boxes(deltas, anchors, (0.1, 0.2)), boxes, atol=1e-3, rtol=1e-4)


def test_coding_is_finite_for_padding_and_wild_deltas():
    empty, anchor = torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 16.0, 8.0]])
    assert encode_boxes(empty, anchor).isfinite().all() and encode_boxes(anchor, empty).isfinite().all()
    grown = decode_boxes(torch.full((1, 4), 1e4), anchor)
    torch.testing.assert_close(grown[0, 2:] - grown[0, :2], torch.tensor([1000.0, 500.0]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.booleans())
def test_matching_equals_a_loop(seed, num_true, low_quality):
    rng = np.random.default_rng(seed)
    # Whole numbers make equal overlaps common.
    corner = rng.integers(0, 10, (2, 12 + num_true, 2))
    both = torch.tensor(np.concatenate([corner, corner + rng.integers(1, 8, corner.shape)], -1), dtype=torch.float32)
    boxes, truth = both[:, :12], both[:, 12:]
    valid = torch.tensor(rng.random((2, num_true)) < 0.7)
    overlap, index, bound = match_boxes(boxes, truth, valid, low_quality=low_quality)
    for b in range(2):
        iou = box_iou(boxes[b], truth[b]) * valid[b]
        for a in range(12):
            best = max(range(num_true), key=lambda n: (iou[a, n], -n), default=0)
            assert overlap[b, a] == (iou[a, best] if num_true else 0)
            bound_to = [n for n in range(num_true) if low_quality and 0 < iou[a, n] == iou[:, n].max()]
            assert bound[b, a] == bool(bound_to)
            if bound_to:
                best = max(bound_to, key=lambda n: (iou[a, n], -n))
            assert index[b, a] == (best if iou[a].sum() > 0 else 0)


def test_matching_takes_one_set_of_anchors_for_all_images():
    anchors, truth = random_boxes(20), random_boxes(3, 4, seed=5)
    valid = torch.ones(3, 4, dtype=torch.bool)
    shared = match_boxes(anchors[None], truth, valid, low_quality=True)
    own = match_boxes(anchors.expand(3, -1, -1), truth, valid, low_quality=True)
    assert all(torch.equal(a, b) for a, b in zip(shared, own, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 30), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_sampling_keeps_the_share_and_draws_nothing_twice(num_positive, num_negative, num_samples, share):
    torch.manual_seed(0)
    kind = torch.tensor([1] * num_positive + [0] * num_negative + [2] * 3)
    kind = torch.stack([kind[torch.randperm(len(kind))] for _ in range(3)])
    index, valid = sample_balanced(kind == 1, kind == 0, num_samples, share)
    size = min(num_samples, kind.shape[1])
    assert index.shape == valid.shape == (3, size)
    for row, rows, used in zip(kind, index, valid, strict=True):
        drawn = rows[used]
        assert len(set(drawn.tolist())) == len(drawn)
        num_ones = int((row[drawn] == 1).sum())
        assert num_ones == min(num_positive, int(size * share)) and (row[drawn] != 2).all()
        assert len(drawn) - num_ones == min(num_negative, size - num_ones)
        assert (row[drawn[:num_ones]] == 1).all()


def test_sampling_is_uniform_and_seeded():
    positive = torch.zeros(4000, 10, dtype=torch.bool)
    positive[:, :4] = True
    torch.manual_seed(3)
    index, _ = sample_balanced(positive, ~positive, 5, 0.4)
    counts = torch.bincount(index.flatten(), minlength=10) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5] * 10), atol=0.05, rtol=0)
    torch.manual_seed(3)
    assert torch.equal(sample_balanced(positive, ~positive, 5, 0.4)[0], index)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.5, 4000), st.floats(0.5, 4000))
def test_level_is_fpns_equation(width, height):
    level = roi_levels(torch.tensor([[3.0, 5.0, 3 + width, 5 + height]]), (4, 8, 16, 32), 14)
    exact = 4 + math.log2(math.sqrt(width * height) / 224)
    near = {min(max(math.floor(exact + slack), 2), 5) - 2 for slack in (-1e-4, 1e-4)}
    assert int(level) in near


def test_level_at_the_limit_is_the_coarser():
    sides = torch.tensor([111.9, 112.0, 223.9, 224.0, 0.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert roi_levels(boxes, STRIDES, 14).tolist() == [0, 1, 1, 2, 0]


def bilinear(image, y, x):
    """A ``(C, H, W)`` list-like image at a point in cells."""
    num_channels, height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(num_channels)
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = (y - y0 if y1 > y0 else 0.0), (x - x0 if x1 > x0 else 0.0)
    top = image[:, y0, x0] * (1 - dx) + image[:, y0, x1] * dx
    return top * (1 - dy) + (image[:, y1, x0] * (1 - dx) + image[:, y1, x1] * dx) * dy


def roi_align_one_by_one(maps, strides, boxes, size, ratio, canonical):
    out = np.zeros((*boxes.shape[:2], size, size, maps[0].shape[1]))
    for b, r in np.ndindex(*boxes.shape[:2]):
        x0, y0, x1, y1 = boxes[b, r]
        side = math.sqrt(max(0, x1 - x0) * max(0, y1 - y0))
        level = max(k for k, stride in enumerate(strides) if k == 0 or side >= canonical * stride)
        x0, y0, x1, y1 = (c / strides[level] - 0.5 for c in (x0, y0, x1, y1))
        for p, q in np.ndindex(size, size):
            values = []
            for i, j in np.ndindex(ratio, ratio):
                y = y0 + (p + (i + 0.5) / ratio) * (y1 - y0) / size
                x = x0 + (q + (j + 0.5) / ratio) * (x1 - x0) / size
                values.append(bilinear(maps[level][b], y, x))
            out[b, r, p, q] = np.mean(values, 0)
    return out


def maps_of(height_px, width_px, strides=STRIDES, num_channels=3, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(2, num_channels, -(-height_px // s), -(-width_px // s), dtype=dtype) for s in strides]


@pytest.mark.parametrize(("size", "ratio", "shape"), [(7, 2, (64, 64)), (2, 3, (50, 77)), (3, 1, (16, 16))])
def test_roi_align_equals_a_loop(size, ratio, shape):
    maps, boxes = maps_of(*shape), random_boxes(2, 12, seed=3).double()
    # Whole, outside, a line, and on the border.
    odd = [[0, 0, 64, 64], [-40, -40, -9, -9], [5, 5, 5, 30], [60, 60, 64, 64], [80, 3, 90, 9]]
    boxes = torch.cat([boxes, torch.tensor(odd, dtype=torch.float64).expand(2, -1, -1)], 1)
    got = roi_align(maps, STRIDES, boxes, size=size, sampling_ratio=ratio, canonical_cells=3)
    levels = roi_levels(boxes, STRIDES, 3)
    assert set(levels.flatten().tolist()) == {0, 1, 2}
    expected = roi_align_one_by_one([x.numpy() for x in maps], STRIDES, boxes.numpy(), size, ratio, 3)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9)


def test_roi_align_of_a_ramp_is_the_ramp_at_the_bins_centres():
    x_HW = (torch.arange(16, dtype=torch.float64) + 0.5).expand(16, 16) * 4
    maps = [torch.stack([x_HW, x_HW.T])[None]]
    got = roi_align(maps, (4,), torch.tensor([[[9.0, 14.0, 37.0, 49.0]]]), size=7, sampling_ratio=2, canonical_cells=14)
    centres = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    torch.testing.assert_close(got[0, 0, :, :, 0], (9 + 28 * centres).expand(7, 7))
    torch.testing.assert_close(got[0, 0, :, :, 1], (14 + 35 * centres)[:, None].expand(7, 7))


def test_roi_align_gradient():
    maps, boxes = maps_of(24, 20, num_channels=2), random_boxes(2, 3, extent_px=24.0).double()
    for x in maps:
        x.requires_grad_()

    def pool(*levels):
        return roi_align(levels, STRIDES, boxes, size=2, sampling_ratio=2, canonical_cells=2)

    assert torch.autograd.gradcheck(pool, maps)


def test_roi_align_computes_in_float32():
    maps, boxes = maps_of(64, 64, dtype=torch.bfloat16), random_boxes(2, 5)
    settings = {"size": 3, "sampling_ratio": 2, "canonical_cells": 3}
    exact = roi_align([x.float() for x in maps], STRIDES, boxes, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = roi_align(maps, STRIDES, boxes, **settings)
    assert got.dtype == torch.float32 and torch.equal(got, exact)
