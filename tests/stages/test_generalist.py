import pytest
import torch
from helpers import AUGMENT, HEAD, save_backbone, train_here, trainer_config

from intern_vision.errors import ConfigError
from intern_vision.models.vision import VisionModel, read_tensors
from intern_vision.stages import generalist
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store

FAMILIES = ("multilabel", "depth")


def config_of(mode, **settings) -> generalist.Config:
    trainer = trainer_config(num_steps=3, learning_rate=1e-2, weight_decay=0.5)
    return generalist.Config(
        **{"mode": mode, "families": FAMILIES, "trainer": trainer, "head": HEAD, "augment": AUGMENT} | settings
    )


@pytest.fixture
def inputs(world, tmp_path):
    """An amateur, two experts that differ from it and from each other, and where their weights lie."""
    refs = {"amateur": (save_backbone(world, tmp_path / "amateur"),), "data": (world.upstream,)}
    experts = [save_backbone(world, tmp_path / family, (family,), seed) for seed, family in enumerate(FAMILIES, 1)]
    return Inputs(refs | {"experts": tuple(experts)})


def build(config, world, inputs, folder):
    torch.manual_seed(0)
    return generalist.build(config, world.workspace(folder / "work", **inputs))


def part(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def assert_same(one, other):
    assert one.keys() == other.keys() and one
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def moved(one, other) -> set[str]:
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


def is_state(name: str) -> bool:
    return "running_" in name or "num_batches" in name


@pytest.mark.parametrize("mode", ["joint", "central", "squeeze"])
def test_each_mode_runs_as_a_stage(world, inputs, tmp_path, mode):
    ref = run_stage("generalist", config_of(mode), inputs)
    store = open_store(world.store_root)
    folder = fetch(store, ref, tmp_path / "fetched")
    model, tensors = VisionModel.load(folder), read_tensors(folder)
    assert ref.name == f"generalist-{mode}" and set(model.heads) == set(FAMILIES)
    assert set(ref.parents) == {r.uri for refs in inputs.values() for r in refs}
    passes = {"joint": 1, "central": 1, "squeeze": 3}[mode]
    assert read_record(store, ref.uri).facts["image_passes"] == 3 * 8 * passes
    assert not any("teacher" in name or "projector" in name for name in tensors)
    begun = read_tensors(tmp_path / ("amateur" if mode != "central" else "multilabel"))
    own = part(tensors, "backbone.experts.multilabel." if mode == "central" else "backbone.")
    assert moved(part(begun, "backbone."), own)
    if mode == "central":
        # The source is read only: neither gradients nor weight decay nor statistics touched it.
        assert_same(part(tensors, "backbone.experts.depth."), part(read_tensors(tmp_path / "depth"), "backbone."))


def test_a_fresh_central_model_is_its_main_expert(world, inputs, tmp_path):
    for main in FAMILIES:
        model = build(config_of("central", main=main), world, inputs, tmp_path / main).objective.model.eval()
        expert = VisionModel.load(tmp_path / main)
        image_BCHW = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            found, expected = model(image_BCHW), expert(image_BCHW)
            assert torch.equal(found.vector_BD, expected.vector_BD)
            assert all(torch.equal(a, b) for a, b in zip(found.maps, expected.maps, strict=True))
            outputs, own = model.heads[main](found), expert.heads[main](expected)
        assert outputs.keys() == own.keys() and all(torch.equal(outputs[name], own[name]) for name in own)


def test_central_trains_the_main_expert_its_transfers_and_the_heads(world, inputs, tmp_path):
    job = build(config_of("central"), world, inputs, tmp_path)
    before = {name: tensor.clone() for name, tensor in job.objective.model.state_dict().items()}
    trained = {name for name, p in job.objective.model.named_parameters() if p.requires_grad}
    live = ("backbone.experts.multilabel.", "backbone.transfers.multilabel.", "heads.")
    assert trained == {name for name, _ in job.objective.model.named_parameters() if name.startswith(live)}
    train_here(job)
    changed = moved(before, job.objective.model.state_dict())
    assert not {name for name in changed if not name.startswith(live)}
    for prefix in live:
        assert {name for name in changed if name.startswith(prefix) and not is_state(name)}, prefix


def test_transfers_learn_at_their_own_rate(world, inputs, tmp_path):
    job = build(config_of("central", transfer_learning_rate_scale=7.0), world, inputs, tmp_path)
    assert job.learning_rate_scales == {"model.backbone.transfers": 7.0}
    assert any(name.startswith("model.backbone.transfers") for name, _ in job.objective.named_parameters())


def test_squeeze_leaves_its_teachers_as_they_were(world, inputs, tmp_path):
    job = build(config_of("squeeze"), world, inputs, tmp_path)
    train_here(job)
    for family, teacher in zip(FAMILIES, job.objective._teachers, strict=True):
        assert_same(teacher.state_dict(), read_tensors(tmp_path / family))
        assert not teacher.training
    begun = read_tensors(tmp_path / "amateur")
    assert moved(part(begun, "backbone."), job.objective.model.backbone.state_dict())


def test_heads_start_from_the_experts_or_afresh(world, inputs, tmp_path):
    job = build(config_of("joint"), world, inputs, tmp_path)
    tensors = job.objective.model.state_dict()
    assert_same(part(tensors, "backbone."), part(read_tensors(tmp_path / "amateur"), "backbone."))
    for family in FAMILIES:
        assert_same(part(tensors, f"heads.{family}."), part(read_tensors(tmp_path / family), f"heads.{family}."))
    fresh = build(config_of("joint", heads_from_experts=False), world, inputs, tmp_path / "fresh")
    assert moved(part(fresh.objective.model.state_dict(), "heads."), part(tensors, "heads."))


@pytest.mark.parametrize("mode", ["joint", "central"])
def test_frozen_heads_stay(world, inputs, tmp_path, mode):
    job = build(config_of(mode, freeze_heads=True), world, inputs, tmp_path)
    before = {name: tensor.clone() for name, tensor in job.objective.model.state_dict().items()}
    train_here(job)
    changed = moved(before, job.objective.model.state_dict())
    assert changed and not {name for name in changed if name.startswith("heads.") and not is_state(name)}


def test_an_expert_too_few_is_named(world, inputs, tmp_path):
    alone = Inputs(inputs | {"experts": inputs["experts"][:1]})
    for mode in ("central", "squeeze"):
        with pytest.raises(ConfigError, match=f"generalist.mode {mode}: no expert for depth; train it first"):
            build(config_of(mode), world, alone, tmp_path)
    assert tuple(build(config_of("joint"), world, alone, tmp_path).objective.model.heads) == FAMILIES
    with pytest.raises(ConfigError, match="main must be one of multilabel, depth"):
        build(config_of("central", main="detect"), world, inputs, tmp_path)
