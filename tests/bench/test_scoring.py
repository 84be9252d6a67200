import dataclasses
import itertools

import numpy as np
import pytest
import torch
from helpers import AUGMENT, GENOTYPE, HEAD, SIZE_PX

from intern_vision.bench import scoring
from intern_vision.bench.metrics import make_metric
from intern_vision.bench.scoring import metric_of, original_batches, score_head
from intern_vision.data.augment import Resize
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.data.sample import Sample
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads.base import Prediction
from intern_vision.models.vision import ModelSpec, VisionModel
from intern_vision.store import open_store
from intern_vision.task import Task
from intern_vision.train.features import infer
from intern_vision.train.upstream import fields_of, head_specs

TASKS = {
    "classify": Task(family="classify", class_names=("a", "b", "c")),
    "multilabel": Task(family="multilabel", class_names=("k0", "k1")),
    "detect": Task(family="detect", class_names=("a", "b")),
    "segment": Task(family="segment", class_names=("a", "b", "c")),
    "depth": Task(family="depth", max_depth_m=9.0),
}
MIXED_SIZES_PX = ((40, 60), (SIZE_PX, SIZE_PX), (20, 24), (75, 33))


def sample_of(index, size_px):
    rng = np.random.default_rng(index)
    height, width = size_px
    coarse = rng.integers(0, 3, (4, 4)).astype(np.uint8)
    mask = np.kron(coarse, np.ones((20, 20), np.uint8))[:height, :width]
    mask[:2] = 255
    image = np.stack([mask * 80, rng.integers(0, 256, size_px), np.full(size_px, 90)], -1).astype(np.uint8)
    corners = rng.integers(0, min(size_px) // 2, (3, 2))
    return Sample(
        key=f"s{index:03d}",
        split="test",
        image=image,
        label=index % 3,
        concepts=(index % 2,),
        boxes=np.concatenate([corners, corners + rng.integers(4, 9, (3, 2))], 1).astype(np.float32),
        box_labels=np.arange(3) % 2,
        box_attributes={"difficult": np.array([0, 1, 0], np.float32)},
        mask=mask,
        depth=rng.uniform(0, 9, size_px).astype(np.float32),
    )


def opened(folder, sizes_px, families, metric="", num_images=10):
    info = DatasetInfo(name="mixed", tasks=TASKS, concept_names=("k0", "k1"), metric=metric)
    samples = (sample_of(index, sizes_px[index % len(sizes_px)]) for index in range(num_images))
    write_dataset(samples, info, folder / "data", lossless=True)
    uri = (folder / "data").as_uri()
    return ShardSource(open_store(uri), uri, cache_dir=folder / "cache", fields=fields_of(families))


def model_of(info, families):
    torch.manual_seed(0)
    spec = ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=head_specs(info, families, HEAD))
    return VisionModel(spec).eval()


def by_stretched_targets(model, head, source):
    """The score where targets are stretched with the image and a batch is scored at once."""
    metric = head.metric()
    for batch in evaluation_batches(source, 4, Resize(AUGMENT, num_concepts=2)):
        metric.update(head.predict(head(infer(model, batch["image_BCHW"], bf16=False)), (SIZE_PX, SIZE_PX)), batch)
    return metric.compute()


@torch.inference_mode()
def test_images_of_the_models_own_size_score_exactly_as_stretched_ones(tmp_path):
    source = opened(tmp_path, [(SIZE_PX, SIZE_PX)], tuple(TASKS))
    model = model_of(source.info, tuple(TASKS))
    for family, head in model.heads.items():
        scores, kept = score_head(model, head, source, batch_size=4, bf16=False, num_kept=3)
        assert scores == by_stretched_targets(model, head, source), family
        assert len(kept) == 3


@torch.inference_mode()
@pytest.mark.parametrize("family", ["segment", "depth"])
def test_a_score_is_of_what_is_served_against_what_was_annotated(tmp_path, family):
    source = opened(tmp_path, MIXED_SIZES_PX, (family,))
    model = model_of(source.info, (family,))
    samples = [source[index] for index in range(len(source))]
    served = model.predict([sample.image for sample in samples])[family]
    metric = make_metric(TASKS[family])
    for prediction, sample in zip(served, samples, strict=True):
        truth = {"mask_BHW": sample.mask[None]} if family == "segment" else {"depth_BHW": sample.depth[None]}
        metric.update([prediction], truth)
    scores, kept = score_head(model, model.heads[family], source, batch_size=3, bf16=False, num_kept=4)
    assert scores == pytest.approx(metric.compute(), rel=1e-6)
    assert scores["error"] != pytest.approx(by_stretched_targets(model, model.heads[family], source)["error"], rel=1e-3)
    maps = [prediction.mask if family == "segment" else prediction.depth for prediction in kept]
    assert [values.shape for values in maps] == list(MIXED_SIZES_PX)


def test_boxes_are_compared_in_original_pixels(tmp_path, monkeypatch):
    source = opened(tmp_path, MIXED_SIZES_PX, ("detect",), metric="voc_ap50")
    model = model_of(source.info, ("detect",))
    samples = [source[index] for index in range(len(source))]
    rows = iter(samples)

    def true_boxes(outputs, image_size_px):
        """The true boxes where the stretched image has them, of falling scores."""
        found = []
        for sample in itertools.islice(rows, len(next(iter(outputs.values())))):
            height, width = sample.image.shape[:2]
            factor = np.array([image_size_px[1] / width, image_size_px[0] / height] * 2, np.float32)
            scores = np.array([0.9, 0.8, 0.7], np.float32)
            found.append(Prediction(boxes=sample.boxes * factor, scores=scores, labels=sample.box_labels))
        return found

    monkeypatch.setattr(model.heads["detect"], "predict", true_boxes)
    scores, kept = score_head(model, model.heads["detect"], source, batch_size=3, bf16=False, num_kept=10)
    assert scores == {"error": 0, "voc_ap50": 1, "voc_ap50_area": 1}
    for prediction, sample in zip(kept, samples, strict=True):
        np.testing.assert_allclose(prediction.boxes, sample.boxes, rtol=1e-5)


def test_the_dataset_chooses_the_metric_of_its_family(tmp_path):
    source = opened(tmp_path, MIXED_SIZES_PX, ("classify", "detect"), metric="voc_ap50")
    model = model_of(source.info, ("classify", "detect"))
    scores, _ = score_head(model, model.heads["detect"], source, bf16=False)
    assert set(scores) == {"error", "voc_ap50", "voc_ap50_area"}
    assert "top1" in score_head(model, model.heads["classify"], source, bf16=False)[0]
    info = DatasetInfo(name="odd", metric="accuracy")
    with pytest.raises(ConfigError, match="metric: expected one of .* got 'accuracy'"):
        metric_of(info, TASKS["classify"])


def test_attributes_of_boxes_reach_the_metric(tmp_path):
    source = opened(tmp_path, MIXED_SIZES_PX, ("detect",), metric="voc_ap50")
    metric = metric_of(source.info, TASKS["detect"])
    nothing = Prediction(boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, np.int64))
    for batch, targets in original_batches(source, SIZE_PX, 4):
        assert "boxes_BN4" not in batch and len(targets) == len(batch["keys"])
        for target in targets:
            metric.update([nothing], target)
    state = metric.state()
    assert state["true_attributes_GA"][:, metric.ATTRIBUTES.index("difficult")].tolist() == [0, 1, 0] * 10
    samples = [sample_of(index, MIXED_SIZES_PX[index % 4]) for index in range(10)]
    np.testing.assert_array_equal(state["true_boxes_G4"], np.concatenate([sample.boxes for sample in samples]))


def test_an_image_without_boxes_is_named(tmp_path):
    samples = [sample_of(index, (40, 60)) for index in range(3)]
    samples[1] = dataclasses.replace(samples[1], boxes=None, box_labels=None, box_attributes={})
    samples[2] = dataclasses.replace(
        samples[2], boxes=np.zeros((0, 4), np.float32), box_labels=np.zeros(0, np.int64), box_attributes={}
    )
    write_dataset(samples, DatasetInfo(name="odd", tasks=TASKS, concept_names=("k0", "k1")), tmp_path / "data")
    uri = (tmp_path / "data").as_uri()
    source = ShardSource(open_store(uri), uri, cache_dir=tmp_path / "cache", fields=("boxes", "box_labels"))
    model = model_of(source.info, ("detect",))
    with pytest.raises(DataError, match="^sample s001: expected boxes, got no such field"):
        score_head(model, model.heads["detect"], source, bf16=False)
    options = {"cache_dir": tmp_path / "cache", "fields": ("boxes", "box_labels"), "keys": ["s000", "s002"]}
    rest = ShardSource(open_store(uri), uri, **options)
    assert "ap50" in score_head(model, model.heads["detect"], rest, bf16=False)[0]


def test_large_maps_make_smaller_batches_and_are_let_go_of(tmp_path, monkeypatch):
    source = opened(tmp_path, [(40, 60)], ("segment", "depth"))
    num_bytes = 40 * 60 * (1 + 4)
    monkeypatch.setattr(scoring, "MAX_TARGET_BYTES", 3 * num_bytes + 1)
    held = []
    make = scoring.OriginalTargets
    monkeypatch.setattr(
        scoring, "OriginalTargets", lambda *args, **kwargs: held.append(make(*args, **kwargs)) or held[0]
    )
    sizes = [len(batch["keys"]) for batch, _ in original_batches(source, SIZE_PX, 8)]
    assert sizes == [3, 3, 3, 1]
    assert held[0]._kept == {}
    monkeypatch.setattr(scoring, "MAX_TARGET_BYTES", 1)
    assert [len(batch["keys"]) for batch, _ in original_batches(source, SIZE_PX, 8)] == [1] * 10


@pytest.mark.parametrize("family", TASKS)
def test_every_family_has_an_interval(tmp_path, family):
    source = opened(tmp_path, MIXED_SIZES_PX, (family,))
    model = model_of(source.info, (family,))
    scores, _ = score_head(model, model.heads[family], source, bf16=False, num_resamples=25)
    plain, _ = score_head(model, model.heads[family], source, bf16=False)
    assert scores["error_low"] <= scores["error_high"]
    assert {name: value for name, value in scores.items() if not name.startswith("error_")} == plain
