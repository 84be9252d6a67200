import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from intern_vision.bench.metrics import Metric
from intern_vision.data.batch import collate
from intern_vision.data.world import UPSTREAM, render
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads import FasterRcnnConfig, HeadConfig
from intern_vision.heads.base import build_head
from intern_vision.models.boxes import box_iou, clip_boxes
from intern_vision.models.features import Features
from intern_vision.models.genotype import Genotype, StageGene
from intern_vision.models.layers import normalise
from intern_vision.models.metanet import MetaNet
from intern_vision.models.regions import decode_boxes, encode_boxes
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task

LOSSES = {"anchor_scores", "anchor_boxes", "region_classes", "region_boxes"}
EVERYTHING = {
    "num_anchor_samples": 10_000,
    "anchor_positive_share": 1.0,
    "num_region_samples": 10_000,
    "region_positive_share": 1.0,
}
# Stages at strides 4, 8 and 16.
GENOTYPE = Genotype(
    stem_width=8,
    stages=tuple(
        StageGene(operator=name, expansion=2, width=width, num_blocks=1, stride=2)
        for width, name in ((16, "fused_mbconv"), (32, "fused_mbconv"), (32, "attention"))
    ),
    head_width=0,
    head_size=16,
    squeeze_excite=False,
    layer_scale_init=1.0,
    image_size_px=64,
)


@pytest.fixture
def head_with(head_for, two_stage):
    def make(frozen_features=False, **changes):
        settings = two_stage["faster_rcnn"].with_overrides(changes)
        return head_for("detect", frozen_features, **two_stage | {"faster_rcnn": settings})

    return make


def shaken(head):
    """Weights as after some training: fresh ones score all anchors almost alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer, std in ((head.rpn.objectness, 0.3), (head.rpn.deltas, 0.1), (head.score, 0.5), (head.deltas, 0.1)):
            layer.weight.normal_(std=std)
            layer.bias.normal_(std=std)
    return head


def greedy(boxes, threshold):
    """Indices kept of boxes in falling order of score."""
    kept = []
    for index in range(len(boxes)):
        if all(box_iou(boxes[other : other + 1], boxes[index : index + 1])[0, 0] <= threshold for other in kept):
            kept.append(index)
    return kept


def propose_one_by_one(head, outputs, image_size_px):
    """Boxes and logits of each image, best first."""
    settings, found = head.settings, []
    strides = (*head.strides, 2 * head.strides[-1])
    for b in range(len(outputs["objectness_BA"])):
        start, candidates = 0, []
        for k, stride in enumerate(strides):
            height, width = outputs[f"level_{k}_BFHW"].shape[-2:]
            level = []
            for y in range(height):
                for x in range(width):
                    for ratio in settings.anchor_ratios:
                        side = settings.anchor_scales[0] * stride
                        half_w, half_h = side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2
                        cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                        anchor = torch.tensor([[cx - half_w, cy - half_h, cx + half_w, cy + half_h]])
                        delta = outputs["deltas_BA4"][b, start : start + 1]
                        box = clip_boxes(decode_boxes(delta, anchor), *image_size_px)[0]
                        level.append((float(outputs["objectness_BA"][b, start]), box))
                        start += 1
            level = sorted(level, key=lambda row: -row[0])[: settings.num_candidates]
            level = [(s, box) for s, box in level if (box[2:] - box[:2]).min() >= max(settings.min_proposal_px, 1e-9)]
            kept = greedy(torch.stack([box for _, box in level]), settings.proposal_nms_iou)
            candidates += [level[index] for index in kept]
        found.append(sorted(candidates, key=lambda row: -row[0])[: settings.num_proposals])
    return found


@pytest.mark.parametrize("min_proposal_px", [0.0, 12.0])
def test_proposals_equal_a_loop(min_proposal_px, head_with, features):
    head = shaken(head_with(min_proposal_px=min_proposal_px, num_candidates=60, num_proposals=40))
    few = Features(maps=tuple(x[:2] for x in features.maps), vector_BD=features.vector_BD[:2])
    with torch.no_grad():
        outputs = head(few)
    boxes, scores, real = head._propose(outputs, (64, 60))
    for b, expected in enumerate(propose_one_by_one(head, outputs, (64, 60))):
        assert int(real[b].sum()) == len(expected) > 10
        torch.testing.assert_close(scores[b][real[b]], torch.tensor([score for score, _ in expected]))
        torch.testing.assert_close(boxes[b][real[b]], torch.stack([box for _, box in expected]))


def smooth_l1(error, beta):
    error = abs(error)
    return error - beta / 2 if error >= beta else error**2 / (2 * beta)


def test_anchor_losses_equal_a_loop(head_with, features, batch):
    head = shaken(head_with(**EVERYTHING))
    outputs = {name: tensor.detach() for name, tensor in head(features).items()}
    losses = head.losses(outputs, batch)
    anchors = torch.cat(head._anchors(outputs))
    score_loss = box_loss = num_used = 0
    for b in range(8):
        truth = batch["boxes_BN4"][b][batch["box_labels_BN"][b] >= 0]
        iou = box_iou(anchors, truth)
        for a, anchor in enumerate(anchors):
            binding = [n for n in range(len(truth)) if iou[a, n] == iou[:, n].max()]
            best = max(binding or range(len(truth)), key=lambda n: float(iou[a, n]))
            is_object = bool(binding) or iou[a].max() >= 0.7
            if not is_object and iou[a].max() >= 0.3:
                continue
            num_used += 1
            prob = torch.sigmoid(outputs["objectness_BA"][b, a])
            score_loss -= float(torch.log(prob if is_object else 1 - prob))
            if is_object:
                target = encode_boxes(truth[best], anchor)
                error = (outputs["deltas_BA4"][b, a] - target).tolist()
                box_loss += sum(smooth_l1(value, 1 / 9) for value in error)
    assert float(losses["anchor_scores"]) == pytest.approx(score_loss / num_used, rel=1e-4)
    assert float(losses["anchor_boxes"]) == pytest.approx(box_loss / num_used, rel=1e-4)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_region_losses_equal_a_loop(class_agnostic, head_with, features, batch):
    head = shaken(head_with(class_agnostic=class_agnostic, **EVERYTHING))
    outputs = {name: tensor.detach() for name, tensor in head(features).items()}
    losses = {name: loss.detach() for name, loss in head.losses(outputs, batch).items()}
    boxes, _, real = head._propose(outputs, (64, 64))
    class_loss = box_loss = num_used = num_objects = 0
    for b in range(8):
        present = batch["box_labels_BN"][b] >= 0
        truth, labels = batch["boxes_BN4"][b][present], batch["box_labels_BN"][b][present]
        regions = torch.cat([boxes[b][real[b]], truth])
        one = {name: tensor[b : b + 1] for name, tensor in outputs.items()}
        logits, deltas = (x[0].detach() for x in head._classify(one, regions[None]))
        for r, overlaps in enumerate(box_iou(regions, truth)):
            best, is_object = int(overlaps.argmax()), overlaps.max() >= 0.5
            target = int(labels[best]) if is_object else 3
            class_loss -= float(logits[r].log_softmax(0)[target])
            num_used += 1
            if is_object:
                num_objects += 1
                coded = encode_boxes(truth[best], regions[r], (0.1, 0.2))
                own = deltas[r, 0 if class_agnostic else target]
                box_loss += sum(smooth_l1(value, 1.0) for value in (own - coded).tolist())
    assert num_objects > 8
    assert float(losses["region_classes"]) == pytest.approx(class_loss / num_used, rel=1e-4)
    assert float(losses["region_boxes"]) == pytest.approx(box_loss / num_used, rel=1e-4)


def test_detections_equal_a_loop(head_with, features):
    head = shaken(head_with(score_threshold=0.2)).eval()
    with torch.no_grad():
        outputs = head(features)
        regions, _, real = head._propose(outputs, (64, 60))
        logits, deltas = head._classify(outputs, regions)
    for b, prediction in enumerate(head.predict(outputs, (64, 60))):
        expected = []
        for k in range(3):
            rows = []
            for r in range(regions.shape[1]):
                score = float(logits[b, r].softmax(0)[k])
                if real[b, r] and score > 0.2:
                    box = decode_boxes(deltas[b, r, k], regions[b, r], (0.1, 0.2))
                    rows.append((score, clip_boxes(box[None], 64, 60)[0]))
            rows.sort(key=lambda row: -row[0])
            kept = greedy(torch.stack([box for _, box in rows]), 0.5) if rows else []
            expected += [(*rows[index], k) for index in kept]
        expected.sort(key=lambda row: -row[0])
        assert prediction.labels.tolist() == [k for *_, k in expected] and len(expected) > 1
        np.testing.assert_allclose(prediction.scores, [score for score, *_ in expected], rtol=1e-5)
        np.testing.assert_allclose(prediction.boxes, np.stack([box for _, box, _ in expected]), atol=1e-4)


def test_predictions_do_not_depend_on_the_chunk(monkeypatch, head_with, features):
    head = shaken(head_with(class_agnostic=True)).eval()
    with torch.no_grad():
        outputs = head(features)
        whole = head.predict(outputs, (64, 64))
        monkeypatch.setattr("intern_vision.heads.faster_rcnn.REGION_CHUNK", 70)
        parts = head.predict(outputs, (64, 64))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
        assert a.labels.tolist() == b.labels.tolist()


def test_max_detections_keeps_the_best(head_for, two_stage, features):
    torch.manual_seed(0)
    counts = {}
    for most in (100, 3):
        head = shaken(head_for("detect", max_detections=most, **two_stage)).eval()
        torch.manual_seed(0)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        counts[most] = head.predict(head(features), (64, 64))
    for all_of_them, best in zip(counts[100], counts[3], strict=True):
        assert len(best.scores) == 3 < len(all_of_them.scores)
        np.testing.assert_array_equal(best.boxes, all_of_them.boxes[:3])


@pytest.mark.parametrize("frozen_features", [False, True])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_every_parameter_gets_a_finite_gradient(frozen_features, class_agnostic, head_with, features, batch):
    head = head_with(frozen_features, class_agnostic=class_agnostic)
    losses = head.losses(head(features), batch)
    assert losses.keys() == LOSSES
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_losses_are_close_under_bfloat16_autocast(head_with, features, batch):
    head = head_with(**EVERYTHING)
    exact = head.losses(head(features), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head.losses(head(features), batch)
    for name, loss in rough.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.02)


def test_the_draw_follows_torchs_generator(head_with, features, batch):
    head = head_with(num_region_samples=8, num_anchor_samples=8)
    outputs = head(features)

    def losses(seed):
        torch.manual_seed(seed)
        return torch.stack(list(head.losses(outputs, batch).values()))

    assert torch.equal(losses(1), losses(1)) and not torch.equal(losses(1), losses(2))


@pytest.mark.parametrize("strides", [(4, 8, 16), (4, 8, 16, 32)])
@pytest.mark.parametrize(("height_px", "width_px"), [(64, 64), (50, 77), (33, 130)])
def test_any_image_size_and_strides(strides, height_px, width_px, two_stage, batch):
    torch.manual_seed(0)
    config = HeadConfig(neck_width=16, **two_stage)
    task = Task(family="detect", class_names=("a", "b", "c"))
    head = build_head(task, (8,) * len(strides), strides, 8, config)
    maps = tuple(torch.randn(2, 8, -(-height_px // s), -(-width_px // s)) for s in strides)
    outputs = head(Features(maps=maps, vector_BD=torch.zeros(2, 8)))
    losses = head.losses(outputs, {name: value[:2] for name, value in batch.items()})
    assert all(loss.isfinite() for loss in losses.values())
    for prediction in head.predict(outputs, (height_px, width_px)):
        assert len(prediction.scores) and prediction.boxes.min() >= 0
        assert (prediction.boxes <= [width_px, height_px, width_px, height_px]).all()
        assert (np.diff(prediction.scores) <= 0).all()


@pytest.mark.parametrize("num_rows", [0, 3])
def test_images_without_boxes(num_rows, head_with, features, batch):
    head = head_with()
    batch["boxes_BN4"] = torch.zeros(8, num_rows, 4)
    batch["box_labels_BN"] = torch.full((8, num_rows), -1)
    losses = head.losses(head(features), batch)
    assert losses["anchor_boxes"] == 0 and losses["region_boxes"] == 0
    assert losses["anchor_scores"] > 0 and losses["region_classes"] > 0
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_a_head_that_sees_nothing_finds_nothing(head_with, features):
    head = head_with().eval()
    with torch.no_grad():
        head.score.bias[-1] = 50.0
        predictions = head.predict(head(features), (64, 64))
    assert all(p.boxes.shape == (0, 4) and p.scores.shape == p.labels.shape == (0,) for p in predictions)


def test_regions_of_an_unknown_class_are_no_background(head_with, features, batch):
    head = head_with(**EVERYTHING)
    batch["known_BK"] = torch.tensor([[True, False, True]]).expand(8, -1)
    outputs = head(features)
    with torch.no_grad():
        head.score.bias[1] = 50.0
        loss = head.losses(outputs, batch)["region_classes"]
    # Only regions on annotated boxes are left; the fresh head gives the three logits in the softmax equal shares.
    assert float(loss) == pytest.approx(math.log(3), rel=0.1)
    objectness = outputs["objectness_BA"].detach().requires_grad_()
    counts = []
    for bias in (-50.0, 50.0):
        with torch.no_grad():
            head.score.bias[1] = bias
        loss = head.losses(outputs | {"objectness_BA": objectness}, batch)["anchor_scores"]
        gradient = torch.autograd.grad(loss, objectness)[0]
        counts.append((int((gradient > 0).sum()), int((gradient < 0).sum())))
    (ground, objects), (shielded_ground, shielded_objects) = counts
    assert shielded_ground < 0.9 * ground and shielded_objects == objects


def test_overfits_made_world_images(two_stage):
    torch.manual_seed(0)
    samples = render(UPSTREAM, 0, "train", range(12))
    names = ("key", "image", "boxes", "box_labels")
    batch = collate([{name: getattr(sample, name) for name in names} for sample in samples])
    backbone = MetaNet(GENOTYPE)
    cheaper = two_stage["faster_rcnn"].with_overrides({"anchor_ratios": (1.0,), "sampling_ratio": 1})
    config = HeadConfig(neck_width=24, **two_stage | {"faster_rcnn": cheaper})
    task = UPSTREAM.tasks["detect"]
    head = build_head(task, backbone.channels, backbone.strides, backbone.vector_width, config)
    image = normalise(batch["image_BCHW"])
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=180)
    for _ in range(180):
        loss = sum(head.losses(head(backbone(image)), batch).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
    backbone.eval(), head.eval()
    metric = head.metric()
    with torch.no_grad():
        metric.update(head.predict(head(backbone(image)), (64, 64)), batch)
    assert isinstance(metric, Metric) and metric.compute()["ap50"] > 0.8


def test_a_saved_model_finds_the_same(two_stage, tmp_path):
    torch.manual_seed(0)
    head = HeadSpec(task=UPSTREAM.tasks["detect"], config=HeadConfig(neck_width=8, **two_stage), frozen_features=True)
    model = VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=64, heads={"boxes": head})).eval()
    shaken(model.heads["boxes"])
    model.save(tmp_path)
    loaded = VisionModel.load(tmp_path)
    assert loaded.spec == model.spec and loaded.heads["boxes"].settings == two_stage["faster_rcnn"]
    images = [sample.image for sample in render(UPSTREAM, 0, "train", range(3))]
    for ours, theirs in zip(model.predict(images)["boxes"], loaded.predict(images)["boxes"], strict=True):
        assert len(ours.scores) and ours.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)


def test_a_batch_without_boxes_is_named(head_with, features):
    head = head_with()
    with pytest.raises(DataError, match="batch.boxes_BN4: expected for family detect, got only image_BCHW"):
        head.losses(head(features), {"image_BCHW": torch.zeros(8, 3, 64, 64)})


def test_config_faults():
    with pytest.raises(ConfigError, match=r"anchor_ratios: expected numbers > 0, got \[\]"):
        FasterRcnnConfig.from_dict({"anchor_ratios": []}, at="head")
    with pytest.raises(ConfigError, match="negative_iou: expected at most positive_iou 0.5, got 0.6"):
        HeadConfig.from_dict({"faster_rcnn": {"positive_iou": 0.5, "negative_iou": 0.6}}, at="head")
    with pytest.raises(ValidationError):
        FasterRcnnConfig(num_proposals=0)
