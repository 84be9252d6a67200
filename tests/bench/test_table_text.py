import re

import pytest

from intern_vision.bench.table import ArmCost, ProtocolScore, Scores, build_table
from intern_vision.bench.table_text import family_label, format_mean, main_comparisons, render_text

SETS = {"flower": "classify", "count": "classify", "sketch": "classify", "det_novel": "detect", "room": "depth"}
MANY = ("clip", "intern", "clip-cpu", "amateur", "expert", "joint-scratch", "joint", "task-arithmetic", "average")


def made(arms, protocols=("10", "100", "10+ft", "100+ft"), skip=(), **more):
    """Errors fall along the arms and the protocols, in steps of a percent."""
    scores = []
    for number, (dataset, family) in enumerate(SETS.items()):
        for place, arm in enumerate(arms):
            given = {
                protocol: ProtocolScore(
                    error=0.9 - 0.1 * number - 0.01 * place - 0.1 * rank,
                    metrics={},
                    num_train=10,
                    num_test=50,
                    method="x",
                )
                for rank, protocol in enumerate(protocols)
                if (dataset, arm, protocol) not in skip
            }
            scores.append(Scores(dataset=dataset, model=arm, family=family, protocols=given))
    costs = {arm: ArmCost(image_passes=480_000, cpu_s=900.0) for arm in arms[:1]}
    return build_table(scores, baseline="clip", candidate="intern", costs=costs, **more)


def lines_of(text, start):
    """Lines of the first table whose title contains ``start``, as words."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if start in line)
    body = [line for line in lines[first + 1 :]]
    rule = next(number for number, line in enumerate(body) if "\u2500" in line)
    end = next((n for n, line in enumerate(body[rule + 1 :]) if not line.strip()), len(body))
    return [line.split() for line in body[rule + 1 : rule + 1 + end]]


def test_two_arms_stand_beside_their_reductions():
    text = render_text(made(("clip", "intern"), ("10", "100")))
    assert "\x1b" not in text and text.endswith("\n")
    rows = {row[0]: row[1:] for row in lines_of(text, "error in % by set")}
    assert rows["flower"][:4] == ["90.0", "89.0", "80.0", "79.0"]
    assert rows["flower"][4:] == [
        f"{100 * (1 - ours / theirs):+.1f}" for ours, theirs in [(89, 90), (89, 80), (79, 80)]
    ]
    assert "all arms" not in text
    assert "intern@10 vs clip@10: lower error on 5 of 5 sets" in text
    assert "clip: 480,000 image passes and 900 CPU-s" in text


def test_families_come_first_then_reductions_then_sets():
    text = render_text(made(MANY, references=("joint-scratch",), cost_baseline="clip-cpu"))
    titles = [
        "mean error in % by family",
        "relative reduction",
        "error in % by set, lower",
        "error in % by set, all arms",
    ]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    frozen = {row[0]: row[1:] for row in lines_of(text, "frozen backbone")}
    assert set(frozen) == set(MANY)
    assert frozen["clip"][:2] == ["80.0", "70.0"]
    tuned = {row[0]: row[1:] for row in lines_of(text, "strong fine-tuning")}
    assert tuned["clip"][:2] == ["60.0", "50.0"]


@pytest.mark.parametrize("width", [120, 80])
def test_lines_fit_whatever_the_number_of_arms(width):
    table = made(MANY + tuple(f"expert-{letter}" for letter in "abcdefg"), references=("joint-scratch", "expert-*"))
    text = render_text(table, width)
    assert max(map(len, text.splitlines())) <= width
    grids = re.findall(r"all arms @10\n", text)
    assert len(grids) > 1, "too many arms for one table"


def test_what_is_missing_is_a_dash_and_an_incomplete_mean_is_marked():
    table = made(("clip", "intern", "joint"), ("10",), skip={("flower", "joint", "10"), ("room", "joint", "10")})
    frozen = {row[0]: row[1:] for row in lines_of(render_text(table), "frozen backbone")}
    assert frozen["joint"] == ["73.0*", "58.0", "-"]
    assert "incomplete" in render_text(table) and family_label(table.families[0]) == "classify (3 sets, incomplete)"
    assert format_mean(table.families[2], "joint@10") == "-"
    sets = {row[0]: row[1:] for row in lines_of(render_text(table), "all arms @10")}
    assert sets["room"] == ["50.0", "49.0", "-"]


def test_the_papers_figures_are_labelled_as_another_scale():
    text = render_text(made(("clip", "intern"), ("10", "100")))
    paper = next(line.split() for line in text.splitlines() if line.strip().startswith("paper: INTERN@10"))
    assert paper[-4:] == ["+40.2", "+47.3", "+9.4", "-"]
    assert "another scale" in text


def test_the_arm_behind_a_pattern_is_named():
    text = render_text(made((*MANY, "expert-x"), references=("expert*",)))
    assert (
        "best expert*@10: expert-x (classify), expert-x (detect), expert-x (depth), chosen on these test errors" in text
    )


def test_wins_below_the_table_are_over_the_baseline_alone():
    table = made(MANY, references=("joint-scratch",), cost_baseline="clip-cpu")
    assert all(name.split(" vs ")[1].startswith("clip@") for name in main_comparisons(table))
    assert "joint-scratch@10: lower" not in render_text(table)


def test_one_arm_alone_and_zero_shot_alone_are_tables():
    text = render_text(made(("intern",), ("0",)))
    assert "zero-shot, no training image" in text
    assert {row[0]: row[1:] for row in lines_of(text, "error in % by set")}["flower"] == ["90.0"]
