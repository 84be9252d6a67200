"""Protocols and methods of adaptation beside the frozen head; the stage's basics are in ``test_adapt``."""

import json

import pytest
import torch
from helpers import AUGMENT, HEAD, SIZE_PX, commit_folder, save_backbone

from intern_vision.bench.protocol import few_shot, list_digest
from intern_vision.bench.scores import SCORES_FILE
from intern_vision.data import loader
from intern_vision.data.loader import ShardSource
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.data.world import UPSTREAM, render
from intern_vision.errors import ConfigError, DataError
from intern_vision.models.quantised import QuantisedAutoencoder
from intern_vision.models.vision import VisionModel, best_labelled_dir, read_tensors
from intern_vision.stages import adapt, evaluate
from intern_vision.stages.base import Inputs, fetch, run_stage
from intern_vision.store import open_store
from intern_vision.task import Task
from intern_vision.train import adaptation
from intern_vision.train.settings import (
    CodebookConfig,
    DenseConfig,
    EnsembleConfig,
    FineTuneConfig,
    LoraConfig,
    MultiStageConfig,
    ProbeConfig,
    SgdProbeConfig,
)

SETTINGS = {
    "name": "tiny",
    "augment": AUGMENT,
    "precision": "fp32",
    "head": HEAD,
    "dense": DenseConfig(num_steps_small=2, num_steps_large=2, batch_size=4),
    "fine_tune": FineTuneConfig(num_steps_small=2, num_steps_large=3, batch_size=8, layer_decay=1.0),
    "lora": LoraConfig(num_steps_small=2, num_steps_large=3, batch_size=8, rank=2, learning_rate=1e-2),
    "probe": ProbeConfig(num_splits=1, l2_grid=(0.01, 0.1), sgd=SgdProbeConfig(num_steps=20, batch_size=32)),
    "shares": (0.5,),
}


@pytest.fixture
def upstream(world, tmp_path):
    return save_backbone(world, tmp_path / "upstream", ("multilabel",))


@pytest.fixture
def adapted(world, tmp_path, upstream):
    """Adapts to ``flower``, or to the data given; the result's folder and what was written about it."""

    def of(data=None, codebook=None, model=None, **settings):
        inputs = Inputs(model=(model or upstream,), data=(data or world.flower,))
        if codebook is not None:
            inputs["codebook"] = (codebook,)
        ref = run_stage("adapt", adapt.Config(**SETTINGS | settings), inputs, name="adapt")
        folder = fetch(open_store(world.store_root), ref, tmp_path / "fetched")
        return folder, json.loads((folder / adapt.DETAILS_FILE).read_text())

    return of


def dataset_of(world, folder, samples, tasks):
    folder.mkdir()
    write_dataset(samples, DatasetInfo(name="own", tasks=tasks), folder)
    return commit_folder(world.store_root, "prepare", "dataset", f"own-{folder.name}", folder)


def weights_below(folder, part):
    return {name: tensor for name, tensor in read_tensors(folder).items() if name.startswith(part)}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_few_shot_draws_and_neighbours(world, tmp_path, adapted):
    folder, details = adapted(shares=(0.5,), shots=(1, 2), shot_seeds=2, knn=True)
    draws = ("50", "1shot.0", "1shot.1", "2shot.0", "2shot.1")
    assert list(details) == [f"{draw}{suffix}" for draw in draws for suffix in ("", "+knn")]
    assert [detail["num_train"] for detail in details.values()] == [30, 30, 6, 6, 6, 6, 12, 12, 12, 12]
    source = ShardSource(
        open_store(world.store_root), world.flower.uri, cache_dir=tmp_path, split="train", fields=("label",)
    )
    for seed in range(2):
        drawn = few_shot(source.keys, source.labels, 2, 2021 + seed)
        assert details[f"2shot.{seed}"]["keys_digest"] == list_digest(drawn)
    nearest = VisionModel.load(folder / "p50+knn")
    assert nearest.spec.heads["classify"].config.num_examples == 30
    # Known images are their own nearest neighbours: where one votes alone, all of them are right.
    one, _ = adapted(shares=(1.0,), knn=True, probe=ProbeConfig(num_neighbours=1, num_splits=1, l2_grid=(0.1,)))
    guesses = VisionModel.load(one / "p100+knn").predict([source[row].image for row in range(60)])["classify"]
    assert [guess.label for guess in guesses] == source.labels
    assert best_labelled_dir(folder) == folder / "p50"


@pytest.mark.parametrize("method", ["ridge", "sgd", "auto"])
def test_another_probe_is_served_as_it_was_fitted(adapted, method):
    folder, details = adapted(method=method)
    detail = details["50"]
    assert detail["probe"] == {"auto": "lbfgs"}.get(method, method) and 0 <= detail["validation_accuracy"] <= 1
    assert bool(detail.get("probe_reason")) == (method == "auto")
    weight = read_tensors(folder / "p50")["heads.classify.linear.weight"]
    assert torch.isfinite(weight).all() and float(weight.abs().max()) > 0


def test_features_are_computed_once_a_model_and_dataset(world, tmp_path, monkeypatch, adapted):
    made = []
    compute = adaptation.cache_features
    monkeypatch.setattr(
        adaptation, "cache_features", lambda *args, **settings: made.append(settings) or compute(*args, **settings)
    )
    other = save_backbone(world, tmp_path / "other", seed=5)
    first, _ = adapted(shares=(0.1, 1.0), model=other)
    assert len(made) == 1
    second, _ = adapted(shares=(0.1, 1.0), model=other, method="ridge")
    assert len(made) == 1, "another probe reads what is there"
    assert same(weights_below(first / "p10", "backbone."), weights_below(second / "p10", "backbone."))
    # The same backbone with other heads is the same backbone; other weights, images, sizes and precisions are not.
    adapted(shares=(0.1, 1.0), model=save_backbone(world, tmp_path / "headless", ("depth",), seed=5))
    same_backbones = len(made)
    adapted(shares=(0.1, 1.0), model=save_backbone(world, tmp_path / "third", seed=6))
    adapted(shares=(0.1,), model=other)
    adapted(shares=(0.1, 1.0), model=other, precision="bf16")
    adapted(shares=(0.1, 1.0), model=other, augment=AUGMENT.model_copy(update={"image_size_px": 2 * SIZE_PX}))
    assert len(made) == same_backbones + 4 and made[-3]["num_images"] == 6


def test_only_training_images_are_opened(world, monkeypatch, adapted):
    seen = set()
    read = loader.ShardSource.__getitem__

    def spy(self, index):
        seen.add(self.splits[index])
        return read(self, index)

    monkeypatch.setattr(loader.ShardSource, "__getitem__", spy)
    adapted(recipes=("frozen", "fine_tuned", "ensemble"), method="sgd", knn=True, shots=(1,), split_seed=77)
    assert seen == {"train"}


def test_adapters_are_merged_into_plain_weights(tmp_path, adapted):
    folder, details = adapted(recipes=("frozen", "lora"))
    start = weights_below(tmp_path / "upstream", "backbone.")
    found = weights_below(folder / "p50+lora", "backbone.")
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, start[name])}
    assert changed and all(name.endswith("weight") and found[name].ndim > 1 for name in changed)
    assert any("attention" in name for name in changed) and any("stem.0" in name for name in changed)
    assert 0 < details["50+lora"]["trainable_share"] < 0.5 and details["50+lora"]["rank"] == 2
    assert same(start, weights_below(folder / "p50", "backbone."))


def test_each_recipe_gives_what_it_gives_alone(adapted):
    together, _ = adapted(recipes=("frozen", "lora", "fine_tuned"))
    alone, _ = adapted(recipes=("fine_tuned",))
    assert same(read_tensors(together / "p50+ft"), read_tensors(alone / "p50+ft"))
    fresh = SETTINGS["fine_tune"].model_copy(update={"from_probe": False})
    scratch, _ = adapted(recipes=("fine_tuned",), fine_tune=fresh)
    assert not same(read_tensors(scratch / "p50+ft"), read_tensors(alone / "p50+ft"))


def test_an_ensemble_lies_between_frozen_and_fine_tuned(adapted):
    recipes = ("frozen", "fine_tuned", "ensemble")
    folder, details = adapted(recipes=recipes, ensemble=EnsembleConfig(alphas=(0.25,)))
    frozen, tuned, between = (read_tensors(folder / f"p50{suffix}") for suffix in ("", "+ft", "+wise"))
    for name in ("heads.classify.linear.weight", "backbone.stem.0.weight"):
        torch.testing.assert_close(between[name], 0.75 * frozen[name] + 0.25 * tuned[name])
    assert details["50+wise"]["alpha"] == 0.25 and details["50+wise"]["num_held_out"] == 8
    assert list(details["50+wise"]["held_out_errors"]) == ["0.25"]
    # Statistics are measured for the weights between, not mixed.
    mean = "backbone.stem.1.running_mean"
    assert not torch.allclose(between[mean], 0.75 * frozen[mean] + 0.25 * tuned[mean])
    ends, details = adapted(recipes=recipes, ensemble=EnsembleConfig(alphas=(0.0, 1.0)))
    chosen = {0.0: "p50", 1.0: "p50+ft"}[details["50+wise"]["alpha"]]
    assert same(read_tensors(ends / "p50+wise"), read_tensors(ends / chosen))


def test_an_ensemble_without_images_to_hold_out_takes_the_middle(adapted):
    _, details = adapted(recipes=("ensemble",), shares=(0.1,))
    assert details["10+wise"]["alpha"] == 0.5 and details["10+wise"]["num_held_out"] == 0


@pytest.fixture
def codebook(world, tmp_path):
    torch.manual_seed(0)
    QuantisedAutoencoder(CodebookConfig(image_size_px=SIZE_PX, levels=(4, 4), width=8)).save(tmp_path / "codebook")
    return commit_folder(world.store_root, "represent", "weights", f"book-{tmp_path.name}", tmp_path / "codebook")


def test_every_stage_of_multi_stage_fine_tuning_can_be_switched(adapted, codebook):
    found = {}
    for stages in (("probe", "represented", "original"), ("represented", "original"), ("represented",), ("original",)):
        settings = {"recipes": ("multi_stage",), "multi_stage": MultiStageConfig(stages=stages)}
        folder, details = adapted(codebook=codebook, **settings)
        assert details["50+mf"]["stages"] == list(stages) and details["50+mf"]["num_steps"] == 3
        found[stages] = read_tensors(folder / "p50+mf")
    tensors = list(found.values())
    assert not any(same(one, other) for at, one in enumerate(tensors) for other in tensors[at + 1 :])
    # Without the codebook's stage it is fine-tuning from the frozen head, step for step.
    plain, _ = adapted(recipes=("multi_stage",), multi_stage=MultiStageConfig(stages=("probe", "original")))
    tuned, _ = adapted(recipes=("fine_tuned",))
    assert same(read_tensors(plain / "p50+mf"), read_tensors(tuned / "p50+ft"))


def test_what_does_not_fit_is_one_line(world, tmp_path, adapted):
    with pytest.raises(ConfigError, match="inputs.codebook: recipe multi_stage needs the output of a represent stage"):
        adapted(recipes=("multi_stage",))
    with pytest.raises(ConfigError, match="stages: expected some of probe, represented, original in this order, one"):
        MultiStageConfig().with_overrides({"stages": ["probe"]})
    depth = dataset_of(
        world, tmp_path / "depth", render(UPSTREAM, 5, "train", range(6), SIZE_PX), {"depth": UPSTREAM.tasks["depth"]}
    )
    with pytest.raises(ConfigError, match="adapt.knn: true is for classification, got a dataset of family depth; use"):
        adapted(depth, knn=True)
    with pytest.raises(ConfigError, match="adapt.method: ridge is for classification, got a dataset of family depth"):
        adapted(depth, method="ridge")


def test_a_class_without_a_training_image_is_named(world, tmp_path, adapted):
    samples = list(render(UPSTREAM, 5, "train", range(8), SIZE_PX))
    for index, sample in enumerate(samples):
        sample.label = index % 2
    tasks = {"classify": Task(family="classify", class_names=("cat", "dog", "emu", "fox"))}
    data = dataset_of(world, tmp_path / "gap", samples, tasks)
    with pytest.raises(DataError, match=r"own: class 'emu' has no training image \(2 classes have none\); add one"):
        adapted(data)


def test_strata_of_a_dataset_balance_a_dense_draw(world, tmp_path, adapted):
    samples = list(render(UPSTREAM, 5, "train", range(20), SIZE_PX))
    for index, sample in enumerate(samples):
        sample.stratum = "drive-a" if index < 16 else "drive-b"
    data = dataset_of(world, tmp_path / "drives", samples, {"depth": UPSTREAM.tasks["depth"]})
    source = ShardSource(open_store(world.store_root), data.uri, cache_dir=tmp_path, split="train", fields=("depth",))
    draws = adapt.draws_of(adapt.Config(**SETTINGS | {"shares": (0.25,)}), source, UPSTREAM.tasks["depth"])
    strata = dict(zip(source.keys, source.strata, strict=True))
    assert sorted(strata[key] for key in draws[0].keys) == ["drive-a"] * 4 + ["drive-b"]


def test_auto_says_what_it_chose_and_why(adapted):
    folder, details = adapted(recipes=("auto",), method="auto", shares=(0.1, 1.0), shots=(2,), shot_seeds=1)
    assert {protocol: detail["method"] for protocol, detail in details.items()} == {
        "10": "frozen",
        "100+wise": "ensemble",
        "2shot.0": "frozen",
    }
    assert details["10"]["reason"].startswith("6 images are too few")
    assert details["100+wise"]["reason"].startswith("60 images, fewer than 100: held-out images decide")
    assert details["100+wise"]["probe_reason"].startswith("10 images a class")
    assert best_labelled_dir(folder) == folder / "p100+wise"


def test_every_protocol_is_scored(world, tmp_path, upstream):
    recipes = ("frozen", "lora", "fine_tuned", "ensemble")
    config = adapt.Config(**SETTINGS | {"recipes": recipes, "shots": (1,), "shot_seeds": 1, "knn": True})
    inputs = Inputs(model=(upstream,), data=(world.flower,))
    model = run_stage("adapt", config, inputs, name="adapt")
    settings = evaluate.Config(model_name="tiny", precision="fp32", num_examples=0)
    scored = run_stage("evaluate", settings, Inputs(model=(model,), data=(world.flower,)), name="evaluate")
    text = (fetch(open_store(world.store_root), scored, tmp_path) / SCORES_FILE).read_text()
    protocols = json.loads(text)["protocols"]
    suffixes = ("", "+lora", "+ft", "+wise", "+knn")
    assert set(protocols) == {f"{draw}{suffix}" for draw in ("50", "1shot.0") for suffix in suffixes}
    assert all(0 <= score["error"] <= 1 and score["num_test"] == 24 for score in protocols.values())
    assert protocols["50+knn"]["method"] == "knn" and protocols["1shot.0+ft"]["num_train"] == 6


@pytest.mark.parametrize("recipe", ["lora", "fine_tuned", "multi_stage"])
def test_a_dense_task_takes_every_recipe_from_a_carried_or_a_fresh_head(world, tmp_path, adapted, recipe):
    samples = list(render(UPSTREAM, 5, "train", range(12), SIZE_PX))
    data = dataset_of(world, tmp_path / "dense", samples, {"detect": UPSTREAM.tasks["detect"]})
    model = save_backbone(world, tmp_path / "with-heads", ("detect",))
    fresh = SETTINGS["fine_tune"].model_copy(update={"from_probe": False})
    stages = MultiStageConfig(stages=("original",))
    folder, details = adapted(data, model=model, recipes=(recipe,), fine_tune=fresh, multi_stage=stages)
    (protocol,) = details
    start = weights_below(tmp_path / "with-heads", "backbone.")
    tensors = read_tensors(folder / f"p{protocol}")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert not same(start, {name: tensors[name] for name in start})
