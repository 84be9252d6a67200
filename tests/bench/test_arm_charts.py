import math
import xml.etree.ElementTree as ET

import pytest

from intern_vision.bench.arm_charts import curve_panels, radar_panel
from intern_vision.bench.scores import ProtocolScore, Scores
from intern_vision.bench.table import build_table

LABELS = {"1shot.0": 10, "1shot.1": 10, "4shot.0": 40, "10": 100, "100": 1_000, "0": 0, "100+ft": 1_000}


def table_of(errors, protocols=tuple(LABELS), family="classify"):
    """``errors`` by arm and dataset; each protocol has its own multiple of them."""
    items = []
    for arm, by_set in errors.items():
        for dataset, error in by_set.items():
            given = {
                name: ProtocolScore(
                    error=error / (1 + rank), metrics={}, num_train=LABELS[name], num_test=9, method="x"
                )
                for rank, name in enumerate(protocols)
            }
            items.append(Scores(dataset=dataset, model=arm, family=family, protocols=given))
    return build_table(items, baseline="clip", candidate="intern")


TWO = {"clip": {"a": 0.4, "b<c": 0.8, "d": 0.5}, "intern": {"a": 0.2, "b<c": 0.8, "d": 1.0}}


def marks(svg):
    """Tooltip to place of every mark."""
    found = {}
    for mark in ET.fromstring(svg).iter():
        if mark.get("class") == "dot":
            found[mark.find("title").text] = (float(mark.get("cx")), float(mark.get("cy")))
    return found


def test_curve_joins_shots_and_shares_by_their_number_of_labels():
    (panel,) = curve_panels(table_of(TWO))
    assert panel.title == "classify, frozen"
    found = marks(panel.svg)
    ours = [place for title, place in found.items() if title.startswith("intern")]
    assert len(ours) == 4 and ours == sorted(ours), "1shot, 4shot, 10 % and 100 %, from left to right"
    x_of = {title.partition("(")[2].partition(" ")[0]: place[0] for title, place in found.items() if "clip" in title}
    # The axis is logarithmic: a factor of ten is the same way everywhere.
    assert x_of["100"] - x_of["10"] == pytest.approx(x_of["1,000"] - x_of["100"], abs=0.2)
    # Two draws of one image a class, errors of 1 / 1 and 1 / 2 of the sets' mean.
    assert "clip, 1 a class (10 images): 42.5" in found


def test_two_numbers_of_labels_are_no_curve():
    assert curve_panels(table_of(TWO, ("10", "100"))) == []


def test_radar_places_the_best_arm_at_the_rim_and_twice_its_error_half_way():
    panel = radar_panel(table_of(TWO))
    assert panel.title == "all datasets @10"
    centre = [float(number) / 2 for number in ET.fromstring(panel.svg).get("viewBox").split()[2:]]
    radii = {title.partition(":")[0]: math.dist(place, centre) for title, place in marks(panel.svg).items()}
    rim = max(radii.values())
    expected = {
        "clip on a": 0.5,
        "intern on a": 1,
        "clip on b<c": 1,
        "intern on b<c": 1,
        "clip on d": 1,
        "intern on d": 0.5,
    }
    assert {name: radius / rim for name, radius in radii.items()} == pytest.approx(expected, abs=0.01)
    polygons = [path for path in ET.fromstring(panel.svg).iter() if path.get("class") == "area"]
    assert len(polygons) == 2
    assert {text.text for text in ET.fromstring(panel.svg).iter("text")} == {"a", "b<c", "d"}


def test_radar_needs_two_arms_and_three_sets_and_survives_a_perfect_arm():
    assert radar_panel(table_of({"intern": TWO["intern"]})) is None
    assert radar_panel(table_of({arm: {"a": 0.5, "d": 0.1} for arm in TWO})) is None
    perfect = {"clip": TWO["clip"], "intern": dict.fromkeys(TWO["intern"], 0.0)}
    places = marks(radar_panel(table_of(perfect)).svg)
    assert all(math.isfinite(value) for place in places.values() for value in place)
