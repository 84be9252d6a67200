import json

import numpy as np
import pytest
import torch
from helpers import AUGMENT, GENOTYPE, HEAD, SIZE_PX, amateur_config, commit_folder, save_backbone
from sklearn.linear_model import LogisticRegression

from intern_vision.bench.probe import VARIANCE_EPS, fit_probe
from intern_vision.bench.protocol import list_digest, stratified_share
from intern_vision.data.augment import Resize
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.data.world import CONCEPTS, UPSTREAM, render
from intern_vision.errors import ConfigError
from intern_vision.models.vision import VisionModel, best_labelled_dir, read_spec, read_tensors
from intern_vision.stages import adapt, prepare
from intern_vision.stages.base import Inputs, fetch, run_stage
from intern_vision.store import open_store
from intern_vision.train.features import infer
from intern_vision.train.settings import DenseConfig, FineTuneConfig

DENSE = DenseConfig(num_steps_small=3, num_steps_large=4, batch_size=4)
FINE_TUNE = FineTuneConfig(num_steps_small=2, num_steps_large=3, batch_size=8)


def config_of(**settings) -> adapt.Config:
    defaults = {"name": "tiny", "augment": AUGMENT, "precision": "fp32", "dense": DENSE, "head": HEAD}
    return adapt.Config(**defaults | {"fine_tune": FINE_TUNE} | settings)


@pytest.fixture(scope="module")
def sets(made_world):
    """Downstream sets by name."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made_world.environment.items():
            patch.setenv(name, value)
        found = {"flower": made_world.flower}
        for name in ("texture", "det_novel", "seg_night", "depth_room"):
            config = prepare.Config(dataset=name, num_train=40, num_test=12, image_size_px=SIZE_PX)
            found[name] = run_stage("prepare", config, Inputs(), name=name)
    return found


@pytest.fixture
def upstream(world, tmp_path):
    return save_backbone(world, tmp_path / "upstream", ("multilabel",))


def adapted(world, tmp_path, upstream, data, **settings):
    """Folder of the result, and what was written about it."""
    ref = run_stage("adapt", config_of(**settings), Inputs(model=(upstream,), data=(data,)), name="adapt")
    folder = fetch(open_store(world.store_root), ref, tmp_path / "fetched")
    return folder, json.loads((folder / adapt.DETAILS_FILE).read_text())


def source_of(world, data, tmp_path, split="train", fields=("label",)):
    return ShardSource(open_store(world.store_root), data.uri, cache_dir=tmp_path / "cache", split=split, fields=fields)


def backbone_of(folder):
    return {name: tensor for name, tensor in read_tensors(folder).items() if name.startswith("backbone.")}


def same_backbone(folder, other) -> bool:
    one, two = backbone_of(folder), backbone_of(other)
    assert one.keys() == two.keys()
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_shares_are_drawn_as_the_protocol_says(world, tmp_path, upstream, sets):
    folder, details = adapted(world, tmp_path, upstream, sets["flower"], shares=(0.1, 0.5, 1.0))
    source = source_of(world, sets["flower"], tmp_path)
    assert set(details) == {"10", "50", "100"}
    for protocol, share in (("10", 0.1), ("50", 0.5), ("100", 1.0)):
        keys = stratified_share(source.keys, source.labels, share, 2021)
        assert details[protocol]["keys_digest"] == list_digest(keys)
        assert details[protocol]["num_train"] == len(keys) == round(share * 60)
        drawn = [source.labels[source.keys.index(key)] for key in keys]
        assert np.bincount(drawn).tolist() == [len(keys) // 6] * 6
        assert (folder / f"p{protocol}" / "weights.safetensors").exists()
    _, other = adapted(world, tmp_path, upstream, sets["flower"], shares=(0.1,), split_seed=1)
    assert other["10"]["keys_digest"] != details["10"]["keys_digest"]


def test_a_probe_is_logistic_regression_on_the_frozen_pyramid(world, tmp_path, upstream, sets):
    folder, details = adapted(world, tmp_path, upstream, sets["texture"], shares=(1.0,))
    backbone = VisionModel.load(tmp_path / "upstream")
    arrays = {}
    for split in ("train", "test"):
        batches = evaluation_batches(source_of(world, sets["texture"], tmp_path, split), 16, Resize(AUGMENT))
        with torch.no_grad():
            rows = [(infer(backbone, b["image_BCHW"], bf16=False).pooled_pyramid(), b["label_B"]) for b in batches]
        arrays[split] = [torch.cat(column).numpy() for column in zip(*rows, strict=True)]
    (x, labels), (test_x, test_labels) = arrays["train"], arrays["test"]
    mean, std = x.mean(0), np.sqrt(x.var(0) + VARIANCE_EPS)
    reference = LogisticRegression(C=1 / (details["100"]["l2"] * len(x)), max_iter=5000).fit((x - mean) / std, labels)
    expected = reference.predict_proba((test_x - mean) / std)
    model = VisionModel.load(folder / "p100")
    source = source_of(world, sets["texture"], tmp_path, "test")
    scores = [p.scores for p in model.predict([source[i].image for i in range(len(source))])["classify"]]
    assert np.abs(np.stack(scores) - expected).max() < 0.03
    accuracy = (np.argmax(scores, 1) == test_labels).mean()
    assert accuracy == pytest.approx((expected.argmax(1) == test_labels).mean(), abs=1.01 / len(test_labels))
    assert 0 <= details["100"]["validation_accuracy"] <= 1


def test_the_saved_model_is_the_fitted_probe(world, tmp_path, sets):
    save_backbone(world, tmp_path / "upstream", genotype=GENOTYPE.with_overrides({"head_width": 16}))
    quiet = VisionModel.load(tmp_path / "upstream")
    with torch.no_grad():
        quiet.backbone.head[1].weight[:4] = 0.01
    quiet.save(tmp_path / "upstream")
    upstream = commit_folder(world.store_root, "amateur", "weights", "quiet", tmp_path / "upstream")
    config = config_of(shares=(1.0,))
    folder, details = adapted(world, tmp_path, upstream, sets["flower"], shares=(1.0,))
    source = source_of(world, sets["flower"], tmp_path)
    batch = next(evaluation_batches(source, len(source), Resize(AUGMENT)))
    with torch.no_grad():
        x_ND = infer(VisionModel.load(tmp_path / "upstream"), batch["image_BCHW"], bf16=False).pooled_pyramid()
    assert float(x_ND.std(0).min()) < 0.005  # channels that hardly vary must be scaled as they were when fitted
    probe = fit_probe(x_ND.half().float(), batch["label_B"], 6, config.probe)
    assert probe.chosen["l2"] == details["100"]["l2"]
    logits_NK = ((x_ND - probe.mean_D) / probe.std_D) @ probe.weight_KD.T + probe.bias_K
    model = VisionModel.load(folder / "p100")
    with torch.no_grad():
        found_NK = model.heads["classify"](infer(model, batch["image_BCHW"], bf16=False))["logits_BK"]
    torch.testing.assert_close(found_NK, logits_NK, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["flower", "det_novel", "seg_night", "depth_room"])
def test_a_frozen_backbone_stays_that_of_upstream(world, tmp_path, upstream, sets, name):
    folder, details = adapted(world, tmp_path, upstream, sets[name])
    for protocol in ("10", "100"):
        model = VisionModel.load(folder / f"p{protocol}")
        assert same_backbone(folder / f"p{protocol}", tmp_path / "upstream")
        assert len(model.heads) == 1 and model.text is None and model.spec.genotype == GENOTYPE
        if name != "flower":
            assert details[protocol]["num_steps"] == {"10": 3, "100": 4}[protocol]
    one, other = (read_tensors(folder / f"p{protocol}") for protocol in ("10", "100"))
    assert any(not torch.equal(tensor, other[key]) for key, tensor in one.items() if key.startswith("heads."))


@pytest.mark.parametrize("name", ["flower", "depth_room"])
def test_fine_tuning_moves_the_backbone(world, tmp_path, upstream, sets, name):
    recipes = ("frozen", "fine_tuned")
    folder, details = adapted(world, tmp_path, upstream, sets[name], recipes=recipes, shares=(1.0,))
    assert {protocol: detail["method"] for protocol, detail in details.items()} == {
        "100": "frozen",
        "100+ft": "fine_tuned",
    }
    assert same_backbone(folder / "p100", tmp_path / "upstream"), "the frozen model is saved before it is tuned"
    assert not same_backbone(folder / "p100+ft", tmp_path / "upstream")
    assert best_labelled_dir(folder) == folder / "p100+ft"
    tensors = backbone_of(folder / "p100+ft")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    # The first layers move least: their rate is the smallest.
    start = backbone_of(tmp_path / "upstream")
    first = [n for n in tensors if n.startswith("backbone.stem.0")]
    last = [n for n in tensors if "segments.2" in n and n.endswith("weight") and tensors[n].ndim > 1]
    shift = {n: float((tensors[n] - start[n]).abs().max()) for n in (*first, *last)}
    assert max(shift[n] for n in first) < max(shift[n] for n in last)


def test_several_labels_an_image_can_be_adapted_to(world, tmp_path, upstream):
    info = DatasetInfo(name="own", tasks={"multilabel": UPSTREAM.tasks["multilabel"]}, concept_names=CONCEPTS)
    samples = render(UPSTREAM, 5, "train", range(40), SIZE_PX)
    (tmp_path / "own").mkdir()
    write_dataset(samples, info, tmp_path / "own")
    data = commit_folder(world.store_root, "prepare", "dataset", "own", tmp_path / "own")
    folder, details = adapted(world, tmp_path, upstream, data, shares=(0.25,))
    model = VisionModel.load(folder / "p25")
    assert list(model.heads) == ["multilabel"] and details["25"]["num_train"] == 10
    assert same_backbone(folder / "p25", tmp_path / "upstream")
    tuned, _ = adapted(world, tmp_path, upstream, data, shares=(0.25,), recipes=("fine_tuned",))
    assert not same_backbone(tuned / "p25+ft", tmp_path / "upstream")


def test_the_same_work_gives_the_same_bytes(world, tmp_path, upstream, sets):
    inputs = Inputs(model=(upstream,), data=(sets["depth_room"],))
    one, other = (run_stage("adapt", config_of(shares=(0.1,)), inputs, name=name) for name in ("one", "two"))
    assert one.uri != other.uri and one.digest == other.digest


def test_shares_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match=r"shares must lie in \[0, 1\], got 1.5"):
        config_of().with_overrides({"shares": [0.1, 1.5]})
    assert [adapt.protocol_name(share) for share in (0.1, 1.0, 0.125, 0.07)] == ["10", "100", "12.5", "7"]
    assert adapt.protocol_name(0.1, "fine_tuned") == "10+ft"
    for recipes in (["fine_tuned", "frozen"], ["frozen", "frozen"], ["auto", "frozen"], []):
        with pytest.raises(ConfigError, match=f"in this order, or auto alone, got {', '.join(recipes) or 'none'}"):
            config_of().with_overrides({"recipes": recipes})
    with pytest.raises(ConfigError, match="shots must be at least 1, got 0"):
        config_of().with_overrides({"shots": [4, 0]})
    with pytest.raises(ConfigError, match="expected at least one share, or shots, got neither"):
        config_of().with_overrides({"shares": []})


def dense_outputs(model, images_BCHW):
    (head,) = model.heads.values()
    with torch.no_grad():
        return head.eval()(infer(model.eval(), images_BCHW, bf16=False))


@pytest.mark.parametrize(
    ("name", "heads", "donor"),
    [
        ("depth_room", ("multilabel", "segment", "depth"), "depth"),
        ("det_novel", ("detect",), "detect"),
        ("seg_night", ("detect",), "detect"),
        ("seg_night", ("multilabel",), ""),
    ],
)
def test_a_dense_head_starts_from_what_upstream_heads_know(world, tmp_path, sets, name, heads, donor):
    upstream = save_backbone(world, tmp_path / "with-heads", heads)
    inputs = Inputs(model=(upstream,), data=(sets[name],))
    # A rate of almost 0 leaves the start as it was.
    still = DENSE.model_copy(update={"learning_rate": 1e-12})
    ref = run_stage("adapt", config_of(shares=(1.0,), dense=still), inputs, name="adapt")
    model = VisionModel.load(fetch(open_store(world.store_root), ref, tmp_path / "fetched") / "p100")
    (family,) = model.heads
    source = source_of(world, sets[name], tmp_path, fields=())
    images_BCHW = next(evaluation_batches(source, 8, Resize(AUGMENT)))["image_BCHW"]
    own = model.heads[family]
    if not donor:
        assert model.spec.heads[family].config == HEAD
        return
    known = VisionModel.load(tmp_path / "with-heads")
    features = infer(known, images_BCHW, bf16=False)
    torch.testing.assert_close(
        own.pyramid_map(infer(model, images_BCHW, bf16=False)),
        known.heads[donor].eval().pyramid_map(features),
        rtol=1e-3,
        atol=1e-3,
    )
    if name == "depth_room":
        expected = known.heads[donor](features)["log_depth_B1HW"] - np.log(known.heads[donor].task.max_depth_m)
        found = dense_outputs(model, images_BCHW)["log_depth_B1HW"] - np.log(own.task.max_depth_m)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("segmenter", ["deeplab_v3", "upernet"])
def test_a_context_module_is_carried_with_the_features_it_knows(world, tmp_path, sets, segmenter):
    save_backbone(world, tmp_path / "upstream", ("segment",))
    spec = read_spec(tmp_path / "upstream")
    head = spec.heads["segment"].with_overrides({"config": {"segmenter": segmenter}})
    VisionModel(spec.model_copy(update={"heads": {"segment": head}})).save(tmp_path / "upstream")
    upstream = commit_folder(world.store_root, "expert", "weights", f"expert-{segmenter}", tmp_path / "upstream")
    still = DENSE.model_copy(update={"learning_rate": 1e-12})
    folder, _ = adapted(world, tmp_path, upstream, sets["seg_night"], shares=(1.0,), dense=still)
    model, known = VisionModel.load(folder / "p100"), VisionModel.load(tmp_path / "upstream")
    assert not model.spec.heads["segment"].frozen_features
    own, donor = (read.heads["segment"].context.state_dict() for read in (model, known))
    assert own.keys() == donor.keys()
    assert all(torch.allclose(tensor.float(), donor[name].float(), atol=1e-6) for name, tensor in own.items())


def test_what_was_adapted_can_be_adapted_again(world, tmp_path, sets):
    upstream = save_backbone(world, tmp_path / "with-heads", ("depth",))
    folder, _ = adapted(world, tmp_path, upstream, sets["depth_room"], shares=(1.0,))
    again = commit_folder(world.store_root, "adapt", "weights", "adapted", folder / "p100")
    still = DENSE.model_copy(update={"learning_rate": 1e-12})
    inputs = Inputs(model=(again,), data=(sets["depth_room"],))
    ref = run_stage("adapt", config_of(shares=(1.0,), dense=still), inputs, name="again")
    model = VisionModel.load(fetch(open_store(world.store_root), ref, tmp_path / "again") / "p100")
    source = source_of(world, sets["depth_room"], tmp_path, fields=())
    images_BCHW = next(evaluation_batches(source, 8, Resize(AUGMENT)))["image_BCHW"]
    expected = dense_outputs(VisionModel.load(folder / "p100"), images_BCHW)["log_depth_B1HW"]
    # The statistics go on with the few batches of the second adaptation.
    torch.testing.assert_close(dense_outputs(model, images_BCHW)["log_depth_B1HW"], expected, rtol=0.1, atol=0.1)


def test_a_trunk_is_carried_only_where_it_is_asked_for(world, tmp_path, sets):
    upstream = save_backbone(world, tmp_path / "with-heads", ("depth",))
    folders = {}
    for carry in (True, False):
        config = config_of(shares=(1.0,), carry_trunk=carry, head=HEAD.with_overrides({"neck_width": 16}))
        ref = run_stage("adapt", config, Inputs(model=(upstream,), data=(sets["depth_room"],)), name=f"carry-{carry}")
        folders[carry] = VisionModel.load(fetch(open_store(world.store_root), ref, tmp_path / str(carry)) / "p100")
    assert folders[True].spec.heads["depth"].config.neck_width == HEAD.neck_width
    assert folders[False].spec.heads["depth"].config.neck_width == 16


def test_share_0_classifies_by_the_names_of_the_classes(world, tmp_path, sets):
    data = (world.upstream,)
    amateur = run_stage("amateur", amateur_config(), Inputs(data=data, genotype=(world.genotype,)), name="amateur")
    folder, details = adapted(world, tmp_path, amateur, sets["flower"], shares=(0, 1.0))
    assert details["0"] == {"method": "zero_shot", "num_train": 0} and set(details) == {"0", "100"}
    (head,) = VisionModel.load(folder / "p0").heads.values()
    assert head.task.family == "classify" and head.config.embedding_width
    with pytest.raises(ConfigError, match="adapt.shares: 0 needs .* got family depth and weights; leave 0 out"):
        adapted(world, tmp_path, amateur, sets["depth_room"], shares=(0,))


def test_share_0_needs_a_text_tower(world, tmp_path, upstream, sets):
    with pytest.raises(ConfigError, match="got family classify and weights without a text tower"):
        adapted(world, tmp_path, upstream, sets["flower"], shares=(0,))
