import numpy as np
import pytest

from intern_vision.data.labels.concept import Concept, LabelSystem
from intern_vision.data.labels.merge import MergeConfig, merge
from intern_vision.data.labels.vocabulary import Vocabulary, shipped_names, shipped_vocabulary
from intern_vision.errors import DataError


def vocabulary(name, *classes, **fields):
    return Vocabulary.from_dict({"name": name, "classes": list(classes), **fields})


def found(merged, name):
    """Kind, confidence, preferred name of the concept and of what is proposed, by class of a vocabulary."""
    return {
        m.class_name: (
            m.kind,
            m.confidence,
            merged.system[m.concept].name,
            merged.system[m.proposal].name if m.proposal else "",
        )
        for m in merged.mappings
        if m.vocabulary == name
    }


A = vocabulary("a", "Hot dog", "dining table", "airplane", "traffic light", "mouse")


def test_exact_lemma_and_synonym_in_this_order():
    b = vocabulary("b", "hot DOG", "diningtable", "aeroplane", "Traffic_Lights", "the mice", "lamp")
    assert found(merge([A, b]), "b") == {
        "hot DOG": ("exact", 1.0, "Hot dog", ""),
        "diningtable": ("lemma", 0.95, "dining table", ""),
        "aeroplane": ("synonym", 0.9, "airplane", ""),
        "Traffic_Lights": ("lemma", 0.95, "traffic light", ""),
        "the mice": ("lemma", 0.95, "mouse", ""),
        "lamp": ("new", 1.0, "lamp", ""),
    }
    # A concept that was learned as a plural is found by the singular.
    assert found(merge([vocabulary("p", "buses"), vocabulary("q", "bus")]), "q")["bus"] == ("lemma", 0.95, "buses", "")


def test_a_merged_concept_knows_its_datasets_and_names():
    merged = merge([A, vocabulary("b", {"name": "aeroplane", "synonyms": ["jet_plane"]})])
    (id,) = merged.system.find("aeroplane")
    concept = merged.system[id]
    assert concept.names["en"] == ("airplane", "aeroplane", "jet plane")
    assert concept.sources == ("a", "b") and concept.visual is True
    assert len(merged.system) == 5


def test_second_names_are_proposed_and_not_merged():
    b = vocabulary("b", {"name": "carousel", "synonyms": ["roundabout"]})
    merged = merge([b, vocabulary("c", "roundabout")])
    assert found(merged, "c")["roundabout"] == ("synonym", 0.7, "roundabout", "carousel")
    assert merged.mappings[-1].is_uncertain and len(merged.system) == 2
    bold = merge([b, vocabulary("c", "roundabout")], config=MergeConfig(min_confidence=0.7))
    assert found(bold, "c")["roundabout"] == ("synonym", 0.7, "carousel", "") and len(bold.system) == 1


def test_a_dataset_tells_its_own_classes_apart():
    merged = merge([vocabulary("a", "face"), vocabulary("b", "Faces", "face")])
    assert found(merged, "b") == {"Faces": ("lemma", 0.95, "face", ""), "face": ("exact", 0.5, "face", "face")}
    assert len({m.concept for m in merged.mappings if m.vocabulary == "b"}) == 2


def test_stated_ids_tell_meanings_apart():
    device = vocabulary("device", {"name": "mouse", "concept": "n03793489"})
    rodent = vocabulary("rodent", {"name": "mouse", "concept": "n02330245"})
    merged = merge([device, rodent, vocabulary("again", {"name": "computer mouse", "concept": "n03793489"})])
    assert [m.concept for m in merged.mappings] == ["n03793489", "n02330245", "n03793489"]
    assert [m.kind for m in merged.mappings] == ["new", "new", "id"]
    # Without an id either may be meant.
    merged = merge([device, rodent, vocabulary("plain", "mouse")])
    assert merged.mappings[-1].is_uncertain and merged.mappings[-1].confidence == 0.5
    # A concept that was there without an id keeps its own and learns the stated one.
    merged = merge([vocabulary("plain", "mouse"), rodent, device])
    first, second, third = merged.mappings
    assert first.concept == second.concept != third.concept
    assert merged.system[first.concept].same_as == ("n02330245",)


def test_a_meaning_may_be_ruled_out():
    bird = vocabulary("bird", {"name": "kite", "concept": "n01608432"})
    toy = vocabulary("toy", {"name": "kite", "unlike": ["n01608432"]})
    for lists in ([bird, toy], [toy, bird]):
        merged = merge(lists)
        assert [m.kind for m in merged.mappings] == ["new", "new"] and len(merged.system) == 2
    assert found(merge([toy, vocabulary("plain", "kites")]), "plain")["kites"] == ("lemma", 0.95, "kite", "")


def test_words_of_another_kind_are_left_to_a_person():
    merged = merge([vocabulary("things", "punch"), vocabulary("sport", "Punch", about="actions")])
    assert found(merged, "sport")["Punch"] == ("exact", 0.5, "Punch", "punch")


def test_parents_make_a_graph():
    merged = merge(
        [
            vocabulary("a", {"name": "dog", "parent": "animal"}, {"name": "person", "parent": "person"}),
            vocabulary("b", {"name": "dogs", "parent": "pets"}),
            vocabulary("c", "beagle", "poodle", parent="dog"),
            vocabulary("d", "animal"),
        ]
    )
    system = merged.system
    (dog,), (animal,), (beagle,) = system.find("dog"), system.find("animal"), system.find("beagle")
    assert [system[p].name for p in system.parents(dog)] == ["animal", "pets"]
    assert system.is_a(beagle, animal) and system[animal].sources == ("d",)
    assert system.isolated == system.find("person")


def test_parents_in_a_circle_are_refused_with_the_path():
    a, b = vocabulary("a", {"name": "cup", "parent": "mug"}), vocabulary("b", {"name": "mug", "parent": "cup"})
    with pytest.raises(DataError, match=r"taxonomy: cycle c\d+ \((\w+)\) -> c\d+ \((\w+)\) -> c\d+ \(\1\); remove"):
        merge([a, b])


def test_one_dataset_with_two_families():
    classes = [{"name": "car"}, {"name": "road"}]
    boxes = Vocabulary.from_dict({"name": "set", "family": "detect", "classes": classes[:1]})
    masks = Vocabulary.from_dict({"name": "set", "family": "segment", "classes": classes})
    merged = merge([boxes, masks])
    assert merged.mappings[0].concept == merged.mappings[1].concept and len(merged.system) == 2
    with pytest.raises(DataError, match="vocabulary set: given twice for family detect"):
        merge([boxes, boxes])


BASE = LabelSystem(
    [
        Concept(id="n1", names={"en": ("animal",)}),
        Concept(id="n2", names={"en": ("dog", "domestic dog"), "de": ("Hund",)}, common=True),
        Concept(id="n3", names={"en": ("frank", "hot dog", "dog")}),
        Concept(id="n4", names={"en": ("crane",)}),
        Concept(id="n5", names={"en": ("crane", "hoist")}),
        Concept(id="n6", names={"en": ("rug", "carpet")}),
    ],
    {"n2": ["n1"], "n4": ["n1"]},
)
SENSES = {"dog": ("n2", "n3"), "crane": ("n5", "n4"), "hot dog": ("n3",), "carpet": ("n6",)}


def test_into_a_taxonomy():
    merged = merge([vocabulary("a", "dog", "crane", "hot_dog", "lamp")], base=BASE, senses=SENSES)
    assert [(m.kind, m.confidence, m.concept, m.proposal) for m in merged.mappings[:3]] == [
        ("exact", 1.0, "n2", ""),
        # The most frequent sense is proposed.
        ("exact", 0.5, merged.mappings[1].concept, "n5"),
        # The dictionary knows one meaning of it, although it is a second name.
        ("synonym", 0.9, "n3", ""),
    ]
    assert merged.system["n2"].names == {"en": ("dog", "domestic dog"), "de": ("Hund",)}
    assert merged.system["n2"].common is True and merged.system.parents("n2") == ("n1",)
    without = merge([vocabulary("a", "hot_dog")], base=BASE)
    assert without.mappings[0].is_uncertain and without.mappings[0].proposal == "n3"


def test_a_concept_without_an_english_name_stays_without():
    base = LabelSystem([Concept(id="Q144", names={"de": ("Hund",)})], {})
    merged = merge([vocabulary("a", "Hund"), vocabulary("b", "cat")], base=base)
    assert merged.mappings[0].concept == "Q144"
    assert merged.system["Q144"].names == {"de": ("Hund",), "en": ("Hund",)}
    assert merge([vocabulary("b", "cat")], base=base).system["Q144"].names == {"de": ("Hund",)}


def test_an_earlier_result_goes_on_as_if_it_had_been_one_merge():
    first, second = vocabulary("a", "mouse", "dog"), vocabulary("b", {"name": "dog", "concept": "n02084071"})
    third = vocabulary("c", {"name": "domestic dog", "concept": "n02084071"}, {"name": "mouse", "concept": "n02330245"})
    whole = merge([first, second, third])
    system = merge([third], base=merge([second], base=merge([first]).system).system).system
    assert system.concepts == whole.system.concepts
    (dog,) = system.find("n02084071")
    assert system[dog].sources == ("a", "b", "c") and dog.startswith("c")


def test_decisions():
    things = [vocabulary("a", "carousel", "dam"), vocabulary("b", {"name": "wheel", "synonyms": ["carousel"]}, "dike")]
    first = merge(things)
    assert found(first, "b")["wheel"] == ("synonym", 0.7, "wheel", "carousel")
    carousel, dam = first.mappings[0].concept, first.mappings[1].concept
    same = merge(things, decisions={("b", "classify", 0): carousel, ("b", "classify", 1): dam})
    assert [m.concept for m in same.mappings] == [carousel, dam, carousel, dam]
    assert [m.kind for m in same.mappings[2:]] == ["decided", "decided"] and len(same.system) == 2
    apart = merge(things, decisions={("b", "classify", 0): "new"})
    assert found(apart, "b")["wheel"] == ("decided", 1.0, "wheel", "carousel")
    assert not apart.mappings[2].is_uncertain
    with pytest.raises(DataError, match=r"decision for b \(classify\), class 1 \(dike\): n99 is no concept of the voc"):
        merge(things, decisions={("b", "classify", 1): "n99"})
    with pytest.raises(DataError, match=r"decision for b \(classify\), class 7: no such class is merged"):
        merge(things, decisions={("b", "classify", 7): "new"})


def test_a_name_split_by_decision_keeps_two_concepts():
    things = [vocabulary("a", "bat"), vocabulary("b", "bat")]
    merged = merge(things, decisions={("b", "classify", 0): "new"})
    ids = [m.concept for m in merged.mappings]
    assert len(set(ids)) == 2
    assert ids == [m.concept for m in merge(things, decisions={("b", "classify", 0): "new"}).mappings]


def vectors(names):
    """A direction a letter: names of the same letters lie close."""
    counts = np.array([[name.lower().count(chr(97 + k)) for k in range(26)] for name in names], np.float32)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def test_embedding_comes_last_and_is_proposed():
    a, b = vocabulary("a", "listen", "zebra"), vocabulary("b", "silent", "Zebras", "pond")
    asked = []

    def embed(names):
        asked.append(list(names))
        return vectors(names)

    merged = merge([a, b], embed=embed)
    assert found(merged, "b") == {
        "silent": ("embedding", 1.0, "silent", "listen"),
        "Zebras": ("lemma", 0.95, "zebra", ""),
        "pond": ("new", 1.0, "pond", ""),
    }
    assert asked == [["listen", "zebra", "silent", "Zebras", "pond"]]
    sure = merge([a, b], embed=vectors, config=MergeConfig(accept_similarity=0.99))
    assert found(sure, "b")["silent"] == ("embedding", 1.0, "listen", "")
    strict = merge([a, vocabulary("c", "listened")], embed=vectors, config=MergeConfig(min_similarity=0.99))
    assert strict.mappings[-1].kind == "new"
    with pytest.raises(DataError, match=r"embedding: expected \(5, width\) vectors, got \(4, 26\)"):
        merge([a, b], embed=lambda names: vectors(names[1:]))


def test_the_nearest_of_all_is_proposed_unless_it_is_another_meaning():
    base = LabelSystem([Concept(id="n1", names={"en": ("silent",)}), Concept(id="n2", names={"en": ("listened",)})], {})
    plain = merge([vocabulary("a", "listen")], base=base, embed=vectors)
    assert plain.mappings[0].proposal == "n1"
    stated = merge([vocabulary("a", {"name": "listen", "concept": "n7"})], base=base, embed=vectors)
    assert stated.mappings[0].kind == "new"


SHIPPED = """coco voc ade20k cityscapes cifar10 cifar100 imagenet1k caltech101 food101 pets flowers102 sun397
stanford_cars dtd fgvc_aircraft svhn eurosat resisc45 retinopathy fer2013 ucf101 gtsrb pcam widerface
citypersons""".split()  # noqa: SIM905 - a list of one name a line is no better to read


def test_all_shipped_lists_together():
    assert {*SHIPPED, "cityscapes_full"} == set(shipped_names())
    lists = [shipped_vocabulary(name) for name in SHIPPED]
    merged = merge(lists)
    counts = {kind: 0 for kind in ("id", "exact", "lemma", "synonym", "new", "uncertain")}
    for mapping in merged.mappings:
        counts["uncertain" if mapping.is_uncertain else mapping.kind] += 1
    assert counts == {"id": 10, "exact": 235, "lemma": 15, "synonym": 12, "new": 2379, "uncertain": 35}
    assert len(merged.mappings) == sum(len(item.classes) for item in lists) == 2686
    # Besides the classes' concepts there are the parents that no list has as a class.
    parents = [concept for concept in merged.system.concepts.values() if not concept.sources]
    assert len(merged.system) == len({m.concept for m in merged.mappings}) + len(parents) == 2454
    wrong = [m for m in merged.mappings if m.vocabulary not in merged.system[m.concept].sources]
    assert wrong == []


def test_what_the_shipped_lists_share():
    system = merge([shipped_vocabulary(name) for name in SHIPPED]).system

    def shared(name):
        return {source for id in system.find(name) for source in system[id].sources}

    assert {"coco", "voc", "cifar10", "ade20k"} <= shared("airplane")
    assert shared("couch") == {"coco", "voc", "ade20k", "cifar100"}
    assert {"coco", "voc", "imagenet1k"} <= shared("television")
    device, rodent = system["n03793489"], system["n02330245"]
    assert device.sources == ("coco", "imagenet1k") and rodent.sources == ("cifar100",)
    (dog,) = (id for id in system.find("dog") if "coco" in system[id].sources)
    assert {"Samoyed", "pug"} <= {system[id].name for id in system.descendants(dog)}


def test_merging_again_gives_the_same():
    lists = [shipped_vocabulary(name) for name in ("coco", "voc", "ade20k", "cifar100")]
    first, second = merge(lists), merge(lists)
    assert first.mappings == second.mappings and first.system.concepts == second.system.concepts
