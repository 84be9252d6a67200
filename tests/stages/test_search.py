import json

import numpy as np
import pytest
from helpers import AUGMENT, StageProcess, trainer_config

from intern_vision.data.codec import decode_image
from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.models.genotype import GENOTYPES, Genotype, num_macs, num_parameters
from intern_vision.search.reward import hypervolume
from intern_vision.search.space import SpaceConfig
from intern_vision.stages import search, search_round, search_trial
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import join_uri, open_store

SPACE = SpaceConfig(
    operators=("attention", "cross_covariance"),
    searched_operators="last",
    expansions=(2, 3, 4),
    width_factors=(0.5, 1.0),
    block_offsets=(-1, 0),
    downsamplings=("block",),
)
TARGET = num_macs(GENOTYPES["nano"], AUGMENT.image_size_px)


def config_of(**settings) -> search.Config:
    defaults = {
        "num_trials": 4,
        "space": SPACE,
        "trainer": trainer_config(num_steps=2, checkpoint_every=0),
        "augment": AUGMENT,
    }
    return search.Config(**defaults | settings)


def trials_of(folder) -> list[dict]:
    return json.loads((folder / search.TRIALS_FILE).read_text())


@pytest.fixture(scope="module")
def undisturbed(made_world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made_world.environment.items():
            patch.setenv(name, value)
        ref = run_stage("search", config_of(), Inputs(data=(made_world.upstream,)), name="undisturbed")
        store = open_store(made_world.store_root)
        return fetch(store, ref, tmp_path_factory.mktemp("search")), read_record(store, ref.uri)


def test_template_comes_first_and_the_best_candidate_wins(undisturbed):
    folder, record = undisturbed
    trials = trials_of(folder)
    assert len(trials) == record.facts["num_trials"] == 4
    assert trials[0]["genotype"]["stages"] == GENOTYPES["nano"].to_dict()["stages"]
    best = max(trials, key=lambda trial: trial["reward"])
    genotype = Genotype.from_json((folder / search.GENOTYPE_FILE).read_text())
    assert genotype == Genotype.from_dict(best["genotype"])
    assert record.facts["best_trial"] == trials.index(best)
    assert record.facts["best_reward"] == best["reward"] and record.facts["best_quality"] == best["quality"]
    assert record.facts["num_parameters"] == num_parameters(genotype)
    points = [(trial["num_macs"] / TARGET, trial["quality"]) for trial in trials]
    assert record.facts["hypervolume"] == pytest.approx(hypervolume(points, 1.0))
    picture = decode_image((folder / search.PICTURE_FILE).read_bytes())
    assert picture.shape[0] > 400 and picture.std() > 10


def test_candidates_are_trained_for_their_reward(undisturbed):
    for trial in trials_of(undisturbed[0]):
        cost = num_macs(Genotype.from_dict(trial["genotype"]), AUGMENT.image_size_px) / TARGET
        assert cost <= 1 and 0 < trial["quality"] < 1
        assert trial["reward"] == pytest.approx(trial["quality"] * cost**-0.07)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_repeats_no_trial(undisturbed, world, tmp_path):
    folder, _ = undisturbed
    inputs = {"data": (world.upstream,)}
    run = StageProcess(tmp_path, "search", config_of(), inputs, "killed", 1, world.environment)
    run.wait_until(lambda: any(e["total"] == 4 and e["done"] == 2 for e in run.events("step")))
    run.process.kill()
    run.finish()
    store = open_store(world.store_root)
    (uri,) = {file.uri for file in store.list(f"{world.store_root}/search") if "/killed-" in file.uri}
    known = json.loads(store.read(uri))
    assert 2 <= len(known) < 4
    ref = run_stage("search", config_of(), Inputs(inputs), name="killed")
    trials = trials_of(fetch(store, ref, tmp_path / "fetched"))
    assert trials[: len(known)] == known
    rewards = [trial.pop("reward") for trial in trials]
    expected = trials_of(folder)
    assert rewards == pytest.approx([trial.pop("reward") for trial in expected], rel=1e-3)
    assert [trial["genotype"] for trial in trials] == [trial["genotype"] for trial in expected]
    assert join_uri(ref.uri, search.TRIALS_FILE) == uri


@pytest.mark.slow
def test_finalists_decide_and_are_not_trained_again(undisturbed, world, tmp_path):
    config = config_of(num_finalists=3, finalist_steps=4)
    inputs = {"data": (world.upstream,)}
    run = StageProcess(tmp_path, "search", config, inputs, "finals", 1, world.environment)
    run.wait_until(lambda: any(e["total"] == 7 and e["done"] == 5 for e in run.events("step")))
    run.process.kill()
    run.finish()
    store = open_store(world.store_root)
    (uri,) = {file.uri for file in store.list(f"{world.store_root}/search") if file.uri.endswith(search.FINALS_FILE)}
    known = json.loads(store.read(uri))
    assert 1 <= len(known) < 3
    ref = run_stage("search", config, Inputs(inputs), name="finals")
    folder, record = fetch(store, ref, tmp_path / "fetched"), read_record(store, ref.uri)
    trials, finals = trials_of(folder), json.loads((folder / search.FINALS_FILE).read_text())
    assert [trial["genotype"] for trial in trials] == [trial["genotype"] for trial in trials_of(undisturbed[0])]
    assert finals[: len(known)] == known
    places = [final["trial"] for final in finals]
    assert len(set(places)) == 3 and 0 in places
    assert all(final["quality"] != trials[final["trial"]]["quality"] for final in finals), "they were trained longer"
    best = max(finals, key=lambda final: final["reward"])
    assert record.facts["best_trial"] == best["trial"] and record.facts["best_quality"] == best["quality"]
    assert record.facts["num_finalists"] == 3
    genotype = Genotype.from_json((folder / search.GENOTYPE_FILE).read_text())
    assert genotype == Genotype.from_dict(trials[best["trial"]]["genotype"])


@pytest.mark.slow
def test_shared_weights_are_trained_once_and_score_all_candidates(world, tmp_path):
    trainer = trainer_config(num_steps=3, checkpoint_every=0)
    config = config_of(evaluator="supernet", controller="ppo", num_trials=5, trainer=trainer, num_calibration_batches=1)
    ref = run_stage("search", config, Inputs(data=(world.upstream,)), name="supernet")
    store = open_store(world.store_root)
    folder, record = fetch(store, ref, tmp_path), read_record(store, ref.uri)
    trials = trials_of(folder)
    assert len({trial["quality"] for trial in trials}) > 1 and all(0 < trial["quality"] < 1 for trial in trials)
    assert set(record.files) == {search.GENOTYPE_FILE, search.TRIALS_FILE, search.PICTURE_FILE}
    assert not [file.uri for file in store.list(ref.uri) if file.uri.endswith(".safetensors")], "they are a means"
    assert record.facts["image_passes"] == 3 * trainer.batch_size and record.facts["num_trials"] == 5


def test_rounds_of_steps_end_in_the_same_search(world, tmp_path, monkeypatch):
    monkeypatch.setattr(search_round, "NUM_ROUNDS", 2)
    monkeypatch.setattr(search_round, "ROUND_SIZE", 2)
    store, data = open_store(world.store_root), (world.upstream,)
    inputs = {"data": data}
    for number in range(2):
        stage, config = search_round.step_config(config_of(), "search_round")
        before = run_stage(stage, config, Inputs(inputs), name="search_round")
        candidates = json.loads((fetch(store, before, tmp_path) / search_round.CANDIDATES_FILE).read_text())
        assert len(candidates) == 2
        results = []
        for item in ("0", "1"):
            stage, config = search_round.step_config(config_of(), "search_trial", item)
            assert isinstance(config, search_trial.Config)
            results.append(run_stage(stage, config, Inputs(data=data, round=(before,)), name=f"search_trial-{item}"))
        assert len({ref.uri for ref in results}) == 2
        assert read_record(store, before.uri).facts["num_trials"] == 2 * number
        inputs = {"data": data, "round": (before,), "results": tuple(results)}
    stage, config = search_round.step_config(config_of(), "search_end")
    ref = run_stage(stage, config, Inputs(inputs), name="search_end")
    found = trials_of(fetch(store, ref, tmp_path))
    # One step with the same rounds proposes and finds the same.
    alone = run_stage("search", config, Inputs(data=data), name="alone")
    expected = trials_of(fetch(store, alone, tmp_path))
    assert [trial["genotype"] for trial in found] == [trial["genotype"] for trial in expected]
    np.testing.assert_allclose([t["quality"] for t in found], [t["quality"] for t in expected], rtol=1e-3)
    with pytest.raises(CheckpointError, match="trial 0: it is not what this search proposes"):
        wrong = Inputs(inputs | {"results": tuple(reversed(results))})
        other = config.with_overrides({"seed": 9, "max_macs_ratio": 0.9})
        run_stage("search", other, wrong, name="other")


def test_faults_are_named():
    with pytest.raises(ConfigError, match="template must be one of nano"):
        config_of().with_overrides({"template": "giant"})
    with pytest.raises(ConfigError, match="finalist_steps must be above 0 where there are num_finalists"):
        config_of().with_overrides({"num_finalists": 2})
    with pytest.raises(ConfigError, match="num_finalists must be 0 or at least 2, because the template is always one"):
        config_of().with_overrides({"num_finalists": 1, "finalist_steps": 2})
    with pytest.raises(ConfigError, match="number: expected less than search.round_size 4, got 4"):
        search_round.step_config(config_of(), "search_trial", "4")
    with pytest.raises(ConfigError, match="search.evaluator: expected proxy"):
        search_trial.Config.from_dict({"search": config_of(evaluator="supernet").to_dict(), "number": 0})
    with pytest.raises(ConfigError, match="search step: expected search_round, search_end or search_trial"):
        search_round.step_config(config_of(), "search_trial", "first")


def test_config_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from intern_vision.stages import search, search_round, search_trial; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
