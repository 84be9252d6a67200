"""One expert over several prepared datasets of one kind, through the stage itself.

B batch, K classes.
"""

import pytest
import torch
from helpers import AUGMENT, HEAD, commit_folder, save_backbone, trainer_config
from label_parts import make_classes, make_part

from intern_vision.data.loader import make_loader
from intern_vision.data.settings import MixtureConfig
from intern_vision.models.vision import VisionModel
from intern_vision.stages import expert
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store
from intern_vision.train.launch import start_distributed
from intern_vision.train.trainer import RankContext, Trainer

BOTANY, GARDEN = ("3 petals", "4 petals", "5 petals"), ("7 petals", "8 petals", "4 petals", "6 petals")
TOYS = {
    "multilabel": ("round", "toy", "bar"),
    "detect": ("ring", "disc", "cross"),
    "segment": ("round", "ground", "background"),
    "depth": (),
}
SIGNS = {
    "multilabel": ("bar", "star"),
    "detect": ("disc", "cross", "arrow"),
    "segment": ("background", "star", "bar"),
    "depth": (),
}
SOURCES = {family: ("toys", "signs") for family in TOYS} | {"classify": ("botany", "garden")}
SHARES = MixtureConfig(temperature=0.5)


@pytest.fixture(scope="module")
def datasets(made_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    flowers = (
        make_classes(made_world, folder / "botany", "botany", BOTANY, slice(0, 24)),
        make_classes(made_world, folder / "garden", "garden", GARDEN, slice(24, 60)),
    )
    scenes = (
        make_part(made_world, folder / "toys", "toys", TOYS, slice(0, 16)),
        make_part(made_world, folder / "signs", "signs", SIGNS, slice(16, 80)),
    )
    return {family: scenes for family in TOYS} | {"classify": flowers}


@pytest.fixture
def amateur(world, tmp_path):
    return save_backbone(world, tmp_path / "amateur")


def config_of(family, head=None, trainer=None, **settings):
    return expert.Config(
        family=family,
        mixture=SHARES,
        relative_depth=("signs",) if family == "depth" else (),
        trainer=trainer_config(**{"num_steps": 2} | (trainer or {})),
        head=HEAD.with_overrides(head or {}),
        augment=AUGMENT,
        **settings,
    )


@pytest.mark.parametrize("family", ["classify", "detect", "segment", "depth"])
def test_the_stage_joins_two_datasets(world, datasets, amateur, tmp_path, family):
    inputs = Inputs(data=datasets[family], amateur=(amateur,))
    ref = run_stage("expert", config_of(family), inputs, name=f"sources-{family}")
    store = open_store(world.store_root)
    record = read_record(store, ref.uri)
    assert record.facts["num_sources"] == 2 and {data.uri for data in datasets[family]} < set(ref.parents)
    model = VisionModel.load(fetch(store, ref, tmp_path / "out"))
    assert set(model.heads) == {family, *(f"{family}@{name}" for name in SOURCES[family])}
    unified = model.spec.heads[family]
    if family == "depth":
        # The unified head speaks of metres: a dataset of unknown scale does not teach it.
        assert set(unified.sources) == {"toys"} and model.spec.heads["depth@signs"].config.depth_loss == "affine"
    else:
        own = [model.spec.heads[f"{family}@{name}"].task.class_names for name in SOURCES[family]]
        assert unified.task.class_names == tuple(dict.fromkeys((*own[0], *own[1])))
        assert unified.sources == dict(zip(SOURCES[family], own, strict=True))
    start = VisionModel.load(tmp_path / "amateur").backbone.state_dict()
    assert any(not torch.equal(tensor, start[name]) for name, tensor in model.backbone.state_dict().items())


def built(world, datasets, amateur, tmp_path, family, **settings):
    workspace = world.workspace(tmp_path / "work", data=datasets[family], amateur=amateur)
    torch.manual_seed(0)
    return expert.build(config_of(family, **settings), workspace)


def batch_of(job, source_name, num_samples=12):
    """A batch that the job's own source and augmentation make, of one dataset's samples alone."""

    class One:
        rows = [row for row in range(len(job.source)) if job.source.infos[job.source.place(row)[0]].name == source_name]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return job.source[self.rows[index]]

    loader = make_loader(
        One(), batch_size=num_samples, seed=0, start_step=0, num_steps=1, rank=0, num_ranks=1, transform=job.transform
    )
    return next(iter(loader))


def class_gradients(job, batch, family):
    """Largest gradient of each class's last-layer weights in the unified head, ``(K,)``."""
    job.objective.zero_grad()
    torch.manual_seed(1)
    losses, _ = job.objective(batch)
    torch.stack([loss for name, loss in losses.items() if name.startswith(f"{family}/")]).sum().backward()
    head = job.objective.model.heads[family]
    layers = {"score", "heatmap", "linear", "decoder.predict"}
    (layer,) = (module for name, module in head.named_modules() if name in layers)
    num_classes = head.task.num_classes
    # A mask's class has four fine cells in a row; the background of boxes comes after the classes.
    num_rows = num_classes * (4 if family == "segment" else 1)
    return layer.weight.grad[:num_rows].reshape(num_classes, -1).abs().amax(1)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("classify", {"label_smoothing": 0.1}),
        ("multilabel", {}),
        ("segment", {}),
        ("detect", {"detector": "centernet"}),
        ("detect", {"detector": "faster_rcnn"}),
    ],
)
def test_a_class_that_a_dataset_never_annotated_is_not_pushed_down_there(
    world, datasets, amateur, tmp_path, family, head
):
    job = built(world, datasets, amateur, tmp_path, family, head=head)
    names = job.objective.model.spec.heads[family].task.class_names
    for source, own in job.objective.model.spec.heads[family].sources.items():
        unknown = torch.tensor([name not in own for name in names])
        batch = batch_of(job, source)
        gradients = class_gradients(job, batch, family)
        assert unknown.any() and (gradients[unknown] == 0).all() and gradients[~unknown].max() > 0
        # Taken for annotated, the same images would teach that the class is absent.
        space = job.objective.label_spaces[family]
        known_SK, space.known_SK = space.known_SK, torch.ones_like(space.known_SK)
        assert (class_gradients(job, batch, family)[unknown] > 0).all()
        space.known_SK = known_SK


def test_depth_of_unknown_scale_teaches_its_own_head_alone(world, datasets, amateur, tmp_path):
    job = built(world, datasets, amateur, tmp_path, "depth")
    losses, _ = job.objective(batch_of(job, "signs"))
    sum(losses.values()).backward()
    largest = {
        name: max(float(p.grad.abs().max()) for p in head.parameters())
        for name, head in job.objective.model.heads.items()
    }
    assert largest["depth@signs"] > 0 and largest["depth"] == largest["depth@toys"] == 0


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.2), (0.5, 1 / 3), (0.0, 0.5)])
def test_datasets_are_drawn_by_size_to_the_power_of_the_temperature(
    world, datasets, amateur, tmp_path, temperature, share
):
    workspace = world.workspace(tmp_path / "work", data=datasets["segment"], amateur=amateur)
    config = config_of("segment").with_overrides({"mixture": {"temperature": temperature}})
    job = expert.build(config, workspace)
    order = job.source.order(config.trainer.seed, config.trainer.batch_size)
    drawn = [job.source.place(order[position])[0] for position in range(1000)]
    # 16 and 64 images.
    assert drawn.count(0) / len(drawn) == pytest.approx(share, abs=0.03)


def test_frozen_heads_are_bit_equal_until_their_step_and_then_learn(world, datasets, amateur, tmp_path):
    first = built(world, datasets, amateur, tmp_path / "first", "multilabel")
    first.objective.save(tmp_path / "earlier")
    earlier = commit_folder(world.store_root, "expert", "weights", "earlier-sources", tmp_path / "earlier")
    config = config_of(
        "multilabel",
        trainer={"num_steps": 4, "weight_decay": 0.1},
        freeze_heads=("multilabel", "multilabel@toys"),
        num_frozen_head_steps=2,
    )
    workspace = world.workspace(tmp_path / "work", data=datasets["multilabel"], amateur=amateur, experts=earlier)
    job = expert.build(config, workspace)
    start = {name: tensor.clone() for name, tensor in job.objective.model.state_dict().items()}
    changed = {}

    def compare(event):
        now = job.objective.model.state_dict()
        changed[event["done"]] = {name for name, tensor in now.items() if not torch.equal(tensor, start[name])}

    start_distributed()
    Trainer(job, RankContext(on_event=compare)).train()
    heads = {name for name in start if name.startswith("heads.")}
    free = {name for name in heads if name.startswith("heads.multilabel@signs.")}
    assert free and [changed[done] & heads for done in (1, 2)] == [free, free]
    assert changed[3] & heads == changed[4] & heads == heads
    assert any(name.startswith("backbone.") for name in changed[1])
