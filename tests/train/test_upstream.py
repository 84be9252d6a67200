import json

import pytest
from helpers import AUGMENT, commit_folder
from label_parts import make_part

from intern_vision.data.labels.output import UNIONS_FILE
from intern_vision.data.labels.union import LabelUnion
from intern_vision.data.loader import ShardSource, make_loader
from intern_vision.data.mixture import MixtureSource
from intern_vision.data.settings import MixtureConfig
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads import HeadConfig
from intern_vision.task import Task
from intern_vision.train.upstream import fields_of, head_specs, upstream_augment, upstream_infos, upstream_source

CONFIG = HeadConfig(background_classes=("ground",))
ROADS = DatasetInfo(
    name="roads",
    tasks={
        "segment": Task(family="segment", class_names=("ground", "car")),
        "depth": Task(family="depth", max_depth_m=80.0),
    },
)
ROOMS = DatasetInfo(
    name="rooms",
    tasks={
        "segment": Task(family="segment", class_names=("chair", "car")),
        "depth": Task(family="depth", max_depth_m=10.0),
        "classify": Task(family="classify", class_names=("kitchen", "bath")),
    },
)
BOTH = (ROADS, ROOMS)


def test_one_dataset_has_one_head_a_family():
    specs = head_specs(ROOMS, ("classify", "segment"), HeadConfig())
    assert {name: spec.task for name, spec in specs.items()} == {name: ROOMS.tasks[name] for name in specs}
    assert all(spec.sources == {} for spec in specs.values())
    assert head_specs((ROOMS,), ("classify", "segment"), HeadConfig()) == specs


def test_several_datasets_have_heads_of_their_own_and_a_unified_one():
    specs = head_specs(BOTH, ("classify", "segment"), CONFIG)
    assert list(specs) == ["classify", "segment@roads", "segment@rooms", "segment"]
    assert specs["classify"].sources == {"rooms": ("kitchen", "bath")}
    assert specs["segment"].task.class_names == ("ground", "car", "chair")
    assert specs["segment"].sources == {"roads": ("ground", "car"), "rooms": ("chair", "car")}
    assert specs["segment@rooms"].task == ROOMS.tasks["segment"]
    assert specs["segment@rooms"].sources == {"rooms": ("chair", "car")}
    # A class that a dataset lacks cannot be its background.
    assert specs["segment@rooms"].config.background_classes == ()
    assert specs["segment"].config.background_classes == specs["segment@roads"].config.background_classes == ("ground",)
    assert list(head_specs(BOTH, ("segment",), CONFIG, "per_source")) == ["segment@roads", "segment@rooms"]
    assert list(head_specs(BOTH, ("segment", "classify"), CONFIG, "unified")) == ["segment", "classify"]


def test_relative_depth_has_its_own_loss_and_teaches_no_unified_head():
    specs = head_specs(BOTH, ("depth",), HeadConfig())
    assert {name: spec.task.max_depth_m for name, spec in specs.items()} == {
        "depth@roads": 80.0,
        "depth@rooms": 10.0,
        "depth": 80.0,
    }
    assert specs["depth"].sources == {"roads": (), "rooms": ()}
    specs = head_specs(BOTH, ("depth",), HeadConfig(), relative_depth=("roads",))
    losses = {name: spec.config.depth_loss for name, spec in specs.items()}
    assert losses == {"depth@roads": "affine", "depth@rooms": "metric", "depth": "metric"}
    assert specs["depth"].sources == {"rooms": ()} and specs["depth"].task.max_depth_m == 10.0
    assert head_specs(ROADS, ("depth",), HeadConfig(), relative_depth=("roads",))["depth"].config.depth_loss == "affine"
    with pytest.raises(ConfigError, match="relative_depth: it names every dataset"):
        head_specs(BOTH, ("depth",), HeadConfig(), "unified", relative_depth=("roads", "rooms"))


def test_families_and_names_that_do_not_work_are_named():
    with pytest.raises(DataError, match="dataset roads, rooms has no task detect; it has segment, depth, classify"):
        head_specs(BOTH, ("detect", "segment"), HeadConfig())
    many = {"segment": Task(family="segment", class_names=tuple(str(number) for number in range(254)))}
    with pytest.raises(ConfigError, match="heads: the datasets have 256 segment classes together and a mask holds 255"):
        head_specs((ROADS, ROOMS.model_copy(update={"tasks": many})), ("segment",), HeadConfig())
    dotted = ROOMS.model_copy(update={"name": "rooms.v2"})
    with pytest.raises(DataError, match="dataset rooms.v2: a name with a dot cannot name a head"):
        head_specs((ROADS, dotted), ("segment",), HeadConfig())


@pytest.fixture
def parts(world, tmp_path):
    few = make_part(world, tmp_path / "few", "few", {"multilabel": ("round", "bar"), "depth": ()}, slice(0, 8))
    many = make_part(world, tmp_path / "many", "many", {"multilabel": ("bar", "star", "toy")}, slice(8, 40))
    return few, many


def test_the_source_mixes_the_datasets_that_have_a_field(world, parts, tmp_path):
    workspace = world.workspace(tmp_path / "work", data=parts)
    depth = upstream_source(workspace, fields_of(("depth",)))
    assert isinstance(depth, ShardSource) and depth.info.name == "few"
    assert [info.name for info in upstream_infos(workspace, fields_of(("depth",)))] == ["few"]
    fields = fields_of(("multilabel", "depth"))
    mixture = upstream_source(workspace, fields, MixtureConfig(temperature=0.0))
    infos = upstream_infos(workspace, fields)
    assert isinstance(mixture, MixtureSource) and mixture.infos == infos and len(mixture) == 40
    batches = make_loader(
        mixture,
        batch_size=40,
        seed=0,
        start_step=0,
        num_steps=8,
        rank=0,
        num_ranks=1,
        transform=upstream_augment(infos, AUGMENT),
    )
    batches = list(batches)
    assert all(batch["concepts_BK"].shape == (40, 3) for batch in batches)
    assert sum(int((batch["source_B"] == 0).sum()) for batch in batches) / 320 == pytest.approx(0.5, abs=0.1)
    assert all((batch["depth_BHW"][batch["source_B"] == 1] == 0).all() for batch in batches)


def test_merged_labels_make_two_names_one_class(world, parts, tmp_path):
    renamed = {"few": ("round", "bar"), "many": ("bar", "round", "toy")}
    union = LabelUnion(
        task=Task(family="multilabel", class_names=("round", "bar", "toy")),
        concepts=("c1", "c2", "c3"),
        sources=renamed,
        renamed=renamed,
    )
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / UNIONS_FILE).write_text(json.dumps({"multilabel": union.to_dict()}))
    labels = commit_folder(world.store_root, "label", "report", "labels", folder)
    infos = upstream_infos(world.workspace(tmp_path / "work", data=parts, labels=labels), fields_of(("multilabel",)))
    assert [info.tasks["multilabel"].class_names for info in infos] == [("round", "bar"), ("bar", "round", "toy")]
    spec = head_specs(infos, ("multilabel",), HeadConfig(), "unified")["multilabel"]
    assert spec.task == union.task and spec.sources == union.sources
    with pytest.raises(DataError, match="dataset few: not in the multilabel union of many"):
        stale = union.model_copy(update={"renamed": {"many": renamed["many"]}})
        (folder / UNIONS_FILE).write_text(json.dumps({"multilabel": stale.to_dict()}))
        labels = commit_folder(world.store_root, "label", "report", "stale", folder)
        upstream_infos(world.workspace(tmp_path / "other", data=parts, labels=labels), fields_of(("multilabel",)))


def test_a_field_that_no_dataset_has_is_named(world, parts, tmp_path):
    with pytest.raises(DataError, match="inputs.data: no field mask in few, many; add a dataset that has it"):
        upstream_source(world.workspace(tmp_path / "a", data=parts), fields_of(("segment",)))
    with pytest.raises(ConfigError, match="inputs.data: expected 1 Ref, got 0"):
        upstream_source(world.workspace(tmp_path / "b"), fields_of(("segment",)))
