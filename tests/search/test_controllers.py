import dataclasses
import math
import statistics
from typing import get_args

import numpy as np
import pytest
import torch

from intern_vision.models.genotype import GENOTYPES
from intern_vision.search import ppo
from intern_vision.search.controllers import ControllerKind, Outcome, make_controller
from intern_vision.search.space import Space, SpaceConfig

KINDS = get_args(ControllerKind)
SPACE = Space(GENOTYPES["nano"], SpaceConfig(), 64)
WEIGHTS = [np.random.default_rng(7).normal(size=len(decision.options)) for decision in SPACE.decisions]


def outcome_of(choices: tuple[int, ...]) -> Outcome:
    """A quality to which each decision adds its part."""
    value = sum(weights[index] for weights, index in zip(WEIGHTS, choices, strict=True))
    quality = 1 / (1 + math.exp(-value / 4))
    fits = choices[0] == 0 or choices[1] < 3
    return Outcome(reward=quality if fits else -0.5, quality=quality * fits, cost_ratio=0.5, fits=fits)


def rewards(kind: str, seed: int, num_trials: int) -> list[float]:
    controller = make_controller(kind, SPACE, seed, num_trials)
    found = []
    for _ in range(num_trials):
        choices = controller.ask()
        found.append(outcome_of(choices).reward)
        controller.tell(choices, outcome_of(choices))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_asks_follow_from_the_seed_and_what_was_told(kind):
    def asks(seed: int) -> list[tuple[int, ...]]:
        controller = make_controller(kind, SPACE, seed, 40)
        controller.tell(SPACE.encode(SPACE.template), outcome_of(SPACE.encode(SPACE.template)))
        asked = []
        for _ in range(12):
            pair = [controller.ask() for _ in range(2)]
            torch.rand(3)  # torch's own generator is somebody else's
            for choices in pair:
                controller.tell(choices, outcome_of(choices))
            asked += pair
        return asked

    first = asks(3)
    assert first == asks(3) != asks(4)
    for choices in first:
        assert all(0 <= i < len(d.options) for i, d in zip(choices, SPACE.decisions, strict=True))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"random"}))
def test_learning_controllers_beat_random_on_a_separable_quality(kind):
    def late_mean(kind: str) -> float:
        return statistics.mean(statistics.mean(rewards(kind, seed, 80)[-16:]) for seed in range(2))

    assert late_mean(kind) > late_mean("random") + 0.1


def test_the_policy_leaves_what_is_known_already():
    controller = make_controller("ppo", SPACE, 0, 40)
    assert isinstance(controller, ppo.PolicyController)
    best = dataclasses.replace(outcome_of(SPACE.encode(SPACE.template)), reward=0.9, is_known=True)

    def log_probability() -> float:
        return float(controller.policy(torch.tensor([known]))[1].detach())

    known = controller.ask()
    before = log_probability()
    for _ in range(2 * ppo.BATCH_SIZE):
        controller.tell(known, best)
    assert log_probability() < before - 1
    for _ in range(2):
        # Among news it still counts as bad, however high its reward.
        now = log_probability()
        for number in range(ppo.BATCH_SIZE // 2):
            news = controller.ask()
            controller.tell(news, dataclasses.replace(best, reward=0.1 * number, is_known=False))
            controller.tell(known, best)
        assert log_probability() < now


def test_random_is_uniform():
    controller = make_controller("random", SPACE, 0, 1)
    asked = np.array([controller.ask() for _ in range(3_000)])
    for column, decision in zip(asked.T, SPACE.decisions, strict=True):
        shares = np.bincount(column, minlength=len(decision.options)) / len(column)
        assert np.abs(shares - 1 / len(decision.options)).max() < 0.04


def test_policy_is_a_distribution_and_knows_its_own_draws():
    torch.manual_seed(0)
    policy = ppo.Policy((2, 3))
    for head in policy.heads:
        torch.nn.init.normal_(head.weight)
    every = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    _, log_probability_N, entropy_N = policy(every)
    assert float(log_probability_N.exp().sum().detach()) == pytest.approx(1, abs=1e-5)
    drawn_NT, drawn_logs_N, _ = policy(torch.zeros((4_000, 2), dtype=torch.long), torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn_logs_N, policy(drawn_NT)[1])
    shares_6 = torch.bincount(drawn_NT[:, 0] * 3 + drawn_NT[:, 1], minlength=6) / 4_000
    assert (shares_6 - log_probability_N.exp()).abs().max() < 0.03
    # The entropy summed along a draw is that of the whole distribution, on average over draws.
    exact = -float((log_probability_N.exp() * log_probability_N).sum().detach())
    expected = float((log_probability_N.exp() * entropy_N).sum().detach())
    assert expected == pytest.approx(exact, abs=1e-4)


def test_clipped_surrogate_equals_a_loop():
    rng = np.random.default_rng(0)
    new, old, advantage = rng.normal(size=20), rng.normal(size=20), rng.normal(size=20)
    terms = []
    for n, o, a in zip(new, old, advantage, strict=True):
        ratio = math.exp(n - o)
        terms.append(min(ratio * a, min(max(ratio, 0.8), 1.2) * a))
    found = ppo.clipped_surrogate(*(torch.tensor(values) for values in (new, old, advantage)))
    assert float(found) == pytest.approx(-statistics.mean(terms))
    # Beyond the clip a candidate teaches nothing more.
    new_N = torch.tensor([1.0, -1.0], requires_grad=True)
    ppo.clipped_surrogate(new_N, torch.zeros(2), torch.tensor([1.0, -1.0])).backward()
    assert new_N.grad.tolist() == [0, 0]
