import pytest
import torch
from helpers import AUGMENT, GENOTYPE, TEXT, amateur_config, train_here, trainer_config

from intern_vision.data.text import Tokenizer
from intern_vision.data.world_names import SYNONYMS
from intern_vision.errors import CheckpointError, ConfigError, DataError
from intern_vision.models.genotype import NANO
from intern_vision.models.vision import VisionModel, read_spec
from intern_vision.stages import amateur
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.store import open_store
from intern_vision.train.batch_norm import GlobalBatchNorm
from intern_vision.train.launch import HISTORY_FILE
from intern_vision.train.settings import CLIP_SIGNALS


def clip_config(**values) -> amateur.Config:
    settings = {"name": "clip", "trainer": trainer_config(), "signals": CLIP_SIGNALS, "text": TEXT, "augment": AUGMENT}
    return amateur.Config(**settings | values)


def test_clip_is_the_amateur_with_one_signal(world, tmp_path):
    ref = run_stage("amateur", clip_config(), Inputs(data=(world.upstream,), genotype=(world.genotype,)))
    store = open_store(world.store_root)
    record = read_record(store, ref.uri)
    assert record.files.keys() == {"weights.safetensors", "model.json", TOKENIZER_FILE, HISTORY_FILE}
    assert ref.kind == "weights" and ref.parents == (world.upstream.uri, world.genotype.uri)
    assert record.facts["num_steps"] == 4 and record.facts["image_passes"] == 4 * 8
    assert record.facts["steps_per_s"] > 0
    folder = fetch(store, ref, tmp_path)
    model = VisionModel.load(folder)
    assert Tokenizer.load(folder / TOKENIZER_FILE).vocab_size == model.spec.text.vocab_size
    assert model.spec.genotype == GENOTYPE and model.text is not None and not model.heads
    assert float(model.text.scale().detach()) == pytest.approx(1 / 0.07, rel=0.1)


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_all_signals_learn_in_process(world, tmp_path, contrast):
    config = amateur_config(trainer=trainer_config(num_steps=12, learning_rate=3e-3), contrast=contrast)
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


def test_every_zero_stage_trains_alike(world, tmp_path):
    found = []
    for stage in range(4):
        trainer = trainer_config(num_steps=3, learning_rate=3e-3, zero_stage=stage)
        torch.manual_seed(0)
        config = amateur_config(trainer=trainer, log_scale_range=(3.0, 6.0))
        job = amateur.build(config, world.workspace(tmp_path, data=world.upstream, genotype=world.genotype))
        found.append([event["metrics"]["loss"] for event in train_here(job)])
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], abs=1e-4)


def test_the_settings_reach_the_training(world, tmp_path):
    workspace = world.workspace(tmp_path, data=world.upstream, genotype=world.genotype)
    config = amateur_config(log_scale_range=(3.0, 6.0), contrast_masked=False, mask_share=0.4)
    job = amateur.build(config, workspace)
    assert job.objective.log_scale_range == (3.0, 6.0) and not job.objective.contrast_masked
    assert job.transform.mask_share == 0.4 and job.transform.synonyms == SYNONYMS
    assert isinstance(job.objective.model.backbone.stem[1], GlobalBatchNorm)
    plain = amateur.build(clip_config(sync_batch_norm=False), workspace)
    assert plain.transform.mask_share == 0.0
    assert not isinstance(plain.objective.model.backbone.stem[1], GlobalBatchNorm)


def test_views_and_signals_must_agree():
    with pytest.raises(ConfigError, match="augment.num_views must be 2 for these signals, got 1"):
        clip_config().with_overrides({"signals": {"multi_view": 0.5}})
    with pytest.raises(ConfigError, match="log_scale_range must be smallest and largest, got 6 and 3"):
        clip_config().with_overrides({"log_scale_range": [6.0, 3.0]})
    with pytest.raises(ConfigError, match="contrast: expected 'softmax' or 'sigmoid', got .hinge"):
        clip_config().with_overrides({"contrast": "hinge"})


def test_images_without_captions_are_refused(world):
    with pytest.raises(DataError, match="inputs.data: flower: no captions; an amateur needs a dataset of captioned"):
        run_stage("amateur", clip_config(), Inputs(data=(world.flower,)))


def test_damaged_weights_are_refused(world, tmp_path):
    job = amateur.build(clip_config(), world.workspace(tmp_path, data=world.upstream, genotype=world.genotype))
    folder = tmp_path / "saved"
    job.objective.save(folder)
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-10])
    assert read_spec(folder).genotype == GENOTYPE
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        VisionModel.load(folder)
