import math

import pytest
import torch

from intern_vision.train.interval import Interval
from intern_vision.train.trainer import RankContext


def interval_of(steps):
    """An interval of ``(losses by term, keys)`` a step."""
    interval = Interval(len(steps), torch.device("cpu"))
    for step, (losses, keys) in enumerate(steps):
        terms = {name: torch.tensor(value) for name, value in losses.items()}
        interval.add(step, keys, sum(terms.values()), terms, {"scale": torch.tensor(2.0)})
    return interval


def test_means_the_largest_loss_and_no_fault():
    interval = interval_of([({"a": 1.0, "b": 2.0}, ["x"]), ({"a": 3.0, "b": 4.0}, ["y"])])
    means, bad_step, largest, stop = interval.reduce(RankContext(should_stop=lambda: True))
    assert means == {"loss": 5.0, "loss/a": 2.0, "loss/b": 3.0, "scale": 2.0}
    assert (bad_step, largest, stop) == (-1, 7.0, True)
    assert interval.fault_at(1) == ("", [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_and_its_terms_are_named(bad):
    fine, both = {"a": 1.0, "b": 2.0}, {"a": bad, "b": bad}
    interval = interval_of([(fine, ["x"]), ({"a": 1.0, "b": bad}, ["y", "z"]), (both, ["w"])])
    assert interval.reduce(RankContext())[1] == 1
    assert interval.fault_at(1) == ("loss term b is not finite", ["y", "z"])
    assert interval_of([(both, ["w"])]).fault_at(0)[0] == "loss terms a, b are not finite"


def test_finite_terms_whose_sum_overflows():
    interval = interval_of([({"a": 3e38, "b": 3e38}, ["x"])])
    assert interval.fault_at(0) == ("the sum of the losses is not finite", ["x"])


def test_weights_are_blamed_only_where_the_loss_was_fine():
    fine = interval_of([({"a": 1.0}, ["x"])])
    fine.mark_bad(0)
    assert fine.fault_at(0) == ("weights are not finite after the update", ["x"])
    broken = interval_of([({"a": math.nan}, ["x"])])
    broken.mark_bad(0)
    assert broken.fault_at(0)[0] == "loss term a is not finite"


def test_a_number_is_found_beside_one_that_is_none():
    interval = interval_of([({"a": 5.0}, ["x"]), ({"a": math.nan}, ["y"])])
    assert interval.reduce(RankContext())[2] == 5.0
    interval.reset()
    interval.add(2, ["z"], torch.tensor(1.0), {"a": torch.tensor(1.0)}, {})
    assert interval.reduce(RankContext())[1:3] == (-1, 1.0)
