import json

import numpy as np
import pytest
from toy_training import SpikingSource, run_toy, toy_checkpoints, toy_job, weights_of

from intern_vision.errors import ConfigError, RetryableError, TrainingError
from intern_vision.train import stage_events
from intern_vision.train.guard import DivergenceGuard


def spiking_job(scale, num_spikes=1, **settings):
    source = SpikingSource(8 * 5 + 3, num_spikes, scale)
    settings = {"num_steps": 9, "checkpoint_every": 2, "divergence_margin": 10.0} | settings
    return toy_job("mean", source, num_loader_threads=1, **settings)


@pytest.mark.parametrize("scale", [1e3, np.nan])
def test_a_spike_goes_back_to_the_last_checkpoint_with_a_lower_rate(tmp_path, scale):
    calm = run_toy(toy_job("mean", num_steps=9, checkpoint_every=2))
    events = run_toy(spiking_job(scale), toy_checkpoints(tmp_path))
    (back,) = [event for event in events if event["event"] == "rolled_back"]
    assert back["done"] == 4 and back["num_rollbacks"] == 1
    cause = "divergence_margin 10 above its running mean" if np.isfinite(scale) else "loss term mean is not finite"
    assert cause in back["cause"]
    steps = [event["done"] for event in events if event["event"] == "step"]
    assert steps == [1, 2, 3, 4, 5, *range(5, 10)]
    after = {event["done"]: event["metrics"]["learning_rate"] for event in events if event["event"] == "step"}
    rates = {event["done"]: event["metrics"]["learning_rate"] for event in calm}
    for done in range(5, 9):
        assert after[done] == pytest.approx(0.997 * rates[done])


def test_a_rolled_back_training_can_be_repeated_bit_for_bit(tmp_path):
    job = spiking_job(1e3)
    run_toy(job, toy_checkpoints(tmp_path / "spike"))
    again = spiking_job(1e3)
    run_toy(again, toy_checkpoints(tmp_path / "again"))
    for name, tensor in weights_of(job).items():
        assert (tensor == weights_of(again)[name]).all() and tensor.isfinite().all()


def test_a_loss_that_stays_high_ends_the_training(tmp_path):
    with pytest.raises(
        TrainingError, match=r"above its running mean .*; gave up after trainer\.max_rollbacks 2"
    ) as info:
        run_toy(spiking_job(1e3, num_spikes=10_000, max_rollbacks=2), toy_checkpoints(tmp_path))
    assert "\n" not in str(info.value) and "lower trainer.learning_rate" in str(info.value)


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint to go back to"):
        run_toy(spiking_job(1e3, checkpoint_every=8), toy_checkpoints(tmp_path))
    with pytest.raises(ConfigError, match="divergence_margin needs checkpoint_every > 0"):
        toy_job().config.with_overrides({"divergence_margin": 1.0, "checkpoint_every": 0})


def test_off_by_default(tmp_path):
    events = run_toy(spiking_job(1e3, divergence_margin=0.0), toy_checkpoints(tmp_path))
    assert not [event for event in events if event["event"] == "rolled_back"]
    assert max(event["metrics"]["loss"] for event in events) > 1e3


def test_a_resumed_training_keeps_the_lower_rate(tmp_path):
    whole = run_toy(spiking_job(1e3), toy_checkpoints(tmp_path / "whole"))
    with pytest.raises(RetryableError, match="stopped at step 7 of 9"):
        run_toy(spiking_job(1e3), toy_checkpoints(tmp_path / "stopped"), stop_at=9)
    events = run_toy(spiking_job(1e3, num_spikes=0), toy_checkpoints(tmp_path / "stopped"))
    expected = {e["done"]: e["metrics"] for e in whole if e["event"] == "step" and e["done"] > 7}
    assert {e["done"]: e["metrics"] for e in events if e["event"] == "step"} == expected


def test_the_running_mean_is_that_of_the_last_twenty_reports():
    guard = DivergenceGuard(1.0, 3)
    losses = [100.0] * 5 + [2.0] * 20
    assert guard.fault(2.9, losses) == "" and guard.fault(3.1, losses)
    assert guard.fault(3.1, []) == ""
    assert DivergenceGuard(0.0, 3).fault(1e9, losses) == ""


def test_the_history_forgets_the_steps_that_are_trained_again(tmp_path):
    path = tmp_path / "history.jsonl"
    with open(path, "a+") as history:
        for step in (1, 2, 3):
            history.write(json.dumps({"step": step}) + "\n")
        stage_events._forget_after(1, history)
        history.write(json.dumps({"step": 2, "loss": 0.5}) + "\n")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2, "loss": 0.5}]
