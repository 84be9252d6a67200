import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.bench.charts import (
    Curve,
    DotRow,
    Mark,
    arm_mark,
    curve_svg,
    dot_chart,
    efficiency_panels,
    key_svg,
    set_panels,
)
from intern_vision.bench.table import ProtocolScore, Scores, build_table

ARMS = ("clip", "intern", *(f"arm{number}" for number in range(16)))


def table_of(arms=ARMS, protocols=("10", "100", "10+ft", "0"), step=0.05):
    scores = []
    for family, dataset in (("classify", "a&b"), ("depth", "room")):
        for place, arm in enumerate(arms):
            given = {
                name: ProtocolScore(
                    error=0.5 - 0.01 * place - step * rank, metrics={}, num_train=1, num_test=9, method="x"
                )
                for rank, name in enumerate(protocols)
            }
            scores.append(Scores(dataset=dataset, model=arm, family=family, protocols=given))
    return build_table(scores, baseline="clip", candidate="intern")


def dots(svg):
    """(x, tooltip, hollow) of every mark."""
    found = []
    for mark in ET.fromstring(svg).iter():
        if mark.get("class") == "dot":
            title = mark.find("title")
            x = float(mark.get("cx") or "nan")
            found.append((x, None if title is None else title.text, "--card" in mark.get("style")))
    return found


def test_arms_differ_in_colour_or_shape():
    table = table_of()
    marks = [arm_mark(arm, table) for arm in ARMS]
    assert len(set(marks)) == len(ARMS)
    assert marks[:2] == [("theirs", "circle"), ("ours", "circle")]
    assert all(ET.fromstring(key_svg(*mark)) is not None for mark in marks)


def test_places_are_to_scale_and_ticks_are_round():
    row = DotRow(label="x", marks=[Mark(value=value, colour="ours", title=str(value)) for value in (0.0, 10.0, 40.0)])
    svg = dot_chart([row], "three values")
    zero, ten, forty = (x for x, *_ in dots(svg))
    assert (ten - zero) / (forty - zero) == pytest.approx(0.25, abs=0.01)
    texts = [text.text for text in ET.fromstring(svg).iter("text")]
    assert texts == ["0", "10", "20", "30", "40", "x"]
    assert dot_chart([DotRow(label="empty", marks=[])], "nothing") == ""


@given(st.lists(st.floats(-1e4, 1e4, allow_subnormal=False), min_size=1, max_size=6))
def test_every_mark_lies_on_the_drawing(values):
    svg = dot_chart([DotRow(label="x", marks=[Mark(value=value, colour="ours") for value in values])], "values")
    width = float(ET.fromstring(svg).get("viewBox").split()[2])
    assert all(0 <= x <= width for x, *_ in dots(svg))


def test_efficiency_shows_few_labels_hollow_and_the_baselines_most_as_a_line():
    table = table_of(("clip", "intern"))
    panels = efficiency_panels(table)
    assert [panel.title for panel in panels] == [
        "classify, frozen", "classify, fine-tuned", "depth, frozen", "depth, fine-tuned",
    ]  # fmt: skip
    assert {title: hollow for _, title, hollow in dots(panels[0].svg)} == {
        "clip@10: 50.0 %": True, "clip@100: 45.0 %": False, "intern@10: 49.0 %": True, "intern@100: 44.0 %": False,
    }  # fmt: skip
    assert panels[0].svg.count('class="guide"') == 1 and panels[0].note == "thin: 1 set"
    # One share of the labels is not few.
    assert [hollow for *_, hollow in dots(panels[1].svg)] == [False, False]


def test_panels_of_a_family_share_one_scale():
    table = table_of(("clip", "intern"), protocols=("0", "10", "10+ft"), step=0.15)
    for panel in efficiency_panels(table):
        ticks = [text.text for text in ET.fromstring(panel.svg).iter("text") if text.get("text-anchor") == "middle"]
        # Errors of 35 and 20 %; the zero-shot error of 50 % is no point of these charts.
        assert ticks == ["0", "10", "20", "30", "40"]


def test_every_set_has_every_arm_with_the_fewest_labels():
    table = table_of()
    classify, depth = set_panels(table)
    assert (classify.title, depth.title) == ("classify @10", "depth @10")
    titles = {title for _, title, _ in dots(classify.svg)}
    assert titles == {
        f"{arm}: {row:.1f} %" for arm, row in zip(ARMS, [50.0 - n for n in range(len(ARMS))], strict=True)
    }
    assert "a&amp;b" in classify.svg


def test_curve_svg_leaves_out_what_is_not_finite():
    curve = Curve(name="x", steps=[1, 2, 3], losses={"loss": [4.0, math.nan, 2.0]})
    chart = curve_svg(curve)
    assert chart.count('<path class="line') == 1 and "nan" not in chart
    assert curve_svg(Curve(name="x", steps=[1], losses={"loss": [math.inf]})) == ""
