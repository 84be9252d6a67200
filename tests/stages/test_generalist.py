import json
import os
import shutil

import pytest
import torch
from helpers import AUGMENT, GENOTYPE, HEAD, commit_folder, save_backbone, train_here, trainer_config
from toy_training import run_toy_whole, toy_checkpoints

from intern_vision.bench.selection import family_errors, relative_score
from intern_vision.errors import ConfigError
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel, read_spec, read_tensors
from intern_vision.stages import generalist
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store
from intern_vision.task import View
from intern_vision.train.assembly import backbone_tensors, gather_parts
from intern_vision.train.settings import count_image_passes

FAMILIES = ("multilabel", "depth")
TRAINED = ("joint", "central", "squeeze")


def config_of(mode, *, num_steps=3, checkpoint_every=0, **settings) -> generalist.Config:
    trainer = trainer_config(
        num_steps=num_steps, learning_rate=1e-2, weight_decay=0.5, checkpoint_every=checkpoint_every
    )
    return generalist.Config(
        **{"mode": mode, "families": FAMILIES, "trainer": trainer, "head": HEAD, "augment": AUGMENT} | settings
    )


@pytest.fixture
def inputs(world, tmp_path):
    """An amateur, two experts that differ from it and from each other, and where their weights lie."""
    refs = {"amateur": (save_backbone(world, tmp_path / "amateur", seed=9),), "data": (world.upstream,)}
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


def passes_of(job):
    objective, config = job.objective, job.config
    return count_image_passes(config.num_samples, objective.passes_per_sample, objective.forward_passes_per_sample)


def test_central_runs_as_a_stage(world, inputs, tmp_path):
    config = config_of("central", name="joined")
    ref = run_stage("generalist", config, inputs)
    store = open_store(world.store_root)
    folder = fetch(store, ref, tmp_path / "fetched")
    tensors = read_tensors(folder)
    assert ref.name == "joined" and set(VisionModel.load(folder).heads) == set(FAMILIES)
    assert set(ref.parents) == {r.uri for refs in inputs.values() for r in refs}
    # Two views a step, and each expert once more as the other's source.
    assert read_record(store, ref.uri).facts["image_passes"] == round(3 * 8 * (2 + 2 / 3)) == config.image_passes
    for family in FAMILIES:
        begun = part(read_tensors(tmp_path / family), "backbone.")
        own = part(tensors, f"backbone.experts.{family}.")
        assert {name for name in moved(begun, own) if not is_state(name)}
        assert VisionModel.load_family(folder, family).spec.main == family


@pytest.mark.parametrize("mode", TRAINED)
def test_each_trained_mode_learns_and_resumes(world, inputs, tmp_path, mode):
    drop = 0.5 if mode == "squeeze" else 0.0
    config = config_of(mode, num_steps=6, checkpoint_every=3, teacher_drop_probability=drop)
    job = build(config, world, inputs, tmp_path / "whole")
    assert passes_of(job) == config.image_passes
    events, weights = run_toy_whole(job, toy_checkpoints(tmp_path))
    losses = [event["metrics"]["loss"] for event in events if event["event"] == "step"]
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
    # The checkpoint of half the way is still there: the same job goes on from it to the same end.
    shutil.rmtree(tmp_path / f"local-{os.getpid()}")
    again, resumed = run_toy_whole(build(config, world, inputs, tmp_path / "rest"), toy_checkpoints(tmp_path))
    assert [event["done"] for event in again if event["event"] == "resumed"] == [3]
    assert_same(resumed, weights)


def test_a_fresh_central_model_is_its_experts(world, inputs, tmp_path):
    image_BCHW = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    model = build(config_of("central"), world, inputs, tmp_path).objective.model.eval()
    with torch.no_grad():
        features = model.head_features(image_BCHW, FAMILIES)
        for family in FAMILIES:
            expert = VisionModel.load(tmp_path / family)
            found, expected = features[family], expert(image_BCHW)
            assert torch.equal(found.vector_BD, expected.vector_BD)
            assert all(torch.equal(a, b) for a, b in zip(found.maps, expected.maps, strict=True))
            outputs, own = model.heads[family](found), expert.heads[family](expected)
            assert outputs.keys() == own.keys() and all(torch.equal(outputs[name], own[name]) for name in own)


def test_one_main_expert_with_two_sets_starts_as_that_expert(world, inputs, tmp_path):
    views = {family: View(main="multilabel") for family in FAMILIES}
    config = config_of("central", views=views)
    job = build(config, world, inputs, tmp_path)
    assert job.objective.model.spec.bn_sets == {"multilabel": ("classify", "dense")}
    assert passes_of(job) == config.image_passes == round(3 * 8 * (2 + 1 / 3))
    image_BCHW = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expert = VisionModel.load(tmp_path / "multilabel")
    with torch.no_grad():
        features = job.objective.model.eval().head_features(image_BCHW, FAMILIES)
        assert all(torch.equal(features[family].vector_BD, expert(image_BCHW).vector_BD) for family in FAMILIES)
    before = {name: tensor.clone() for name, tensor in job.objective.model.state_dict().items()}
    train_here(job)
    changed = moved(before, job.objective.model.state_dict())
    # The other expert is a source and nothing else: neither gradients nor weight decay nor statistics touch it.
    assert changed and not any(name.startswith("backbone.experts.depth.") for name in changed)
    assert {name.partition(".sets.")[2].partition(".")[0] for name in changed if ".sets." in name} == {
        "classify",
        "dense",
    }


def test_views_follow_from_the_experts():
    families = ("multilabel", "detect", "segment", "depth")

    def views(experts, **settings):
        joined = {name: name for name in experts}
        return config_of("central", families=families, **settings).resolved_views(joined)

    assert views(families) == {family: View(main=family) for family in families}
    released = views(("multilabel", "detect"))
    assert released == {"multilabel": View(main="multilabel")} | {
        family: View(main="detect") for family in ("detect", "segment", "depth")
    }
    one = views(("multilabel", "detect"), views={"detect": View(main="multilabel", bn_set="boxes")})
    assert one["detect"] == View(main="multilabel", bn_set="boxes")
    assert one["multilabel"] == View(main="multilabel", bn_set="classify") and one["depth"] == View(main="detect")
    alone = views(("detect",), main="detect")
    assert alone["multilabel"] == View(main="detect", bn_set="classify")
    assert alone["depth"] == View(main="detect", bn_set="dense")
    passes = {
        ("multilabel", "detect"): (2, 2),
        families: (4, 4),
    }
    for experts, per_sample in passes.items():
        config = config_of("central", families=families, experts=experts)
        assert config.passes_per_sample == per_sample


def test_learning_rates_of_a_central_model(world, inputs, tmp_path):
    config = config_of("central", transfer_learning_rate_scale=7.0, backbone_learning_rate_scale=0.5)
    job = build(config, world, inputs, tmp_path)
    assert job.learning_rate_scales == {"model.backbone.experts": 0.5, "model.backbone.transfers": 3.5}
    names = [name for name, _ in job.objective.named_parameters()]
    assert all(any(name.startswith(prefix) for name in names) for prefix in job.learning_rate_scales)


def test_squeeze_takes_a_fused_generalist_as_one_more_teacher(world, inputs, tmp_path):
    central = build(config_of("central"), world, inputs, tmp_path / "central").objective.model
    central.save(tmp_path / "fused")
    fused = commit_folder(world.store_root, "generalist", "weights", "fused", tmp_path / "fused")
    job = build(config_of("squeeze", num_steps=1), world, Inputs(inputs | {"fused": (fused,)}), tmp_path)
    assert (job.objective.passes_per_sample, job.objective.forward_passes_per_sample) == (1, 2 + 4)
    (event,) = [event for event in train_here(job) if event["event"] == "step"]
    names = {"multilabel", "depth", "fused-multilabel", "fused-depth"}
    assert {f"distill/{name}" for name in names} <= event["metrics"].keys()
    for family, teacher in zip((*FAMILIES, "fused"), job.objective._teachers, strict=True):
        assert_same(teacher.state_dict(), read_tensors(tmp_path / family))
        assert not teacher.training


@pytest.mark.parametrize("mode", ["joint", "squeeze"])
def test_where_one_backbone_starts(world, inputs, tmp_path, mode):
    backbones = {
        init: build(config_of(mode, init=init), world, inputs, tmp_path / init).objective.model.backbone.state_dict()
        for init in ("amateur", "average", "random")
    }
    assert_same(backbones["amateur"], backbone_tensors(tmp_path / "amateur"))
    experts = [backbone_tensors(tmp_path / family) for family in FAMILIES]
    for name, value in backbones["average"].items():
        if not is_state(name):
            assert torch.allclose(value, (experts[0][name] + experts[1][name]) / 2, atol=1e-6)
    assert moved(backbones["random"], backbones["amateur"]) and moved(backbones["random"], backbones["average"])


def test_joint_from_scratch_needs_neither_amateur_nor_experts(world, tmp_path):
    alone = Inputs({"data": (world.upstream,), "genotype": (world.genotype,)})
    job = build(config_of("joint", init="random"), world, alone, tmp_path)
    assert job.objective.model.spec.genotype == GENOTYPE and set(job.objective.model.heads) == set(FAMILIES)
    with pytest.raises(ConfigError, match="generalist.mode joint: no input amateur to start from; give one"):
        build(config_of("joint"), world, alone, tmp_path)


def test_merges_run_as_stages_without_training(world, inputs, tmp_path):
    store = open_store(world.store_root)
    experts = [backbone_tensors(tmp_path / family) for family in FAMILIES]
    start = backbone_tensors(tmp_path / "amateur")
    small = {"num_statistics_batches": 2, "merge_scales": (0.1, 0.5), "num_validation_images": 8}
    for mode, num_merged in (("average", 1), ("task_arithmetic", 2), ("ties", 2)):
        config = config_of(mode, ties_density=1.0, **small)
        ref = run_stage("generalist", config, inputs)
        record = read_record(store, ref.uri)
        folder = fetch(store, ref, tmp_path / "fetched")
        assert ref.name == f"generalist-{mode}" and set(read_spec(folder).heads) == set(FAMILIES)
        assert record.facts["image_passes"] == round(2 * 8 * num_merged / 3) == config.image_passes
        scale = record.facts.get("merge_scale", 0.5)
        merged = backbone_tensors(folder)
        for name in ("stem.0.weight", "segments.2.0.attention.qkv.weight"):
            changes = [expert[name] - start[name] for expert in experts]
            if mode != "ties":
                expected = start[name] + scale * sum(changes)
                assert torch.allclose(merged[name], expected, atol=1e-5), (mode, name)
            else:
                # Where both changed in one direction it is the mean, else the larger change alone.
                larger = torch.where(changes[0].abs() > changes[1].abs(), *changes)
                same = changes[0] * changes[1] > 0
                expected = start[name] + scale * torch.where(same, sum(changes) / 2, larger)
                assert torch.allclose(merged[name], expected, atol=1e-5)
        for family in FAMILIES:
            own = part(read_tensors(folder), f"heads.{family}.")
            assert_same(own, part(read_tensors(tmp_path / family), f"heads.{family}."))
        statistics = {name for name in merged if "running_" in name}
        assert not statistics & {name for name in merged if torch.equal(merged[name], start[name])}
    # The scale kept is the one with the lowest validation error.
    rows = json.loads((folder / generalist.MERGE_FILE).read_text())
    assert [row["scale"] for row in rows] == [0.1, 0.5]
    best = min(rows, key=lambda row: row["score"])
    assert record.facts["merge_scale"] == best["scale"] and rows[0]["score"] == pytest.approx(1.0)
    errors = family_errors(folder, store, (world.upstream,), cache_dir=tmp_path / "cache", num_images=8, bf16=False)
    assert errors == pytest.approx(best["errors"]) and set(errors) == set(FAMILIES)
    assert relative_score(errors, rows[0]["errors"]) == pytest.approx(best["score"])


def test_a_task_vector_is_measured_from_the_expert_s_own_amateur(world, inputs, tmp_path):
    other = save_backbone(world, tmp_path / "other", seed=5)
    first, second = inputs["experts"]
    experts = (first, second.model_copy(update={"parents": (world.upstream.uri, other.uri)}))
    given = Inputs(inputs | {"amateur": (*inputs["amateur"], other), "experts": experts})
    parts = gather_parts(config_of("task_arithmetic"), world.workspace(tmp_path / "work", **given))
    for vector, start, family in zip(parts.task_vectors(), ("amateur", "other"), FAMILIES, strict=True):
        name = "stem.0.weight"
        expected = backbone_tensors(tmp_path / family)[name] - backbone_tensors(tmp_path / start)[name]
        assert torch.equal(vector[name], expected)


def test_random_weights_run_as_a_stage(world, tmp_path):
    store = open_store(world.store_root)
    folders = []
    for seed in (0, 1):
        config = config_of("random", name="scratch", trainer=trainer_config(seed=seed))
        ref = run_stage("generalist", config, Inputs({"genotype": (world.genotype,)}))
        folders.append(fetch(store, ref, tmp_path))
        assert ref.name == "scratch" and read_record(store, ref.uri).facts["image_passes"] == config.image_passes == 0
    one, other = (VisionModel.load(folder) for folder in folders)
    assert one.spec.genotype == GENOTYPE and not one.heads and moved(one.state_dict(), other.state_dict())


def test_heads_start_from_the_experts_or_afresh(world, inputs, tmp_path):
    job = build(config_of("joint"), world, inputs, tmp_path)
    tensors = job.objective.model.state_dict()
    for family in FAMILIES:
        assert_same(part(tensors, f"heads.{family}."), part(read_tensors(tmp_path / family), f"heads.{family}."))
    fresh = build(config_of("joint", heads_from_experts=False), world, inputs, tmp_path / "fresh")
    assert moved(part(fresh.objective.model.state_dict(), "heads."), part(tensors, "heads."))


def test_frozen_heads_stay(world, inputs, tmp_path):
    job = build(config_of("central", freeze_heads=True), world, inputs, tmp_path)
    before = {name: tensor.clone() for name, tensor in job.objective.model.state_dict().items()}
    train_here(job)
    changed = moved(before, job.objective.model.state_dict())
    assert changed and not {name for name in changed if name.startswith("heads.") and not is_state(name)}


def test_experts_that_do_not_fit_are_named(world, inputs, tmp_path):
    alone = Inputs(inputs | {"experts": inputs["experts"][:1]})
    for mode in ("central", "squeeze", "average"):
        with pytest.raises(ConfigError, match=f"generalist.mode {mode}: no expert for depth; train it first"):
            build(config_of(mode), world, alone, tmp_path)
    assert tuple(build(config_of("joint"), world, alone, tmp_path).objective.model.heads) == FAMILIES
    other = GENOTYPE.with_overrides({"layer_scale_init": 0.5})
    strange = save_backbone(world, tmp_path / "strange", ("depth",), genotype=other)
    wrong = Inputs(inputs | {"experts": (inputs["experts"][0], strange)})
    with pytest.raises(ConfigError, match=r"experts.depth: another architecture than the start \(genotype.layer_scale"):
        build(config_of("joint"), world, wrong, tmp_path)
    with pytest.raises(ConfigError, match="main must be one of multilabel, depth"):
        build(config_of("central", main="detect"), world, inputs, tmp_path)
    with pytest.raises(ConfigError, match="experts: expected families among multilabel, depth, got 'segment'"):
        generalist.Config.from_dict(config_of("central").to_dict() | {"experts": ["segment"]})


def test_experts_of_other_labels_are_refused(world, inputs, tmp_path):
    spec = read_spec(tmp_path / "multilabel")
    task = spec.heads["multilabel"].task
    task = task.model_copy(update={"class_names": ("zebra", *task.class_names[1:])})
    heads = {"multilabel": HeadSpec(task=task, config=HEAD)}
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=32, heads=heads)).save(tmp_path / "zebra")
    zebra = commit_folder(world.store_root, "expert", "weights", "zebra", tmp_path / "zebra")
    wrong = Inputs(inputs | {"experts": (zebra, inputs["experts"][1])})
    with pytest.raises(ConfigError, match=r"experts.multilabel: other labels than the data's \(differing: .*zebra\)"):
        build(config_of("joint"), world, wrong, tmp_path)
