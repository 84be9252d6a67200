import numpy as np
import torch
import torch.nn.functional as F

from intern_vision.heads.resize import predict_at

SIZE_PX = (64, 64)
SIZES_PX = [(64, 64), (30, 90), (64, 64), (101, 40), (64, 64), (64, 64), (17, 64), (64, 65)]


@torch.no_grad()
def test_images_of_the_models_size_are_one_call(head_for, features):
    for family in ("classify", "detect", "segment", "depth"):
        head = head_for(family).eval()
        outputs = head(features)
        expected = head.predict(outputs, SIZE_PX)
        found = predict_at(head, outputs, SIZE_PX, [SIZE_PX] * 8)
        for a, b in zip(found, expected, strict=True):
            for name in ("label", "scores", "boxes", "mask", "depth"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@torch.no_grad()
def test_maps_are_resized_before_a_class_is_chosen(head_for, features):
    head = head_for("segment").eval()
    outputs = head(features)
    for row, (prediction, size_px) in enumerate(
        zip(predict_at(head, outputs, SIZE_PX, SIZES_PX), SIZES_PX, strict=True)
    ):
        logits = F.interpolate(outputs["logits_BKHW"][row : row + 1], size=size_px, mode="bilinear")
        np.testing.assert_array_equal(prediction.mask, logits.argmax(1)[0].numpy())
    depth = head_for("depth").eval()
    found = predict_at(depth, depth(features), SIZE_PX, SIZES_PX)
    assert [prediction.depth.shape for prediction in found] == SIZES_PX


@torch.no_grad()
def test_boxes_go_back_to_the_pixels_they_came_from(head_for, features):
    head = head_for("detect").eval()
    outputs = head(features)
    stretched = head.predict(outputs, SIZE_PX)
    for prediction, before, (height, width) in zip(
        predict_at(head, outputs, SIZE_PX, SIZES_PX), stretched, SIZES_PX, strict=True
    ):
        factor = np.array([width / 64, height / 64, width / 64, height / 64])
        np.testing.assert_allclose(prediction.boxes, before.boxes * factor, rtol=1e-6)
        assert prediction.boxes.dtype == np.float32 and (prediction.boxes[:, 2] <= width).all()


@torch.no_grad()
def test_labels_do_not_depend_on_the_size(head_for, features):
    head = head_for("classify").eval()
    outputs = head(features)
    found, expected = predict_at(head, outputs, SIZE_PX, SIZES_PX), head.predict(outputs, SIZE_PX)
    assert [prediction.label for prediction in found] == [prediction.label for prediction in expected]
