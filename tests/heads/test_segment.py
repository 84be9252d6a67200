import numpy as np
import pytest
import torch

from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.heads.segment_decoders import AtrousPyramid, PooledContext

SEGMENTERS = ("deeplab_v3", "upernet")


def test_overfits(overfit):
    first, last, scores = overfit("segment", 60)
    assert last < 0.1 * first and scores["miou"] > 0.9


def test_ignored_pixels_do_not_count(head_for, features, batch):
    head = head_for("segment")
    outputs = head(features)
    batch["mask_BHW"][:, :, :20] = 255
    before = head.losses(outputs, batch)["segment"]
    logits = torch.nn.functional.interpolate(outputs["logits_BKHW"], size=(64, 64), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(logits[..., 20:], batch["mask_BHW"][:, :, 20:].long())
    torch.testing.assert_close(before, 2.0 * expected)
    batch["mask_BHW"][:] = 255
    loss = head.losses(outputs, batch)["segment"]
    loss.backward()
    assert loss == 0 and all(p.grad.isfinite().all() for p in head.parameters())


def test_background_classes_weigh_less(head_for, features, batch):
    head = head_for("segment", background_classes=("ground",), background_weight=0.25, segment_weight=1.0)
    outputs = head(features)
    logits = torch.nn.functional.interpolate(outputs["logits_BKHW"], size=(64, 64), mode="bilinear")
    pixel_losses = torch.nn.functional.cross_entropy(logits, batch["mask_BHW"].long(), reduction="none")
    weights = torch.where(batch["mask_BHW"] == 0, 0.25, 1.0)
    expected = (pixel_losses * weights).sum() / weights.sum()
    torch.testing.assert_close(head.losses(outputs, batch)["segment"], expected)
    assert "class_weights_K" not in head.state_dict()


def test_mask_has_the_images_size(head_for, features):
    head = head_for("segment")
    (prediction, *_) = head.predict(head(features), (50, 70))
    assert prediction.mask.shape == (50, 70) and prediction.mask.dtype == np.uint8 and prediction.mask.max() < 4


# DeepLabv3 reads a map of 4 x 4 cells here, which cannot follow the squares' borders.
@pytest.mark.parametrize(("segmenter", "least_miou"), [("deeplab_v3", 0.45), ("upernet", 0.8)])
def test_context_heads_overfit(overfit, segmenter, least_miou):
    first, last, scores = overfit("segment", 60, segmenter=segmenter, aspp_rates=(1, 2))
    assert last < 0.2 * first and scores["miou"] > least_miou


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@pytest.mark.parametrize("frozen_features", [False, True])
def test_every_part_of_a_context_head_learns(head_for, features, batch, segmenter, frozen_features):
    head = head_for("segment", frozen_features, segmenter=segmenter)
    losses = head.losses(head(features), batch)
    assert set(losses) == {"segment", "auxiliary"}
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    prefixes = head.shared_prefixes()
    own = {name for name in head.state_dict() if not name.startswith(tuple(f"{prefix}." for prefix in prefixes))}
    assert own == {"classify.weight", "classify.bias", "auxiliary.1.weight", "auxiliary.1.bias"}


@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_the_auxiliary_loss_is_weighted_and_only_for_training(head_for, features, batch, segmenter):
    head = head_for("segment", segmenter=segmenter, auxiliary_weight=0.25, segment_weight=3.0)
    outputs = head(features)
    logits = torch.nn.functional.interpolate(outputs["auxiliary_BKHW"], size=(64, 64), mode="bilinear")
    expected = 3.0 * 0.25 * torch.nn.functional.cross_entropy(logits, batch["mask_BHW"].long())
    torch.testing.assert_close(head.losses(outputs, batch)["auxiliary"], expected)
    assert outputs["auxiliary_BKHW"].shape[-1] == features.maps[-2].shape[-1]
    assert set(head.eval()(features)) == {"logits_BKHW"}
    assert set(head_for("segment", segmenter=segmenter, auxiliary_weight=0.0)(features)) == {"logits_BKHW"}


def test_deeplab_reads_the_coarsest_map_and_upernet_all(head_for, features):
    maps = [map_BCHW.clone().requires_grad_() for map_BCHW in features.maps]
    for segmenter, read, stride in (("deeplab_v3", [False, False, True], 16), ("upernet", [True, True, True], 4)):
        head = head_for("segment", segmenter=segmenter).eval()
        logits = head(type(features)(maps=tuple(maps), vector_BD=features.vector_BD))["logits_BKHW"]
        assert logits.shape == (8, 4, 64 // stride, 64 // stride)
        gradients = torch.autograd.grad(logits.square().sum(), maps, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == read


def test_atrous_branches_see_their_dilation_and_the_whole_image():
    torch.manual_seed(0)
    pyramid = AtrousPyramid(4, 8, (3, 6))
    x = torch.randn(1, 4, 15, 15)
    for branch, reach in zip(pyramid.branches[1:3], (3, 6), strict=True):
        convolution = branch[0]
        expected = torch.zeros(8, 15, 15)
        for y, x0 in np.ndindex(15, 15):
            for dy, dx in np.ndindex(3, 3):
                at_y, at_x = y + reach * (dy - 1), x0 + reach * (dx - 1)
                if 0 <= at_y < 15 and 0 <= at_x < 15:
                    expected[:, y, x0] += convolution.weight[:, :, dy, dx].detach() @ x[0, :, at_y, at_x]
        torch.testing.assert_close(convolution(x)[0], expected, rtol=1e-4, atol=1e-5)
    pooled = pyramid.branches[-1]
    mean = pooled.project(x.mean((2, 3), keepdim=True)).relu()
    torch.testing.assert_close(pooled(x), mean.expand(-1, -1, 15, 15))


def test_pooled_context_averages_cells():
    torch.manual_seed(0)
    context = PooledContext(3, 8, 2)
    x = torch.randn(2, 3, 6, 6)
    cells = torch.stack([x[:, :, i : i + 3, j : j + 3].mean((2, 3)) for i in (0, 3) for j in (0, 3)], -1)
    weight, bias = context.project.weight[:, :, 0, 0], context.project.bias
    expected = (torch.einsum("fc,bcx->bfx", weight, cells) + bias[:, None]).relu().view(2, 8, 2, 2)
    # The corner cells of the result lie inside the corner cells of the pooled map.
    torch.testing.assert_close(context(x)[:, :, ::5, ::5], expected)


@pytest.mark.parametrize("segmenter", ("pyramid", *SEGMENTERS))
def test_classes_unknown_to_a_source_take_no_part(head_for, features, batch, segmenter):
    head = head_for("segment", segmenter=segmenter, background_classes=("ground",), segment_weight=1.0)
    known = torch.ones(8, 4, dtype=torch.bool)
    known[:4, 2] = False
    known[7] = False
    outputs = {name: logits.detach().requires_grad_() for name, logits in head(features).items()}
    loss = head.losses(outputs, batch | {"known_BK": known})["segment"]
    logits = torch.nn.functional.interpolate(outputs["logits_BKHW"].detach(), size=(64, 64), mode="bilinear")
    total, total_weight = 0.0, 0.0
    for row in range(7):
        classes = known[row].nonzero().flatten()
        log_prob = logits[row, classes].log_softmax(0)
        for place, name in enumerate(classes.tolist()):
            weight = 0.3 if name == 0 else 1.0
            here = batch["mask_BHW"][row] == name
            total -= weight * float(log_prob[place][here].sum())
            total_weight += weight * int(here.sum())
    assert float(loss.detach()) == pytest.approx(total / total_weight, rel=1e-4)
    loss.backward()
    gradient = outputs["logits_BKHW"].grad
    assert (gradient[:4, 2] == 0).all() and (gradient[7] == 0).all() and gradient[4:7, 2].abs().sum() > 0


def test_pooling_settings_are_checked():
    with pytest.raises(ConfigError, match=r"aspp_rates: expected whole numbers >= 1, got \[0, 6\]"):
        HeadConfig.from_dict({"aspp_rates": [0, 6]})
    with pytest.raises(ConfigError, match=r"pooling_scales: expected whole numbers >= 1, got \[\]"):
        HeadConfig.from_dict({"pooling_scales": []})
