import numpy as np
import pytest
import torch

from intern_vision.models.features import Features


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
