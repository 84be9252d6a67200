import pytest
import torch
from helpers import AUGMENT, GENOTYPE, TEXT, amateur_config, train_here, trainer_config

from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.models.genotype import NANO
from intern_vision.models.vision import VisionModel, read_spec
from intern_vision.stages import amateur
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store
from intern_vision.train.launch import HISTORY_FILE
from intern_vision.train.settings import SignalWeights

CLIP = SignalWeights(image_text=1.0, multi_view=0.0, image_self=0.0, text_self=0.0, neighbour=0.0)


def clip_config(**values) -> amateur.Config:
    settings = {"name": "clip", "trainer": trainer_config(), "signals": CLIP, "text": TEXT, "augment": AUGMENT}
    return amateur.Config(**settings | values)


def test_clip_is_the_amateur_with_one_signal(world, tmp_path):
    ref = run_stage("amateur", clip_config(), Inputs(data=(world.upstream,), genotype=(world.genotype,)))
    store = open_store(world.store_root)
    record = read_record(store, ref.uri)
    assert record.files.keys() == {"weights.safetensors", "model.json", HISTORY_FILE}
    assert ref.kind == "weights" and ref.parents == (world.upstream.uri, world.genotype.uri)
    assert record.facts["num_steps"] == 4 and record.facts["image_passes"] == 4 * 8
    assert record.facts["steps_per_s"] > 0
    model = VisionModel.load(fetch(store, ref, tmp_path))
    assert model.spec.genotype == GENOTYPE and model.text is not None and not model.heads
    assert float(model.text.scale().detach()) == pytest.approx(1 / 0.07, rel=0.1)


def test_all_signals_learn_in_process(world, tmp_path):
    config = amateur_config(trainer=trainer_config(num_steps=12, learning_rate=3e-3))
    job = amateur.build(config, world.workspace(tmp_path, data=world.upstream, genotype=world.genotype))
    losses = [event["metrics"]["loss"] for event in train_here(job)]
    assert losses[-1] < losses[0]
    assert int(job.objective.queue.next_row) == 12 * 2 * 8 % 64


def test_without_a_search_the_backbone_is_nano(world, tmp_path):
    job = amateur.build(clip_config(), world.workspace(tmp_path, data=world.upstream))
    assert job.objective.model.spec.genotype == NANO


def test_the_seed_decides_the_first_weights(world, tmp_path):
    # One step at a rate too small to matter, so that what is saved is what training began with.
    config = clip_config(trainer=trainer_config(num_steps=1, learning_rate=1e-30, seed=7))
    ref = run_stage("amateur", config, Inputs(data=(world.upstream,), genotype=(world.genotype,)), name="seeded")
    found = VisionModel.load(fetch(open_store(world.store_root), ref, tmp_path / "fetched")).state_dict()
    workspace = world.workspace(tmp_path / "work", data=world.upstream, genotype=world.genotype)
    for seed, is_same in ((7, True), (0, False)):
        torch.manual_seed(seed)
        expected = amateur.build(config, workspace).objective.model.state_dict()
        assert torch.equal(found["backbone.stem.0.weight"], expected["backbone.stem.0.weight"]) == is_same


def test_views_and_signals_must_agree():
    with pytest.raises(ConfigError, match="augment.num_views must be 2 for these signals, got 1"):
        clip_config().with_overrides({"signals": {"multi_view": 0.5}})


def test_damaged_weights_are_refused(world, tmp_path):
    job = amateur.build(clip_config(), world.workspace(tmp_path, data=world.upstream, genotype=world.genotype))
    folder = tmp_path / "saved"
    job.objective.save(folder)
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-10])
    assert read_spec(folder).genotype == GENOTYPE
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        VisionModel.load(folder)
