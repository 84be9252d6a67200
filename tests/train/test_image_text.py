import helpers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_training import SIGNALS, batch_of, image_text, only

from intern_vision.errors import ConfigError
from intern_vision.models.vision import VisionModel
from intern_vision.train.settings import CLIP_SIGNALS, DECLIP_88M_SIGNALS, SignalWeights


def unit(rows):
    return torch.stack([row / row.square().sum().sqrt() for row in rows])


def info_nce(one, other, scale):
    """One direction, a row after the other."""
    total = 0.0
    for row in range(len(one)):
        scores = torch.stack([scale * (one[row] * other[col]).sum() for col in range(len(other))])
        total = total + scores.logsumexp(0) - scores[row]
    return total / len(one)


def clip_loop(one, other, scale):
    return 0.5 * (info_nce(one, other, scale) + info_nce(other, one, scale))


def siglip_loop(one, other, scale, bias):
    total = 0.0
    for row in range(len(one)):
        for col in range(len(other)):
            answer = 1.0 if row == col else -1.0
            total = total + torch.log1p(torch.exp(-answer * (scale * (one[row] * other[col]).sum() + bias)))
    return total / len(one)


def layers_by_hand(layers, rows):
    """A projector or predictor in training mode: linear maps, batch statistics written out, ReLU."""
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            rows = rows @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        elif isinstance(layer, torch.nn.ReLU):
            rows = rows * (rows > 0)
        else:
            mean = sum(rows) / len(rows)
            variance = sum((row - mean) ** 2 for row in rows) / len(rows)
            rows = (rows - mean) / (variance + layer.eps) ** 0.5 * layer.weight + layer.bias
    return rows


def embeddings(objective, batch):
    """Unnormalised rows of both views, each image on its own, and of both captions."""
    tower, model = objective.model.text, objective.model
    raw = [
        torch.cat([tower.projection(model(image[None]).vector_BD) for image in batch[name]])
        for name in ("image_BCHW", "second_image_BCHW")
    ]
    first = "masked_tokens_BL" if objective.contrast_masked else "tokens_BL"
    return raw, [unit(tower.encoder(batch[name])[0]) for name in (first, "second_tokens_BL")]


def declip_loop(objective, batch, queue):
    """All five signals with weights of DeCLIP, from the formulas and a row at a time."""
    raw, texts = embeddings(objective, batch)
    views = [unit(rows) for rows in raw]
    scale = objective.model.text.log_scale.exp()
    pair = clip_loop
    if objective.is_sigmoid:

        def pair(one, other, scale):
            return siglip_loop(one, other, scale, objective.bias)

    one_way = pair if objective.is_sigmoid else info_nce
    cosines = []
    projected = [layers_by_hand(objective.projector, rows) for rows in raw]
    predicted = [layers_by_hand(objective.predictor, rows) for rows in projected]
    for a, b in ((0, 1), (1, 0)):
        for p, z in zip(predicted[a], projected[b].detach(), strict=True):
            cosines.append((p * z).sum() / (p.square().sum().sqrt() * z.square().sum().sqrt()))
    hidden = objective.model.text.encoder(batch["masked_tokens_BL"])[1]
    hits = [
        objective.token_head(hidden[row, col]).log_softmax(0)[batch["token_targets_BL"][row, col]]
        for row, col in (batch["token_targets_BL"] >= 0).nonzero().tolist()
    ]
    nearest = [torch.stack([max(queue, key=lambda old, t=t: float(old @ t.detach())) for t in rows]) for rows in texts]
    return {
        "image_text": 0.4 / 4 * pair(views[0], texts[0], scale),
        "multi_view": 0.4 / 4 * sum(pair(views[v], texts[t], scale) for v, t in ((1, 0), (0, 1), (1, 1))),
        "image_self": -0.2 * sum(cosines) / len(cosines),
        "text_self": -0.2 * sum(hits) / len(hits),
        "neighbour": 0.2 * sum(one_way(view, rows, scale) for view in views for rows in nearest) / 4,
    }


@pytest.mark.parametrize(
    "options", [{}, {"contrast": "sigmoid"}, {"contrast_masked": False}], ids=["softmax", "sigmoid", "unmasked"]
)
def test_every_signal_and_every_gradient_equal_a_loop(options):
    objective, batch = image_text(genotype={"drop_path": 0.0}, **options), batch_of()
    objective.model.eval()  # the backbone takes each image alone, the projector's BatchNorms take the batch
    assert objective.projector.training and (batch["token_targets_BL"] >= 0).sum() > 5
    expected = declip_loop(objective, batch, objective.queue.rows_QD.clone())
    sum(expected.values()).backward()
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    losses, values = objective(batch)
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        assert float(losses[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-4), name
    assert float(values["image_text"]) == pytest.approx(float(expected["image_text"].detach()) / 0.1, rel=1e-4)
    sum(losses.values()).backward()
    found = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-5 * max(1.0, float(gradient.abs().max())))


def test_weights_are_the_source_s():
    ours = SignalWeights()
    assert ours.image_text + ours.multi_view == pytest.approx(0.4) and ours.multi_view == pytest.approx(3 * 0.1)
    assert sum(getattr(ours, name) for name in SIGNALS) == pytest.approx(1.0)
    assert DECLIP_88M_SIGNALS.image_text + DECLIP_88M_SIGNALS.multi_view == pytest.approx(0.6)
    assert DECLIP_88M_SIGNALS.multi_view == pytest.approx(3 * DECLIP_88M_SIGNALS.image_text)
    assert only() == CLIP_SIGNALS and CLIP_SIGNALS.num_views == 1


def test_simsiam_s_parts_have_the_source_s_layers():
    objective = image_text()
    names = [type(layer).__name__ for layer in objective.projector]
    assert names == ["Linear", "GlobalBatchNorm", "ReLU"] * 2 + ["Linear", "GlobalBatchNorm"]
    assert [type(layer).__name__ for layer in objective.predictor] == ["Linear", "GlobalBatchNorm", "ReLU", "Linear"]
    width = helpers.TEXT.embedding_width
    assert [layer.weight.shape for layer in objective.predictor if isinstance(layer, torch.nn.Linear)] == [
        (width // 2, width),
        (width, width // 2),
    ]


def test_only_enabled_signals_appear_and_only_they_have_parts():
    batch = batch_of()
    parts = {"image_self": ("projector", "predictor"), "text_self": ("token_head",), "neighbour": ("queue",)}
    for name in SIGNALS:
        objective = image_text(only(**{name: 0.5}))
        losses, _ = objective(batch)
        assert set(losses) == {"image_text", name}
        for owner, attributes in parts.items():
            assert all(hasattr(objective, attribute) == (owner == name) for attribute in attributes)
    assert set(image_text()(batch)[0]) == set(SIGNALS)


def test_clip_alone_needs_one_view_and_one_caption():
    batch = {name: value for name, value in batch_of().items() if name in ("image_BCHW", "tokens_BL")}
    for contrast in ("softmax", "sigmoid"):
        objective = image_text(CLIP_SIGNALS, contrast=contrast)
        assert objective.weights.num_views == objective.passes_per_sample == 1
        losses, _ = objective(batch)
        assert set(losses) == {"image_text"}
    assert image_text().passes_per_sample == 2
    with pytest.raises(ConfigError, match="image_text must be > 0"):
        SignalWeights().with_overrides({"image_text": 0})


def test_sigmoid_starts_where_its_paper_says():
    objective = image_text(CLIP_SIGNALS, contrast="sigmoid")
    assert float(objective.model.text.scale().detach()) == pytest.approx(10.0)
    assert objective.bias.tolist() == [-10.0]
    assert not hasattr(image_text(CLIP_SIGNALS), "bias")


@pytest.mark.parametrize(("start", "expected"), [(1.0, 3.0), (3.7, 3.7), (8.0, 6.0)])
def test_the_log_scale_acts_within_its_range_and_can_come_back(start, expected):
    objective, batch = image_text(CLIP_SIGNALS, log_scale_range=(3.0, 6.0)), batch_of()
    log_scale = objective.model.text.log_scale
    torch.nn.init.constant_(log_scale, start)
    losses, values = objective(batch)
    assert float(values["scale"]) == pytest.approx(min(100.0, float(torch.tensor(expected).exp())), rel=1e-5)
    losses["image_text"].backward()
    assert log_scale.item() == pytest.approx(start)
    # Beyond the scale's own ceiling of 100 there is no slope.
    assert (log_scale.grad.abs() > 0).item() == (expected < 5)


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(6)), st.sampled_from(["softmax", "sigmoid"]))
def test_order_of_pairs_does_not_matter(order, contrast):
    batch = batch_of()
    shuffled = {name: value[order] if torch.is_tensor(value) else value for name, value in batch.items()}
    settings = {"genotype": {"drop_path": 0.0}, "contrast": contrast}
    one, _ = image_text(**settings)(batch)  # training mode: BatchNorm sees the same set of images
    other, _ = image_text(**settings)(shuffled)
    for name, loss in one.items():
        assert float(other[name].detach()) == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6), name


def test_pairs_that_do_not_belong_together_cost_something_else():
    batch, order = batch_of(), torch.tensor([3, 0, 5, 1, 4, 2])
    one, _ = image_text(genotype={"drop_path": 0.0})(batch)
    crossed, _ = image_text(genotype={"drop_path": 0.0})(batch | {"masked_tokens_BL": batch["masked_tokens_BL"][order]})
    assert abs(float((crossed["image_text"] - one["image_text"]).detach())) > 1e-5


def test_a_caption_is_never_its_own_neighbour():
    objective, batch = image_text(only(neighbour=1.0)).eval(), batch_of()
    with torch.no_grad():
        objective.contrast_masked = False
        _, texts = embeddings(objective, batch)
    for _ in range(2):
        seen = []
        nearest = objective.queue.nearest

        def spy(text_BD, nearest=nearest, seen=seen):
            seen.append((text_BD, objective.queue.rows_QD.clone()))
            return nearest(text_BD)

        objective.queue.nearest = spy
        before = objective.queue.rows_QD.clone()
        objective(batch)
        objective.queue.nearest = nearest
        # Looked up, both times, in the queue as it was before this batch came.
        assert len(seen) == 2 and all(torch.equal(rows, before) for _, rows in seen)
    stored = objective.queue.rows_QD[:12]
    assert torch.allclose(stored, torch.cat([texts[1], texts[0]]), atol=1e-5)


def test_all_parameters_learn():
    for contrast in ("softmax", "sigmoid"):
        objective = image_text(genotype={"drop_path": 0.0}, contrast=contrast)
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        for _ in range(2):  # the branches' last BatchNorms start at 0, so what lies before them learns from step 1 on
            optimizer.zero_grad()
            losses, _ = objective(batch_of())
            sum(losses.values()).backward()
            optimizer.step()
        still = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not still


def test_saved_are_the_model_and_nothing_that_only_training_needs(tmp_path):
    objective = image_text(contrast="sigmoid")
    objective.save(tmp_path)
    loaded = VisionModel.load(tmp_path)
    assert loaded.state_dict().keys() == objective.model.state_dict().keys()
    assert not any(name.startswith(("queue", "projector", "token_head", "bias")) for name in loaded.state_dict())
