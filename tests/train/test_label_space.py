import os
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch

from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import ConfigError, DataError
from intern_vision.heads import HeadConfig
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task
from intern_vision.train.label_space import LabelSpace
from intern_vision.train.objective import MultiTaskObjective

CLASSES = {"pets": ("cat", "dog"), "farm": ("cow", "cat", "hen")}
UNION = ("cat", "dog", "cow", "hen")
FAMILIES = ("classify", "multilabel", "detect", "segment")


def info(name, **tasks):
    own = {family: Task(family=family, class_names=CLASSES[name]) for family in FAMILIES}
    own |= {"depth": Task(family="depth", max_depth_m=10.0 if name == "pets" else 80.0)} | tasks
    return DatasetInfo(name=name, tasks=own, concept_names=CLASSES[name])


INFOS = (info("pets"), info("farm"))
# Two samples of each dataset, in turn.
SOURCE_B = torch.tensor([0, 1, 0, 1])


def spec_of(family, *sources, names=None):
    if family == "depth":
        return HeadSpec(task=Task(family="depth", max_depth_m=10.0), sources=dict.fromkeys(sources, ()))
    own = {source: CLASSES[source] for source in sources}
    return HeadSpec(
        task=Task(family=family, class_names=names or (UNION if len(sources) > 1 else CLASSES[sources[0]])),
        config=HeadConfig(neck_width=8),
        sources={
            source: tuple(name for name in classes if not names or name in names) for source, classes in own.items()
        },
    )


def made_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = helpers.SIZE_PX
    mask = torch.randint(0, 2, (4, size, size), generator=generator).to(torch.uint8)
    mask[1::2, :4] = 2
    mask[:, -4:] = 255
    return {
        "image_BCHW": torch.randint(0, 256, (4, 3, size, size), generator=generator, dtype=torch.uint8),
        "source_B": SOURCE_B,
        "label_B": torch.tensor([1, 2, -1, 0]),
        "concepts_BK": torch.tensor([[1.0, 1, 0], [1, 0, 1], [0, 1, 0], [0, 1, 0]]),
        "boxes_BN4": torch.tensor([[[2.0, 2, 20, 20], [4, 4, 12, 12]]]).repeat(4, 1, 1),
        "box_labels_BN": torch.tensor([[0, 1], [2, -1], [1, -1], [1, 0]]),
        "mask_BHW": mask,
        "depth_BHW": 1 + 5 * torch.rand(4, size, size, generator=generator),
        "keys": [str(row) for row in range(4)],
    }


def named(index, names):
    return names[index] if 0 <= index < len(names) else None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sources", [("pets",), ("farm",), ("pets", "farm")])
def test_labels_keep_their_names_and_others_are_unknown(family, sources):
    spec, batch = spec_of(family, *sources), made_batch()
    before = {name: value.clone() for name, value in batch.items() if torch.is_tensor(value)}
    view = LabelSpace("head", spec, INFOS).view(batch)
    names = spec.task.class_names
    for row, source in enumerate(SOURCE_B.tolist()):
        dataset = INFOS[source]
        taught = dataset.name in sources
        known = [taught and name in CLASSES[dataset.name] for name in names]
        assert view["known_BK"][row].tolist() == known
        if family == "multilabel":
            present = {name for name, one in zip(CLASSES[dataset.name], batch["concepts_BK"][row], strict=False) if one}
            found = {name for name, one in zip(names, view["concepts_BK"][row], strict=True) if one}
            assert found == (present if taught else set())
            continue
        key, unknown = {"classify": ("label_B", -1), "detect": ("box_labels_BN", -1), "segment": ("mask_BHW", 255)}[
            family
        ]
        own, seen = batch[key][row].flatten().tolist(), view[key][row].flatten().tolist()
        for old, new in zip(own, seen, strict=True):
            assert named(new, names) == (named(old, CLASSES[dataset.name]) if taught else None)
            assert 0 <= new < len(names) or new == unknown
        assert view[key].dtype == batch[key].dtype
    assert all(torch.equal(batch[name], value) for name, value in before.items())


def test_depth_of_other_datasets_is_unknown():
    view = LabelSpace("depth@pets", spec_of("depth", "pets"), INFOS).view(made_batch())
    assert "known_BK" not in view
    assert (view["depth_BHW"][1::2] == 0).all() and torch.equal(view["depth_BHW"][::2], made_batch()["depth_BHW"][::2])


def test_known_classes_are_left_out_where_all_are_known():
    infos = (info("pets"), DatasetInfo(name="shelter", tasks={"classify": info("pets").tasks["classify"]}))
    spec = HeadSpec(task=infos[0].tasks["classify"])
    assert "known_BK" not in LabelSpace("classify", spec, infos).view(made_batch())


def test_datasets_without_the_family_teach_other_heads():
    infos = (INFOS[0], DatasetInfo(name="cars", tasks={"detect": Task(family="detect", class_names=("car",))}))
    view = LabelSpace("classify", HeadSpec(task=INFOS[0].tasks["classify"]), infos).view(made_batch())
    assert view["label_B"].tolist() == [1, -1, -1, -1]
    with pytest.raises(DataError, match="head depth: no dataset among cars, cars2 has the task depth"):
        LabelSpace("depth", spec_of("depth"), (infos[1], infos[1].model_copy(update={"name": "cars2"})))


def test_a_unified_head_reads_one_of_its_datasets_alone():
    batch = {name: value[1::2] for name, value in made_batch().items() if name != "source_B"}
    objective = MultiTaskObjective(model_of(classify=spec_of("classify", "pets", "farm")), infos=INFOS[1:])
    view = objective.label_spaces["classify"].view(batch)
    assert [UNION[label] for label in view["label_B"].tolist()] == ["hen", "cow"]
    assert view["known_BK"].tolist() == [[True, False, True, True]] * 2


def test_a_head_may_have_fewer_classes_than_its_source():
    view = LabelSpace("classify", spec_of("classify", "farm", names=("hen", "cow")), INFOS).view(made_batch())
    assert view["label_B"].tolist() == [-1, 0, -1, 1]


def model_of(**heads):
    torch.manual_seed(0)
    return VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX, heads=heads))


def test_mixed_batches_give_each_head_the_losses_of_its_own_samples():
    heads = {
        f"{family}@{source}": spec_of(family, source) for family in (*FAMILIES[:2], "segment") for source in CLASSES
    }
    objective = MultiTaskObjective(model_of(**heads), infos=INFOS).eval()
    losses, _ = objective(made_batch())
    for number, source in enumerate(CLASSES):
        rows = SOURCE_B.eq(number)
        own = {name: value[rows] for name, value in made_batch().items() if torch.is_tensor(value)}
        own["concepts_BK"] = own["concepts_BK"][:, : len(CLASSES[source])]
        features = objective.model(own["image_BCHW"])
        for name, head in objective.model.heads.items():
            if name.endswith(source):
                for loss_name, loss in head.losses(head(features), own).items():
                    torch.testing.assert_close(losses[f"{name}/{loss_name}"], loss, rtol=1e-4, atol=1e-5)


def test_a_head_without_samples_in_the_batch_gets_zero_gradients():
    heads = {
        "classify": spec_of("classify", "pets", "farm"),
        "classify@farm": spec_of("classify", "farm"),
        "multilabel@farm": spec_of("multilabel", "farm"),
        "segment@farm": spec_of("segment", "farm"),
        "depth@farm": spec_of("depth", "farm"),
    }
    objective = MultiTaskObjective(model_of(**heads), infos=INFOS)
    losses, _ = objective(made_batch() | {"source_B": torch.zeros(4, dtype=torch.int64)})
    assert all((loss == 0) == name.partition("/")[0].endswith("@farm") for name, loss in losses.items())
    sum(losses.values()).backward()
    for name, parameter in objective.model.heads.named_parameters():
        if name.startswith("classify."):
            # "cow" and "hen" are not annotated among the pets.
            assert (parameter.grad[2:] == 0).all() and parameter.grad[:2].abs().sum() > 0
        else:
            assert (parameter.grad == 0).all(), name


def test_some_heads_alone():
    heads = {"classify@pets": spec_of("classify", "pets"), "classify@farm": spec_of("classify", "farm")}
    objective, batch = MultiTaskObjective(model_of(**heads), infos=INFOS), made_batch()
    assert set(objective.task_losses(objective.features(batch), batch, ["classify@farm"])) == {"classify@farm/classify"}


def test_frozen_heads_by_name():
    heads = {"classify@pets": spec_of("classify", "pets"), "classify@farm": spec_of("classify", "farm")}
    objective = MultiTaskObjective(model_of(**heads), infos=INFOS, freeze_heads=("classify@pets",))
    trained = {name for name, parameter in objective.model.heads.named_parameters() if parameter.requires_grad}
    assert trained == {"classify@farm.linear.weight", "classify@farm.linear.bias"}
    assert all(parameter.requires_grad for parameter in objective.model.backbone.parameters())
    with pytest.raises(ConfigError, match="freeze_heads: expected heads among classify@pets, classify@farm, got 'x'"):
        MultiTaskObjective(model_of(**heads), infos=INFOS, freeze_heads=("x",))
    with pytest.raises(ConfigError, match="task_weights: expected heads among .*, got 'classify'"):
        MultiTaskObjective(model_of(**heads), {"classify": 2.0}, infos=INFOS)


def test_the_label_spaces_are_not_saved_with_a_checkpoint():
    objective = MultiTaskObjective(model_of(classify=spec_of("classify", "pets", "farm")), infos=INFOS)
    assert objective.state_dict().keys() == MultiTaskObjective(objective.model).state_dict().keys()


def test_heads_that_do_not_fit_the_data_are_named():
    alien = HeadSpec(task=Task(family="classify", class_names=("car",)))
    with pytest.raises(
        DataError, match=r"head classify: its label space \(car\) is not that of source pets \(cat, dog\)"
    ):
        LabelSpace("classify", alien, INFOS)
    with pytest.raises(DataError, match="head classify@zoo: it learns from zoo, but the input data is pets, farm"):
        LabelSpace("classify@zoo", HeadSpec(task=alien.task, sources={"zoo": ("car",)}), INFOS)
    with pytest.raises(DataError, match="head classify: source pets does not annotate car; its classes are cat, dog"):
        LabelSpace("classify", HeadSpec(task=alien.task, sources={"pets": ("car",)}), INFOS)
    bare = DatasetInfo(name="pets")
    with pytest.raises(DataError, match="head depth: source pets has no task depth"):
        LabelSpace("depth", spec_of("depth", "pets"), (bare, INFOS[1]))
    with pytest.raises(ConfigError, match="sources.pets: the head has no class 'cat'"):
        HeadSpec.from_dict({"task": alien.task.to_dict(), "sources": {"pets": ["cat"]}})
    with pytest.raises(ConfigError, match="sources.pets: expected at least one class, got none"):
        HeadSpec.from_dict({"task": alien.task.to_dict(), "sources": {"pets": []}})
    batch = made_batch()
    del batch["source_B"]
    with pytest.raises(DataError, match="batch.source_B: expected for heads over several sources"):
        LabelSpace("classify", spec_of("classify", "pets"), INFOS).view(batch)


def gradients_of_share(rank, num_ranks):
    """Losses and head gradients of a rank's part of a batch, averaged over the ranks as the engine does."""
    heads = {
        "classify": spec_of("classify", "pets", "farm"),
        "classify@pets": spec_of("classify", "pets"),
        "multilabel@farm": spec_of("multilabel", "farm"),
    }
    objective = MultiTaskObjective(model_of(**heads), infos=INFOS).eval()
    # Three of the pets' samples and one of the farm's, all in the second half: the ranks have unequal numbers.
    batch = made_batch() | {"source_B": torch.tensor([0, 0, 0, 1]), "label_B": torch.tensor([1, 0, 1, 2])}
    half = {name: value.chunk(num_ranks)[rank] for name, value in batch.items() if torch.is_tensor(value)}
    losses, _ = objective(half)
    sum(losses.values()).backward()
    found = {name: loss.detach() for name, loss in losses.items()}
    found |= {name: parameter.grad for name, parameter in objective.model.heads.named_parameters()}
    for value in found.values():
        if num_ranks > 1:
            torch.distributed.all_reduce(value)
            value /= num_ranks
    return found


def test_two_ranks_with_unequal_shares_have_the_gradients_of_the_joint_batch(tmp_path):
    paths = os.pathsep.join([str(Path(helpers.__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], env=os.environ | {"PYTHONPATH": paths}) for rank in range(2)]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    expected = gradients_of_share(0, 1)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text
            )


if __name__ == "__main__":
    store = torch.distributed.FileStore(f"{sys.argv[1]}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=int(sys.argv[2]), world_size=2)
    torch.save(gradients_of_share(int(sys.argv[2]), 2), f"{sys.argv[1]}/{sys.argv[2]}.pt")
    torch.distributed.destroy_process_group()
