import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.heads import HeadConfig, detect
from intern_vision.heads.base import build_head
from intern_vision.heads.detect import centres_and_sizes, focal_loss, gaussian_heatmap, gaussian_radius, top_peaks
from intern_vision.models.boxes import box_iou
from intern_vision.models.features import Features
from intern_vision.task import Task


def test_overfits(overfit):
    first, last, scores = overfit("detect", 80)
    assert last < 0.05 * first and scores["ap50"] > 0.95 and scores["map"] > 0.7


def splat_one_by_one(boxes, labels, stride, num_classes, height, width):
    heat = np.zeros((num_classes, height, width))
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        if label < 0 or x1 <= x0 or y1 <= y0:
            continue
        radius = float(gaussian_radius(torch.tensor([(x1 - x0) / stride, (y1 - y0) / stride])))
        sigma = (2 * radius + 1) / 6
        centre_x = min(max(int((x0 + x1) / 2 // stride), 0), width - 1)
        centre_y = min(max(int((y0 + y1) / 2 // stride), 0), height - 1)
        for y in range(height):
            for x in range(width):
                if abs(x - centre_x) <= radius and abs(y - centre_y) <= radius:
                    value = math.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * sigma**2))
                    heat[label, y, x] = max(heat[label, y, x], value)
    return heat


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_heatmap_equals_one_box_at_a_time(seed, num_boxes):
    rng = np.random.default_rng(seed)
    # Quarter pixels: exact in float32, so that both sides agree on the cell a centre falls in.
    corner = np.round(rng.uniform(-10, 60, (2, num_boxes, 2)) * 4) / 4
    boxes = np.concatenate([corner, corner + np.round(rng.uniform(0, 50, (2, num_boxes, 2)) * 4) / 4], -1)
    labels = rng.integers(-1, 3, (2, num_boxes))
    boxes_BN4, labels_BN = torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)
    centre, size, valid = centres_and_sizes(boxes_BN4, labels_BN, 4, (12, 16))
    heat = gaussian_heatmap(centre.floor(), size, labels_BN, valid, (3, 12, 16))
    expected = np.stack([splat_one_by_one(b, k, 4, 3, 12, 16) for b, k in zip(boxes, labels, strict=True)])
    np.testing.assert_allclose(heat.numpy(), expected, atol=1e-5)


def test_heatmap_does_not_depend_on_the_chunk(monkeypatch, batch):
    boxes, labels = batch["boxes_BN4"], batch["box_labels_BN"]
    centre, size, valid = centres_and_sizes(boxes, labels, 4, (16, 16))
    whole = gaussian_heatmap(centre.floor(), size, labels, valid, (3, 16, 16))
    monkeypatch.setattr(detect, "SPLAT_CHUNK", 1)
    assert torch.equal(whole, gaussian_heatmap(centre.floor(), size, labels, valid, (3, 16, 16)))
    assert (whole == 1).sum() == valid.sum()


@settings(max_examples=50, deadline=None)
@given(st.floats(2, 200), st.floats(2, 200), st.sampled_from([0.3, 0.7]))
def test_radius_is_the_largest_that_keeps_the_overlap(width, height, min_overlap):
    radius = float(gaussian_radius(torch.tensor([width, height], dtype=torch.float64), min_overlap))

    def worst_overlap(r):
        truth = torch.tensor([[0, 0, width, height]])
        moved = [[r, r, width + r, height + r], [-r, -r, width + r, height + r], [r, r, width - r, height - r]]
        if 2 * r >= min(width, height):
            return 0.0
        return float(box_iou(truth, torch.tensor(moved)).min())

    assert worst_overlap(radius) >= min_overlap - 1e-5
    assert worst_overlap(radius + 1) < min_overlap + 1e-5


def test_focal_loss_equals_the_formula():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    target[0, 0, 1, 1] = target[1, 2, 3, 0] = 1.0
    expected = 0.0
    for logit, truth in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        prob = 1 / (1 + math.exp(-logit))
        if truth == 1:
            expected -= (1 - prob) ** 2 * math.log(prob)
        else:
            expected -= (1 - truth) ** 4 * prob**2 * math.log(1 - prob)
    assert float(focal_loss(logits, target)) == pytest.approx(expected / 2, rel=1e-5)
    assert focal_loss(torch.tensor([[[[-200.0, 200.0]]]]), torch.tensor([[[[1.0, 0.0]]]])).isfinite()


def test_size_and_offset_losses_equal_a_loop(head_for, features, batch):
    head = head_for("detect", size_weight=1.0)
    outputs = head(features)
    losses = head.losses(outputs, batch)
    size = offset = num = 0.0
    for b in range(8):
        for (x0, y0, x1, y1), label in zip(
            (batch["boxes_BN4"][b] / 4).tolist(), batch["box_labels_BN"][b].tolist(), strict=True
        ):
            if label < 0:
                continue
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            cell = b, slice(None), int(y), int(x)
            size += (outputs["size_B2HW"][cell] - torch.tensor([x1 - x0, y1 - y0])).abs().sum()
            offset += (outputs["offset_B2HW"][cell] - torch.tensor([x - int(x), y - int(y)])).abs().sum()
            num += 1
    torch.testing.assert_close(losses["size"], size / (2 * num))
    torch.testing.assert_close(losses["offset"], offset / (2 * num))


@pytest.mark.parametrize("num_rows", [0, 3])
def test_images_without_boxes(num_rows, head_for, features, batch):
    head = head_for("detect")
    batch["boxes_BN4"] = torch.zeros(8, num_rows, 4)
    batch["box_labels_BN"] = torch.full((8, num_rows), -1)
    losses = head.losses(head(features), batch)
    assert losses["size"] == 0 and losses["offset"] == 0 and losses["heatmap"] > 0
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def perfect_outputs(batch, num_classes=3):
    boxes, labels = batch["boxes_BN4"], batch["box_labels_BN"]
    centre, size, valid = centres_and_sizes(boxes, labels, 4, (16, 16))
    heat = gaussian_heatmap(centre.floor(), size, labels, valid, (num_classes, 16, 16))
    outputs = {"heatmap_BKHW": torch.logit(heat, eps=1e-4), "size_B2HW": torch.zeros(8, 2, 16, 16)}
    outputs["offset_B2HW"] = torch.zeros(8, 2, 16, 16)
    for b, n in valid.nonzero().tolist():
        x, y = centre[b, n].int().tolist()
        outputs["size_B2HW"][b, :, y, x] = size[b, n]
        outputs["offset_B2HW"][b, :, y, x] = centre[b, n] % 1
    return outputs


@pytest.mark.parametrize("nms_iou_threshold", [0.0, 0.5])
def test_perfect_outputs_decode_to_the_true_boxes(nms_iou_threshold, head_for, batch):
    head = head_for("detect", nms_iou_threshold=nms_iou_threshold)
    metric = head.metric()
    predictions = head.predict(perfect_outputs(batch), (64, 64))
    metric.update(predictions, batch)
    assert metric.compute() == pytest.approx({"error": 0, "ap50": 1, "map": 1}, abs=1e-9)
    for prediction, boxes, labels in zip(predictions, batch["boxes_BN4"], batch["box_labels_BN"], strict=True):
        found, true = prediction.scores > 0.5, labels >= 0
        order = [np.lexsort(rows.T) for rows in (prediction.boxes[found], boxes[true].numpy())]
        np.testing.assert_allclose(prediction.boxes[found][order[0]], boxes[true].numpy()[order[1]], atol=1e-4)
        assert (np.diff(prediction.scores) <= 0).all() and len(prediction.scores) <= 100


def test_suppression_drops_the_weaker_of_two_neighbours(head_for):
    outputs = {
        "heatmap_BKHW": torch.full((1, 3, 16, 16), -9.0),
        "size_B2HW": torch.full((1, 2, 16, 16), 8.0),
        "offset_B2HW": torch.zeros(1, 2, 16, 16),
    }
    outputs["heatmap_BKHW"][0, 0, 8, 6], outputs["heatmap_BKHW"][0, 0, 8, 8] = 2.0, 3.0
    outputs["heatmap_BKHW"][0, 1, 8, 7] = 1.0
    kept = {threshold: head_for("detect", nms_iou_threshold=threshold) for threshold in (0.0, 0.5)}
    strong = {t: (p := head.predict(outputs, (64, 64))[0]).labels[p.scores > 0.5] for t, head in kept.items()}
    assert strong[0.0].tolist() == [0, 0, 1] and strong[0.5].tolist() == [0, 1]


def test_boxes_stay_inside_the_image(head_for, features):
    head = head_for("detect")
    with torch.no_grad():
        head.size.bias.fill_(40.0)
    for prediction in head.predict(head(features), (64, 60)):
        assert prediction.boxes.min() >= 0
        assert prediction.boxes[:, 0::2].max() <= 60 and prediction.boxes[:, 1::2].max() <= 64
        assert (prediction.boxes[:, 2:] >= prediction.boxes[:, :2]).all()


def test_peaks_are_local_maxima_in_order():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 9, 7)
    scores, labels, index = top_peaks(logits, 20)
    padded = torch.nn.functional.pad(logits, (1, 1, 1, 1), value=-torch.inf)
    for b in range(2):
        expected = []
        for k in range(3):
            for y in range(9):
                for x in range(7):
                    if logits[b, k, y, x] == padded[b, k, y : y + 3, x : x + 3].max():
                        expected.append((float(logits[b, k, y, x].sigmoid()), k, y * 7 + x))
        expected = sorted(expected, reverse=True)[:20]
        num_peaks = len(expected)
        assert labels[b, :num_peaks].tolist() == [k for _, k, _ in expected]
        assert index[b, :num_peaks].tolist() == [cell for *_, cell in expected]
        assert (scores[b, num_peaks:] == 0).all()


DETECTORS = ("centernet", "faster_rcnn")


@pytest.fixture
def detector_for(head_for, two_stage):
    def make(detector):
        if detector == "centernet":
            return head_for("detect")
        # Every candidate is drawn, so that losses do not depend on the generator.
        everything = {"num_anchor_samples": 10_000, "anchor_positive_share": 1.0}
        everything |= {"num_region_samples": 10_000, "region_positive_share": 1.0}
        return head_for("detect", **two_stage | {"faster_rcnn": two_stage["faster_rcnn"].with_overrides(everything)})

    return make


def with_known(batch, rows):
    return batch | {"known_BK": torch.tensor(rows, dtype=torch.bool)}


def rows_of(batch, features, rows):
    part = {name: value[rows] for name, value in batch.items() if name != "keys"}
    return part, Features(maps=tuple(x[rows] for x in features.maps), vector_BD=features.vector_BD[rows])


def assert_equal_losses(head, first, second):
    """Each is a pair of a batch and features."""
    a, b = (head.losses(head(features), batch) for batch, features in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=name)


@pytest.mark.parametrize("detector", DETECTORS)
def test_all_classes_known_is_as_without_the_key(detector, detector_for, features, batch):
    known = with_known(batch, [[1, 1, 1]] * 8)
    assert_equal_losses(detector_for(detector), (known, features), (batch, features))


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_sample_without_known_classes_takes_no_part(detector, detector_for, features, batch):
    known = with_known(batch, [[1, 1, 1]] * 5 + [[0, 0, 0]] * 3)
    assert_equal_losses(detector_for(detector), (known, features), rows_of(batch, features, slice(5)))


@pytest.mark.parametrize("detector", DETECTORS)
def test_boxes_of_unknown_classes_are_left_out(detector, detector_for, features, batch):
    known = with_known(batch, [[1, 0, 1]] * 8)
    removed = known | {"box_labels_BN": torch.where(batch["box_labels_BN"] == 1, -1, batch["box_labels_BN"])}
    assert (removed["box_labels_BN"] != batch["box_labels_BN"]).any()
    assert_equal_losses(detector_for(detector), (known, features), (removed, features))


@pytest.mark.parametrize("detector", DETECTORS)
def test_nothing_known_gives_zero_losses_and_gradients(detector, detector_for, features, batch):
    head = detector_for(detector)
    losses = head.losses(head(features), with_known(batch, [[0, 0, 0]] * 8))
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all((parameter.grad == 0).all() for parameter in head.parameters())


@pytest.mark.parametrize("detector", DETECTORS)
def test_logits_of_an_unknown_class_get_no_gradient(detector, detector_for, features, batch):
    head = detector_for(detector)
    sum(head.losses(head(features), with_known(batch, [[1, 0, 1]] * 8)).values()).backward()
    layer = head.heatmap if detector == "centernet" else head.score
    for parameter in layer.parameters():
        used = parameter.grad.flatten(1).abs().sum(1) if parameter.dim() > 1 else parameter.grad.abs()
        assert used[1] == 0 and (used[[0, 2]] > 0).all()


def test_heatmaps_of_unknown_classes_get_no_gradient_where_they_are_unknown(head_for, features, batch):
    head = head_for("detect")
    outputs = head(features)
    outputs["heatmap_BKHW"].retain_grad()
    known = torch.tensor([[True, False, True], [True, True, True]]).repeat(4, 1)
    sum(head.losses(outputs, batch | {"known_BK": known}).values()).backward()
    used = outputs["heatmap_BKHW"].grad.abs().sum((2, 3))
    assert (used[~known] == 0).all() and (used[known] > 0).all()


def colour_features(image_BCHW):
    """The image itself at three strides: colours are there, boxes must be learned."""
    planes = image_BCHW.float() / 127.5 - 1
    maps = [F.avg_pool2d(planes, stride).repeat(1, 11, 1, 1) for stride in (4, 8, 16)]
    maps = tuple(x[:, :width] for x, width in zip(maps, (16, 24, 32), strict=True))
    return Features(maps=maps, vector_BD=maps[-1].mean((2, 3)))


def recall_of_red(head, num_steps, batch, masks):
    """Trains on 36 images without boxes of red squares and 12 with no others; recall on the 36."""
    known = torch.tensor([[False, True, True], [True, False, False]])[(torch.arange(48) // 2 % 4 == 0).long()]
    features, boxes, labels = colour_features(batch["image_BCHW"]), batch["boxes_BN4"], batch["box_labels_BN"]
    annotated = (labels >= 0) & known.gather(1, labels.clamp_min(0))
    train = {"boxes_BN4": boxes, "box_labels_BN": torch.where(annotated, labels, -1)}
    train |= {"known_BK": known} if masks else {}
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=num_steps)
    for _ in range(num_steps):
        loss = sum(head.losses(head(features), train).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    head.eval()
    missing = (labels == 0) & ~annotated
    num_found = 0
    for image, prediction in enumerate(head.predict(head(features), (64, 64))):
        red = torch.tensor(prediction.boxes[(prediction.labels == 0) & (prediction.scores > 0.3)])
        num_found += int((box_iou(boxes[image][missing[image]], red) > 0.5).any(1).sum())
    return num_found / int(missing.sum())


@pytest.mark.parametrize(("detector", "num_steps"), [("centernet", 80), ("faster_rcnn", 100)])
def test_masks_recall_what_one_source_does_not_annotate(detector, num_steps, head_for, two_stage, made_images):
    recalls = []
    for masks in (False, True):
        torch.manual_seed(0)
        changes = {"anchor_ratios": (1.0,), "num_candidates": 48, "num_proposals": 16, "num_region_samples": 16}
        changes |= {"pooled_size": 3, "sampling_ratio": 1, "num_anchor_samples": 48, "region_positive_share": 0.5}
        settings = two_stage["faster_rcnn"].with_overrides(changes)
        num_levels = 1 if detector == "faster_rcnn" else 0
        head = head_for("detect", detector=detector, faster_rcnn=settings, num_neck_levels=num_levels)
        recalls.append(recall_of_red(head, num_steps, made_images(48), masks))
    naive, masked = recalls
    assert masked > 0.7 and masked > naive + 0.3


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("frozen_features", [False, True])
def test_shared_parts_fit_another_label_space(detector, frozen_features, two_stage):
    config = HeadConfig(neck_width=24, **(two_stage if detector == "faster_rcnn" else {}))
    first, second = (
        build_head(Task(family="detect", class_names=names), (16, 24, 32), (4, 8, 16), 32, config, frozen_features)
        for names in (("a", "b", "c"), ("d", "e"))
    )
    prefixes = first.shared_prefixes()
    taken = {k: v for k, v in first.state_dict().items() if k.startswith(tuple(f"{p}." for p in prefixes))}
    assert {name.split(".")[0] for name in taken} == set(prefixes)
    result = second.load_state_dict(taken, strict=False)
    assert not result.unexpected_keys
    classwise = {"heatmap"} if detector == "centernet" else {"score", "deltas"}
    assert {name.split(".")[0] for name in result.missing_keys} - {"standardizers"} == classwise
