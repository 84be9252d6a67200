import numpy as np
import torch


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
