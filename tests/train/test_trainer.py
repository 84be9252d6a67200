import helpers
import pytest
import torch
import toy_training
from toy_training import (
    PoisonedSource,
    ToySource,
    error_of,
    run_toy,
    run_toy_whole,
    toy_checkpoints,
    toy_job,
    weights_of,
)

from intern_vision.config import changed_fields
from intern_vision.data.loader import make_loader
from intern_vision.errors import CheckpointError, ConfigError, RetryableError, TrainingError
from intern_vision.stages import expert
from intern_vision.store import file_sha256
from intern_vision.train.launch import start_distributed
from intern_vision.train.trainer import RankContext, Trainer


def assert_close(one, other, atol=1e-5, rtol=0.0):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


def batch_keys(step, batch_size=8, rank=0, num_ranks=1, seed=0):
    batches = make_loader(
        ToySource(),
        batch_size=batch_size,
        seed=seed,
        start_step=step,
        num_steps=1,
        rank=rank,
        num_ranks=num_ranks,
        transform=lambda sample, rng: sample,
    )
    return next(batches)["keys"]


@pytest.fixture(scope="module")
def poisoned_index() -> int:
    """A sample that rank 1 of 2 sees first, at step 2."""
    seen = {key for step in range(2) for key in batch_keys(step)}
    key = next(key for key in batch_keys(2, rank=1, num_ranks=2) if key not in seen)
    return int(key.removeprefix("toy-"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, poisoned_index):
    folder = tmp_path_factory.mktemp("ranks")
    return folder, toy_training.start_ranks(folder, str(poisoned_index))


@pytest.mark.parametrize("zero_stage", range(4))
@pytest.mark.parametrize("kind", ["clip", "mean"])
def test_two_ranks_equal_one_with_the_joint_batch(two_ranks, kind, zero_stage):
    folder, found = two_ranks
    job = toy_job(kind)
    events = run_toy(job)
    losses = [event["metrics"]["loss"] for event in events]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert found[0][f"{kind}{zero_stage}_losses"] == pytest.approx(losses, abs=1e-5)
    for rank in range(2):
        assert_close(torch.load(folder / f"{kind}{zero_stage}-{rank}.pt"), weights_of(job))


def test_padding_of_a_part_is_no_weight(two_ranks):
    assert [rank["unwritten"] for rank in two_ranks[1]] == [{}, {}]


def test_two_ranks_of_an_amateur_have_the_gradients_of_the_joint_batch(two_ranks, tmp_path):
    folder, _ = two_ranks
    start_distributed()
    toy_training.joint_gradients(tmp_path)
    signals = {f"loss/{name}" for name in toy_training.SIGNALS}
    parts = signals | {"model.text.log_scale", "projector.0.weight", "token_head.weight", "queue.rows_QD"}
    local = {"loss/local", "loss/embedding", "projectors.0.0.weight", "propagations.1.transform.weight"}
    for kind, names in {"softmax": parts, "sigmoid": parts | {"bias"}, "pixpro": local}.items():
        expected = torch.load(tmp_path / f"joint-{kind}-1-0.pt")
        assert names <= expected.keys()
        for rank in range(2):
            assert_close(torch.load(folder / f"joint-{kind}-2-{rank}.pt"), expected, rtol=1e-5)


def test_every_rank_names_the_step_and_the_samples_that_broke_the_loss(two_ranks, poisoned_index):
    # Rank 1 sees the sample at step 2; its update then breaks rank 0 as well, at step 3.
    _, found = two_ranks
    for rank in range(2):
        error = found[rank]["poisoned"]
        assert error["type"] == "TrainingError"
        assert "loss term mean is not finite at step 2" in error["message"]
        assert "rank 1" in error["message"] and f"toy-{poisoned_index:02d}" in error["message"]


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_zero_stages_train_alike_and_leave_whole_weights(zero_stage):
    plain, partitioned = toy_job(), toy_job(zero_stage=zero_stage)
    assert_close(run_toy_whole(partitioned)[1], run_toy_whole(plain)[1])


def test_accumulation_equals_the_big_batch_for_a_mean_loss():
    whole, parts = toy_job("mean"), toy_job("mean", num_accumulation=4)
    one, other = run_toy(whole), run_toy(parts)
    assert_close(weights_of(parts), weights_of(whole))
    assert [e["metrics"]["loss"] for e in other] == pytest.approx([e["metrics"]["loss"] for e in one], abs=1e-5)


def test_batch_must_divide_into_ranks_and_micro_batches():
    with pytest.raises(ConfigError, match="num_accumulation"):
        helpers.trainer_config().with_overrides({"num_accumulation": 3})
    with pytest.raises(ConfigError, match=r"ranks x micro-batches = 6, got 8"):
        Trainer(toy_job(num_accumulation=2), RankContext(num_ranks=3))


@pytest.mark.parametrize("zero_stage", range(4))
def test_resume_equals_an_undisturbed_run_bit_for_bit(tmp_path, zero_stage):
    settings = {"num_steps": 9, "checkpoint_every": 2, "log_every": 3, "zero_stage": zero_stage}
    undisturbed, stopped, resumed = toy_job(**settings), toy_job(**settings), toy_job(**settings)
    whole = run_toy(undisturbed)
    with pytest.raises(RetryableError, match="stopped at step 6 of 9"):
        run_toy(stopped, toy_checkpoints(tmp_path), stop_at=4)
    events = run_toy(resumed, toy_checkpoints(tmp_path))
    again = next(event for event in events if event["event"] == "resumed")
    assert (again["done"], again["total"]) == (6, 9) and again["cpu_s"] > 0
    for name, tensor in weights_of(undisturbed).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    metrics = [(event["done"], event["metrics"]) for event in whole]
    assert [(e["done"], e["metrics"]) for e in events if e["event"] in ("past_step", "step")] == metrics


@pytest.mark.parametrize("zero_stage", range(4))
def test_parameters_with_a_later_start_keep_their_values_until_then(tmp_path, zero_stage):
    def job(start_step):
        job = toy_job(zero_stage=zero_stage, log_every=1, checkpoint_every=2, weight_decay=0.1)
        job.start_steps = {"model.text.": start_step}
        return job

    start = weights_of(toy_job())
    never = run_toy_whole(job(6))[1]
    assert all(torch.equal(tensor, start[name]) == name.startswith("text.") for name, tensor in never.items())
    whole = run_toy_whole(job(3))[1]
    assert not any(torch.equal(tensor, start[name]) for name, tensor in whole.items())
    with pytest.raises(RetryableError, match="stopped at step 2 of 6"):
        run_toy(job(3), toy_checkpoints(tmp_path), stop_at=2)
    resumed = run_toy_whole(job(3), toy_checkpoints(tmp_path))[1]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_a_loss_that_is_not_finite_leaves_every_checkpoint_as_it_was(tmp_path):
    key = next(key for key in batch_keys(4) if key not in {key for step in range(4) for key in batch_keys(step)})
    settings = {"num_steps": 8, "checkpoint_every": 2, "log_every": 2}
    undisturbed = run_toy(toy_job("mean", **settings))
    with pytest.raises(RetryableError, match="stopped at step 4 of 8"):
        run_toy(toy_job("mean", **settings), toy_checkpoints(tmp_path), stop_at=2)
    before = {path: file_sha256(path) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    poisoned = toy_job("mean", PoisonedSource(int(key.removeprefix("toy-"))), **settings)
    with pytest.raises(TrainingError, match=rf"loss term mean is not finite at step 4; samples on rank 0: .*{key}"):
        run_toy(poisoned, toy_checkpoints(tmp_path))
    assert before == {path: file_sha256(path) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    # The sample mended, the training goes on from there as if nothing had been.
    resumed = run_toy(toy_job("mean", **settings), toy_checkpoints(tmp_path))
    assert [e["metrics"] for e in resumed if e["event"] == "step"] == [e["metrics"] for e in undisturbed][2:]


def test_stop_without_checkpoints_still_ends_as_retryable():
    with pytest.raises(RetryableError, match="stopped at step 2 of 6"):
        run_toy(toy_job(log_every=2), stop_at=1)


def test_a_request_to_stop_at_the_last_step_is_too_late():
    assert run_toy(toy_job(log_every=3), stop_at=2)[-1]["done"] == 6


@pytest.mark.parametrize("field", ["temperature", "width"])
def test_checkpoint_of_another_config_names_the_changed_field(tmp_path, field, monkeypatch):
    before, after = {"loss": {"temperature": 1, "width": 6}}, {"loss": {"temperature": 1, "width": 6}}
    after["loss"][field] = 7
    with pytest.raises(RetryableError):
        run_toy(toy_job(identity=before, log_every=3), toy_checkpoints(tmp_path), stop_at=1)
    job = toy_job(identity=after)
    if field == "width":  # other shapes as well
        monkeypatch.setattr(toy_training, "WIDTH", 7)
        job = toy_job(identity=after)
    assert changed_fields(before, after)
    with pytest.raises(CheckpointError, match=rf"loss\.{field}: \d -> 7"):
        run_toy(job, toy_checkpoints(tmp_path))


def test_gradients_that_are_not_finite_are_an_error_even_in_the_last_step():
    class Root(toy_training.ToyClip):
        def forward(self, batch):
            losses, values = super().forward(batch)
            return {"mean": losses["mean"] + (0 * losses["mean"]).sqrt()}, values

    job = toy_job("mean", num_steps=1)
    job.objective = Root("mean")
    assert "weights are not finite after the update at step 0; samples" in error_of(job)["message"]


def test_seeds_decide_the_order():
    one, same, other = (toy_job(seed=seed) for seed in (0, 0, 1))
    losses = [[event["metrics"]["loss"] for event in run_toy(job)] for job in (one, same, other)]
    assert losses[0] == losses[1] != losses[2]


def test_metrics_are_means_over_the_steps_since_the_last_report():
    by_step = [event["metrics"]["loss"] for event in run_toy(toy_job("mean"))]
    events = run_toy(toy_job("mean", log_every=3))
    assert [event["metrics"]["loss"] for event in events] == pytest.approx(
        [sum(by_step[:3]) / 3, sum(by_step[3:]) / 3], rel=1e-6
    )
    assert events[0]["speed"]["steps_per_s"] > 0 and 0 <= events[0]["speed"]["waiting_for_data_share"] <= 1


def test_learning_rate_follows_the_schedule():
    rates = [event["metrics"]["learning_rate"] for event in run_toy(toy_job(num_steps=4, warmup_share=0.5))]
    # Reported after a step: the next step's rate.
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.0])


def test_a_sample_of_a_real_objective_that_breaks_the_loss_is_named(world, tmp_path):
    amateur = helpers.save_backbone(world, tmp_path / "amateur")
    config = expert.Config(
        family="multilabel", trainer=helpers.trainer_config(log_every=4), head=helpers.HEAD, augment=helpers.AUGMENT
    )
    job = expert.build(config, world.workspace(tmp_path / "work", data=world.upstream, amateur=amateur))
    augment, poisoned = job.transform, []

    def poisoning(sample, rng):
        example = augment(sample, rng)
        if not poisoned and len(seen) >= 8:
            poisoned.append(sample.key)
        if sample.key in poisoned:
            example["concepts"] = example["concepts"] * float("nan")
        seen.append(sample.key)
        return example

    seen: list[str] = []
    job.transform = poisoning
    message = error_of(job)["message"]
    assert "loss term multilabel/multilabel is not finite at step 1" in message and poisoned[0] in message
    assert "\n" not in message and "trainer.learning_rate" in message


def test_poisoned_single_rank_raises_at_its_next_report():
    with pytest.raises(TrainingError, match="at step 0"):
        run_toy(toy_job("mean", PoisonedSource(int(batch_keys(0)[0].removeprefix("toy-"))), num_steps=2))
