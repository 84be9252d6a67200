import json
import re
import statistics

import pytest
from typer.testing import CliRunner

from intern_vision.bench.seeds import (
    SeedTable,
    combine,
    format_gain,
    format_spread,
    format_values,
    read_tables,
    render_page,
    render_text,
    spread_of,
)
from intern_vision.bench.table import ProtocolScore, Scores, build_table
from intern_vision.cli import app
from intern_vision.errors import DataError

SETS = {"flower": "classify", "count": "classify", "sketch": "classify", "room": "depth"}
ARMS = ("clip", "intern", "joint")


def table_of(seed, arms=ARMS, sets=SETS, num_test=50, candidate="intern"):
    """Errors that move with the seed, differently for each arm."""
    scores = [
        Scores(
            dataset=dataset,
            model=arm,
            family=family,
            protocols={
                protocol: ProtocolScore(
                    error=0.6 - 0.1 * place - 0.2 * rank + 0.01 * seed * (place + 1) - 0.02 * number,
                    metrics={},
                    num_train=10,
                    num_test=num_test,
                    method="x",
                )
                for rank, protocol in enumerate(("10", "100"))
            },
        )
        for number, (dataset, family) in enumerate(sets.items())
        for place, arm in enumerate(arms)
    ]
    return build_table(scores, baseline="clip", candidate=candidate, references=("joint",))


def tables(num_runs):
    return {f"nano-s{seed}": table_of(seed) for seed in range(num_runs)}


def test_means_and_deviations_are_those_of_the_runs_own_figures():
    found = tables(3)
    joined = combine(found)
    classify = joined.families[0]
    values = [table.families[0].errors["intern@10"] for table in found.values()]
    assert classify.errors["intern@10"].values == tuple(values)
    assert classify.errors["intern@10"].mean == pytest.approx(sum(values) / 3)
    assert classify.errors["intern@10"].std == pytest.approx(statistics.stdev(values))
    name = "intern@10 vs clip@10"
    for reading in ("mean_of_reductions", "reduction_of_mean"):
        values = [getattr(table.families[0].reductions[name], reading) for table in found.values()]
        assert getattr(classify, reading)[name].mean == pytest.approx(statistics.mean(values))
    assert joined.wins[name].values == (4.0, 4.0, 4.0) and joined.wins[name].unit == "sets"


def test_order_is_that_of_the_runs_and_the_json_keeps_everything():
    joined = combine(tables(2))
    assert joined.runs == ("nano-s0", "nano-s1")
    assert joined.arms == ARMS and joined.columns[:3] == ("clip@10", "intern@10", "joint@10")
    assert joined.comparisons[-2:] == ("intern@10 vs joint@10", "intern@100 vs joint@100")
    assert SeedTable.from_json(joined.to_json()) == joined


def test_one_value_has_no_deviation_and_none_is_a_dash():
    assert format_spread(spread_of([12.34, None])) == "12.3"
    assert format_spread(spread_of([None])) == "-" == format_spread(None)
    assert format_spread(spread_of([1.0, 3.0])) == "2.0 \u00b1 1.4"
    metres = spread_of([1.0, 3.0]).model_copy(update={"unit": "m"})
    assert format_spread(metres) == "2.00 m \u00b1 1.41 m"
    assert format_gain(spread_of([-1.0, 3.0, None])) == "+1.0 \u00b1 2.8 (1/2)"
    assert format_values(spread_of([-1.0, None, 3.25])) == "-1.0 - 3.2"


def test_an_arm_that_one_run_lacks_keeps_its_place():
    joined = combine({"a": table_of(0), "b": table_of(1, arms=("clip", "intern"))})
    spread = joined.families[0].errors["joint@10"]
    assert spread.values[1] is None and spread.std is None
    assert "intern@10 vs joint@10" in joined.comparisons


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"candidate": "joint"}, "run b compares"),
        ({"num_test": 40}, "differ in set count"),
        ({"sets": {"flower": "classify"}}, "differ in set count"),
    ],
)
def test_runs_of_different_benchmarks_are_refused(other, told):
    with pytest.raises(DataError, match=told):
        combine({"a": table_of(0), "b": table_of(1, **other)})
    with pytest.raises(DataError, match="at least 1"):
        combine({})


def test_text_has_means_and_every_value_within_its_width():
    joined = combine(tables(3))
    text = render_text(joined)
    assert max(map(len, text.splitlines())) <= 120 and "\x1b" not in text
    spread = joined.families[0].errors["intern@10"]
    assert f"{spread.mean:.1f} \u00b1 {spread.std:.1f}" in text
    assert " ".join(f"{value:.1f}" for value in spread.values) in text
    assert "(3/3)" in text and "thin, a mean over one or two sets: depth (1)" in text
    assert "paper: INTERN@10" in text


def test_page_stands_alone():
    page = render_page(combine(tables(3)))
    assert not re.search(r"<script|<link|url\(|@import|src=", page)
    assert page.count('aria-label="Relative reduction in %') == 3
    assert all(name in page for name in ("nano-s0", "nano-s2", "sets&rsquo; reductions", "+40.2"))


@pytest.fixture
def state_dir(tmp_path):
    for name, table in tables(2).items():
        folder = tmp_path / "runs" / name / "report"
        folder.mkdir(parents=True)
        (folder / "table.json").write_text(table.to_json())
    return tmp_path


def test_runs_are_found_by_name_folder_and_file(state_dir):
    by_name = read_tables(["nano-s0", "nano-s1"], state_dir)
    paths = [str(state_dir / "runs" / "nano-s0"), str(state_dir / "runs" / "nano-s1" / "report" / "table.json")]
    assert by_name == read_tables(paths, state_dir / "elsewhere") == tables(2)
    with pytest.raises(DataError, match="'x': no table.json there nor in .*; runs in .*: nano-s0, nano-s1"):
        read_tables(["x"], state_dir)
    with pytest.raises(DataError, match="given twice"):
        read_tables(["nano-s0", "nano-s0"], state_dir)


def test_the_command_prints_and_writes_the_same(state_dir):
    out = state_dir / "out"
    arguments = ["table", "nano-s0", "nano-s1", "--state-dir", str(state_dir)]
    done = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert (out / "seeds.txt").read_text().rstrip() in done.stdout
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(as_json.stdout) == json.loads((out / "seeds.json").read_text())
    assert "<html" in (out / "seeds.html").read_text()
    failed = CliRunner().invoke(app, ["table", "none", "--state-dir", str(state_dir)])
    assert failed.exit_code == 2 and failed.stderr.startswith("error: run 'none'")


def test_a_table_that_is_damaged_is_named(state_dir):
    path = state_dir / "runs" / "nano-s0" / "report" / "table.json"
    path.write_text("{}")
    done = CliRunner().invoke(app, ["table", "nano-s0", "--state-dir", str(state_dir)])
    assert done.exit_code == 2 and "table.json" in done.stderr
