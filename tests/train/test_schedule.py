import math

import helpers
import pytest
import torch

from intern_vision.errors import ConfigError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.train.image_text import ImageTextObjective
from intern_vision.train.schedule import head_rate_scales, parameter_groups, warmup_cosine
from intern_vision.train.settings import SignalWeights, count_image_passes


def test_warm_up_then_half_a_cosine():
    factors = [warmup_cosine(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0 and max(factors) == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert all(before > after for before, after in zip(factors[10:], factors[11:], strict=False))
    assert factors[100] == pytest.approx(0.0)
    assert warmup_cosine(140, 100, 10) == pytest.approx(0.0)


@pytest.mark.parametrize(("num_steps", "num_warmup_steps"), [(1, 0), (1, 1), (5, 5), (3, 0)])
def test_extremes_stay_in_range(num_steps, num_warmup_steps):
    factors = [warmup_cosine(step, num_steps, num_warmup_steps) for step in range(num_steps + 1)]
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0


@pytest.fixture
def groups():
    text = TextSpec(vocab_size=300, **helpers.TEXT.to_dict())
    model = VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX, text=text))
    objective = ImageTextObjective(model, SignalWeights(), queue_rows=8)
    objective.model.backbone.stem.requires_grad_(False)
    scales = {"model.backbone": 0.5, "model.backbone.segments.1": 0.25, "token_head": 3.0}
    found = parameter_groups(objective, learning_rate=0.1, weight_decay=0.05, learning_rate_scales=scales)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    rows = {names[id(p)]: (g["lr"], g["weight_decay"], p.ndim) for g in found for p in g["params"]}
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert sum(len(g["params"]) for g in found) == len(rows) and rows.keys() == trained
    return rows


def test_norms_biases_temperature_and_positions_take_no_decay(groups):
    undecayed = {name for name, (_, decay, _) in groups.items() if decay == 0}
    for part in (".bias", "norm", "log_scale", "position"):
        matching = {name for name in groups if part in name}
        assert matching and matching <= undecayed, part
    decayed = {name for name, (_, decay, _) in groups.items() if decay == 0.05}
    assert decayed == groups.keys() - undecayed
    assert all(groups[name][2] >= 2 for name in decayed)
    assert {"token_head.weight", "model.text.projection.weight", "model.text.encoder.token.weight"} <= decayed
    odd = {name for name in undecayed if groups[name][2] != 1}
    assert all(name.endswith(("position", "position.weight")) for name in odd), odd


def test_the_longest_prefix_scales_the_rate(groups):
    expected = {"model.backbone.segments.1.": 0.025, "model.backbone.segments.0.": 0.05, "token_head.": 0.3}
    for prefix, rate in (expected | {"model.text.": 0.1, "predictor.": 0.1}).items():
        rates = [groups[name][0] for name in groups if name.startswith(prefix)]
        assert rates and rates == pytest.approx([rate] * len(rates)), prefix


def test_frozen_parameters_are_in_no_group(groups):
    assert not any(name.startswith("model.backbone.stem") for name in groups)


def test_groups_are_few(groups):
    assert len({(rate, decay) for rate, decay, _ in groups.values()}) <= 8


def test_head_factors_reach_their_head_and_no_other():
    heads = {name: torch.nn.Linear(2, 2) for name in ("classify", "classify@pets", "depth")}
    objective = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"heads": torch.nn.ModuleDict(heads)})})
    scales = head_rate_scales({"classify": 3.0, "depth": 0.5}, heads)
    found = parameter_groups(objective, learning_rate=0.1, weight_decay=0.0, learning_rate_scales=scales)
    rates = {id(parameter): group["lr"] for group in found for parameter in group["params"]}
    for name, factor in (("classify", 3.0), ("classify@pets", 1.0), ("depth", 0.5)):
        assert [rates[id(parameter)] for parameter in heads[name].parameters()] == pytest.approx([0.1 * factor] * 2)
    with pytest.raises(ConfigError, match="head_learning_rate_scales: expected heads among classify, .*, got 'detect'"):
        head_rate_scales({"detect": 2.0}, heads)


def test_a_forward_pass_alone_counts_a_third():
    assert count_image_passes(100, 1) == 100
    assert count_image_passes(96, 2, 3) == 96 * 3
    assert count_image_passes(10, 0, 1) == 3
