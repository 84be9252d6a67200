import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench.test_probe import accuracy, clusters
from sklearn.linear_model import LogisticRegression

from intern_vision.bench import sgd_probe as module
from intern_vision.bench.probe import held_out_rows
from intern_vision.bench.sgd_probe import fit_sgd_probe, train_points
from intern_vision.errors import ConfigError
from intern_vision.train.settings import ProbeConfig, SgdProbeConfig

FAST = SgdProbeConfig(num_steps=300, batch_size=64, standardise=True)


def scaled(num_images, **settings):
    x, labels = clusters(num_images, **settings)
    return (x - x.mean(0)) / x.std(0), labels


def test_every_point_is_trained_as_torch_would_train_it_alone():
    x, labels = scaled(50)
    config = SgdProbeConfig(num_steps=40, batch_size=16, decay_at=(0.5,))
    points = [(0.1, 1e-2, 0.9), (0.01, 0.0, 0.0), (1.0, 1e-4, 0.99)]
    weight_GKD, bias_GK = train_points(x, labels, 5, points, config)
    for point, (rate, decay, momentum) in enumerate(points):
        linear = torch.nn.Linear(20, 5)
        for parameter in linear.parameters():
            torch.nn.init.zeros_(parameter)
        optimizer = torch.optim.SGD(linear.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
        generator, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.int64)
        for step in range(40):
            if step == 20:
                optimizer.param_groups[0]["lr"] *= 0.1
            if len(order) < 16:
                order = torch.cat([order, torch.randperm(50, generator=generator)])
            rows, order = order[:16], order[16:]
            optimizer.zero_grad()
            F.cross_entropy(linear(x[rows]), labels[rows]).backward()
            optimizer.step()
        torch.testing.assert_close(weight_GKD[point], linear.weight.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(bias_GK[point], linear.bias.detach(), rtol=1e-3, atol=1e-4)


def test_converges_to_logistic_regression():
    x, labels = scaled(200)
    config = SgdProbeConfig(num_steps=1500, batch_size=200, decay_at=(0.8,))
    weight_1KD, bias_1K = train_points(x, labels, 5, [(0.3, 1e-2, 0.9)], config)
    found = (x @ weight_1KD[0].T + bias_1K[0]).softmax(1).numpy()
    # A penalty on the bias too is one on the weight of a feature that is always 1.
    rows = np.concatenate([x.numpy(), np.ones((200, 1))], 1)
    reference = LogisticRegression(C=1 / (1e-2 * 200), fit_intercept=False, max_iter=5000, tol=1e-8)
    expected = reference.fit(rows, labels.numpy()).predict_proba(rows)
    assert np.abs(found - expected).max() < 0.01


def test_the_point_is_chosen_on_held_out_images_alone(monkeypatch):
    x, labels = clusters(80)
    seen = []
    train = module.train_points

    def spy(x_ND, labels_N, num_classes, points, config):
        seen.append((len(x_ND), list(points)))
        return train(x_ND, labels_N, num_classes, points, config)

    monkeypatch.setattr(module, "train_points", spy)
    probe = fit_sgd_probe(x, labels, 5, ProbeConfig(sgd=FAST))
    chosen = tuple(probe.chosen[name] for name in ("learning_rate", "weight_decay", "momentum"))
    assert [(rows, len(points)) for rows, points in seen] == [(60, 24), (80, 1)]
    assert seen[1][1] == [chosen] and chosen in seen[0][1]
    train_rows, held_rows = held_out_rows(labels, 0.25, 0)
    assert len(train_rows) == 60 and not set(train_rows.tolist()) & set(held_rows.tolist())


@pytest.mark.parametrize("standardise", [False, True])
def test_a_rate_that_diverges_is_not_taken(standardise):
    x, labels = clusters(200, spread=0.6)
    x = x / x.std()
    rates = (0.1, 1e30)
    config = ProbeConfig(sgd=FAST.model_copy(update={"learning_rates": rates, "standardise": standardise}))
    probe = fit_sgd_probe(x, labels, 5, config)
    assert probe.chosen["learning_rate"] == 0.1 and torch.isfinite(probe.weight_KD).all()
    assert accuracy(probe, x, labels) > (0.9 if standardise else 0.4)


def test_raw_features_are_served_raw():
    x, labels = clusters(100)
    probe = fit_sgd_probe(x, labels, 5, ProbeConfig(sgd=SgdProbeConfig(num_steps=5)))
    assert (probe.mean_D == 0).all() and (probe.std_D == 1).all()


def test_one_image_a_class_takes_the_strongest_penalty():
    x, labels = clusters(5)
    probe = fit_sgd_probe(x, labels, 5, ProbeConfig(sgd=FAST))
    assert probe.chosen["probe"] == "lbfgs" and probe.chosen["l2"] == 1.0
    assert accuracy(probe, x, labels) == 1.0


def test_an_empty_grid_is_named():
    with pytest.raises(ConfigError, match=r"learning_rates: expected numbers > 0, got \[\]"):
        SgdProbeConfig().with_overrides({"learning_rates": []})
    with pytest.raises(ConfigError, match=r"momenta: expected numbers in \[0, 1\), got \[1.0\]"):
        SgdProbeConfig().with_overrides({"momenta": [1.0]})
    with pytest.raises(ConfigError, match=r"ridge_grid: expected numbers > 0, got \[0.0\]"):
        ProbeConfig().with_overrides({"ridge_grid": [0.0]})
