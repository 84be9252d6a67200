import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.data.labels.names import NameFinder, folded, lemma_forms, surface


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Hot_dog", "hot-dog"),
        ("diningtable", "dining table"),
        ("the sea", "Sea"),
        ("a lamp", "lamp"),
        ("BaseballPitch", "baseball pitch"),
        ("colt's foot", "Colts Foot"),
        ("potted  plant", "Potted plant "),
        ("ｃａｆé", "CAFÉ"),
    ],
)
def test_spellings_of_one_name(name, other):
    assert surface(name) == surface(other)


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("airplanes", "airplane"),
        ("glasses", "glass"),
        ("buses", "bus"),
        ("boxes", "box"),
        ("beaches", "beach"),
        ("butterflies", "butterfly"),
        ("wolves", "wolf"),
        ("knives", "knife"),
        ("women", "woman"),
        ("mice", "mouse"),
        ("small mice", "small mouse"),
        ("people", "person"),
        ("tomatoes", "tomato"),
        ("traffic_lights", "Traffic light"),
    ],
)
def test_plurals(plural, singular):
    assert surface(singular) in lemma_forms(plural)


@pytest.mark.parametrize("name", ["glass", "bus", "octopus", "tennis", "gas", "lens"])
def test_words_that_only_look_like_plurals(name):
    forms = lemma_forms(name)
    assert surface(name) in forms and not forms & {"glas", "bu", "octopu", "tenni", "ga"}


def test_exceptions_of_a_dictionary():
    assert "corpus" not in lemma_forms("corpora")
    assert "corpus" in lemma_forms("corpora", {"corpora": ("corpus",)})


def test_exact_keeps_what_lemma_drops():
    assert folded(" Hot  DOG ") == "hot dog" != folded("hot_dog")
    assert lemma_forms("--") == frozenset()


@given(st.text(max_size=20))
def test_forms_hold_the_surface_and_are_stable(name):
    forms = lemma_forms(name)
    assert (surface(name) in forms) == bool(surface(name)) and forms == lemma_forms(name)
    assert folded(folded(name)) == folded(name)


def test_names_are_found_as_words_of_a_text():
    finder = NameFinder(
        [
            ("traffic light", "t"),
            ("light", "l"),
            ("T-shirt", "s"),
            ("hotDog", "h"),
            ("ox", "o"),
            ("mouse", "m1"),
            ("Mouse", "m2"),
        ]
    )
    assert finder.find("Two traffic-lights, a t shirt.") == {"t", "l", "s"}
    assert finder.find("HOT DOGS and mice!") == {"h", "m1", "m2"}
    assert finder.find("lightning, an ox and a hot summer") == frozenset()
    assert (
        finder.named("mice") == {"m1", "m2"}
        and finder.named("ox") == {"o"}
        and finder.named("a traffic light") == frozenset()
    )


WORDS = st.lists(st.sampled_from(["red", "lamp", "lamps", "big", "box", "boxes"]), max_size=8)


@given(WORDS, st.sets(st.sampled_from(["lamp", "red lamp", "big red lamp", "box"]), min_size=1))
def test_finding_is_what_a_search_of_every_name_gives(words, names):
    plain = " ".join({"lamps": "lamp", "boxes": "box"}.get(word, word) for word in words)
    last_plural = {name for name in names if f" {name} " in f" {plain} "}
    found = NameFinder((name, name) for name in names).find(" ".join(words))
    # Only the last word of a name may stand in the plural.
    assert found <= last_plural
    assert {name for name in names if f" {name} " in f" {' '.join(words)} "} <= found
