import pytest
import torch
from helpers import AUGMENT, HEAD, SIZE_PX, World, train_here, trainer_config
from safetensors.torch import load_file, save_file

from intern_vision.errors import CheckpointError, ConfigError
from intern_vision.models.genotype import TOY_SA, TOY_XCA
from intern_vision.models.metanet import MetaNet
from intern_vision.models.public_backbones import PublicBackbone, make_public_backbone
from intern_vision.models.public_keys import public_names
from intern_vision.models.vision import VisionModel
from intern_vision.stages import import_weights
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import file_sha256, open_store

TINY = PublicBackbone(kind="resnet", num_blocks=(1, 1, 1, 1), width=8, bottleneck=False)


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    network = make_public_backbone(TINY)
    path = tmp_path / "resnet.safetensors"
    save_file(network.state_dict() | {"fc.weight": torch.ones(10, 64), "fc.bias": torch.ones(10)}, path)
    return path


def config(file, **changes):
    settings = {"backbone": TINY, "path": str(file), "sha256": file_sha256(file), "image_size_px": SIZE_PX}
    return import_weights.Config(**settings | changes)


def test_a_file_becomes_committed_weights_that_load(world: World, file, tmp_path):
    ref = run_stage("import_weights", config(file, name="resnet"), Inputs())
    store = open_store(world.store_root)
    record = read_record(store, ref.uri)
    assert (ref.kind, ref.name, ref.parents) == ("weights", "resnet", ())
    model = VisionModel.load(fetch(store, ref, tmp_path / "fetched"))
    theirs = make_public_backbone(TINY)
    theirs.load_state_dict({k: v for k, v in load_file(file).items() if not k.startswith("fc.")})
    image_BCHW = torch.randint(0, 256, (2, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs.eval()(model.normalised(image_BCHW)).vector_BD
        torch.testing.assert_close(model(image_BCHW).vector_BD, expected)
    assert record.facts["num_parameters"] == sum(p.numel() for p in theirs.parameters())


def test_a_public_metanet_becomes_committed_weights(world: World, tmp_path):
    torch.manual_seed(0)
    net = MetaNet(TOY_SA)
    public = {name: net.state_dict()[own] for own, name in public_names(TOY_SA).items()}
    path = tmp_path / "metanet.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in public.items()}, path)
    ref = run_stage("import_weights", config(path, backbone=None, architecture="toy_sa"), Inputs())
    model = VisionModel.load(fetch(open_store(world.store_root), ref, tmp_path / "fetched"))
    image_BCHW = torch.randint(0, 256, (2, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(
            model.eval()(image_BCHW).vector_BD, net.eval()(model.normalised(image_BCHW)).vector_BD
        )
    with pytest.raises(CheckpointError, match=r"of another architecture|missing"):
        run_stage("import_weights", config(path, backbone=None, genotype=TOY_XCA), Inputs())


def test_its_weights_train_under_a_head(world: World, file, tmp_path):
    from intern_vision.data.loader import load_info
    from intern_vision.models.vision import ModelSpec
    from intern_vision.train.objective import MultiTaskObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import fields_of, head_specs, upstream_augment, upstream_source

    ref = run_stage("import_weights", config(file), Inputs())
    workspace = world.workspace(tmp_path / "work", data=world.upstream, amateur=ref)
    info = load_info(open_store(world.store_root), world.upstream.uri)
    folder = workspace.fetch(ref)
    model = VisionModel(ModelSpec(backbone=TINY, image_size_px=SIZE_PX, heads=head_specs(info, ("detect",), HEAD)))
    model.load_part(folder, "backbone")
    job = TrainJob(
        objective=MultiTaskObjective(model),
        source=upstream_source(workspace, fields_of(("detect",))),
        transform=upstream_augment(info, AUGMENT),
        config=trainer_config(),
    )
    assert len(train_here(job)) == 4


def test_an_exchanged_file_is_noticed(world: World, file):
    before = config(file)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ConfigError, match=r"import_weights\.sha256: .*check the download"):
        run_stage("import_weights", before, Inputs())
    file.unlink()
    with pytest.raises(ConfigError, match="is no file"):
        run_stage("import_weights", before, Inputs())


def test_a_file_of_another_architecture_is_refused(world: World, file):
    other = TINY.with_overrides({"num_blocks": [1, 1, 1, 2]})
    with pytest.raises(CheckpointError, match=r"weights of another architecture: missing layer4\.1"):
        run_stage("import_weights", config(file, backbone=other), Inputs())


def test_the_architecture_is_said_once(file):
    for changes in ({"backbone": None}, {"architecture": "resnet18"}):
        with pytest.raises(ValueError, match="give one of architecture, backbone and genotype"):
            config(file, **changes)
    with pytest.raises(ValueError, match="architecture must be one of resnet18, .*mn_b15"):
        config(file, backbone=None, architecture="resnet19")
