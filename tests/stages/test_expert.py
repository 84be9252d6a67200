import pytest
import torch
from helpers import AUGMENT, GENOTYPE, HEAD, commit_folder, save_backbone, train_here, trainer_config
from label_parts import make_part

from intern_vision.data.settings import MixtureConfig
from intern_vision.errors import CheckpointError, ConfigError, DataError
from intern_vision.models.vision import VisionModel
from intern_vision.stages import expert
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store

FAMILIES = ("multilabel", "detect", "segment", "depth")


def config_of(family, **settings) -> expert.Config:
    return expert.Config(family=family, trainer=trainer_config(**settings), head=HEAD, augment=AUGMENT)


@pytest.fixture
def amateur(world, tmp_path):
    return save_backbone(world, tmp_path / "amateur")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_from_the_amateur(world, amateur, tmp_path, family):
    job = expert.build(
        config_of(family, num_steps=15, learning_rate=3e-3),
        world.workspace(tmp_path / "work", data=world.upstream, amateur=amateur),
    )
    upstream = VisionModel.load(tmp_path / "amateur")
    for name, tensor in upstream.backbone.state_dict().items():
        assert torch.equal(job.objective.model.backbone.state_dict()[name], tensor), name
    assert list(job.objective.model.heads) == [family]
    losses = [event["metrics"]["loss"] for event in train_here(job)]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_the_stage_commits_weights_that_load(world, amateur, tmp_path):
    ref = run_stage("expert", config_of("depth"), Inputs(data=(world.upstream,), amateur=(amateur,)))
    store = open_store(world.store_root)
    model = VisionModel.load(fetch(store, ref, tmp_path))
    assert ref.name == "expert-depth" and list(model.heads) == ["depth"] and model.spec.genotype == GENOTYPE
    assert read_record(store, ref.uri).facts["image_passes"] == 4 * 8


def test_weights_of_another_genotype_are_refused(world, amateur, tmp_path):
    other = GENOTYPE.with_overrides({"stem_width": 16})
    wider = save_backbone(world, tmp_path / "wider", genotype=other)
    # The weights say what they are, so an expert follows them ...
    job = expert.build(config_of("depth"), world.workspace(tmp_path / "a", data=world.upstream, amateur=wider))
    assert job.objective.model.spec.genotype == other
    # ... but they do not go into a model of another genotype.
    model = VisionModel.load(tmp_path / "amateur")
    with pytest.raises(CheckpointError, match=r"genotype.stem_width: 16 -> 8; use the"):
        model.load_part(tmp_path / "wider", "backbone")


def test_a_family_without_labels_is_refused(world, amateur, tmp_path):
    with pytest.raises(DataError, match="dataset flower has no task depth; it has classify"):
        expert.build(config_of("depth"), world.workspace(tmp_path / "b", data=world.flower, amateur=amateur))


TOYS = {"multilabel": ("round", "toy", "bar"), "segment": ("round", "ground", "background"), "depth": ()}
SIGNS = {"multilabel": ("bar", "star"), "segment": ("background", "star", "bar"), "detect": ("disc", "cross", "arrow")}
HEADS = ["multilabel@toys", "multilabel@signs", "multilabel", "segment@toys", "segment@signs", "segment"]


@pytest.fixture(scope="module")
def parts(made_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    toys = make_part(made_world, folder / "toys", "toys", TOYS, slice(0, 24))
    return toys, make_part(made_world, folder / "signs", "signs", SIGNS, slice(24, 96))


def several(families=("multilabel", "segment"), trainer=(), **settings) -> expert.Config:
    return expert.Config(
        families=families, trainer=trainer_config(**dict(trainer)), head=HEAD, augment=AUGMENT, **settings
    )


def test_datasets_with_different_labels_teach_one_expert(world, parts, amateur, tmp_path):
    config = several(trainer={"num_steps": 25, "learning_rate": 3e-3, "batch_size": 16})
    job = expert.build(config, world.workspace(tmp_path / "work", data=parts, amateur=amateur))
    heads = job.objective.model.spec.heads
    assert list(heads) == HEADS
    assert heads["multilabel"].task.class_names == ("round", "toy", "bar", "star")
    assert heads["segment"].sources == {"toys": TOYS["segment"], "signs": SIGNS["segment"]}
    events = [event["metrics"] for event in train_here(job)]
    for name in HEADS:
        (loss,) = (key for key in events[0] if key.startswith(f"loss/{name}/"))
        assert sum(row[loss] for row in events[-5:]) < sum(row[loss] for row in events[:5]), name


def test_two_ranks_train_on_batches_of_one_dataset_each(world, parts, amateur, tmp_path):
    config = several(("multilabel", "detect", "depth"), heads="per_source", mixture=MixtureConfig(homogeneous=True))
    ref = run_stage("expert", config, Inputs(data=parts, amateur=(amateur,)), num_ranks=2)
    store = open_store(world.store_root)
    model = VisionModel.load(fetch(store, ref, tmp_path))
    assert ref.name == "expert-multilabel-detect-depth"
    assert set(model.heads) == {"multilabel@toys", "multilabel@signs", "detect", "depth"}
    assert model.spec.heads["detect"].sources == {"signs": SIGNS["detect"]}
    facts = read_record(store, ref.uri).facts
    assert facts["num_sources"] == 2 and facts["families"] == "multilabel, detect, depth"
    assert facts["image_passes"] == 4 * 8


def test_heads_come_from_an_earlier_expert_and_stay_frozen(world, parts, amateur, tmp_path):
    inputs = {"data": parts, "amateur": amateur}
    first = expert.build(several(("multilabel",)), world.workspace(tmp_path / "first", **inputs))
    first.objective.save(tmp_path / "earlier")
    earlier = commit_folder(world.store_root, "expert", "weights", "earlier", tmp_path / "earlier")
    config = several(("multilabel",), freeze_heads=("multilabel",), head_learning_rate_scales={"multilabel@toys": 3.0})
    job = expert.build(config, world.workspace(tmp_path / "second", **inputs, experts=earlier))
    assert job.learning_rate_scales == {"model.heads.multilabel@toys.": 3.0}
    saved, model = VisionModel.load(tmp_path / "earlier"), job.objective.model
    for name, tensor in saved.heads.state_dict().items():
        assert torch.equal(model.heads.state_dict()[name], tensor), name
    train_here(job)
    for name, tensor in saved.heads.state_dict().items():
        assert torch.equal(model.heads.state_dict()[name], tensor) == name.startswith("multilabel."), name
    with pytest.raises(ConfigError, match="freeze_heads: head multilabel has no weights yet; give the input experts"):
        expert.build(config, world.workspace(tmp_path / "third", **inputs))
    with pytest.raises(CheckpointError, match="inputs.experts: head multilabel of .* has another label space"):
        expert.build(
            several(("multilabel",)),
            world.workspace(tmp_path / "fourth", **inputs | {"data": parts[1]}, experts=earlier),
        )


def test_a_frozen_backbone_keeps_the_amateurs_weights(world, parts, amateur, tmp_path):
    config = several(("segment",), freeze_backbone=True, task_weights={"segment@toys": 0.5})
    job = expert.build(config, world.workspace(tmp_path / "work", data=parts, amateur=amateur))
    train_here(job)
    for name, tensor in VisionModel.load(tmp_path / "amateur").backbone.state_dict().items():
        assert torch.equal(job.objective.model.backbone.state_dict()[name], tensor), name


def test_an_expert_for_data_of_unknown_scale(world, parts, amateur, tmp_path):
    config = several(("depth",), relative_depth=("toys",))
    job = expert.build(config, world.workspace(tmp_path / "work", data=parts, amateur=amateur))
    losses = train_here(job)[-1]["metrics"]
    assert {"loss/depth/affine", "loss/depth/gradient"} <= losses.keys()
    with pytest.raises(ConfigError, match="relative_depth: expected datasets among toys, got 'signs'"):
        expert.build(
            several(("depth",), relative_depth=("signs",)),
            world.workspace(tmp_path / "other", data=parts, amateur=amateur),
        )


def test_config_faults_are_named():
    plain = {"trainer": trainer_config().to_dict(), "augment": AUGMENT.to_dict()}
    for values, message in (
        ({}, "family: expected either family or families"),
        ({"family": "depth", "families": ["depth"]}, "family: expected either family or families"),
        ({"families": ["depth", "depth"]}, "families: expected each family once, got depth, depth"),
        (
            {"family": "depth", "freeze_backbone": True, "freeze_heads": True},
            "freeze_heads: nothing is left to train",
        ),
        (
            {"family": "depth", "head_learning_rate_scales": {"depth": 0}},
            r"head_learning_rate_scales.depth: expected a number > 0, got 0",
        ),
        ({"family": "depth", "num_frozen_head_steps": 2}, "num_frozen_head_steps: expected freeze_heads beside it"),
        (
            {"family": "depth", "freeze_heads": True, "num_frozen_head_steps": 4},
            "num_frozen_head_steps: expected less than trainer.num_steps 4, got 4, or 0 for all of them",
        ),
        ({"family": "depth", "task_weights": {"depth": -1}}, r"task_weights.depth: expected a number > 0, got -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            expert.Config.from_dict(plain | values)
