import numpy as np
import pytest
import torch
from bench.test_probe import accuracy, clusters
from sklearn.linear_model import Ridge, RidgeClassifierCV

from intern_vision.bench.probe import VARIANCE_EPS
from intern_vision.bench.ridge_probe import fit_ridge_probe
from intern_vision.train.settings import ProbeConfig

CONFIG = ProbeConfig()


def standardised(x, by):
    return ((x - by.mean(0)) / (by.var(0, correction=0) + VARIANCE_EPS).sqrt()).double().numpy()


@pytest.mark.parametrize("num_images", [15, 40, 200])
@pytest.mark.parametrize("spread", [0.5, 1.6])
def test_equals_sklearn_with_the_penalty_that_it_chooses(num_images, spread):
    x, labels = clusters(num_images, spread=spread)
    test_x, _ = clusters(500, spread=spread, seed=1)
    probe = fit_ridge_probe(x, labels, 5, CONFIG)
    reference = RidgeClassifierCV(alphas=CONFIG.ridge_grid).fit(standardised(x, x), labels.numpy())
    assert probe.chosen["l2"] == reference.alpha_
    logits_NK = ((test_x - probe.mean_D) / probe.std_D) @ probe.weight_KD.T + probe.bias_K
    expected_NK = torch.from_numpy(reference.decision_function(standardised(test_x, x))).float()
    scale = float(logits_NK.std() / expected_NK.std())
    torch.testing.assert_close(logits_NK, scale * expected_NK, rtol=1e-3, atol=1e-3 * scale)
    assert (logits_NK.argmax(1).numpy() == reference.predict(standardised(test_x, x))).all()


@pytest.mark.parametrize("num_images", [12, 30])
def test_leaving_one_out_is_what_it_says(num_images):
    x, labels = clusters(num_images, num_classes=3)
    probe = fit_ridge_probe(x, labels, 3, ProbeConfig(ridge_grid=(30.0,)))
    rows, target = standardised(x, x), 2.0 * np.eye(3)[labels] - 1.0
    guesses = []
    for row in range(num_images):
        others = np.arange(num_images) != row
        fitted = Ridge(alpha=30.0).fit(rows[others], target[others])
        guesses.append(int(fitted.predict(rows[row : row + 1]).argmax()))
    assert probe.chosen["validation_accuracy"] == pytest.approx((np.array(guesses) == labels.numpy()).mean())


def test_scores_say_how_sure_the_probe_is():
    x, labels = clusters(400, spread=0.3)
    probe = fit_ridge_probe(x, labels, 5, CONFIG)
    logits_NK = ((x - probe.mean_D) / probe.std_D) @ probe.weight_KD.T + probe.bias_K
    assert float(logits_NK.softmax(1).amax(1).mean()) > 0.9
    noise = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    unsure = fit_ridge_probe(noise, labels, 5, CONFIG)
    logits_NK = ((noise - unsure.mean_D) / unsure.std_D) @ unsure.weight_KD.T + unsure.bias_K
    assert float(logits_NK.softmax(1).amax(1).mean()) < 0.4


@pytest.mark.parametrize("num_images", [5, 10])
def test_one_or_two_images_a_class_can_be_fitted(num_images):
    x, labels = clusters(num_images, spread=0.3)
    probe = fit_ridge_probe(x, labels, 5, CONFIG)
    assert accuracy(probe, x, labels) == 1.0
    assert all(torch.isfinite(tensor).all() for tensor in (probe.weight_KD, probe.bias_K))
    test_x, test_labels = clusters(500, spread=0.3, seed=1)
    assert accuracy(probe, test_x, test_labels) > 0.9


def test_features_that_do_not_vary_do_no_harm():
    x, labels = clusters(60)
    probe = fit_ridge_probe(torch.cat([x, torch.full((60, 2), 7.0)], 1), labels, 5, CONFIG)
    assert float(probe.weight_KD[:, 20:].abs().max()) < 1e-3 and torch.isfinite(probe.weight_KD).all()
