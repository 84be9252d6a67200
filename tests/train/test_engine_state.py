import json

import pytest
import torch
import toy_training
from safetensors.torch import load_file, save_file
from toy_training import (
    ImageSource,
    ToyXca,
    resume_job,
    run_toy,
    run_toy_whole,
    toy_checkpoints,
    toy_job,
    weights_of,
    xca_job,
)

from intern_vision.errors import CheckpointError, RetryableError
from intern_vision.train import engine, engine_state
from intern_vision.train.trainer import STATE_FILE


@pytest.fixture(autouse=True)
def _partition_everything(monkeypatch):
    monkeypatch.setattr(engine, "PERSISTENT_ELEMENTS", 0)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Two ranks stopped at step 3 under every ZeRO stage, and went on where one rank had stopped."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "PERSISTENT_ELEMENTS", 0)
        for zero_stage in range(4):
            with pytest.raises(RetryableError, match="stopped at step 3 of 6"):
                run_toy(resume_job(zero_stage), toy_checkpoints(folder / f"one-{zero_stage}"), stop_at=1)
    return folder, toy_training.start_ranks(folder)


def losses_of(events):
    return [event["metrics"]["loss"] for event in events if event["event"] in ("step", "past_step")]


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=0)


def assert_same_training(zero_stage, events, weights):
    """As one rank that was left alone: losses, and the averaged weights it exports."""
    expected_events, expected = run_toy_whole(resume_job(zero_stage))
    assert [event["done"] for event in events if event["event"] == "resumed"] == [3]
    assert losses_of(events) == pytest.approx(losses_of(expected_events), abs=1e-5)
    if zero_stage < 3:
        assert_close(weights, expected)
    else:
        torch.testing.assert_close(answers(weights), answers(expected), atol=2e-4, rtol=0)


@torch.inference_mode()
def answers(weights):
    """Rows of eight images: AdamW turns gradients that are zero but for rounding into updates of any sign."""
    model = ToyXca().model.eval()
    model.load_state_dict(weights)
    pictures_BCHW = torch.stack([torch.from_numpy(ImageSource()[index]["picture"]) for index in range(8)])
    return model["head"](model["backbone"](pictures_BCHW).vector_BD)


@pytest.mark.parametrize("zero_stage", range(4))
def test_one_rank_goes_on_where_two_stopped(two_ranks, zero_stage):
    folder, found = two_ranks
    assert {rank[f"stopped{zero_stage}"]["type"] for rank in found} == {"RetryableError"}
    assert_same_training(
        zero_stage, *run_toy_whole(resume_job(zero_stage), toy_checkpoints(folder / f"two-{zero_stage}"))
    )


@pytest.mark.parametrize("zero_stage", range(4))
def test_two_ranks_go_on_where_one_stopped(two_ranks, zero_stage):
    folder, found = two_ranks
    for rank in range(2):
        weights = torch.load(folder / f"resumed{zero_stage}-{rank}.pt", weights_only=True)
        assert_same_training(zero_stage, found[0][f"resumed{zero_stage}"], weights)


def test_all_ranks_go_back_when_one_sees_a_divergence(two_ranks):
    _, found = two_ranks
    events = found[0]["rolled_back"]
    (back,) = [event for event in events if event["event"] == "rolled_back"]
    assert back["done"] == 4 and "divergence_margin" in back["cause"]
    assert [event["done"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5, *range(5, 10)]
    assert [event for event in found[1]["rolled_back"] if event["event"] == "rolled_back"] == []  # rank 0 reports


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (1, 2)])
def test_a_state_fits_any_zero_stage(tmp_path, before, after):
    undisturbed = toy_job(log_every=3)
    losses = losses_of(run_toy(undisturbed))
    with pytest.raises(RetryableError):
        run_toy(toy_job(log_every=3, zero_stage=before), toy_checkpoints(tmp_path), stop_at=1)
    events, weights = run_toy_whole(toy_job(log_every=3, zero_stage=after), toy_checkpoints(tmp_path))
    assert losses_of(events) == pytest.approx(losses, abs=1e-5)
    assert_close(weights, weights_of(undisturbed))


def test_many_files_hold_every_parameter_once(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_state, "SHARD_BYTES", 2_000)
    job = xca_job(num_steps=4, log_every=2)
    checkpoints = toy_checkpoints(tmp_path)
    with pytest.raises(RetryableError):
        run_toy(job, checkpoints, stop_at=1)
    folder = tmp_path / "store" / "checkpoints" / "step-2"
    paths = sorted(folder.glob("state-*.safetensors"))
    assert len(paths) > 10
    keys = [key for path in paths for key in load_file(path)]
    names = [f"objective.{name}" for name, _ in job.objective.named_parameters()]
    assert sorted(keys) == sorted(f"{kind}/{n}" for n in names for kind in ("weight", "step", "exp_avg", "exp_avg_sq"))
    resumed, undisturbed = xca_job(num_steps=4, log_every=2), xca_job(num_steps=4, log_every=2)
    run_toy(resumed, checkpoints)
    run_toy(undisturbed)
    for name, tensor in weights_of(undisturbed).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_a_parameter_that_never_moved_stays_new_and_disturbs_no_other(tmp_path, zero_stage):
    class Unused(toy_training.ToyClip):
        def __init__(self):
            super().__init__("mean")
            self.model["unused"] = torch.nn.Linear(2, 2)

    def job(zero_stage=0):
        made = toy_job("mean", num_steps=4, log_every=2, zero_stage=zero_stage, weight_decay=0.0)
        made.objective = Unused()
        return made

    with pytest.raises(RetryableError):
        run_toy(job(), toy_checkpoints(tmp_path), stop_at=1)
    undisturbed = job()
    run_toy(undisturbed)
    _, weights = run_toy_whole(job(zero_stage), toy_checkpoints(tmp_path))
    for name, tensor in weights_of(undisturbed).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-6 if zero_stage else 0, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("weight/objective.model.image.weight"), "missing weight/objective.model.image"),
        (lambda tensors: tensors.update({"weight/other": torch.ones(1)}), "unknown weight/other"),
        (lambda tensors: tensors.update({"weight/objective.model.log_scale": torch.ones(2)}), "is of another shape"),
        (lambda tensors: tensors.pop("exp_avg/objective.model.log_scale"), "has no exp_avg/objective.model.log_scale"),
    ],
)
def test_a_state_of_another_model_is_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(RetryableError):
        run_toy(toy_job(log_every=2), toy_checkpoints(tmp_path), stop_at=1)
    path = tmp_path / "store" / "checkpoints" / "step-2" / "state-00000.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        run_toy(toy_job(log_every=2), toy_checkpoints(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path):
    with pytest.raises(RetryableError):
        run_toy(toy_job(log_every=2), toy_checkpoints(tmp_path), stop_at=1)
    folder = tmp_path / "store" / "checkpoints" / "step-2"
    assert json.loads((folder / STATE_FILE).read_text())["step"] == 2
    (folder / "state-00000.safetensors").write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match=r"state-00000\.safetensors: cannot be read as safetensors"):
        run_toy(toy_job(log_every=2), toy_checkpoints(tmp_path))
