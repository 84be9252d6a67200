import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from intern_vision.bench import probe as module
from intern_vision.bench.probe import VARIANCE_EPS, fit_probe
from intern_vision.bench.ridge_probe import fit_ridge_probe
from intern_vision.train.settings import ProbeConfig


def clusters(num_images, num_classes=5, width=20, spread=1.6, seed=0):
    """Overlapping Gaussian clusters with features of very different scales."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((num_classes, width))
    labels = np.arange(num_images) % num_classes
    x = centres[labels] + spread * rng.standard_normal((num_images, width))
    x = 3 + x * np.logspace(-2, 2, width)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels)


def accuracy(probe, x, labels):
    logits = ((x - probe.mean_D) / probe.std_D) @ probe.weight_KD.T + probe.bias_K
    return float((logits.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1e-1])
def test_equals_sklearn_with_the_same_penalty(l2):
    x, labels = clusters(200)
    test_x, test_labels = clusters(2000, seed=1)
    probe = fit_probe(x, labels, 5, ProbeConfig(l2_grid=(l2,), num_iterations=200))
    assert probe.chosen["l2"] == l2
    std = (x.var(0, correction=0) + VARIANCE_EPS).sqrt()
    standardised = ((x - x.mean(0)) / std).numpy()
    reference = LogisticRegression(C=1 / (l2 * len(x)), max_iter=2000, tol=1e-8).fit(standardised, labels.numpy())
    scale = np.abs(reference.coef_).max()
    assert np.abs(probe.weight_KD.numpy() - reference.coef_).max() < 0.02 * scale
    test_standardised = ((test_x - x.mean(0)) / std).numpy()
    expected = (reference.predict(test_standardised) == test_labels.numpy()).mean()
    assert accuracy(probe, test_x, test_labels) == pytest.approx(expected, abs=0.005)


def test_default_settings_are_about_as_good_as_the_best_penalty():
    x, labels = clusters(200)
    test_x, test_labels = clusters(2000, seed=1)
    config = ProbeConfig()
    chosen = accuracy(fit_probe(x, labels, 5, config), test_x, test_labels)
    each = [accuracy(fit_probe(x, labels, 5, ProbeConfig(l2_grid=(l2,))), test_x, test_labels) for l2 in config.l2_grid]
    assert chosen >= max(each) - 0.03 and max(each) - min(each) > 0.02


def test_the_penalty_is_chosen_on_held_out_images_alone(monkeypatch):
    x, labels = clusters(80)
    seen = []
    fit = module._fit

    def spy(x_ND, labels_N, num_classes, l2, config, start):
        seen.append((len(x_ND), l2))
        return fit(x_ND, labels_N, num_classes, l2, config, start)

    monkeypatch.setattr(module, "_fit", spy)
    config = ProbeConfig()
    probe = fit_probe(x, labels, 5, config)
    # Three splits of 60 and 20 images, each penalty once, then all images with the one taken.
    assert seen[:-1] == [(60, l2) for l2 in sorted(config.l2_grid, reverse=True)] * 3
    assert seen[-1] == (80, probe.chosen["l2"])


def test_held_out_accuracy_is_what_is_reported():
    x, labels = clusters(400, spread=0.2)
    assert fit_probe(x, labels, 5, ProbeConfig()).chosen["validation_accuracy"] > 0.98
    noise = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    assert fit_probe(noise, labels, 5, ProbeConfig()).chosen["validation_accuracy"] == pytest.approx(0.2, abs=0.1)


def test_the_strongest_of_equally_good_penalties_is_taken():
    x, labels = clusters(100, spread=0.01)
    probe = fit_probe(x, labels, 5, ProbeConfig())
    assert probe.chosen["validation_accuracy"] == pytest.approx(1.0) and probe.chosen["l2"] == 1.0
    x, labels = clusters(5)  # nothing can be held out
    assert fit_probe(x, labels, 5, ProbeConfig()).chosen["l2"] == 1.0


def test_features_that_do_not_vary_do_no_harm():
    x, labels = clusters(60)
    x = torch.cat([x, torch.full((60, 2), 7.0), torch.zeros(60, 1)], 1)
    probe = fit_probe(x, labels, 5, ProbeConfig())
    assert all(torch.isfinite(t).all() for t in (probe.mean_D, probe.std_D, probe.weight_KD, probe.bias_K))
    assert accuracy(probe, x, labels) > 0.8


def test_one_image_a_class_can_be_fitted():
    x, labels = clusters(5)
    probe = fit_probe(x, labels, 5, ProbeConfig())
    assert accuracy(probe, x, labels) == 1.0 and probe.chosen["l2"] in ProbeConfig().l2_grid


def test_the_same_images_give_the_same_probe():
    x, labels = clusters(60)
    one, other = (fit_probe(x, labels, 5, ProbeConfig()) for _ in range(2))
    assert torch.equal(one.weight_KD, other.weight_KD) and one.chosen == other.chosen


@pytest.mark.parametrize(
    ("method", "num_a_class", "least"), [("lbfgs", 2, 0.997), ("ridge", 2, 0.997), ("lbfgs", 1, 0.98)]
)
def test_a_hundred_easy_classes_are_learned_from_two_images_each(method, num_a_class, least):
    # Flowers-102: as many classes, 2 images of each, and features of fewer images than dimensions.
    centres = np.random.default_rng(7).standard_normal((102, 64))
    spread_out = np.random.default_rng(8).standard_normal((64, 128)) / 8

    def images(num_images, seed):
        rng, labels = np.random.default_rng(seed), np.arange(num_images) % 102
        x = (centres[labels] + 0.5 * rng.standard_normal((num_images, 64))) @ spread_out
        return torch.from_numpy((x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)), torch.from_numpy(labels)

    x, labels = images(102 * num_a_class, 1)
    train_rows, held_rows = module.held_out_rows(labels, 0.25, 0)
    assert len(labels[train_rows].unique()) == 102 and len(held_rows) == (51 if num_a_class == 2 else 0)
    probe = {"lbfgs": fit_probe, "ridge": fit_ridge_probe}[method](x, labels, 102, ProbeConfig(num_splits=1))
    assert accuracy(probe, *images(1020, 2)) >= least
