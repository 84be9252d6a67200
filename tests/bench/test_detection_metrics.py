import contextlib
import io
import math

import numpy as np
import pytest
from metric_data import NUM_CLASSES, detect_data, one_class_data, score
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from intern_vision.bench.detection_metrics import (
    MAX_KEPT,
    DetectionMetric,
    MissRateMetric,
    VocMetric,
    WiderMetric,
)
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads.base import Prediction

NOTHING = Prediction(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32), labels=np.zeros(0, np.int64))


def images_of(predictions, batch):
    """For each image its detections, best first, and its true boxes with their attributes, as plain lists."""
    for row, p in enumerate(predictions):
        found = sorted(zip(p.scores.tolist(), p.boxes.tolist(), p.labels.tolist(), strict=True), key=lambda f: -f[0])
        truth = []
        for column, label in enumerate(batch["box_labels_BN"][row].tolist()):
            if label >= 0:
                flags = {name: float(values[row, column]) for name, values in batch["box_attributes"].items()}
                truth.append({"box": batch["boxes_BN4"][row, column].tolist(), "label": label, **flags})
        yield found, truth


def perfect(batch):
    """Finds every true box with a score of its own."""
    rng = np.random.default_rng(0)
    found = []
    for boxes, labels in zip(batch["boxes_BN4"].numpy(), batch["box_labels_BN"].numpy(), strict=True):
        real = labels >= 0
        found.append(Prediction(boxes=boxes[real], labels=labels[real], scores=rng.random(real.sum(), np.float32)))
    return found


# ---- COCO


def pycocotools_stats(predictions, batch):
    truth, found = [], []
    for image, (detections, boxes) in enumerate(images_of(predictions, batch)):
        for t in boxes:
            x0, y0, x1, y1 = t["box"]
            row = {"image_id": image, "category_id": t["label"], "bbox": [x0, y0, x1 - x0, y1 - y0]}
            truth.append({**row, "id": len(truth) + 1, "area": (x1 - x0) * (y1 - y0), "iscrowd": int(t["ignored"])})
        for s, (x0, y0, x1, y1), label in detections:
            row = {"image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            found.append({**row, "score": s})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(predictions))],
            "categories": [{"id": label} for label in range(NUM_CLASSES)],
            "annotations": truth,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(4))
def test_coco_equals_pycocotools_and_prints_nothing(seed, capfd):
    predictions, batch = detect_data(np.random.default_rng(seed))
    scores = score(DetectionMetric(NUM_CLASSES), predictions, batch)
    assert capfd.readouterr() == ("", "")
    stats = pycocotools_stats(predictions, batch)
    assert 0.05 < stats[0] < 0.9
    assert scores["map"] == pytest.approx(stats[0], abs=1e-6)
    assert scores["ap50"] == pytest.approx(stats[1], abs=1e-6)
    assert scores["error"] == 1 - scores["ap50"]
    assert score(DetectionMetric(NUM_CLASSES, "map"), predictions, batch)["error"] == 1 - scores["map"]


def test_finding_nothing_scores_zero():
    _, batch = detect_data(np.random.default_rng(0))
    assert score(DetectionMetric(NUM_CLASSES), [NOTHING] * 25, batch) == {"error": 1.0, "ap50": 0.0, "map": 0.0}


# ---- PASCAL VOC


def voc_oracle(predictions, batch):
    """The development kit's loop: corners are pixels inside the box, and 1 is added to each width and height."""
    eleven, area = [], []
    images = list(images_of(predictions, batch))
    for label in range(NUM_CLASSES):
        truth = {
            image: [(t["box"], t["difficult"] or t["ignored"]) for t in boxes if t["label"] == label]
            for image, (_, boxes) in enumerate(images)
        }
        num_true = sum(not difficult for boxes in truth.values() for _, difficult in boxes)
        if not num_true:
            continue
        ranked = sorted(
            ((s, image, box) for image, (found, _) in enumerate(images) for s, box, k in found if k == label),
            key=lambda f: -f[0],
        )
        assert len({s for s, _, _ in ranked}) == len(ranked)
        taken, hits, misses, curve = set(), 0, 0, []
        for _, image, (x0, y0, x1, y1) in ranked:
            x0, y0 = x0 + 1, y0 + 1
            best, which = -math.inf, None
            for number, ((a0, b0, a1, b1), _) in enumerate(truth[image]):
                a0, b0 = a0 + 1, b0 + 1
                width, height = min(x1, a1) - max(x0, a0) + 1, min(y1, b1) - max(y0, b0) + 1
                if width > 0 and height > 0:
                    union = (x1 - x0 + 1) * (y1 - y0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1) - width * height
                    if width * height / union > best:
                        best, which = width * height / union, number
            if best >= 0.5:
                if truth[image][which][1]:
                    continue
                if (image, which) not in taken:
                    taken.add((image, which))
                    hits += 1
                else:
                    misses += 1
            else:
                misses += 1
            curve.append((hits / num_true, hits / (hits + misses)))
        eleven.append(sum(max([p for r, p in curve if r >= k / 10 - 1e-9], default=0) for k in range(11)) / 11)
        total, last = 0.0, 0.0
        for number, (recall, _) in enumerate(curve):
            total += (recall - last) * max(p for _, p in curve[number:])
            last = recall
        area.append(total)
    return sum(eleven) / len(eleven), sum(area) / len(area)


@pytest.mark.parametrize("seed", range(6))
def test_voc_equals_the_development_kits_loop(seed):
    predictions, batch = detect_data(np.random.default_rng(seed), 40)
    scores = score(VocMetric(NUM_CLASSES), predictions, batch)
    eleven, area = voc_oracle(predictions, batch)
    assert 0.1 < eleven < 0.9 and abs(eleven - area) > 1e-4
    assert scores == pytest.approx({"error": 1 - eleven, "voc_ap50": eleven, "voc_ap50_area": area}, rel=1e-9)


def one_image(boxes, found, scores, **attributes):
    batch = {"boxes_BN4": np.array([boxes], np.float32), "box_labels_BN": np.zeros((1, len(boxes)), np.int64)}
    batch["box_attributes"] = {name: np.array([values], np.float32) for name, values in attributes.items()}
    found = np.array(found, np.float32).reshape(-1, 4)
    return [Prediction(boxes=found, scores=np.array(scores, np.float32), labels=np.zeros(len(found), np.int64))], batch


def test_voc_judges_difficult_boxes_and_second_finds():
    box, other = [0, 0, 10, 10], [40, 40, 60, 60]
    # A second find is wrong, so the curve is 1 of 1, 1 of 2, 2 of 3.
    twice = one_image([box, other], [box, box, other], [0.9, 0.8, 0.7])
    assert score(VocMetric(1), *twice)["voc_ap50"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    # The same where the found one is difficult: neither find counts.
    hard = one_image([box, other], [box, box, other], [0.9, 0.8, 0.7], difficult=[1, 0])
    assert score(VocMetric(1), *hard)["voc_ap50"] == 1
    # Half of a box exactly is enough.
    half = one_image([box], [[0, 0, 10, 5]], [0.5])
    assert score(VocMetric(1), *half) == {"error": 0, "voc_ap50": 1, "voc_ap50_area": 1}
    only_difficult = one_image([box], [box], [0.5], difficult=[1])
    with pytest.raises(DataError, match="expected a true box that is not difficult"):
        score(VocMetric(1), *only_difficult)


# ---- WIDER FACE


def wider_oracle(predictions, batch, setting):
    """The official tool's procedure, one detection and one threshold at a time."""
    images = list(images_of(predictions, batch))
    every = [s for found, _ in images for s, _, _ in found]
    low, high = min(every), max(every)
    num_faces = sum(1 for _, truth in images for t in truth if t[setting] and not t["ignored"])
    curve = np.zeros((1000, 2))
    for found, truth in images:
        if not truth or not found:
            continue
        seen, counted, recalled = set(), [], []
        for _, (x0, y0, x1, y1), _ in found:
            overlap = []
            for t in truth:
                a0, b0, a1, b1 = t["box"]
                width = max(0, min(x1, a1) - max(x0, a0) + 1)
                height = max(0, min(y1, b1) - max(y0, b0) + 1)
                union = (x1 - x0 + 1) * (y1 - y0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1) - width * height
                overlap.append(width * height / union)
            best = int(np.argmax(overlap))
            counted.append(True)
            if overlap[best] >= 0.5:
                if not truth[best][setting] or truth[best]["ignored"]:
                    counted[-1] = False
                else:
                    seen.add(best)
            recalled.append(len(seen))
        for t in range(1000):
            threshold = 1 - (t + 1) / 1000
            taken = [row for row, (s, _, _) in enumerate(found) if (s - low) / (high - low) >= threshold]
            if taken:
                curve[t] += sum(counted[: taken[-1] + 1]), recalled[taken[-1]]
    precision = [hits / taken if taken else 0.0 for taken, hits in curve]
    total, last = 0.0, 0.0
    for t, (_, hits) in enumerate(curve):
        if hits / num_faces > last:
            total += (hits / num_faces - last) * max(precision[t:])
            last = hits / num_faces
    return total


@pytest.mark.parametrize("seed", range(4))
def test_wider_equals_a_loop(seed):
    predictions, batch = one_class_data(np.random.default_rng(seed), 30)
    scores = score(WiderMetric(1), predictions, batch)
    expected = {f"ap_{name}": wider_oracle(predictions, batch, name) for name in ("easy", "medium", "hard")}
    assert len(set(expected.values())) == 3 and all(0.1 < value < 0.95 for value in expected.values())
    mean = sum(expected.values()) / 3
    assert scores == pytest.approx({"error": 1 - mean, **expected}, rel=1e-9)


def test_wider_of_perfect_finds_and_of_none():
    _, batch = one_class_data(np.random.default_rng(0), 30)
    assert score(WiderMetric(1), perfect(batch), batch)["error"] == pytest.approx(0, abs=1e-9)
    assert score(WiderMetric(1), [NOTHING] * 30, batch)["error"] == 1


# ---- CityPersons


def miss_rate_oracle(predictions, batch, heights, shares):
    """The published script's procedure, one detection at a time."""
    verdicts, num_true = [], 0
    images = list(images_of(predictions, batch))
    for found, truth in images:
        sought, absorbing = [], []
        for t in truth:
            outside = not heights[0] <= t["height_px"] <= heights[1]
            outside = outside or not shares[0] - 1e-6 <= t["visible_share"] <= shares[1] + 1e-6
            (absorbing if t["ignored"] or outside else sought).append(t["box"])
        num_true += len(sought)
        free = set(range(len(sought)))
        for s, (x0, y0, x1, y1), _ in found:
            if not heights[0] / 1.25 <= y1 - y0 < heights[1] * 1.25:
                continue
            own = (x1 - x0) * (y1 - y0)

            def shared(box, x0=x0, y0=y0, x1=x1, y1=y1):
                return max(0, min(x1, box[2]) - max(x0, box[0])) * max(0, min(y1, box[3]) - max(y0, box[1]))

            best, which = 0.5, None
            for number in sorted(free):
                box = sought[number]
                area = (box[2] - box[0]) * (box[3] - box[1])
                overlap = shared(box) / (own + area - shared(box))
                if overlap >= best:
                    best, which = overlap, number
            if which is not None:
                free.remove(which)
                verdicts.append((s, True))
            elif not any(shared(box) / own >= 0.5 for box in absorbing):
                verdicts.append((s, False))
    hits = misses = 0
    curve = [(0.0, 0.0)]
    for _, hit in sorted(verdicts, key=lambda v: -v[0]):
        hits, misses = hits + hit, misses + (not hit)
        curve.append((misses / len(images), hits / num_true))
    points = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)
    rates = [1 - max(recall for fppi, recall in curve if fppi <= point) for point in points]
    return math.exp(sum(math.log(max(rate, 1e-10)) for rate in rates) / 9)


SETTINGS = {
    "reasonable": ((50, 1e9), (0.65, 1e9)),
    "small": ((50, 75), (0.65, 1e9)),
    "heavy": ((50, 1e9), (0.2, 0.65)),
    "all": ((20, 1e9), (0.2, 1e9)),
}


@pytest.mark.parametrize("seed", range(4))
def test_miss_rates_equal_a_loop(seed):
    rng = np.random.default_rng(seed)
    predictions, batch = one_class_data(rng, 120)
    # Each box is found about twice: without losses, every one is found before there is a false positive an image.
    kept = [rng.random(len(p.scores)) < 0.5 for p in predictions]
    predictions = [
        Prediction(boxes=p.boxes[k], scores=p.scores[k], labels=p.labels[k])
        for p, k in zip(predictions, kept, strict=True)
    ]
    scores = score(MissRateMetric(1), predictions, batch)
    expected = {f"miss_rate_{name}": miss_rate_oracle(predictions, batch, *ranges) for name, ranges in SETTINGS.items()}
    assert len(set(expected.values())) == 4 and all(0.05 < value < 0.99 for value in expected.values())
    mean = (expected["miss_rate_reasonable"] + expected["miss_rate_heavy"]) / 2
    assert scores == pytest.approx({"error": mean, **expected}, rel=1e-9)


def test_miss_rates_of_perfect_finds_and_of_none():
    _, batch = one_class_data(np.random.default_rng(0), 30)
    best = score(MissRateMetric(1), perfect(batch), batch)
    assert best == pytest.approx(dict.fromkeys(best, 1e-10), rel=1e-6) and len(best) == 5
    none = score(MissRateMetric(1), [NOTHING] * 30, batch)
    assert none == dict.fromkeys(best, 1.0)


def test_ignored_pedestrians_absorb_finds_and_do_not_count():
    person, region = [0, 0, 40, 80], [100, 0, 300, 200]
    attributes = {"height_px": [80, np.nan], "visible_share": [1, np.nan], "ignored": [0, 1]}
    inside = [120, 20, 150, 90]
    data = one_image([person, region], [inside, inside, person], [0.9, 0.8, 0.7], **attributes)
    assert score(MissRateMetric(1), *data)["miss_rate_reasonable"] == pytest.approx(1e-10)
    # Outside the region they are two false positives of one image, more than any point allows.
    data = one_image([person], [inside, inside, person], [0.9, 0.8, 0.7], height_px=[80], visible_share=[1])
    assert score(MissRateMetric(1), *data)["miss_rate_reasonable"] == 1
    # A detection below 50 / 1.25 px is not looked at.
    low = [120, 20, 150, 59]
    data = one_image([person], [low, low, person], [0.9, 0.8, 0.7], height_px=[80], visible_share=[1])
    scores = score(MissRateMetric(1), *data)
    assert scores["miss_rate_reasonable"] == pytest.approx(1e-10) and scores["miss_rate_all"] == 1
    assert "miss_rate_heavy" not in scores


# ---- all


def test_boxes_without_the_attributes_a_metric_needs_are_counted():
    predictions, batch = one_image([[0, 0, 9, 9], [20, 0, 29, 9]], [], [], height_px=[9, np.nan])
    with pytest.raises(DataError, match=r"expected height_px, visible_share of every box, 2 of 2 have none"):
        score(MissRateMetric(1), predictions, batch)
    with pytest.raises(DataError, match=r"expected easy, medium, hard of every box, 2 of 2 have none"):
        score(WiderMetric(1), predictions, batch)
    with pytest.raises(ConfigError, match="wider_ap is for one class, but the task has 3"):
        WiderMetric(3)


def test_memory_is_bounded_by_the_best_detections_of_an_image():
    num = MAX_KEPT + 500
    scores = np.linspace(0, 1, num, dtype=np.float32)
    boxes = np.tile(np.array([0, 0, 5, 5], np.float32), (num, 1))
    _, batch = one_image([[0, 0, 5, 5]], [], [])
    metric = VocMetric(1)
    metric.update([Prediction(boxes=boxes, scores=scores, labels=np.zeros(num, np.int64))], batch)
    state = metric.state()
    assert state["scores_M"].min() == scores[500]
    found = sum(state[name].nbytes for name in ("images_M", "boxes_M4", "scores_M", "labels_M"))
    assert found == 28 * MAX_KEPT
