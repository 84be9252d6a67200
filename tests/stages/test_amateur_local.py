import json

import pytest
import torch
from helpers import (
    AUGMENT,
    GENOTYPE,
    HEAD,
    SIZE_PX,
    amateur_config,
    commit_folder,
    save_backbone,
    train_here,
    trainer_config,
)
from toy_training import run_toy, toy_checkpoints

from intern_vision.bench.dense_probe import compare_probes, probe_data
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError, DataError, RetryableError
from intern_vision.events import Progress
from intern_vision.models.vision import VisionModel, read_tensors
from intern_vision.stages import amateur, amateur_local
from intern_vision.stages.base import Inputs, StageContext, fetch, read_record, run_stage
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.store import join_uri, open_store
from intern_vision.track import Tracker
from intern_vision.train.launch import HISTORY_FILE
from intern_vision.train.settings import LocalConfig

LOCAL = LocalConfig(hidden_width=12, projection_width=8, num_prototypes=10)
VIEWS = {"pixpro": 2, "masked": 1, "none": 1}


def config_of(mode, **changes) -> amateur_local.Config:
    settings = {
        "mode": mode,
        "local": LOCAL,
        "trainer": trainer_config(num_steps=3),
        "augment": AugmentConfig(image_size_px=SIZE_PX, num_views=VIEWS[mode]),
        "num_probe_images": 32,
        "probe": trainer_config(num_steps=4, checkpoint_every=0),
        "head": HEAD,
    }
    return amateur_local.Config(**settings | changes)


@pytest.fixture
def amateur_ref(world, tmp_path):
    """Fresh weights with a text tower and the tokenizer, as the amateur stage leaves them."""
    workspace = world.workspace(tmp_path / "amateur-work", data=world.upstream, genotype=world.genotype)
    torch.manual_seed(0)
    amateur.build(amateur_config(), workspace).objective.save(tmp_path / "amateur")
    open_store(world.store_root).get(
        join_uri(world.upstream.uri, TOKENIZER_FILE), tmp_path / "amateur" / TOKENIZER_FILE
    )
    (tmp_path / "amateur" / HISTORY_FILE).write_text("")
    return commit_folder(world.store_root, "amateur", "weights", "fresh", tmp_path / "amateur")


def run(world, config, amateur_ref, folder, name):
    ref = run_stage("amateur_local", config, Inputs(data=(world.upstream,), amateur=(amateur_ref,)), name=name)
    store = open_store(world.store_root)
    return read_record(store, ref.uri), fetch(store, ref, folder)


def test_pixels_of_two_views_are_learned_judged_and_kept_or_not(world, amateur_ref, tmp_path):
    record, folder = run(world, config_of("pixpro"), amateur_ref, tmp_path / "a", "judged")
    assert {"weights.safetensors", "model.json", TOKENIZER_FILE, "acceptance.json"} <= record.files.keys()
    assert record.facts["image_passes"] == 3 * 8 * (2 + 3 / 3) == config_of("pixpro").image_passes
    verdict = json.loads((folder / "acceptance.json").read_text())
    families = ("segment", "depth")
    ratios = [verdict[f"after/{family}"] / verdict[f"before/{family}"] for family in families]
    assert verdict["dense_error_ratio"] == pytest.approx(sum(ratios) / 2)
    drop = verdict["after/multilabel"] - verdict["before/multilabel"]
    assert verdict["classification_drop"] == pytest.approx(drop)
    assert verdict["accepted"] == (sum(ratios) / 2 < 1 and drop <= 0.005)
    assert record.facts["accepted"] == int(verdict["accepted"])
    assert record.facts["probe/dense_error_ratio"] == pytest.approx(verdict["dense_error_ratio"])
    model, before = VisionModel.load(folder), read_tensors(tmp_path / "amateur")
    same = {name: torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()}
    assert model.text is not None and all(value for name, value in same.items() if name.startswith("text.encoder"))
    assert all(same.values()) != verdict["accepted"]


def test_without_a_mode_the_amateur_passes_through(world, amateur_ref, tmp_path):
    record, folder = run(world, config_of("none"), amateur_ref, tmp_path / "a", "through")
    assert record.files.keys() == {"weights.safetensors", "model.json", TOKENIZER_FILE}
    for name in record.files:
        assert (folder / name).read_bytes() == (tmp_path / "amateur" / name).read_bytes()
    assert "accepted" not in record.facts and config_of("none").image_passes == 0


@pytest.mark.parametrize("mode", ["pixpro", "masked"])
def test_a_stopped_training_goes_on_with_its_teacher(world, amateur_ref, tmp_path, mode):
    def job():
        torch.manual_seed(0)
        config = config_of(mode, trainer=trainer_config(num_steps=4, learning_rate=1e-2))
        workspace = world.workspace(tmp_path / "work", data=world.upstream, amateur=amateur_ref)
        return amateur_local.build(config, workspace)

    whole = job()
    losses = [event["metrics"]["loss"] for event in train_here(whole)]
    assert len(losses) == 4
    first = job()
    with pytest.raises(RetryableError, match="stopped at step 2 of 4"):
        run_toy(first, toy_checkpoints(tmp_path), stop_at=2)
    resumed = job()
    run_toy(resumed, toy_checkpoints(tmp_path))
    expected = whole.objective.state_dict()
    for name, tensor in resumed.objective.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5, msg=lambda t, n=name: f"{n}: {t}")
    teacher = {name: value for name, value in expected.items() if name.startswith("teacher.backbone")}
    assert any(not torch.equal(value, job().objective.state_dict()[name]) for name, value in teacher.items())


def test_better_weights_are_told_from_worse(world, amateur_ref, tmp_path):
    """Probes on real features against probes on a backbone that says nothing: the verdict must see it both ways."""
    model = VisionModel.load(tmp_path / "amateur")
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()
    model.save(tmp_path / "blank")
    workspace = world.workspace(tmp_path / "work", data=world.upstream)

    with Tracker.for_stage("probe", tmp_path / "spool") as tracker:
        context = StageContext(
            store=workspace.store,
            store_root=world.store_root,
            output_uri="",
            output_dir=tmp_path,
            scratch_dir=tmp_path,
            cache_dir=workspace.cache_dir,
            tracker=tracker,
            progress=Progress("probe"),
            num_ranks=1,
            inputs=workspace.inputs,
        )
        uri = probe_data(context, (world.flower, world.upstream))
        assert uri == world.upstream.uri
        config = config_of("pixpro", num_probe_images=96, probe=trainer_config(num_steps=40, checkpoint_every=0))
        folders = {"before": tmp_path / "blank", "after": tmp_path / "amateur"}
        better = compare_probes(config, context, uri, **folders)
        worse = compare_probes(config, context, uri, before=folders["after"], after=folders["before"])
        with pytest.raises(DataError, match='flower: no validation images with masks or depth .* mode to "none"'):
            probe_data(context, (world.flower,))
    assert better["dense_error_ratio"] < 1 < worse["dense_error_ratio"] and not worse["accepted"]
    assert better["accepted"] == (better["classification_drop"] <= 0.005)


def test_wrong_settings_and_inputs_are_named(world, tmp_path):
    with pytest.raises(ConfigError, match="augment.num_views must be 2 for mode pixpro, got 1"):
        config_of("pixpro").with_overrides({"augment": AUGMENT.to_dict()})
    with pytest.raises(ConfigError, match="trainer.zero_stage must be at most 2: the momentum teacher"):
        config_of("masked").with_overrides({"trainer": {"zero_stage": 3}})
    plain = save_backbone(world, tmp_path / "plain", genotype=GENOTYPE)
    inputs = Inputs(data=(world.upstream,), amateur=(plain,))
    with pytest.raises(ConfigError, match="has no tokenizer.json; give an amateur's output"):
        run_stage("amateur_local", config_of("masked"), inputs)
    with pytest.raises(ConfigError, match="weights without a text tower; give an amateur's output"):
        amateur_local.build(config_of("masked"), world.workspace(tmp_path / "w", data=world.upstream, amateur=plain))
