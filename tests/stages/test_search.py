import json

import pytest
from helpers import AUGMENT, StageProcess, trainer_config

from intern_vision.errors import ConfigError
from intern_vision.models.genotype import GENOTYPES, Genotype, num_macs, num_parameters
from intern_vision.stages import search
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import join_uri, open_store


def config_of(**settings) -> search.Config:
    defaults = {
        "num_trials": 4,
        "expansions": (2, 3, 4),
        "width_factors": (0.5, 1.0),
        "block_offsets": (-1, 0),
        "max_macs_ratio": 0.95,
        "trainer": trainer_config(num_steps=2, checkpoint_every=0),
        "augment": AUGMENT,
    }
    return search.Config(**defaults | settings)


def trials_of(folder) -> list[dict]:
    return json.loads((folder / search.TRIALS_FILE).read_text())


def without_quality(trials: list[dict]) -> list[dict]:
    return [{k: t[k] for k in ("params", "genotype", "num_macs", "num_parameters", "trained")} for t in trials]


@pytest.fixture(scope="module")
def undisturbed(made_world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made_world.environment.items():
            patch.setenv(name, value)
        ref = run_stage("search", config_of(), Inputs(data=(made_world.upstream,)), name="undisturbed")
        store = open_store(made_world.store_root)
        return fetch(store, ref, tmp_path_factory.mktemp("search")), read_record(store, ref.uri)


def test_template_comes_first_and_the_best_trained_candidate_wins(undisturbed):
    folder, record = undisturbed
    trials, config = trials_of(folder), config_of()
    assert len(trials) == 4
    assert Genotype.from_dict(trials[0]["genotype"]) == search.decode(config, trials[0]["params"])
    assert trials[0]["genotype"]["stages"] == GENOTYPES["nano"].to_dict()["stages"]
    best = max(trials, key=lambda trial: trial["reward"])
    genotype = Genotype.from_json((folder / search.GENOTYPE_FILE).read_text())
    assert genotype == Genotype.from_dict(best["genotype"])
    assert record.facts["best_trial"] == trials.index(best) and best["trained"]
    assert record.facts["num_trained"] == sum(trial["trained"] for trial in trials)
    assert record.facts["num_parameters"] == num_parameters(genotype)


def test_too_dear_candidates_are_not_trained(undisturbed):
    folder, _ = undisturbed
    target = num_macs(GENOTYPES["nano"], AUGMENT.image_size_px)
    trials = trials_of(folder)
    # The ratio leaves the template itself out.
    assert not trials[0]["trained"] and any(trial["trained"] for trial in trials)
    for trial in trials:
        cost = num_macs(Genotype.from_dict(trial["genotype"]), AUGMENT.image_size_px) / target
        assert trial["trained"] == (cost <= 0.95)
        if trial["trained"]:
            assert trial["reward"] == pytest.approx(trial["quality"] * cost**-0.07) and trial["reward"] >= 0
        else:
            assert trial["reward"] == pytest.approx(-cost)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_repeats_no_trial(undisturbed, world, tmp_path):
    folder, _ = undisturbed
    config = config_of()
    inputs = {"data": (world.upstream,)}
    run = StageProcess(tmp_path, "search", config, inputs, "killed", 1, world.environment)
    run.wait_until(lambda: any(e["total"] == 4 and e["done"] == 2 for e in run.events("step")))
    run.process.kill()
    run.finish()
    store = open_store(world.store_root)
    (uri,) = {file.uri for file in store.list(f"{world.store_root}/search") if "/killed-" in file.uri}
    known = json.loads(store.read(uri))
    assert 2 <= len(known) < 4
    ref = run_stage("search", config, Inputs(inputs), name="killed")
    trials = trials_of(fetch(store, ref, tmp_path / "fetched"))
    assert trials[: len(known)] == known
    assert without_quality(trials) == without_quality(trials_of(folder))
    assert [t["reward"] for t in trials] == pytest.approx([t["reward"] for t in trials_of(folder)], rel=1e-3)
    assert join_uri(ref.uri, search.TRIALS_FILE) == uri


def test_decoding_keeps_widths_whole_and_blocks_positive():
    config = config_of(width_factors=(0.3, 1.0), block_offsets=(-9, 0))
    params = search._template_params(config)
    assert search.decode(config, params) == GENOTYPES["nano"]
    small = search.decode(config, params | {"width_factor_2": 0.3, "block_offset_0": -9, "width_factor_0": 0.3})
    assert small.stages[2].width % small.head_size == 0 and small.stages[2].width > 0
    assert small.stages[0].num_blocks == 1 and small.stages[0].width % 8 == 0
    other = search.decode(config, params | {"last_operator": "cross_covariance", "expansion_0": 3})
    assert other.stages[-1].operator == "cross_covariance" and other.stages[0].expansion == 3


def test_a_template_outside_its_space_is_refused(world):
    with pytest.raises(ConfigError, match="lies outside the space in width_factor_0"):
        run_stage("search", config_of(width_factors=(0.5,)), Inputs(data=(world.upstream,)), name="outside")
    with pytest.raises(ConfigError, match="template must be one of nano"):
        config_of().with_overrides({"template": "giant"})
