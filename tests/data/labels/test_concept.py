import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.data.labels.concept import Concept, LabelSystem
from intern_vision.errors import DataError


def system(parents, *more):
    ids = dict.fromkeys([id for child, own in parents.items() for id in (child, *own)] + list(more))
    return LabelSystem([Concept(id=id, names={"en": (f"the {id}",)}) for id in ids], parents)


# A dog is a pet and a canine; both are animals.
DOG = {"dog": ["pet", "canine"], "pet": ["animal"], "canine": ["carnivore"], "carnivore": ["animal"], "cat": ["pet"]}


@st.composite
def dags(draw):
    """Nodes 0..n-1; every edge leads to a smaller node."""
    num_nodes = draw(st.integers(1, 9))
    return {
        f"k{child}": [f"k{p}" for p in draw(st.lists(st.integers(0, child - 1), max_size=3, unique=True))]
        if child
        else []
        for child in range(num_nodes)
    }


@given(dags())
def test_queries_agree_with_networkx(parents):
    made = system(parents)
    graph = nx.DiGraph()
    graph.add_nodes_from(parents)
    graph.add_edges_from((child, parent) for child, own in parents.items() for parent in own)
    for id in parents:
        assert made.ancestors(id) == nx.descendants(graph, id)
        assert made.descendants(id) == nx.ancestors(graph, id)
        assert set(made.children(id)) == set(graph.predecessors(id))
        for other in parents:
            assert made.is_a(id, other) == nx.has_path(graph, id, other)
            common = (nx.descendants(graph, id) | {id}) & (nx.descendants(graph, other) | {other})
            lowest = {c for c in common if not any(c in nx.descendants(graph, d) for d in common)}
            assert made.lowest_common_ancestors(id, other) == tuple(sorted(lowest))
    order = {id: place for place, id in enumerate(made.ids)}
    assert set(order) == set(parents) and all(order[p] < order[c] for c, own in parents.items() for p in own)
    assert set(made.roots) == {id for id, degree in graph.out_degree() if not degree}


@given(dags(), st.data())
def test_an_image_counts_once_for_each_concept_above(parents, data):
    made = system(parents)
    images = data.draw(st.lists(st.lists(st.sampled_from(sorted(parents)), max_size=4), max_size=12))
    by_hand = {id: sum(any(made.is_a(shown, id) for shown in image) for image in images) for id in parents}
    assert made.rolled_up_counts(images) == {id: count for id, count in by_hand.items() if count}


def test_two_parents():
    made = system(DOG)
    assert made.ancestors("dog") == {"pet", "canine", "carnivore", "animal"}
    assert made.lowest_common_ancestors("dog", "cat") == ("pet",)
    assert made.lowest_common_ancestors("dog") == ("dog",)
    assert made.path_up("dog") == ("dog", "pet", "animal")
    assert made.rolled_up_counts([("dog", "cat"), ("dog",), ()]) == {
        "dog": 2,
        "cat": 1,
        "pet": 2,
        "canine": 2,
        "carnivore": 2,
        "animal": 2,
    }


def test_several_lowest_common_ancestors():
    made = system({"a": ["x", "y"], "b": ["x", "y"], "x": ["top"], "y": ["top"]})
    assert made.lowest_common_ancestors("a", "b") == ("x", "y")
    with pytest.raises(DataError, match="expected 1 concept or more, got none"):
        made.lowest_common_ancestors()


def test_a_cycle_is_refused_with_its_path():
    with pytest.raises(DataError) as caught:
        system({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]})
    line = str(caught.value)
    # From the special to the general, beginning anywhere on the cycle.
    turns = ["a (the a) -> b (the b) -> c (the c) -> a (the a)", "b (the b) -> c (the c) -> a (the a) -> b (the b)"]
    turns.append("c (the c) -> a (the a) -> b (the b) -> c (the c)")
    assert line in {f"taxonomy: cycle {turn}; remove one of these edges" for turn in turns}
    with pytest.raises(DataError, match=r"cycle a \(the a\) -> a \(the a\)"):
        system({"a": ["a"]})


def test_an_edge_to_nowhere_is_an_orphan():
    lonely = Concept(id="n1", names={"en": ("dog",)})
    with pytest.raises(DataError, match=r"orphan n1 \(dog\) -> n2: no such parent"):
        LabelSystem([lonely], {"n1": ["n2"]})
    with pytest.raises(DataError, match="n2 has parents and is no concept"):
        LabelSystem([lonely], {"n2": ["n1"]})
    with pytest.raises(DataError, match="concept n1: given twice"):
        LabelSystem([lonely, lonely], {})


def test_concepts_outside_the_roots_are_named_with_their_path():
    made = system(DOG | {"kite": ["toy"]}, "alone")
    assert made.isolated == ("alone",)
    made.require_rooted(["animal", "toy", "alone"])
    with pytest.raises(DataError, match=r"orphan toy \(the toy\): not below animal, alone; give it a parent"):
        made.require_rooted(["animal", "alone"])
    # A root below the top leaves its parents out, and what hangs on them elsewhere.
    with pytest.raises(DataError, match=r"orphan animal \(the animal\): not below pet"):
        system(DOG).require_rooted(["pet"])


def test_find_and_name():
    concepts = [
        Concept(id="n1", names={"en": ("hot dog", "frankfurter"), "de": ("Hotdog",)}, same_as=("Q2",)),
        Concept(id="n2", names={"zh": ("狗",)}),
        Concept(id="n3", names={}),
    ]
    made = LabelSystem(concepts, {})
    assert made.find("Hot-Dog") == ("n1",) == made.find("Q2") == made.find("hotdog", "de")
    assert made.find("frankfurter", "de") == () and made.find("狗") == ("n2",)
    assert [concept.name for concept in concepts] == ["hot dog", "狗", "n3"]
    with pytest.raises(DataError, match="concept n9: not in this label system of 3"):
        made.ancestors("n9")
