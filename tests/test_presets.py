import json

import pytest

from intern_pipelines.pretrain import FAMILIES
from intern_vision.data import world
from intern_vision.errors import ConfigError
from intern_vision.presets import BASELINE, CANDIDATE, DOWNSTREAM_SETS, PRESETS, RunConfig, resolve, stage_config
from intern_vision.stages.base import STAGE_NAMES, load_stage


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_resolves_and_survives_json(preset):
    config = resolve(preset)
    assert config.preset == preset
    assert RunConfig.from_json(config.to_json()) == config == resolve(preset, "  ")
    assert list(config.experts) == FAMILIES, "the pipeline trains an expert of each of these families"
    assert all(family == expert.family for family, expert in config.experts.items())
    assert set(config.downstream_sets) <= set(DOWNSTREAM_SETS) == set(world.DOWNSTREAM)


@pytest.mark.parametrize("preset", PRESETS)
def test_arms_are_treated_alike(preset):
    config = resolve(preset)
    passes = config.image_passes()
    assert passes[BASELINE] >= passes[CANDIDATE] > 0
    # One recipe of adaptation serves both arms, and both train from the same genotype at one size.
    assert {stage_config(config, "adapt", "flower", arm).with_overrides({"name": ""}) for arm in passes} == {
        config.adapt
    }
    assert config.clip.augment.with_overrides({"num_views": 2}) == config.amateur.augment
    assert config.clip.text == config.amateur.text
    assert (config.report.baseline, config.report.candidate) == (BASELINE, CANDIDATE)


def test_image_passes_count_views_families_and_teachers():
    config = resolve("smoke")
    steps, batch = 4, 16
    assert config.image_passes() == {"clip": 20 * batch, "intern": batch * (2 * steps + 4 * 2 + steps)}
    squeeze = json.dumps({"generalist": {"mode": "squeeze"}, "clip": {"trainer": {"num_steps": 36}}})
    assert resolve("smoke", squeeze).image_passes() == {"clip": 36 * batch, "intern": batch * (16 + 5 * steps)}


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"clip": {"trainer": {"num_steps": 1}}}, "clip.trainer.num_steps: the baseline gets 16 image passes"),
        ({"generalist": {"trainer": {"num_steps": 5}}}, "clip.trainer.num_steps: .* INTERN 336, so give"),
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
    with pytest.raises(ConfigError, match="preset: expected one of smoke, nano, small, got 'nanno'"):
        resolve("nanno")


def test_integral_floats_are_taken_for_ints_and_stay_ints():
    config = resolve("smoke", '{"amateur": {"trainer": {"num_steps": 3.0}}, "adapt": {"shares": [1]}}')
    assert type(config.amateur.trainer.num_steps) is int and config.amateur.trainer.num_steps == 3
    assert config.adapt.shares == (1.0,)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_stage_finds_its_config(preset):
    run = resolve(preset)
    for stage in STAGE_NAMES:
        item = {"expert": "detect", "prepare": "flower", "adapt": "flower"}.get(stage, "")
        config = stage_config(run, stage, item, CANDIDATE)
        assert type(config) is load_stage(stage).Config
    assert stage_config(run, "clip") is run.clip
    assert stage_config(run, "prepare", "upstream") is run.upstream
    assert stage_config(run, "prepare", "flower") == run.downstream.with_overrides({"dataset": "flower"})
    assert stage_config(run, "adapt", "flower", "clip").name == "clip-flower"
    assert stage_config(run, "evaluate", "flower", "clip").model_name == "clip"
    with pytest.raises(ConfigError, match="experts: expected one of multilabel, .* got 'classify'"):
        stage_config(run, "expert", "classify")
