import math

import numpy as np
import pytest
from metric_data import depth_data, score

from intern_vision.bench.depth_metrics import DepthMetric, eigen_window, garg_window
from intern_vision.bench.metrics import make_metric
from intern_vision.heads.base import Prediction
from intern_vision.task import Task

TASK = Task(family="depth", max_depth_m=65.0)


def oracle(predictions, truths, cap_m, counts):
    """Pixel by pixel; ``counts(row, column, truth)`` says which take part."""
    rows = []
    for p, truth in zip(predictions, truths, strict=True):
        pairs = [
            (min(max(float(p.depth[y, x]), 1e-3), cap_m), float(truth[y, x]))
            for y, x in np.ndindex(truth.shape)
            if counts(y, x, truth[y, x])
        ]
        if pairs:
            n = len(pairs)
            ratios = [max(g / t, t / g) for g, t in pairs]
            logs = [math.log(g) - math.log(t) for g, t in pairs]
            rows.append(
                {
                    "abs_rel": sum(abs(g - t) / t for g, t in pairs) / n,
                    "rmse_m": (sum((g - t) ** 2 for g, t in pairs) / n) ** 0.5,
                    "silog": 100 * (sum(d * d for d in logs) / n - (sum(logs) / n) ** 2) ** 0.5,
                    **{f"delta{k}": sum(r < 1.25**k for r in ratios) / n for k in (1, 2, 3)},
                }
            )
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def test_depth_equals_a_loop():
    predictions, batch = depth_data(np.random.default_rng(0))
    expected = oracle(predictions, batch["depth_BHW"].double().numpy(), 10.0, lambda y, x, t: 0 < t <= 10)
    scores = score(DepthMetric(10.0), predictions, batch)
    assert scores == pytest.approx({"error": expected["abs_rel"], **expected})


def scene(height, width, cap_m, num_images=2):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 1.3 * cap_m, (num_images, height, width)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.3] = 0
    truth[:, height // 2, width // 2] = cap_m
    guess = (np.maximum(truth, 1) * rng.uniform(0.5, 1.6, truth.shape)).astype(np.float32)
    return [Prediction(depth=row) for row in guess], truth


def test_kitti_scores_gargs_crop_below_80_m():
    predictions, truth = scene(75, 248, 80.0)
    rows, columns = range(int(0.40810811 * 75), int(0.99189189 * 75)), range(int(0.03594771 * 248), 239)

    def counts(y, x, t):
        return y in rows and x in columns and 1e-3 < t < 80

    scores = score(make_metric(TASK, "kitti_rmse"), predictions, {"depth_BHW": truth})
    expected = oracle(predictions, truth.astype(np.float64), 80.0, counts)
    assert scores == pytest.approx({"error": expected["rmse_m"], **expected})
    # Cut to whole pixels, as the published code does: the edges meant are 151, 367, 44 and 1180.
    assert garg_window(370, 1224) == (slice(151, 366), slice(43, 1180))


def test_nyu_scores_eigens_crop_below_10_m():
    predictions, truth = scene(120, 160, 10.0)

    def counts(y, x, t):
        return 11 <= y < 118 and 10 <= x < 150 and 1e-3 < t < 10

    scores = score(make_metric(TASK, "nyu_rmse"), predictions, {"depth_BHW": truth})
    expected = oracle(predictions, truth.astype(np.float64), 10.0, counts)
    assert scores == pytest.approx({"error": expected["rmse_m"], **expected})
    assert eigen_window(480, 640) == (slice(45, 471), slice(41, 601))


def test_pixels_outside_the_crop_do_not_count():
    truth = np.full((1, 480, 640), 3.0, np.float32)
    guess = np.full((480, 640), 9.0, np.float32)
    guess[45:471, 41:601] = 3.0
    scores = score(make_metric(TASK, "nyu_rmse"), [Prediction(depth=guess)], {"depth_BHW": truth})
    assert scores["error"] == 0 and scores["delta1"] == 1 and scores["silog"] == 0
