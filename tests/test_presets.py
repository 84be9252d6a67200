import json

import pytest

from intern_vision.data import world
from intern_vision.data.settings import CLIP_CROP, MOCO_V2
from intern_vision.errors import ConfigError
from intern_vision.presets import PRESETS, UNTRAINED, resolve
from intern_vision.run_config import BASELINE, CANDIDATE, DOWNSTREAM_SETS, MORE_SETS, RunConfig, stage_config
from intern_vision.stages.base import load_stage

WORLD_PRESETS = ("smoke", "nano", "small")


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_resolves_and_survives_json(preset):
    config = resolve(preset)
    assert config.preset == preset
    assert RunConfig.from_json(config.to_json()) == config == resolve(preset, "  ")
    assert all(family == expert.family for family, expert in config.experts.items())
    assert set(config.downstream_sets) <= set(DOWNSTREAM_SETS) == set(world.DOWNSTREAM) - set(MORE_SETS)


@pytest.mark.parametrize("preset", WORLD_PRESETS)
def test_arms_are_treated_alike(preset):
    config = resolve(preset)
    passes = config.image_passes()
    assert all(passes[BASELINE] >= passes[name] > 0 for name in config.generalists)
    assert passes[BASELINE] - max(passes[name] for name in config.generalists) < config.amateur.trainer.batch_size
    # One recipe of adaptation serves all arms, and all train at one size with one text tower.
    configs = {arm: stage_config(config, "adapt", "flower", arm)[1].with_overrides({"name": ""}) for arm in config.arms}
    trained = {configs[arm] for arm in config.arms if arm not in UNTRAINED}
    assert len(trained) == 1
    # Merged generalists are scored with frozen backbones alone.
    for arm in set(UNTRAINED) & configs.keys():
        assert (configs[arm] in trained) == (not config.fine_tuned_arms)
    for baseline in config.baselines.values():
        assert baseline.augment.with_overrides({"num_views": 2}) == config.amateur.augment
        assert baseline.text == config.amateur.text
    assert (config.report.baseline, config.report.candidate) == (BASELINE, CANDIDATE)


def test_image_passes_count_views_and_what_a_generalist_is_made_from():
    config = resolve("smoke")
    steps, batch = 4, 16
    amateur, experts = 2 * steps * batch, 4 * 2 * batch
    passes = config.image_passes()
    # The joint generalist takes no expert, so the experts' passes are its own.
    assert not config.generalists["joint"].needs_experts
    assert passes["joint"] == amateur + config.generalists["joint"].image_passes == amateur + experts + steps * batch
    assert config.generalists["average"].needs_experts
    assert passes["average"] == amateur + experts + config.generalists["average"].image_passes
    assert passes["clip"] == max(passes["joint"], passes["average"])


def test_small_gives_every_candidate_as_many_passes():
    config = resolve("small")
    passes = config.image_passes()
    trained = [name for name, each in config.generalists.items() if not each.merges]
    assert trained == ["joint", "central", "squeeze"]
    most = max(passes[name] for name in trained)
    for name in trained:
        # Steps are whole, and a step of one generalist is not a multiple of another's.
        step = config.generalists[name].image_passes / config.generalists[name].trainer.num_steps
        assert most - 2 * step < passes[name] <= most
    assert passes["clip-cpu"] > 1.5 * passes["clip"]
    batch = config.amateur.trainer.batch_size
    assert passes["clip"] - batch <= config.controls["joint-scratch"].image_passes <= passes["clip"]
    # The chosen generalist has been adapted under its own name.
    assert set(config.arms) == {*config.generalists, *config.controls, *config.baselines, "amateur", "expert"}
    assert stage_config(config, "adapt", "flower", "joint-scratch")[1].recipes == ("frozen", "fine_tuned")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            {"baselines": {"clip": {"trainer": {"num_steps": 1}}}},
            "baselines.clip.trainer.num_steps: the baseline gets 16 image passes",
        ),
        ({"generalists": {"joint": {"trainer": {"num_steps": 99}}}}, "baselines.clip.* generalist joint 1712, so give"),
        ({"arms": ["intern", "clip", "expert", "vit"]}, "arms: expected names among intern, .*, got 'vit'"),
        ({"adapt": {"recipes": ["multi_stage"]}}, "codebook: expected its settings, {} for the usual ones"),
        ({"fine_tuned_arms": ["expert"]}, "fine_tuned_arms: expected names among intern, clip, got 'expert'"),
        ({"amateur": {"trainer": {"num_step": 3}}}, "amateur.trainer.num_step: unknown key; known .*num_steps"),
        ({"upsteam": {}}, "upsteam: unknown key; known keys here: .*upstream"),
        ({"search": {"num_trials": "4"}}, 'search.num_trials: expected a valid integer, got "4"'),
        ({"experts": {"detect": {"trainer": {"num_steps": 2.5}}}}, "experts.detect.trainer.num_steps: .* got 2.5"),
        ({"experts": {"cats": {}}}, "experts.cats"),
        ({"adapt": 3}, "adapt: expected an object, got 3"),
        ({"adapt": {"shares": [2]}}, "adapt: shares must lie in"),
        ({"downstream_sets": ["flowr"]}, r"downstream_sets: expected one or more of flower, .*got \['flowr'\]"),
        ({"downstream_sets": []}, "downstream_sets: expected one or more"),
        ({"downstream_sets": ["flower", "flower"]}, "downstream_sets: .*each once"),
    ],
)
def test_faults_name_the_field(overrides, line):
    with pytest.raises(ConfigError, match=line) as caught:
        resolve("smoke", json.dumps(overrides))
    assert caught.value.exit_code == 2
    if "cats" not in str(overrides):
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{bad", "[1]", "3", "null", '"x"'])
def test_overrides_must_be_an_object(text):
    with pytest.raises(ConfigError, match="overrides: expected a JSON object"):
        resolve("smoke", text)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="preset: expected one of smoke, nano, small.*, got 'nanno'"):
        resolve("nanno")


def test_integral_floats_are_taken_for_ints_and_stay_ints():
    config = resolve("smoke", '{"amateur": {"trainer": {"num_steps": 3.0}}, "adapt": {"shares": [1]}}')
    assert type(config.amateur.trainer.num_steps) is int and config.amateur.trainer.num_steps == 3
    assert config.adapt.shares == (1.0,)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_finds_its_stage_and_config(preset):
    run = resolve(preset)
    uses = [(name, "") for name in ("search", "amateur", "amateur_local", "select", "export", "report")]
    uses += [("prepare", name) for name in ("upstream", "flower")] + [("adapt", "flower"), ("evaluate", "flower")]
    uses += [("expert", name) for name in run.choices("experts")]
    uses += [("generalist", name) for name in run.choices("generalists")]
    uses += [("other", name) for name in run.choices("others")]
    for use, item in uses:
        stage, config = stage_config(run, use, item, CANDIDATE)
        assert type(config) is load_stage(stage).Config
    assert stage_config(run, "other", "clip") == ("amateur", run.baselines["clip"])
    assert stage_config(run, "prepare", "upstream") == ("prepare", run.upstream)
    assert stage_config(run, "prepare", "flower")[1] == run.downstream.with_overrides({"dataset": "flower"})
    assert stage_config(run, "adapt", "flower", "clip")[1].name == "clip-flower"
    assert stage_config(run, "evaluate", "flower", "clip")[1].model_name == "clip"
    assert stage_config(run, "export", "", "intern")[1].arm == "intern"
    with pytest.raises(ConfigError, match="generalist: expected one of .*, got 'clip'"):
        stage_config(run, "generalist", "clip")


def test_models_are_called_what_the_arms_call_them():
    run = resolve("small")
    assert {name: config.name for name, config in (run.generalists | run.controls | run.baselines).items()} == {
        name: name for name in (*run.generalists, *run.controls, *run.baselines)
    }
    assert (run.amateur.name, run.amateur_local.name, run.select.name) == ("amateur", "amateur-local", CANDIDATE)
    assert run.choices("cases")[:2] == ["flower/joint", "flower/central"]
    with pytest.raises(ConfigError, match="what: expected one of downstream_sets, .* got 'arms'"):
        run.choices("arms")


@pytest.mark.parametrize("preset", ["mn_b4", "mn_b15"])
def test_paper_presets_make_views_as_the_source_does(preset):
    run = resolve(preset)
    assert run.amateur.augment == MOCO_V2 and run.baselines["clip"].augment == CLIP_CROP


def test_one_seed_changes_every_training_and_no_image():
    zero, one = resolve("small"), resolve("small", '{"seed": 1}')
    for use, item in (("amateur", ""), ("expert", "detect"), ("generalist", "central"), ("other", "joint-scratch")):
        before, after = (stage_config(run, use, item)[1] for run in (zero, one))
        assert after == before.with_overrides({"trainer": {"seed": before.trainer.seed + 1}})
    assert stage_config(one, "adapt", "flower", "clip")[1].seed == zero.adapt.seed + 1
    assert stage_config(one, "adapt", "flower", "clip")[1].split_seed == zero.adapt.split_seed
    assert stage_config(one, "search")[1].seed == zero.search.seed + 1
    for item in ("upstream", "flower"):
        assert stage_config(one, "prepare", item) == stage_config(zero, "prepare", item)
