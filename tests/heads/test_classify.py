import numpy as np
import pytest
import torch

from intern_vision.heads import HeadConfig
from intern_vision.heads.base import build_head
from intern_vision.models.features import Features
from intern_vision.task import Task


def test_overfits(overfit):
    first, last, scores = overfit("classify", 30)
    assert last < 0.1 * first and scores["top1"] == 1


def test_multilabel_overfits(overfit):
    first, last, scores = overfit("multilabel", 30)
    assert last < 0.1 * first and scores["map"] == 1


def test_scores_are_softmax_and_label_its_maximum(head_for, features):
    head = head_for("classify")
    outputs = head(features)
    predictions = head.predict(outputs, (64, 64))
    expected = outputs["logits_BK"].softmax(1).detach().numpy()
    np.testing.assert_allclose(np.stack([p.scores for p in predictions]), expected, rtol=1e-6)
    assert [p.label for p in predictions] == expected.argmax(1).tolist()


def test_label_smoothing_and_unknown_labels(head_for, features, batch):
    head = head_for("classify", label_smoothing=0.2, classify_weight=3.0)
    outputs = head(features)
    batch["label_B"][:4] = -1
    log_prob = outputs["logits_BK"][4:].log_softmax(1)
    expected = 0.0
    for row, label in zip(log_prob, batch["label_B"][4:].tolist(), strict=True):
        expected -= 0.8 * row[label] + 0.2 * row.mean()
    torch.testing.assert_close(head.losses(outputs, batch)["classify"], 3.0 * expected / 4)


def test_multilabel_loss_equals_a_loop(head_for, features, batch):
    head = head_for("multilabel", multilabel_weight=0.5)
    outputs = head(features)
    expected = 0.0
    for logits, concepts in zip(outputs["logits_BK"], batch["concepts_BK"], strict=True):
        for logit, concept in zip(logits, concepts, strict=True):
            prob = logit.sigmoid()
            expected -= (prob if concept else 1 - prob).log()
    torch.testing.assert_close(head.losses(outputs, batch)["multilabel"], 0.5 * expected / 8)


@pytest.mark.parametrize("family", ["classify", "multilabel"])
def test_vector_heads_read_no_map(family, head_for):
    logits = head_for(family)(Features(maps=(), vector_BD=torch.randn(2, 32)))["logits_BK"]
    assert logits.shape == (2, 3)


def known_classes(num_images, num_classes=3):
    """Rows that know two classes, all, or none; the first classes of row 0 and 1 differ."""
    known = torch.ones(num_images, num_classes, dtype=torch.bool)
    known[0, 1], known[1, 0], known[2] = False, False, False
    return known


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_the_softmax_is_over_the_sources_classes(head_for, features, batch, label_smoothing):
    head = head_for("classify", label_smoothing=label_smoothing)
    known = known_classes(8)
    batch["label_B"] = torch.tensor([0, 1, 2, 0, 1, -1, 2, 1])
    logits = head(features)["logits_BK"].detach().requires_grad_()
    loss = head.losses({"logits_BK": logits}, batch | {"known_BK": known})["classify"]
    terms = []
    for row, label in enumerate(batch["label_B"].tolist()):
        if label >= 0 and known[row, label]:
            own = known[row].nonzero().flatten().tolist()
            log_prob = logits[row, own].detach().log_softmax(0)
            spread = -float(log_prob.mean())
            terms.append(-(1 - label_smoothing) * float(log_prob[own.index(label)]) + label_smoothing * spread)
    assert len(terms) == 6 and float(loss.detach()) == pytest.approx(sum(terms) / 6, rel=1e-5)
    loss.backward()
    assert (logits.grad[~known] == 0).all() and (logits.grad[5] == 0).all()
    assert (logits.grad[0, [0, 2]] != 0).all()


def test_a_class_that_the_source_does_not_annotate_is_no_target(head_for, features, batch):
    head = head_for("classify", label_smoothing=0.1)
    logits = head(features)["logits_BK"].detach().requires_grad_()
    known = torch.zeros(8, 3, dtype=torch.bool)
    known[:, 0] = True
    batch["label_B"][:] = 1
    loss = head.losses({"logits_BK": logits}, batch | {"known_BK": known})["classify"]
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_concepts_that_the_source_does_not_annotate_take_no_part(head_for, features, batch):
    head = head_for("multilabel", multilabel_weight=0.5)
    known = known_classes(8)
    logits = head(features)["logits_BK"].detach().requires_grad_()
    loss = head.losses({"logits_BK": logits}, batch | {"known_BK": known})["multilabel"]
    expected = 0.0
    for row, column in known.nonzero().tolist():
        prob = logits[row, column].detach().sigmoid()
        expected -= float((prob if batch["concepts_BK"][row, column] else 1 - prob).log())
    assert float(loss.detach()) == pytest.approx(0.5 * expected / 7, rel=1e-5)
    loss.backward()
    assert (logits.grad[~known] == 0).all() and (logits.grad[known] != 0).all()


@pytest.mark.parametrize("family", ["classify", "multilabel"])
def test_everything_known_changes_nothing(family, head_for, features, batch):
    head = head_for(family, label_smoothing=0.1)
    outputs = head(features)
    plain = head.losses(outputs, batch)
    masked = head.losses(outputs, batch | {"known_BK": torch.ones(8, 3, dtype=torch.bool)})
    torch.testing.assert_close(masked, plain)


def test_cosine_logits_ignore_lengths_and_equal_a_loop():
    torch.manual_seed(0)
    task = Task(family="classify", class_names=("a", "b", "c", "d"))
    head = build_head(task, (8,), (4,), 12, HeadConfig(embedding_width=5))
    vector = torch.randn(6, 12)
    one, other = (head(Features((), scale * vector))["logits_BK"] for scale in (1.0, 7.0))
    torch.testing.assert_close(one, other)
    image, classes = (vector @ head.projection.weight.T).tolist(), head.linear.weight.tolist()
    for row, logits in zip(image, one.tolist(), strict=True):
        for own, logit in zip(classes, logits, strict=True):
            cosine = np.dot(row, own) / (np.linalg.norm(row) * np.linalg.norm(own))
            assert logit == pytest.approx(cosine / 0.07, rel=1e-4, abs=1e-4)
    head.losses({"logits_BK": one}, {"label_B": torch.tensor([0, 1, 2, 3, 0, -1])})["classify"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("num_examples", [4, 30])
def test_neighbours_vote_as_a_loop_counts_them(num_examples):
    generator = torch.Generator().manual_seed(0)
    task = Task(family="classify", class_names=("a", "b", "c"))
    config = HeadConfig(num_examples=num_examples, num_neighbours=7, neighbour_temperature=0.2)
    head = build_head(task, (8,), (4,), 12, config).eval()
    known = torch.randn(num_examples, 12, generator=generator)
    labels = torch.randint(0, 3, (num_examples,), generator=generator)
    vector = torch.randn(5, 12, generator=generator)
    head.remember(known, labels)
    scores = np.stack([p.scores for p in head.predict(head(Features((), vector)), (64, 64))])
    for row, found in zip(vector, scores, strict=True):
        cosines = [float(row @ other / row.norm() / other.norm()) for other in known]
        votes = np.zeros(3)
        for index in sorted(range(num_examples), key=lambda at: -cosines[at])[:7]:
            votes[labels[index]] += np.exp(cosines[index] / 0.2)
        np.testing.assert_allclose(found, votes / votes.sum(), atol=5e-3)
    assert not list(head.parameters())
