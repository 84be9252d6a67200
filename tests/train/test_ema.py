import pytest
import torch
from toy_training import run_toy, run_toy_whole, toy_checkpoints, toy_job, weights_of

from intern_vision.errors import ConfigError, RetryableError
from intern_vision.train import engine
from intern_vision.train.ema import WeightAverage
from intern_vision.train.launch import start_distributed
from intern_vision.train.trainer import RankContext, Trainer


def averages_by_a_loop(decay, num_steps=6):
    """Weights after each number of steps, averaged in double precision."""
    average = None
    for step in range(num_steps + 1):
        job = toy_job("mean", num_steps=num_steps, checkpoint_every=0)
        trained = weights_of(job) if step == 0 else snapshots(job)[step - 1]
        trained = {name: tensor.double() for name, tensor in trained.items()}
        if average is None:
            average = trained
            continue
        rate = min(decay, step / (9 + step))
        average = {name: rate * average[name] + (1 - rate) * trained[name] for name in average}
    return average


def snapshots(job):
    """Weights after every step."""
    found = []
    start_distributed()
    context = RankContext(on_event=lambda event: found.append(weights_of(job)) if event["event"] == "step" else None)
    Trainer(job, context).train()
    return found


@pytest.mark.parametrize("decay", [0.3, 0.999])
@pytest.mark.parametrize("zero_stage", range(4))
def test_what_is_exported_is_the_average_of_a_plain_loop(decay, zero_stage, monkeypatch):
    monkeypatch.setattr(engine, "PERSISTENT_ELEMENTS", 0 if decay < 0.5 else 100_000)
    expected = averages_by_a_loop(decay)
    _, weights = run_toy_whole(toy_job("mean", ema_decay=decay, zero_stage=zero_stage))
    last = snapshots(toy_job("mean"))[-1]
    assert max((weights[name] - last[name]).abs().max() for name in last) > 1e-3
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name].double(), tensor, atol=1e-6, rtol=0)


def test_accumulated_micro_batches_count_once():
    whole, parts = toy_job("mean", ema_decay=0.9), toy_job("mean", ema_decay=0.9, num_accumulation=4)
    one, other = run_toy_whole(whole)[1], run_toy_whole(parts)[1]
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-6, rtol=0)


def test_it_survives_a_resume_bit_for_bit(tmp_path):
    settings = {"num_steps": 6, "log_every": 2, "ema_decay": 0.9}
    expected = run_toy_whole(toy_job("mean", **settings))[1]
    with pytest.raises(RetryableError):
        run_toy(toy_job("mean", **settings), toy_checkpoints(tmp_path), stop_at=1)
    resumed = run_toy_whole(toy_job("mean", **settings), toy_checkpoints(tmp_path))[1]
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name


def test_training_goes_on_from_the_weights_and_not_from_the_averages():
    plain, averaged = toy_job("mean"), toy_job("mean", ema_decay=0.9)
    losses = [[event["metrics"]["loss"] for event in run_toy(job)] for job in (plain, averaged)]
    assert losses[0] == losses[1]


def test_buffers_and_frozen_weights_are_exported_as_they_are():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    average = WeightAverage(module, 0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
        module[1].running_mean += 1
    trained = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    average.update()
    with average.in_place():
        for name in ("0.bias", "1.running_mean"):
            assert torch.equal(module.state_dict()[name], trained[name])
        # The first update weighs the past with 1/10.
        torch.testing.assert_close(module[0].weight, trained["0.weight"] - 0.1)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def test_decay_of_one_is_refused():
    with pytest.raises(ConfigError, match="ema_decay"):
        toy_job(ema_decay=0.5).config.with_overrides({"ema_decay": 1.0})
