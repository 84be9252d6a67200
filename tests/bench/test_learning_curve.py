import numpy as np
import pytest
from scipy.optimize import curve_fit

from intern_vision.bench.learning_curve import CurvePoint, extrapolate


def points(errors, sizes, num_test=1000, **fields):
    return [CurvePoint(num_train=n, error=e, num_test=num_test, **fields) for n, e in zip(sizes, errors, strict=True)]


def test_an_exact_power_law_is_found_again():
    sizes = (10, 20, 40)
    found = extrapolate(points([0.8 * n**-0.5 for n in sizes], sizes, num_test=100_000))
    assert (found.exponent, found.scale) == (pytest.approx(0.5), pytest.approx(0.8))
    assert found.num_train == 80 and found.error == pytest.approx(0.8 * 80**-0.5)
    assert found.low < found.error < found.high and found.gain == pytest.approx(1 - 2**-0.5)


def test_the_line_is_that_of_an_independent_fit():
    sizes, errors, num_test = (8, 16, 32, 64), (0.5, 0.3, 0.25, 0.1), 400
    found = extrapolate(points(errors, sizes, num_test))
    spread = np.sqrt((1 - np.array(errors)) / (np.array(errors) * num_test))
    (slope, offset), _ = curve_fit(lambda x, a, b: a * x + b, np.log(sizes), np.log(errors), sigma=spread)
    assert (found.exponent, np.log(found.scale)) == (pytest.approx(-slope, rel=1e-4), pytest.approx(offset, rel=1e-4))


@pytest.mark.parametrize("num_test", [40, 400])
def test_the_interval_holds_the_true_error_most_of_the_time(num_test):
    rng = np.random.default_rng(0)
    sizes, num_runs = np.array([12, 25, 50]), 200
    truth, hits = 1.2 * sizes**-0.4, 0
    for _ in range(num_runs):
        errors = rng.binomial(num_test, truth) / num_test
        found = extrapolate(points(errors, sizes.tolist(), num_test))
        hits += found.low <= 1.2 * 100**-0.4 <= found.high
    assert hits / num_runs > 0.88


def test_errors_that_rise_or_vanish_promise_nothing_impossible():
    rising = extrapolate(points([0.1, 0.2], (10, 20), num_test=50))
    assert rising.exponent == 0 and rising.gain == 0 and rising.gain_high > 0
    perfect = extrapolate(points([0.0, 0.0], (10, 20), num_test=10))
    assert perfect.error == pytest.approx(0.05) and perfect.high <= 1


def test_intervals_replace_the_binomial_law_where_they_are_given():
    narrow, wide = (
        extrapolate(points([0.4, 0.3], (10, 20), interval=interval)) for interval in ((0.29, 0.31), (0.2, 0.45))
    )
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_one_number_of_labels_says_nothing():
    assert extrapolate(points([0.1], (10,))) is None and extrapolate(points([0.1, 0.2], (10, 10))) is None
