import subprocess
import sys

import pytest
import torch

from intern_vision.bench.metrics import Metric
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads import HeadConfig
from intern_vision.heads.base import build_head, cross_entropy
from intern_vision.task import Task

FAMILIES = ("classify", "multilabel", "detect", "segment", "depth")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen_features", [False, True])
def test_every_parameter_gets_a_finite_gradient(family, frozen_features, head_for, features, batch):
    head = head_for(family, frozen_features)
    losses = head.losses(head(features), batch)
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_float32_and_close_under_bfloat16_autocast(family, head_for, features, batch):
    head = head_for(family)
    exact = head.losses(head(features), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head.losses(head(features), batch)
    for name, loss in rough.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_metric_takes_the_heads_own_predictions(family, head_for, features, batch):
    head = head_for(family).eval()
    predictions = head.predict(head(features), (64, 64))
    metric = head.metric()
    assert isinstance(metric, Metric) and len(predictions) == 8
    metric.update(predictions, batch)
    assert metric.compute()["error"] >= 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_the_familys_labels_is_named(family, head_for, features, batch):
    head = head_for(family)
    with pytest.raises(DataError, match=rf"batch\.\w+: expected for family {family}, got only image_BCHW"):
        head.losses(head(features), {"image_BCHW": batch["image_BCHW"]})


@pytest.mark.parametrize("family", ["detect", "segment", "depth"])
def test_the_neck_moves_between_families(family, head_for):
    source = head_for("detect").neck.state_dict()
    head_for(family).neck.load_state_dict(source)


def test_num_neck_levels_takes_the_finest(head_for, features):
    head = head_for("segment", num_neck_levels=1)
    assert len(head.neck.laterals) == 1
    assert head(features)["logits_BKHW"].shape == (8, 4, 32, 32)


def test_config_faults():
    with pytest.raises(ConfigError, match="neck_width: expected a multiple of 8, got 50"):
        HeadConfig.from_dict({"neck_width": 50}, at="head")
    assert HeadConfig.from_json(HeadConfig(background_classes=("sky",)).to_json()).background_classes == ("sky",)
    task = Task(family="segment", class_names=("ground", "cup"))
    with pytest.raises(ConfigError, match="head.background_classes: expected names among ground, cup, got sky"):
        build_head(task, (8,), (4,), 8, HeadConfig(background_classes=("sky",)))
    many = Task(family="segment", class_names=tuple(str(i) for i in range(256)))
    with pytest.raises(ConfigError, match="expected at most 255"):
        build_head(many, (8,), (4,), 8, HeadConfig())


def test_head_settings_load_without_torch():
    code = "import sys, intern_vision.heads, intern_vision.bench.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_torchs_mean(label_smoothing, weighted):
    torch.manual_seed(0)
    logits, target = torch.randn(4, 5, 6), torch.randint(0, 5, (4, 6))
    target[0] = 255
    weights = torch.rand(5) + 0.1 if weighted else None
    settings = {"ignore_index": 255, "label_smoothing": label_smoothing}
    ours = cross_entropy(logits, target, class_weights_K=weights, **settings)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, target, weight=weights, **settings))


def test_cross_entropy_of_nothing_known_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([-1, -1]), ignore_index=-1)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
