import clip_words
import pytest
import torch
import torch.nn.functional as F
from helpers import AUGMENT, HEAD, SIZE_PX, World, train_here, trainer_config
from plain_networks import Fresh, plain_clip_text, plain_vit
from safetensors.torch import load_file, save_file

from intern_vision.bench.zero_shot import zero_shot_model
from intern_vision.data.text import Tokenizer
from intern_vision.errors import CheckpointError, ConfigError, DataError
from intern_vision.models.genotype import TOY_SA, TOY_XCA
from intern_vision.models.metanet import MetaNet
from intern_vision.models.public_backbones import PublicBackbone, make_public_backbone
from intern_vision.models.public_keys import public_names
from intern_vision.models.vision import TextSpec, VisionModel
from intern_vision.stages import amateur_local, import_weights
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import file_sha256, open_store
from intern_vision.task import Task
from intern_vision.train.settings import LocalConfig

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


CLIP = PublicBackbone(
    kind="clip_vit", num_blocks=(4,), width=16, num_heads=2, patch_size_px=16, position_size_px=32, quick_gelu=True
)
NUM_MERGES = 30


@pytest.fixture
def clip_file(tmp_path):
    """An open_clip file, its vocabulary, and what a plain network says of an image and some classes."""
    fresh, path, vocabulary = Fresh(), tmp_path / "clip.safetensors", tmp_path / "merges.txt.gz"
    merges = clip_words.write_vocabulary(vocabulary, NUM_MERGES)
    sizes = TextSpec(
        vocab_size=514 + NUM_MERGES, context_length=24, width=12, num_blocks=2, num_heads=2, pooling="end",
        embedding_width=5, quick_gelu=True,
    )  # fmt: skip

    def texts(prompts):
        rows = [[sizes.vocab_size - 2, *clip_words.clip_ids(text, merges), sizes.vocab_size - 1] for text in prompts]
        return plain_clip_text(fresh, torch.tensor([row + [0] * (24 - len(row)) for row in rows]), sizes)

    def images(x_BCHW):
        return plain_vit(fresh, x_BCHW, CLIP)[1] @ fresh.tensors["visual.proj"]

    texts(["a cup"])
    images(torch.zeros(1, 3, 32, 32))
    save_file({name: tensor.contiguous() for name, tensor in fresh.tensors.items()}, path)
    settings = {"vocabulary": str(vocabulary), "vocabulary_sha256": file_sha256(vocabulary), "num_text_heads": 2}
    return config(path, backbone=CLIP, **settings), texts, images


def test_an_open_clip_file_with_its_vocabulary_names_classes_without_labels(world: World, clip_file, tmp_path):
    clip_config, texts, images = clip_file
    ref = run_stage("import_weights", clip_config, Inputs())
    folder = fetch(open_store(world.store_root), ref, tmp_path / "fetched")
    assert Tokenizer.load(folder / "tokenizer.json").vocab_size == 516 + NUM_MERGES
    names = ("small red cup", "cats", "lemons")
    task, templates = Task(family="classify", class_names=names), ("{}", "a photo of the {}!")
    model = zero_shot_model(folder, folder / "tokenizer.json", task, templates)
    image_BCHW = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        scores_BK = model.heads["classify"](model(image_BCHW))["logits_BK"]
        class_KD = torch.stack(
            [F.normalize(texts([t.replace("{}", name) for t in templates]), dim=-1).mean(0) for name in names]
        )
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP.mean, CLIP.std))
        image_BD = F.normalize(images((image_BCHW / 255 - mean) / std), dim=-1)
        scale = VisionModel.load(folder).text.log_scale.exp()
    torch.testing.assert_close(scores_BK, scale * image_BD @ F.normalize(class_KD, dim=-1).T, atol=1e-3, rtol=1e-3)


def test_an_imported_amateur_goes_on_as_up_a_l(world: World, clip_file, tmp_path):
    ref = run_stage("import_weights", clip_file[0], Inputs())
    local = amateur_local.Config(
        mode="pixpro",
        local=LocalConfig(hidden_width=12, projection_width=8),
        trainer=trainer_config(num_steps=2),
        augment=AUGMENT.with_overrides({"num_views": 2}),
        probe=trainer_config(),
    )
    job = amateur_local.build(local, world.workspace(tmp_path / "work", data=world.upstream, amateur=ref))
    events = train_here(job)
    assert all(event["metrics"]["loss"] < float("inf") for event in events) and len(events) == 2


def test_without_a_vocabulary_the_image_tower_alone_is_taken(world: World, clip_file, tmp_path):
    changes = {"vocabulary": "", "vocabulary_sha256": "", "name": "image-tower"}
    ref = run_stage("import_weights", clip_file[0].with_overrides(changes), Inputs())
    assert read_record(open_store(world.store_root), ref.uri).files.keys() == {"model.json", "weights.safetensors"}


def test_vocabularies_that_do_not_fit_are_told_in_one_line(world: World, file, clip_file, tmp_path):
    clip_config = clip_file[0]
    for changes, message in (
        ({"vocabulary": str(tmp_path / "none")}, "import_weights.vocabulary: .*none is no file"),
        ({"vocabulary_sha256": "0" * 64}, "import_weights.vocabulary_sha256: .* check the download"),
        ({"vocabulary_sha256": ""}, "vocabulary_sha256: expected beside vocabulary"),
        ({"vocabulary": clip_config.path, "vocabulary_sha256": clip_config.sha256}, "cannot be read as a list of mer"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            run_stage("import_weights", clip_config.with_overrides(changes), Inputs())
    with pytest.raises(ConfigError, match="vocabulary: only an open_clip file has a text tower"):
        config(file).with_overrides({"vocabulary": "merges.txt", "vocabulary_sha256": "0" * 64})


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
