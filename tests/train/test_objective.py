import copy

import helpers
import pytest
import torch
import torch.nn.functional as F
from toy_training import MASK_ID, SIGNALS, batch_of, image_text, only

from intern_vision.errors import ConfigError, DataError
from intern_vision.heads import HeadConfig
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task
from intern_vision.train.losses import mask_tokens
from intern_vision.train.objective import (
    CachedFeaturesObjective,
    DistillObjective,
    MultiTaskObjective,
)
from intern_vision.train.settings import SignalWeights

TASKS = {
    "multilabel": Task(family="multilabel", class_names=("a", "b", "c")),
    "depth": Task(family="depth", max_depth_m=10.0),
}


def info_nce(one, other, scale):
    """One direction, a row after the other."""
    total = 0.0
    for row in range(len(one)):
        scores = torch.stack([scale * (one[row] * other[col]).sum() for col in range(len(other))])
        total += float(scores.logsumexp(0) - scores[row])
    return total / len(one)


def clip_loop(one, other, scale):
    return 0.5 * (info_nce(one, other, scale) + info_nce(other, one, scale))


@torch.no_grad()
def embeddings(objective, batch, tokens=None):
    """Raw and normalised rows of both views and both captions, each image on its own."""
    tower, model = objective.model.text, objective.model
    raw = [
        torch.cat([tower.projection(model(image[None]).vector_BD) for image in batch[name]])
        for name in ("image_BCHW", "second_image_BCHW")
    ]
    first = batch["tokens_BL"] if tokens is None else tokens
    texts = [tower.encoder(ids)[0] for ids in (first, batch["second_tokens_BL"])]
    return raw, [F.normalize(rows, dim=-1) for rows in raw], [F.normalize(rows, dim=-1) for rows in texts]


def test_every_signal_equals_a_straightforward_loop():
    objective, batch = image_text().eval(), batch_of()  # eval: BatchNorm and DropPath take each image alone
    before = objective.queue.rows_QD.clone()
    torch.manual_seed(7)
    with torch.no_grad():
        losses, values = objective(batch)
    torch.manual_seed(7)
    masked, targets = mask_tokens(batch["tokens_BL"], mask_id=MASK_ID, first_special_id=MASK_ID)
    raw, views, texts = embeddings(objective, batch, masked)
    scale = float(objective.model.text.scale().detach())
    weights = objective.weights

    pair_losses = {(v, t): clip_loop(views[v], texts[t], scale) for v in range(2) for t in range(2)}
    assert float(losses["image_text"]) == pytest.approx(weights.image_text * pair_losses[0, 0], rel=1e-4)
    assert float(values["image_text"]) == pytest.approx(pair_losses[0, 0], rel=1e-4)
    others = (pair_losses[1, 0] + pair_losses[0, 1] + pair_losses[1, 1]) / 3
    assert float(losses["multi_view"]) == pytest.approx(weights.multi_view * others, rel=1e-4)

    with torch.no_grad():
        projected = [objective.projector(rows) for rows in raw]
        predicted = [objective.predictor(rows) for rows in projected]
    cosines = [
        float(F.cosine_similarity(predicted[a][row], projected[b][row], dim=0))
        for a, b in ((0, 1), (1, 0))
        for row in range(6)
    ]
    assert float(losses["image_self"]) == pytest.approx(-weights.image_self * sum(cosines) / 12, rel=1e-4)

    with torch.no_grad():
        hidden = objective.model.text.encoder(masked)[1]
    terms = [
        -float(objective.token_head(hidden[row, col]).detach().log_softmax(0)[targets[row, col]])
        for row, col in (targets >= 0).nonzero().tolist()
    ]
    assert terms and float(losses["text_self"]) == pytest.approx(weights.text_self * sum(terms) / len(terms), rel=1e-4)

    nearest = [torch.stack([max(before, key=lambda old, t=t: float(old @ t)) for t in rows]) for rows in texts]
    loop = sum(info_nce(view, rows, scale) for view in views for rows in nearest) / 4
    assert float(losses["neighbour"]) == pytest.approx(weights.neighbour * loop, rel=1e-4)


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
    batch = {name: value for name, value in batch_of().items() if not name.startswith("second")}
    objective = image_text(only())
    assert objective.weights.num_views == objective.passes_per_sample == 1
    losses, _ = objective(batch)
    assert set(losses) == {"image_text"}
    assert image_text().passes_per_sample == 2
    with pytest.raises(ConfigError, match="image_text must be > 0"):
        SignalWeights().with_overrides({"image_text": 0})


def test_weights_scale_the_losses():
    batch = batch_of()
    torch.manual_seed(1)
    one, _ = image_text(only(multi_view=0.2)).eval()(batch)
    two, _ = image_text(only(multi_view=0.4)).eval()(batch)
    assert float(two["multi_view"]) == pytest.approx(2 * float(one["multi_view"]), rel=1e-5)


def test_order_of_pairs_does_not_matter():
    batch, order = batch_of(), torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {name: value[order] if torch.is_tensor(value) else value for name, value in batch.items()}
    weights = only(multi_view=0.3, image_self=0.2, neighbour=0.2)
    one, _ = image_text(weights, drop_path=0.0)(batch)  # training mode: BatchNorm sees the same set of images
    other, _ = image_text(weights, drop_path=0.0)(shuffled)
    for name, loss in one.items():
        assert float(other[name]) == pytest.approx(float(loss), rel=1e-4, abs=1e-6), name
    crossed = batch | {"tokens_BL": batch["tokens_BL"][order]}
    assert abs(float(image_text(weights, drop_path=0.0)(crossed)[0]["image_text"]) - float(one["image_text"])) > 1e-4


def test_a_caption_is_never_its_own_neighbour():
    objective, batch = image_text(only(neighbour=1.0)).eval(), batch_of()
    _, _, texts = embeddings(objective, batch)
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
    objective = image_text(drop_path=0.0)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for _ in range(2):  # the branches' last BatchNorms start at 0, so what lies before them learns from step 1 on
        optimizer.zero_grad()
        losses, _ = objective(batch_of())
        sum(losses.values()).backward()
        optimizer.step()
    still = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


def multi_task(**settings):
    torch.manual_seed(0)
    heads = {name: HeadSpec(task=task, config=HeadConfig(neck_width=8)) for name, task in TASKS.items()}
    return MultiTaskObjective(
        VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX, heads=heads)), **settings
    )


def task_batch(num_images=4):
    batch = batch_of(num_images)
    generator = torch.Generator().manual_seed(1)
    concepts = (torch.rand(num_images, 3, generator=generator) > 0.5).float()
    depth = 1 + 5 * torch.rand(num_images, helpers.SIZE_PX, helpers.SIZE_PX, generator=generator)
    return {"image_BCHW": batch["image_BCHW"], "keys": batch["keys"], "concepts_BK": concepts, "depth_BHW": depth}


def test_each_head_gives_its_own_losses_times_its_weight():
    objective, batch = multi_task(task_weights={"depth": 3.0}).eval(), task_batch()
    losses, _ = objective(batch)
    features = objective.model(batch["image_BCHW"])
    expected = {
        f"{name}/{loss}": (3.0 if name == "depth" else 1.0) * float(value)
        for name, head in objective.model.heads.items()
        for loss, value in head.losses(head(features), batch).items()
    }
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
    assert {name.split("/")[0] for name in losses} == {"multilabel", "depth"}


def test_missing_labels_are_named():
    batch = task_batch()
    del batch["concepts_BK"]
    with pytest.raises(DataError, match="concepts_BK"):
        multi_task()(batch)


@pytest.mark.parametrize("frozen", ["backbone", "heads"])
def test_frozen_parts_get_no_gradient(frozen):
    objective = multi_task(**{f"freeze_{frozen}": True}).train()
    before = copy.deepcopy(objective.model.state_dict())
    sum(objective(task_batch())[0].values()).backward()
    for name, parameter in objective.model.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None and not parameter.requires_grad
    learned = [p for name, p in objective.model.named_parameters() if not name.startswith(frozen)]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)
    if frozen == "backbone":  # its running statistics as well
        after = objective.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith(frozen))
        assert not objective.model.backbone.training and objective.model.heads.training


def test_cached_features_give_the_losses_of_the_images():
    objective, batch = multi_task().eval(), task_batch()
    with torch.no_grad():
        features = objective.model(batch["image_BCHW"])
        expected, _ = objective(batch)
    cached = CachedFeaturesObjective(objective.model).eval()
    rows = {f"map_{level}": map_BCHW for level, map_BCHW in enumerate(features.maps)} | {"vector": features.vector_BD}
    losses, _ = cached({**rows, **{name: value for name, value in batch.items() if name != "image_BCHW"}})
    assert {k: float(v) for k, v in losses.items()} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-4
    )


def test_distilling_equals_a_loop_and_leaves_teachers_alone():
    student, batch = multi_task().model, task_batch()
    teachers = {}
    for number, name in enumerate(TASKS):
        torch.manual_seed(10 + number)
        teachers[name] = VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX))
    frozen = copy.deepcopy({name: teacher.state_dict() for name, teacher in teachers.items()})
    torch.manual_seed(0)
    objective = DistillObjective(student, teachers, 0.5, {"depth": 0.0, "multilabel": 0.0})
    assert objective.passes_per_sample == 3
    objective.eval()
    losses, _ = objective(batch)
    with torch.no_grad():
        maps = student(batch["image_BCHW"]).maps
        terms = []
        for teacher, projectors in zip(teachers.values(), objective.projectors, strict=True):
            for projector, own, target in zip(projectors, maps, teacher(batch["image_BCHW"]).maps, strict=True):
                one, other = projector(own), target
                columns = []
                for channel in range(other.shape[1]):
                    p, t = one[:, channel].flatten(), other[:, channel].flatten()
                    p, t = (p - p.mean()) / (p.std() + 1e-4), (t - t.mean()) / (t.std() + 1e-4)
                    gap = (p - t).abs()
                    columns.append(torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean())
                terms.append(torch.stack(columns).mean())
    assert float(losses["distill"]) == pytest.approx(0.5 * float(torch.stack(terms).mean()), rel=1e-4)
    assert {name: float(loss) for name, loss in losses.items() if name != "distill"} == pytest.approx(
        {"multilabel/multilabel": 0.0, "depth/silog": 0.0, "depth/gradient": 0.0}
    )
    objective.train()
    sum(objective(batch)[0].values()).backward()
    for name, teacher in teachers.items():
        assert not teacher.training
        assert all(torch.equal(value, frozen[name][key]) for key, value in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())
    assert not any("teacher" in name for name in objective.state_dict())


def test_moving_a_distilling_objective_moves_its_teachers():
    teacher = VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX))
    DistillObjective(multi_task().model, {"a": teacher}, 1.0).to(torch.float64)
    assert all(p.dtype == torch.float64 for p in teacher.parameters())


def test_saved_are_the_model_and_nothing_that_only_training_needs(tmp_path):
    objective = image_text()
    objective.save(tmp_path)
    loaded = VisionModel.load(tmp_path)
    assert loaded.state_dict().keys() == objective.model.state_dict().keys()
    assert not any(name.startswith(("queue", "projector", "token_head")) for name in loaded.state_dict())


def test_no_trained_tensor_is_without_dimensions():
    # DeepSpeed broadcasts the first weights as bytes, which a tensor without dimensions refuses to be.
    with pytest.raises(RuntimeError, match="dim"):
        torch.zeros(()).view(torch.uint8)
    for objective in (image_text(), multi_task()):
        assert all(parameter.ndim > 0 for parameter in objective.parameters())
