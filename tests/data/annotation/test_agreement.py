import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from intern_vision.data.annotation.agreement import Ballot, cohen_kappa, decide, fleiss_kappa
from intern_vision.data.annotation.answers import Asked, Vote
from intern_vision.data.annotation.settings import VoteConfig
from intern_vision.data.manifest import ManifestBox

TWO = VoteConfig()


def says(*labels):
    """Votes of annotators 1, 2, ...: a label, ``no`` for wrong, ``?`` for unsure."""
    verdicts = {"cat": "right", "no": "wrong", "?": "unsure"}
    return [
        Vote(item="i", annotator=str(n), verdict=verdicts.get(each, "wrong"), label="" if each in ("no", "?") else each)
        for n, each in enumerate(labels, 1)
    ]


@pytest.mark.parametrize(
    ("votes", "outcome"),
    [
        ((), "open"),
        (("cat",), "open"),
        (("cat", "cat"), "cat"),
        (("cat", "dog"), "open"),
        (("cat", "dog", "dog"), "dog"),
        (("no", "dog", "no"), "rejected"),
        (("?", "?"), "unsure"),
        (("cat", "no", "?"), "disputed"),
        (("cat", "dog", "cat", "dog"), "disputed"),
    ],
)
def test_two_votes_decide_and_a_third_breaks_a_tie(votes, outcome):
    for order in itertools.permutations(says(*votes)):
        decision = decide(order, "label", TWO)
        assert (decision.label or decision.outcome) == outcome


def box(x, label="cat", y=10.0, side=20.0):
    return ManifestBox(label=label, x0=x, y0=y, x1=x + side, y1=y + side)


def draws(*drawn):
    return [Vote(item="i", annotator=str(n), verdict="", boxes=tuple(boxes)) for n, boxes in enumerate(drawn, 1)]


def test_boxes_agree_by_label_and_overlap():
    decision = decide(draws([box(10), box(60)], [box(62), box(12)]), "box", TWO)
    assert decision.outcome == "labelled" and sorted(each.x0 for each in decision.boxes) == [11, 61]
    assert decide(draws([], []), "box", TWO).boxes == () and decide(draws([], []), "box", TWO).outcome == "labelled"
    assert decide(draws([box(10)], [box(10, "dog")]), "box", TWO).outcome == "open"
    assert decide(draws([box(10)], [box(22)]), "box", TWO).outcome == "open"
    # All three differ: the boxes that two of them drew are kept.
    settled = decide(draws([box(10)], [box(10), box(60)], [box(60), box(90)]), "box", TWO)
    assert settled.outcome == "labelled" and [each.x0 for each in settled.boxes] == [10, 60]


RATINGS = st.lists(st.tuples(*[st.sampled_from("abc")] * 2), min_size=2, max_size=40)


@given(RATINGS)
def test_cohen_kappa_is_that_of_scikit_learn(pairs):
    first, second = zip(*pairs, strict=True)
    ours = cohen_kappa(first, second)
    if len({*first, *second}) == 1:
        assert ours == 1
    else:
        assert ours == pytest.approx(cohen_kappa_score(first, second), abs=1e-9)


def fleiss_loop(rows):
    """Fleiss' kappa from lists of ratings, by counting pairs."""
    same = [sum(a == b for a, b in itertools.permutations(row, 2)) / (len(row) * (len(row) - 1)) for row in rows]
    everything = [each for row in rows for each in row]
    chance = sum((everything.count(name) / len(everything)) ** 2 for name in set(everything))
    return 1.0 if chance == 1 else (sum(same) / len(same) - chance) / (1 - chance)


def equally_many(num_ratings):
    rated = st.lists(st.sampled_from("abcd"), min_size=num_ratings, max_size=num_ratings)
    return st.lists(rated, min_size=1)


@given(st.integers(2, 5).flatmap(equally_many))
def test_fleiss_kappa_is_that_of_a_plain_loop(rows):
    counts = np.array([[row.count(name) for name in "abcd"] for row in rows])
    assert fleiss_kappa(counts) == pytest.approx(fleiss_loop(rows), abs=1e-9)


def asked(role="question", known=""):
    return Asked(key="k", role=role, proposed="cat", known=known, width_px=100, height_px=100)


def test_audits_leave_an_annotator_out():
    items = {f"q{n}": asked() for n in range(4)}
    items |= {f"a{n}": asked("audit", "right" if n % 2 else "wrong") for n in range(6)}
    votes = {}
    for item, one in items.items():
        verdict = one.known or "right"
        careful = [Vote(item=item, annotator=name, verdict=verdict, label="cat") for name in ("anna", "ben")]
        votes[item] = [*careful, Vote(item=item, annotator="carl", verdict="right", label="cat")]
    ballot = Ballot(votes, items, {}, "label", TWO)
    summary = ballot.summary()
    facts = {"num_votes": 10, "num_audits": 6, "audit_accuracy": 0.5, "is_left_out": True}
    assert summary["annotators"]["carl"] == facts and not summary["annotators"]["anna"]["is_left_out"]
    assert [pair["first"] + pair["second"] for pair in summary["pairs"]] == ["annaben"]
    assert summary["num_items"] == summary["num_labelled"] == 4 and summary["fleiss_kappa"] == 1
    # Too few audits prove nothing.
    few = Ballot(votes, items, {}, "label", VoteConfig(min_audits=7))
    assert not few.annotators["carl"]["is_left_out"]


def test_agreement_on_boxes_counts_each_box():
    items = {"q0": asked(), "a0": asked("audit")}
    drawn = draws([box(10), box(60)], [box(11)])
    votes = {"q0": drawn, "a0": drawn}
    ballot = Ballot(votes, items, {"a0": [box(10), box(60)]}, "box", TWO)
    assert [ballot.annotators[name]["audit_accuracy"] for name in "12"] == [1, 0]
    summary = ballot.summary()
    assert summary["num_open"] == 1 and summary["num_rated_twice"] == 2 and summary["agreed_share"] == 0.5
    assert summary["fleiss_kappa"] == pytest.approx(fleiss_loop([["cat", "cat"], ["cat", "absent"]]), abs=1e-4)
