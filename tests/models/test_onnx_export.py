import json
import sys

import numpy as np
import pytest
import torch
from helpers import GENOTYPE, SIZE_PX

from intern_vision.errors import ConfigError, TrainingError
from intern_vision.heads import HeadConfig
from intern_vision.models import onnx_export
from intern_vision.models.public_backbones import PublicBackbone
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task, View

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NAMES = ("ant", "bee")
TASKS = {
    "classify": Task(family="classify", class_names=NAMES),
    "multilabel": Task(family="multilabel", class_names=NAMES),
    "detect": Task(family="detect", class_names=NAMES),
    "segment": Task(family="segment", class_names=NAMES),
    "depth": Task(family="depth", max_depth_m=10.0),
}


def model_of(families, head=None, **spec):
    """Random weights and statistics: fresh ones hide whole branches behind scales of zero."""
    torch.manual_seed(0)
    config = HeadConfig(neck_width=8, **(head or {}))
    heads = {name: HeadSpec(task=TASKS[name], config=config, frozen_features=True) for name in families}
    model = VisionModel(ModelSpec(heads=heads, **spec))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.named_buffers():
            if name.endswith(("running_var", "var_C")):
                tensor *= 0.5 + torch.rand(tensor.shape, generator=generator)
            elif name.endswith(("running_mean", "mean_C")):
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    return model


def check(model, path, families):
    """The file against the model's own predictions, on other images than those the export looked at."""
    written = onnx_export.export_onnx(model, path)
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("image_BCHW", "tensor(uint8)")
    assert [output.name for output in session.get_outputs()] == list(written.outputs)
    told = json.loads(session.get_modelmeta().custom_metadata_map[onnx_export.METADATA_KEY])
    assert {name: Task.from_dict(task) for name, task in told.items()} == {name: TASKS[name] for name in families}
    size_px = model.spec.image_size_px
    for batch in (1, 2, 5):
        image = np.random.default_rng(batch).integers(0, 256, (batch, 3, size_px, size_px), dtype=np.uint8)
        got = dict(zip(written.outputs, session.run(None, {"image_BCHW": image}), strict=True))
        assert all(value.shape == (batch, *written.outputs[name]) for name, value in got.items())
        with torch.inference_mode():
            for name, features in model.head_features(torch.from_numpy(image), list(families)).items():
                for key, value in model.heads[name](features).items():
                    np.testing.assert_allclose(got[f"{name}.{key}"], value, atol=1e-4, rtol=1e-4)
    assert written.max_difference <= 1e-4 and written.num_bytes == path.stat().st_size
    return written


def test_metanet_with_a_head_of_every_family(tmp_path):
    model = model_of(TASKS, genotype=GENOTYPE, image_size_px=SIZE_PX)
    written = check(model, tmp_path / "model.onnx", TASKS)
    assert written.outputs["classify.logits_BK"] == (2,)
    assert written.outputs["detect.heatmap_BKHW"] == (2, SIZE_PX // 4, SIZE_PX // 4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert not model.training


def test_public_resnet_alone_gives_its_features(tmp_path):
    resnet = PublicBackbone(kind="resnet", num_blocks=(1, 1, 1, 1), width=8, bottleneck=False)
    model = model_of((), backbone=resnet, image_size_px=64)
    written = check(model, tmp_path / "resnet.onnx", ())
    assert list(written.outputs) == ["map_0_BCHW", "map_1_BCHW", "map_2_BCHW", "map_3_BCHW", "vector_BD"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "spec"),
    [
        (
            {"detector": "faster_rcnn", "segmenter": "deeplab_v3", "embedding_width": 8},
            {"genotype": GENOTYPE, "image_size_px": 32},
        ),
        ({"segmenter": "upernet", "pooling": "pyramid"}, {"genotype": GENOTYPE, "image_size_px": 32}),
        (
            {},
            {
                "backbone": PublicBackbone(
                    kind="clip_vit", num_blocks=(4,), width=16, num_heads=2, patch_size_px=16, position_size_px=64
                ),
                "image_size_px": 64,
            },
        ),
        (
            {},
            {
                "genotype": GENOTYPE,
                "image_size_px": 32,
                "experts": ("c", "d"),
                "main": "c",
                "views": {"classify": View(main="c"), "detect": View(main="d")},
            },
        ),
    ],
    ids=["faster_rcnn", "upernet", "clip_vit", "central"],
)
def test_other_heads_and_backbones(head, spec, tmp_path):
    check(model_of(TASKS, head, **spec), tmp_path / "model.onnx", TASKS)


@pytest.mark.slow
def test_one_head_alone(tmp_path):
    model = model_of(("classify", "depth"), genotype=GENOTYPE, image_size_px=SIZE_PX)
    assert list(onnx_export.export_onnx(model, tmp_path / "one.onnx", "classify").outputs) == ["classify.logits_BK"]


def test_wrong_head_and_a_file_that_disagrees_are_one_line(tmp_path, monkeypatch):
    model = model_of(("classify", "depth"), genotype=GENOTYPE, image_size_px=SIZE_PX)
    with pytest.raises(ConfigError, match="head: expected one of classify, depth, got 'flower'"):
        onnx_export.export_onnx(model, tmp_path / "model.onnx", "flower")

    def wrong(path, images):
        return [[np.full((len(image), 2), np.nan, np.float32)] for image in images]

    monkeypatch.setattr(onnx_export, "_write", lambda raw, path, image_BCHW, metadata: path.write_bytes(b"a graph"))
    monkeypatch.setattr(onnx_export, "_run_onnx", wrong)
    with pytest.raises(TrainingError, match="output classify.logits_BK differs from torch by nan"):
        onnx_export.export_onnx(model, tmp_path / "model.onnx", "classify")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"onnxscript is not installed; pip install 'intern-vision\[onnx\]'"):
        onnx_export.export_onnx(model_of((), genotype=GENOTYPE, image_size_px=SIZE_PX), tmp_path / "model.onnx")
