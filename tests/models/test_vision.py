import helpers
import pytest
import torch
from torch import nn

from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task, View

TASKS = {
    "multilabel": Task(family="multilabel", class_names=("a", "b", "c")),
    "detect": Task(family="detect", class_names=("a", "b")),
    "depth": Task(family="depth", max_depth_m=10.0),
}
HEADS = {name: HeadSpec(task=task, config=HeadConfig(neck_width=8)) for name, task in TASKS.items()}
VIEWS = {
    "multilabel": View(main="multilabel", bn_set="classify"),
    "detect": View(main="detect"),
    "depth": View(main="multilabel", bn_set="dense"),
}


def central_spec(**changes):
    settings = {"experts": ("multilabel", "detect"), "main": "multilabel", "views": VIEWS, "heads": HEADS}
    return ModelSpec(**{"genotype": helpers.GENOTYPE, "image_size_px": helpers.SIZE_PX} | settings | changes)


@pytest.fixture
def images():
    shape = (4, 3, helpers.SIZE_PX, helpers.SIZE_PX)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def central(images):
    """A central model whose transfers and BatchNorm sets all differ, as after training."""
    torch.manual_seed(0)
    model = VisionModel(central_spec())
    for module in model.backbone.transfers.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    with torch.no_grad():
        for number, view in enumerate(VIEWS.values(), 1):
            model.train().view_features(images // number, (view,))
    return model.eval()


def test_a_spec_knows_its_views():
    spec = central_spec()
    assert spec.mains == ("multilabel", "detect") and spec.bn_sets == {"multilabel": ("classify", "dense")}
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert spec.view_of("classify") == VIEWS["multilabel"] and spec.view_of("segment") == VIEWS["detect"]
    assert central_spec(views={"detect": View(main="detect")}, main="detect").view_of("classify") == View(main="detect")
    plain = ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX, heads=HEADS)
    assert plain.for_family("depth") is plain and plain.view_of("depth") == View(main="")
    deployed = spec.for_family("depth")
    assert (deployed.main, deployed.views, deployed.bn_sets) == (
        "multilabel",
        {"depth": View(main="multilabel")},
        {},
    )
    assert deployed.for_family("depth") == deployed and deployed.mains == ("multilabel",)
    assert ModelSpec.from_dict(deployed.to_dict()) == deployed


def test_faulty_views_are_named():
    with pytest.raises(ConfigError, match="views.depth.main must be one of multilabel, detect"):
        ModelSpec.from_dict(central_spec().to_dict() | {"views": {"depth": {"main": "segment"}}})
    with pytest.raises(ConfigError, match="views.detect.bn_set must be one of classify, dense"):
        ModelSpec.from_dict(central_spec().to_dict() | {"views": {**_plain(VIEWS), "detect": {"main": "multilabel"}}})
    with pytest.raises(ConfigError, match="main must be one of detect"):
        ModelSpec.from_dict(central_spec().to_dict() | {"views": {"detect": {"main": "detect"}}})
    with pytest.raises(ConfigError, match="views.depth.main must be one of none"):
        ModelSpec.from_dict(central_spec().to_dict() | {"experts": [], "main": "", "views": {"depth": {"main": "a"}}})


def _plain(views):
    return {family: view.to_dict() for family, view in views.items()}


def test_each_head_reads_its_own_view(central, images):
    with torch.no_grad():
        found = central.head_features(images, list(HEADS))
        for name, view in VIEWS.items():
            alone = central.view_features(images, (view,))[view]
            assert torch.equal(found[name].vector_BD, alone.vector_BD)
    vectors = [features.vector_BD for features in found.values()]
    assert not any(torch.allclose(vectors[a], vectors[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert central.views == tuple(VIEWS.values())
    assert (len(central.views), central.num_sources) == (3, 2)  # each expert is once a source
    plain = VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX, heads=HEADS)).eval()
    features = plain.head_features(images, list(HEADS))
    assert (len(plain.views), plain.num_sources) == (1, 0) and features["detect"] is features["depth"]


@pytest.mark.parametrize("family", ["multilabel", "detect", "depth"])
def test_one_family_taken_out_gives_the_same(central, images, tmp_path, family):
    central.save(tmp_path)
    alone = VisionModel.load_family(tmp_path, family)
    assert list(alone.heads) == [family] and alone.spec.bn_sets == {} and not alone.training
    assert list(alone.backbone.transfers) == [VIEWS[family].main]
    with torch.no_grad():
        found, expected = alone(images), central.head_features(images, [family])[family]
        outputs, own = alone.heads[family](found), central.heads[family](expected)
    assert torch.equal(found.vector_BD, expected.vector_BD)
    assert all(torch.equal(a, b) for a, b in zip(found.maps, expected.maps, strict=True))
    assert all(torch.equal(outputs[name], own[name]) for name in own)
    # And once more out of what was taken out, as an adapted model is saved and loaded.
    alone.save(tmp_path / "again")
    again = VisionModel.load_family(tmp_path / "again", family)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in alone.state_dict().items())
    # Sources stay frozen when the backbone is trained.
    alone.backbone.requires_grad_(True)
    frozen = {name.split(".")[1] for name, p in alone.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"multilabel", "detect"} - {VIEWS[family].main}


def test_a_central_model_is_saved_and_loaded_whole(central, tmp_path):
    central.save(tmp_path)
    loaded = VisionModel.load(tmp_path)
    assert loaded.spec == central.spec
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in central.state_dict().items())
    with pytest.raises(ConfigError, match="family: expected one of depth, detect, multilabel, got 'segment'"):
        VisionModel.load_family(tmp_path, "segment")
    with pytest.raises(CheckpointError, match="another architecture"):
        VisionModel(central_spec(experts=("depth", "detect"), main="depth", views={})).load_part(tmp_path, "backbone")


def test_predictions_of_every_head_come_from_its_view(central, images, tmp_path):
    central.save(tmp_path)
    pictures = list(images.permute(0, 2, 3, 1).numpy())
    whole = central.predict(pictures)
    for family in VIEWS:
        (alone,) = VisionModel.load_family(tmp_path, family).predict(pictures).values()
        for one, other in zip(whole[family], alone, strict=True):
            for field in ("scores", "boxes", "depth"):
                value = getattr(one, field)
                assert value is None or (value == getattr(other, field)).all()
