import helpers
import pytest
import torch
import toy_training
from toy_training import run_toy, run_toy_whole, toy_job, xca_job

from intern_vision.errors import ConfigError
from intern_vision.models.metanet import MetaNet
from intern_vision.stages import amateur, expert
from intern_vision.train import engine
from intern_vision.train.launch import start_distributed
from intern_vision.train.trainer import RankContext, Trainer


class ToyObjective(toy_training.ToyClip):
    """The toy with one parameter changed."""

    def __init__(self, **parameters):
        super().__init__("mean")
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)


def job_with(objective, **settings):
    job = toy_job("mean", **settings)
    job.objective = objective
    return job


def test_activation_checkpointing_is_switched_on_in_every_module_that_offers_it():
    plain, checkpointed = xca_job(num_steps=3), xca_job(num_steps=3, checkpoint_activations=True)
    one, other = run_toy_whole(plain), run_toy_whole(checkpointed)
    switched = [m for m in checkpointed.objective.modules() if getattr(m, "checkpoint_activations", False)]
    assert any(isinstance(module, MetaNet) for module in switched)
    assert one[0][-1]["metrics"]["loss"] == pytest.approx(other[0][-1]["metrics"]["loss"], abs=1e-6)
    with pytest.raises(ConfigError, match=r"trainer\.checkpoint_activations: this model has no module that offers it"):
        run_toy(toy_job(checkpoint_activations=True))


def test_what_cannot_be_partitioned_is_told_in_one_line():
    with pytest.raises(ConfigError, match=r"temperature has no dimension, .*; give it shape \(1,\)"):
        run_toy(job_with(ToyObjective(temperature=torch.nn.Parameter(torch.tensor(1.0)))))
    halved = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match=r"trainer\.zero_stage 3: halved is not float32"):
        run_toy(job_with(ToyObjective(halved=halved), zero_stage=3))
    frozen = ToyObjective()
    frozen.requires_grad_(False)
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        run_toy(job_with(frozen))


def test_a_gpu_that_cannot_compute_in_bf16_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    config = toy_job().config.with_overrides({"precision": "bf16"})
    with pytest.raises(ConfigError, match=r'trainer\.precision: Tesla V100 does not compute in bf16; set it to "fp32"'):
        engine.check_device(config, torch.device("cuda", 0))
    engine.check_device(config, torch.device("cpu"))
    engine.check_device(config.with_overrides({"precision": "fp32"}), torch.device("cuda", 0))


def test_a_rank_without_a_gpu_of_its_own_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert engine._device(RankContext(local_rank=1)) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="rank 2 of this machine has no GPU of its own, there are 2"):
        engine._device(RankContext(local_rank=2))


def test_half_precision_that_is_not_offered_is_refused():
    with pytest.raises(ConfigError, match="precision: expected 'fp32' or 'bf16'"):
        toy_job().config.with_overrides({"precision": "fp16"})


@pytest.mark.parametrize("accumulation", [1, 2])
def test_progress_sets_rates_and_counters_as_training_does(accumulation):
    settings = {"num_steps": 6, "num_accumulation": accumulation, "warmup_share": 0.4, "checkpoint_every": 0}
    start_distributed()
    trained, jumped = Trainer(toy_job(**settings), RankContext()), Trainer(toy_job(**settings), RankContext())
    trained._train_from(3)
    engine.set_progress(jumped.engine, jumped.config, 3, 1.0)
    for _ in range(3):
        jumped.engine.lr_scheduler.step()
    assert jumped.engine.get_lr() == pytest.approx([0.0] * len(jumped.engine.get_lr()))
    engine.set_progress(jumped.engine, jumped.config, 2, 0.5)
    assert jumped.engine.get_lr()[0] == pytest.approx(0.5 * 0.05)
    assert jumped.engine.global_steps == 2 and jumped.engine.micro_steps == 2 * accumulation


@pytest.mark.parametrize("zero_stage", [1, 3])
@pytest.mark.parametrize("stage", ["amateur", "expert"])
def test_real_objectives_train_alike_under_zero(world, tmp_path, stage, zero_stage, monkeypatch):
    monkeypatch.setattr(engine, "PERSISTENT_ELEMENTS", 0)
    backbone = helpers.save_backbone(world, tmp_path / "amateur")
    losses = []
    for zero in (0, zero_stage):
        trainer = helpers.trainer_config(zero_stage=zero, num_steps=3)
        torch.manual_seed(0)
        if stage == "amateur":
            workspace = world.workspace(tmp_path / f"work{zero}", data=world.upstream, genotype=world.genotype)
            job = amateur.build(helpers.amateur_config(trainer=trainer), workspace)
        else:
            workspace = world.workspace(tmp_path / f"work{zero}", data=world.upstream, amateur=backbone)
            families = ("multilabel", "detect", "segment", "depth")
            config = expert.Config(families=families, trainer=trainer, head=helpers.HEAD, augment=helpers.AUGMENT)
            torch.manual_seed(0)
            job = expert.build(config, workspace)
        if stage == "amateur":
            torch.manual_seed(0)
            for parameter in job.objective.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=0.05)
        losses.append([event["metrics"]["loss"] for event in helpers.train_here(job)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
