import json
import math
from typing import get_args

import pytest

from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.models.genotype import GENOTYPES, Genotype, num_macs
from intern_vision.search.controllers import ControllerKind, make_controller
from intern_vision.search.driver import Search
from intern_vision.search.picture import draw_trials
from intern_vision.search.reward import Reward
from intern_vision.search.space import Space, SpaceConfig

KINDS = get_args(ControllerKind)
SPACE = Space(GENOTYPES["nano"], SpaceConfig(), 64)
TARGET = num_macs(SPACE.template, 64)


def make_search(kind: str = "tpe", round_size: int = 1, max_ratio: float = 1.0, space: Space = SPACE) -> Search:
    reward = Reward(target_macs=TARGET, max_ratio=max_ratio)
    return Search(space=space, controller=make_controller(kind, space, 5, 24), reward=reward, round_size=round_size)


def quality_of(genotype: Genotype) -> float:
    return 1 / (1 + math.exp(-sum(stage.width * stage.expansion for stage in genotype.stages) / 500))


def run(search: Search, num_trials: int) -> list[dict]:
    while len(search.trials) < num_trials:
        search.tell(quality_of(search.candidates()[0].genotype))
    return search.trials


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("round_size", [1, 4])
def test_a_stopped_search_proposes_what_it_would_have(kind, round_size):
    whole = run(make_search(kind, round_size), 22)
    for stopped_at in (0, 1, 7, 16):
        again = make_search(kind, round_size)
        again.replay(json.loads(json.dumps(whole[:stopped_at])))
        assert run(again, 22) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_trials_fit_the_cap_differ_and_begin_with_the_template(kind):
    search = make_search(kind)
    trials = run(search, 24)
    assert trials[0]["genotype"] == SPACE.template.to_dict()
    assert len({json.dumps(trial["genotype"]) for trial in trials}) == 24
    for trial in trials:
        genotype = Genotype.from_dict(trial["genotype"])
        assert trial["num_macs"] == num_macs(genotype, 64) <= TARGET
        assert genotype == SPACE.decode(SPACE.indices(trial["choices"]))
        assert trial["reward"] == pytest.approx(trial["quality"] * (trial["num_macs"] / TARGET) ** -0.07)
    assert search.best["reward"] == max(trial["reward"] for trial in trials)


def test_a_round_is_proposed_before_any_of_it_is_told():
    search = make_search(round_size=3)
    first = search.candidates()
    assert len(first) == 3 and search.candidates() == first
    search.tell(0.5)
    assert search.candidates() == first[1:], "no new candidates in the middle of a round"
    search.tell(0.5)
    search.tell(0.5)
    assert len(search.candidates()) == 3 and search.trials[-1]["genotype"] == first[2].genotype.to_dict()


def test_a_small_space_is_told_again_rather_than_left_without_candidates():
    config = SpaceConfig(
        searched_operators="none", expansions=(2,), width_factors=(1,), block_offsets=(0,), downsamplings=("block",)
    )
    space = Space(GENOTYPES["nano"], config, 64)
    assert space.size == 4
    trials = run(make_search("random", space=space), 6)
    assert len({json.dumps(trial["genotype"]) for trial in trials}) == 4
    assert {json.dumps(trial["genotype"]) for trial in trials[:4]} == {json.dumps(t["genotype"]) for t in trials}


def test_a_cap_that_leaves_the_template_out_and_one_that_leaves_nothing():
    trials = run(make_search("random", max_ratio=0.5), 3)
    assert all(trial["num_macs"] <= 0.5 * TARGET for trial in trials)
    with pytest.raises(ConfigError, match="max_macs_ratio: none of 2000 candidates costs at most 0.01 times"):
        make_search("random", max_ratio=0.01).candidates()


def test_foreign_trials_are_refused():
    trials = run(make_search("tpe"), 3)
    other = make_search("random")
    with pytest.raises(CheckpointError, match="trial 1: it is not what this search proposes here; restore"):
        other.replay(trials)


def test_picture_is_the_same_png_for_the_same_trials():
    pictures = []
    for _ in range(2):
        search = make_search("random")
        run(search, 5)
        pictures.append(draw_trials(search, 2))
    assert pictures[0] == pictures[1] and pictures[0].startswith(b"\x89PNG")
    one = make_search("random")
    run(one, 1)
    assert draw_trials(one, 0) != pictures[0]
    assert draw_trials(search, 2, finalists=(2, 4)) != pictures[0]


@pytest.mark.parametrize("number", [0, 1, 2, 4, 9])
def test_finalists_are_the_best_and_the_template(number):
    search = make_search("random")
    for quality in (0.3, 0.6, 0.2, 0.9, 0.5):
        search.candidates()
        search.tell(quality)
    ranked = sorted(range(5), key=lambda place: -search.trials[place]["reward"])
    found = search.finalists(number)
    assert len(found) == len(set(found)) == min(number, 5)
    assert number == 0 or 0 in found, "the template is the first trial"
    assert [place for place in found if place != 0] == [place for place in ranked[: len(found)] if place != 0][
        : len(found) - 1
    ]


def test_a_template_beyond_the_cap_is_no_finalist():
    search = make_search("random", max_ratio=0.5)
    trials = run(search, 5)
    found = search.finalists(3)
    assert [trials[place]["reward"] for place in found] == sorted((t["reward"] for t in trials), reverse=True)[:3]


def test_a_finalist_is_rewarded_for_its_longer_training():
    search = make_search("random")
    run(search, 3)
    cost = search.trials[2]["num_macs"]
    expected = {"trial": 2, "num_macs": cost, "quality": 0.7, "reward": 0.7 * (cost / TARGET) ** -0.07}
    assert search.final(2, 0.7) == pytest.approx(expected)
