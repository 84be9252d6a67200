import numpy as np
import pytest
import torch

from intern_vision.data.labels.merge import merge
from intern_vision.data.labels.union import label_unions
from intern_vision.data.labels.vocabulary import Vocabulary, dataset_vocabularies, shipped_vocabulary
from intern_vision.data.shard import DatasetInfo
from intern_vision.errors import DataError
from intern_vision.task import Task
from intern_vision.train.label_space import LabelSpace


def info(name, family, *classes):
    concepts = classes if family == "multilabel" else ()
    return DatasetInfo(name=name, tasks={family: Task(family=family, class_names=classes)}, concept_names=concepts)


STREET = info("street", "detect", "Cars", "person", "lamp")
HOME = info("home", "detect", "tvmonitor", "person", "car", "tv")


def union_of(*infos):
    merged = merge([vocabulary for each in infos for vocabulary in dataset_vocabularies(each)])
    return label_unions(merged.mappings, merged.system)


def test_union_and_what_each_dataset_annotates():
    union = union_of(STREET, HOME)["detect"]
    assert union.task == Task(family="detect", class_names=("Cars", "person", "lamp", "tvmonitor", "tv"))
    assert union.sources["street"] == ("Cars", "person", "lamp")
    # A dataset's own two classes stay apart until a person says that they are one.
    assert union.renamed["home"] == ("tvmonitor", "person", "Cars", "tv")
    assert union.concepts == tuple(dict.fromkeys(union.concepts)) and len(union.concepts) == 5


def test_the_head_reads_every_dataset_through_the_union():
    union = union_of(STREET, HOME)["detect"]
    infos = [union.rename(STREET), union.rename(HOME)]
    space = LabelSpace("detect", union.head_spec(), infos)
    batch = {
        "keys": ["s", "h"],
        "source_B": torch.tensor([0, 1]),
        "box_labels_BN": torch.tensor([[0, 1, 2, -1], [0, 1, 2, 3]]),
    }
    view = space.view(batch)
    names = union.task.class_names

    def shown(row):
        return [names[label] if label >= 0 else None for label in view["box_labels_BN"][row].tolist()]

    assert shown(0) == ["Cars", "person", "lamp", None] and shown(1) == ["tvmonitor", "person", "Cars", "tv"]
    known = [{name for name, is_known in zip(names, row, strict=True) if is_known} for row in view["known_BK"].tolist()]
    # The lamp is unknown at home, the televisions on the street: neither is a negative there.
    assert known == [{"Cars", "person", "lamp"}, {"tvmonitor", "person", "Cars", "tv"}]


@pytest.mark.parametrize(("family", "field"), [("multilabel", "concepts_BK"), ("segment", "mask_BHW")])
def test_other_families(family, field):
    first, second = info("first", family, "dog", "sofa"), info("second", family, "couch", "cat", "dogs")
    union = union_of(first, second)[family]
    assert union.renamed["second"] == ("sofa", "cat", "dog")
    infos = [union.rename(first), union.rename(second)]
    space = LabelSpace(family, union.head_spec(), infos)
    given = {
        "concepts_BK": torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
        "mask_BHW": torch.tensor([[[0, 1, 255]], [[0, 1, 2]]], dtype=torch.uint8),
    }[field]
    view = space.view({"keys": ["a", "b"], "source_B": torch.tensor([0, 1]), field: given})[field]
    expected = {"concepts_BK": [[0, 1, 0], [1, 1, 0]], "mask_BHW": [[[0, 1, 255]], [[1, 2, 0]]]}[field]
    assert np.array_equal(view.numpy(), np.array(expected))
    assert union.task.class_names == ("dog", "sofa", "cat")


def test_two_classes_of_a_dataset_that_are_one_concept():
    vocabularies = [each for one in (STREET, HOME) for each in dataset_vocabularies(one)]
    first = merge(vocabularies)
    tv = next(m for m in first.mappings if m.class_name == "tvmonitor")
    merged = merge(vocabularies, decisions={("home", "detect", 3): tv.concept})
    union = label_unions(merged.mappings, merged.system)["detect"]
    assert union.renamed["home"] == ("tvmonitor", "person", "Cars", "tvmonitor")
    assert union.sources["home"] == ("tvmonitor", "person", "Cars")
    space = LabelSpace("detect", union.head_spec(), [union.rename(STREET), union.rename(HOME)])
    labels = torch.tensor([[0, 3]])
    view = space.view({"keys": ["h"], "source_B": torch.tensor([1]), "box_labels_BN": labels})
    assert view["box_labels_BN"].tolist() == [[3, 3]]


def test_names_that_mean_two_things_carry_their_ids():
    lists = [
        Vocabulary.from_dict({"name": "a", "family": "detect", "classes": [{"name": "mouse", "concept": "n03793489"}]}),
        Vocabulary.from_dict({"name": "b", "family": "detect", "classes": [{"name": "mouse", "concept": "n02330245"}]}),
    ]
    merged = merge(lists)
    union = label_unions(merged.mappings, merged.system)["detect"]
    assert union.task.class_names == ("mouse (n03793489)", "mouse (n02330245)")


def test_shipped_detection_lists():
    merged = merge([shipped_vocabulary(name) for name in ("coco", "voc", "citypersons", "widerface")])
    union = label_unions(merged.mappings, merged.system)["detect"]
    # VOC is a part of COCO; a pedestrian and a face are not COCO's person.
    assert union.task.num_classes == 82 and set(union.sources["voc"]) <= set(union.sources["coco"])
    assert union.renamed["voc"][19] == "tv" and union.renamed["voc"][0] == "airplane"


def test_a_dataset_that_changed_is_refused():
    union = union_of(STREET, HOME)["detect"]
    with pytest.raises(DataError, match="dataset street: 1 detect classes, and 3 when its labels were merged"):
        union.rename(info("street", "detect", "car"))
    with pytest.raises(DataError, match="dataset sky: not in the detect union of street, home"):
        union.rename(info("sky", "detect", "cloud"))
