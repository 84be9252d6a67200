import json
import math

import pytest
import torch
from toy_training import SIGNALS
from typer.testing import CliRunner

from intern_vision import paper_presets, presets
from intern_vision.cli import app
from intern_vision.errors import ConfigError
from intern_vision.models.central import CentralModel
from intern_vision.models.genotype import GENOTYPES, MN_B15, num_macs
from intern_vision.models.metanet import MetaNet
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.plan import Machine, Row, plan, summary, to_json, to_lines
from intern_vision.run_config import RunConfig
from intern_vision.train.image_text import ImageTextObjective

RUNS = {
    "nano": presets.nano,
    "small": presets.small,
    "mn_b4": paper_presets.mn_b4,
    "mn_b15": paper_presets.mn_b15,
}
NUM_GPUS = {"nano": 1, "small": 1, "mn_b4": 32, "mn_b15": 256}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Row]]:
    return {
        name: {row.name: row for row in plan(make(), Machine(num_gpus=NUM_GPUS[name]))} for name, make in RUNS.items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_every_training_is_planned_and_has_a_cost(name, rows):
    run: RunConfig = RUNS[name]()
    found = rows[name]
    trained = [key for key, config in run.generalists.items() if config.image_passes and not config.merges]
    wanted = {*run.baselines, "amateur", *(f"expert-{family}" for family in run.experts)}
    wanted |= {f"generalist-{key}" for key in trained}
    assert wanted <= found.keys()
    for row in found.values():
        assert row.image_passes > 0 and row.flops > 0 and 0 < row.gpu_hours < math.inf
        assert row.checkpointed_activation_bytes <= row.activation_bytes
        assert row.macs_per_image > 0 and row.storage_bytes >= 4 * row.num_parameters
    ours = sum(found[key].image_passes for key in found if key == "amateur" or key.startswith(("amateur-", "expert-")))
    assert ours == sum(config.image_passes for config in (run.amateur, run.amateur_local, *run.experts.values()))


def test_the_recipe_of_mn_b15_fits_gpus_of_80_gb(rows):
    assert all(row.fits for row in rows["mn_b15"].values())
    assert all(row.fits for row in rows["mn_b4"].values())
    # And would not without its three measures.
    plain = paper_presets.mn_b15().with_overrides(
        {"amateur": {"trainer": {"zero_stage": 0, "checkpoint_activations": False}}}
    )
    amateur = {row.name: row for row in plan(plain, Machine(num_gpus=256))}["amateur"]
    assert not amateur.fits and amateur.gpu_bytes > 80e9


def test_paper_presets_have_the_published_sizes_and_recipes():
    for name, width, batch_size in (("mn_b4", 1024, 4_096), ("mn_b15", 1280, 10_240)):
        run = RUNS[name]()
        assert (run.preset, run.search.template, run.search.num_trials) == (name, name, 1)
        text = run.amateur.text
        assert (text.num_blocks, text.width, text.num_heads, text.context_length) == (12, 512, 8, 77)
        assert text.embedding_width == width and run.amateur.queue_rows == 65_536
        assert run.amateur.trainer.batch_size == batch_size and run.amateur.trainer.divergence_margin == 10.0
        assert run.generalists["central"].joined_families == ("classify", "detect")
        assert run.generalists["central"].trainer.ema_decay > 0
        passes = run.image_passes()
        assert passes["clip"] >= passes["central"]
    weights = paper_presets.mn_b15().amateur.signals
    assert sum(getattr(weights, name) for name in SIGNALS) == pytest.approx(1.2)
    assert GENOTYPES[paper_presets.mn_b15().search.template] is MN_B15


def test_parameters_of_an_amateur_equal_the_module():
    run = presets.nano()
    config = run.amateur
    text = TextSpec(vocab_size=49_409, **config.text.to_dict())
    spec = ModelSpec(genotype=GENOTYPES[run.search.template], image_size_px=64, text=text)
    with torch.device("meta"):
        objective = ImageTextObjective(VisionModel(spec), config.signals, queue_rows=8)
    row = {row.name: row for row in plan(run, Machine(num_gpus=1))}["amateur"]
    assert row.num_parameters == sum(p.numel() for p in objective.parameters())


def test_parameters_of_a_central_model_equal_the_module():
    run = paper_presets.mn_b4()
    genotype = GENOTYPES["mn_b4"]
    with torch.device("meta"):
        model = CentralModel({"classify": MetaNet(genotype), "detect": MetaNet(genotype)}, "classify")
    row = {row.name: row for row in plan(run, Machine(num_gpus=32, num_classes=10))}["generalist-central"]
    assert row.num_parameters == sum(p.numel() for p in model.parameters()) + 10 * (genotype.vector_width + 1)


def test_flops_of_an_expert_follow_from_its_samples(rows):
    run = paper_presets.mn_b15()
    config = run.experts["classify"]
    plain = config.trainer.num_steps * config.trainer.batch_size * 2 * num_macs(MN_B15, 224)
    row = rows["mn_b15"]["expert-classify"]
    assert row.flops == pytest.approx(4 * plain)  # forward, twice back, and forward again
    assert row.gpu_hours == pytest.approx(4 * plain / (3.12e14 * 0.4) / 3600)
    assert row.samples_per_gpu == config.trainer.batch_size // 256


def test_accumulation_and_more_gpus_need_less_memory():
    run = paper_presets.mn_b4()
    more = {row.name: row for row in plan(run, Machine(num_gpus=64))}
    parts = run.with_overrides({"experts": {"detect": {"trainer": {"num_accumulation": 2}}}})
    few = {row.name: row for row in plan(run, Machine(num_gpus=32))}
    fewer = {row.name: row for row in plan(parts, Machine(num_gpus=32))}
    assert more["expert-detect"].gpu_bytes < few["expert-detect"].gpu_bytes
    assert fewer["expert-detect"].activation_bytes * 2 == few["expert-detect"].activation_bytes


def test_a_batch_that_does_not_divide_names_the_step():
    with pytest.raises(ConfigError, match=r"clip: trainer\.batch_size 64 must be a multiple of .* = 7 x 1"):
        plan(presets.nano(), Machine(num_gpus=7))
    with pytest.raises(ConfigError, match="efficiency: expected at most 1"):
        Machine.from_dict({"efficiency": 40})


def test_the_table_and_the_json_say_the_same(rows):
    found = list(rows["mn_b15"].values())
    lines = to_lines(found, Machine(num_gpus=256))
    for row in found:
        assert row.name in lines[0] and f"{row.image_passes:,}" in lines[0]
    assert "every step fits" in lines[1]
    plain = json.loads(json.dumps(to_json(found)))
    assert plain["total"]["gpu_hours"] == pytest.approx(sum(row.gpu_hours for row in found))
    assert summary(found)["fits"] is True


def test_the_command_plans_a_preset():
    result = CliRunner().invoke(app, ["plan", "nano", "--num-gpus", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["total"]["fits"] is True
    small = ["plan", "nano", "--num-gpus", "1", "--gpu-memory-gb", "0.1"]
    result = CliRunner().invoke(app, [*small, "--override", '{"amateur": {"trainer": {"zero_stage": 1}}}'])
    assert result.exit_code == 0 and "does not fit: " in result.stdout and "too much" in result.stdout
    result = CliRunner().invoke(app, ["plan", "nano", "--num-gpus", "7"])
    assert result.exit_code == 2
