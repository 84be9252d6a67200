import json

import pytest
from helpers import AUGMENT, HEAD, save_backbone

from intern_vision.bench.table import BenchmarkTable
from intern_vision.stages import adapt, evaluate, report, select
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import join_uri, open_store
from intern_vision.train.settings import DenseConfig, FineTuneConfig


@pytest.fixture(params=["intern", "the chosen one's name"])
def reported(world, tmp_path, request):
    """A real choice between two generalists, two arms adapted by both recipes and scored, and their report."""
    heads = ("multilabel", "detect")
    candidates = tuple(save_backbone(world, tmp_path / f"joint-{seed}", heads, seed=seed) for seed in (1, 2))
    chosen = run_stage("select", select.Config(precision="fp32"), Inputs(data=(world.upstream,), candidates=candidates))
    store = open_store(world.store_root)
    taken = read_record(store, chosen.uri).facts["chosen"]
    arms = {"clip": save_backbone(world, tmp_path / "clip")}
    if request.param == "intern":
        arms["intern"] = chosen
    else:
        arms[taken] = next(ref for ref in candidates if ref.name == taken)
    scores = []
    for arm, model in arms.items():
        config = adapt.Config(
            name=f"{arm}-flower",
            recipes=("frozen", "fine_tuned"),
            augment=AUGMENT,
            dense=DenseConfig(num_steps_small=2, num_steps_large=2, batch_size=4),
            fine_tune=FineTuneConfig(num_steps_small=2, num_steps_large=2, batch_size=4),
            head=HEAD,
            precision="fp32",
        )
        adapted = run_stage("adapt", config, Inputs(model=(model,), data=(world.flower,)), name=config.name)
        scored = evaluate.Config(model_name=arm, precision="fp32", num_examples=2)
        scores.append(run_stage("evaluate", scored, Inputs(model=(adapted,), data=(world.flower,)), name=config.name))
    inputs = Inputs(scores=tuple(scores), data=(world.flower,), selected=(chosen,))
    ref = run_stage("report", report.Config(num_examples=2), inputs)
    candidates = json.loads(store.read(join_uri(chosen.uri, select.CANDIDATES_FILE)))
    return fetch(store, ref, tmp_path / "report"), candidates, read_record(store, ref.uri), list(arms)


def test_real_outputs_become_a_table_and_a_page(reported):
    folder, candidates, record, adapted = reported
    table = BenchmarkTable.from_json((folder / "table.json").read_text())
    # A generalist that was adapted under its own name gives the candidate its scores.
    shown = tuple(dict.fromkeys(("clip", "intern", *adapted)))
    assert table.arms == shown
    assert table.columns == tuple(f"{arm}@{p}" for p in ("10", "100", "10+ft", "100+ft") for arm in shown)
    (row,) = table.rows
    assert row.errors["intern@10"] == row.errors[f"{adapted[1]}@10"]
    assert set(row.num_test.values()) == {24} and row.intervals.keys() == row.errors.keys()
    assert record.facts["error/classify/intern/10+ft"] == pytest.approx(row.errors["intern@10+ft"] / 100)
    page = (folder / "report.html").read_text()
    (taken,) = (candidate for candidate in candidates if candidate["chosen"])
    assert "Generalist candidates" in page
    assert page.count('<span class="tag">chosen</span>') == 1
    assert f'{taken["name"]} <span class="tag">chosen</span>' in page
    # Fresh weights: nothing was trained.
    assert {arm: cost.image_passes for arm, cost in table.costs.items()} == dict.fromkeys(shown, 0)


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/#/runs/abc"),
        ("https://user:secret@host/mlflow/", "https://host/mlflow/#/runs/abc"),
        ("", ""),
    ],
)
def test_address_of_a_run_holds_no_credentials(monkeypatch, server, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert report.run_address("abc") == address
    assert report.run_address("") == ""
