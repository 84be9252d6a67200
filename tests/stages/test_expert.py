import pytest
import torch
from helpers import AUGMENT, GENOTYPE, HEAD, save_backbone, train_here, trainer_config

from intern_vision.errors import CheckpointError, DataError
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
    with pytest.raises(CheckpointError, match=r"genotype stem_width: 16 -> 8; use the genotype"):
        model.load_part(tmp_path / "wider", "backbone")


def test_a_family_without_labels_is_refused(world, amateur, tmp_path):
    with pytest.raises(DataError, match="dataset flower has no task depth; it has classify"):
        expert.build(config_of("depth"), world.workspace(tmp_path / "b", data=world.flower, amateur=amateur))
