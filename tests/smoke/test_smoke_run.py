"""The whole system through its command line: one run to its end, one that is stopped and killed, and what follows.

Slow: everything here shares the two runs, which go on side by side.
"""

import ast
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter

import cv2
import numpy as np
import own_data
import pytest
from running import (
    answer,
    clean_environment,
    error_line,
    intern,
    read_events,
    strict_json,
)
from smoke_runs import ARMS, FAMILIES, LAYOUTS, SETS, STEPS, TRAININGS, adapt, is_in_its_middle, resumed

from intern_vision.mlflow_rest import Server
from intern_vision.presets import resolve
from intern_vision.run_config import stage_config
from intern_vision.stages.base import read_record, read_ref
from intern_vision.store import join_uri

pytestmark = pytest.mark.slow


def test_stopped_run_ends_cleanly(interrupted):
    code, gone_after_s, events, stderr = interrupted[1][0]
    assert code == 75
    assert stderr.splitlines()[-1] == "error: asked to stop; the same command resumes" and "Traceback" not in stderr
    assert gone_after_s < 1.0
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["exit_code"] == 75 and failed["note"].startswith("stopped at step")


def test_killed_run_takes_everything_with_it(interrupted):
    code, gone_after_s, events, _ = interrupted[1][1]
    assert code == -signal.SIGKILL
    assert gone_after_s < 5.0, "ranks, steps or servers outlive the command"
    assert len(resumed(events)) == 1


def test_same_command_resumes_after_both_on_any_number_of_ranks(interrupted):
    run, tries = interrupted
    assert tries[2][0] == 75, tries[2][3]
    # Which of the two trainings comes first is the local runner's choice, in each try anew.
    begun = [event for event in tries[0][2] if event["event"] == "step" and is_in_its_middle(event)]
    stage = begun[-1]["stage"]
    steps = [resumed(events)[stage] for _, _, events, _ in tries[1:]]
    # Asked to stop, it saved the very step; killed, it has at least what it began with.
    assert steps[0] >= begun[-1]["done"] and steps[1] >= steps[0]
    assert {event["stage"] for event in tries[2][2] if event["event"] == "cached"} >= {"prepare-upstream", "search"}
    kept = [path.name for path in (run.state_dir / "scratch").iterdir() if path.is_dir()]
    assert kept == [] and not (run.run_dir / "tmp").exists()
    assert (run.run_dir / "refs" / f"{stage}.json").exists()


def test_two_runs_side_by_side_share_nothing(interrupted, smoke):
    other = interrupted[0].state_dir
    ports = [set(json.loads((state / "ports.json").read_text()).values()) for state in (smoke.state, other)]
    assert ports[0].isdisjoint(ports[1])


def test_run_shows_its_table_and_where_to_go_on(smoke):
    assert smoke.stdout.startswith("mean error in % by family, lower is better")
    assert all(name in smoke.stdout for name in (*SETS, "intern", "clip", "image passes"))
    assert f"report     {smoke.run_dir}/report/report.html" in smoke.stdout
    assert (
        f"next       intern predict intern-depth_room@candidate PICTURE.jpg --state-dir {smoke.state}" in smoke.stdout
    )
    assert "Traceback" not in smoke.stderr and "failed" not in smoke.stderr
    table = strict_json((smoke.run_dir / "report" / "table.json").read_text())
    assert {row["dataset"] for row in table["rows"]} == set(SETS)
    assert all(0 <= error <= 100 for row in table["rows"] for error in row["errors"].values())
    # What was chosen is the joint generalist or the merged one.
    assert table["costs"]["clip"]["image_passes"] >= table["costs"]["intern"]["image_passes"] in (320, 299)
    assert (smoke.run_dir / "report" / "table.txt").read_text().rstrip() in smoke.stdout
    page = (smoke.run_dir / "report" / "report.html").read_text()
    assert "<html" in page and all(name in page for name in (*SETS, "expert-detect"))


def test_nothing_is_left_behind(smoke):
    assert smoke.left == []
    assert [path.name for path in (smoke.state / "scratch").iterdir() if path.is_dir()] == []
    assert list((smoke.state / "spool").iterdir()) == []
    expected = {"config.json", "events.jsonl", "export", "kfp", "lock", "log.txt", "refs", "report"}
    assert {path.name for path in smoke.run_dir.iterdir()} == expected
    assert len(list((smoke.run_dir / "kfp").iterdir())) == 1


def test_state_is_private_and_holds_no_credentials_but_in_their_file(smoke):
    assert stat.S_IMODE(smoke.state.stat().st_mode) == 0o700
    assert stat.S_IMODE((smoke.state / "credentials.json").stat().st_mode) == 0o600
    secrets = set(json.loads((smoke.state / "credentials.json").read_text()).values())
    texts = {str(path): path.read_bytes() for path in smoke.run_dir.rglob("*") if path.is_file()}
    assert len(texts) > 50
    texts |= {"stdout": smoke.stdout.encode(), "stderr": smoke.stderr.encode()}
    assert [name for name, text in texts.items() for secret in secrets if secret.encode() in text] == []


def test_every_step_is_committed_with_its_parents(smoke, served):
    refs, store = smoke.refs(), smoke.store()
    assert refs.keys() == STEPS
    records = {name: read_record(store, ref.uri) for name, ref in refs.items()}
    names = {ref.uri: name for name, ref in refs.items()}
    assert all(record.ref == refs[name] for name, record in records.items())
    assert len({record.code for record in records.values()}) == 1
    parents = {name: {names[uri] for uri in record.ref.parents} for name, record in records.items()}
    assert parents["prepare-upstream"] == set()
    assert parents["search"] == {"prepare-upstream"}
    assert parents["amateur"] == parents["clip"] == {"prepare-upstream", "search"}
    assert parents["expert-depth"] == {"prepare-upstream", "amateur_local"}
    assert parents["amateur_local"] == {"prepare-upstream", "amateur"}
    experts = {f"expert-{family}" for family in FAMILIES}
    assert parents["expert-multilabel"] == {"prepare-upstream", "amateur"}
    # Only what it was made from: the joint generalist takes no expert.
    assert parents["generalist-joint"] == {"prepare-upstream", "amateur", "amateur_local"}
    assert parents["generalist-average"] == {"prepare-upstream", "amateur", "amateur_local", *experts}
    assert parents["select"] == {"prepare-upstream", "generalist-joint", "generalist-average"}
    assert parents["adapt-intern-flower"] == {"select", "prepare-flower"}
    assert parents["adapt-clip-flower"] == {"clip", "prepare-flower"}
    assert parents["evaluate-intern-flower"] == {"adapt-intern-flower", "prepare-flower"}
    assert {"export", *(f"evaluate-{arm}-{name}" for arm in ARMS for name in SETS)} <= parents["report"]
    for name, record in records.items():
        files = {file.uri.removeprefix(f"{record.ref.uri}/") for file in store.list(record.ref.uri)}
        extra = {"_COMMITTED"} | ({"trials.json"} if record.stage == "search" else set())
        assert files == record.files.keys() | extra, f"{name}: checkpoints or other files are left"


def test_mlflow_has_a_run_of_the_pipeline_with_one_of_each_stage_below(smoke, served):
    server = Server(served["mlflow"])
    experiment = server.get("mlflow/experiments/get-by-name", experiment_name="intern")["experiment"]["experiment_id"]
    found = server.post("mlflow/runs/search", {"experiment_ids": [experiment], "max_results": 1000})["runs"]
    runs = {run["info"]["run_name"]: run for run in found}
    tags = {name: {tag["key"]: tag["value"] for tag in run["data"]["tags"]} for name, run in runs.items()}
    assert len(runs) == len(found) and runs.keys() == STEPS | {"smoke"}
    assert {run["info"]["status"] for run in found} == {"FINISHED"}
    assert (tags["smoke"]["intern.pipeline"], tags["smoke"]["intern.preset"]) == ("intern", "smoke")
    parent = runs["smoke"]["info"]["run_id"]
    refs = smoke.refs()
    config = resolve("smoke")
    for name in STEPS:
        assert tags[name]["mlflow.parentRunId"] == parent
        assert tags[name]["intern.output.uri"] == refs[name].uri
        metrics = {metric["key"]: metric for metric in runs[name]["data"]["metrics"]}
        assert metrics["wall_s"]["value"] > 0
    for name in TRAININGS:
        params = {param["key"]: param["value"] for param in runs[name]["data"]["params"]}
        metrics = {metric["key"]: metric for metric in runs[name]["data"]["metrics"]}
        use, _, item = ("other-clip" if name == "clip" else name).partition("-")
        trainer = stage_config(config, use, item)[1].trainer
        assert params["config/trainer/num_steps"] == str(trainer.num_steps)
        assert metrics["train/loss"]["step"] == trainer.num_steps and metrics["train/loss"]["value"] > 0
        dataset = runs[name]["inputs"]["dataset_inputs"][0]["dataset"]
        assert dataset["name"] == "upstream" and dataset["digest"] == refs["prepare-upstream"].digest[:16]
    scores = {metric["key"]: metric["value"] for metric in runs["evaluate-intern-flower"]["data"]["metrics"]}
    assert scores["test/100/error"] == scores["error/100"]


def test_models_are_registered_with_alias_scores_and_parents(smoke, served):
    models = {model["name"]: model for model in answer("models", "--state-dir", smoke.state)["models"]}
    assert models.keys() >= {"intern-generalist", *(f"intern-{name}" for name in SETS)}
    refs = smoke.refs()
    assert models["intern-generalist"]["tags"]["intern.uri"] == refs["select"].uri
    for name in SETS:
        model = models[f"intern-{name}"]
        assert model["aliases"] == ["candidate"]
        assert model["tags"]["intern.digest"] == refs[f"adapt-intern-{name}"].digest
        assert {"intern.metric.50/error", "intern.metric.100/error", "intern.parent.0.uri"} <= model["tags"].keys()
    lines = intern("models", "--state-dir", smoke.state).stdout.splitlines()
    assert lines[0].split()[:3] == ["NAME", "VERSION", "ALIASES"] and any("intern-flower" in line for line in lines)


def test_card_of_a_registered_model_works_in_a_fresh_process(served, tmp_path):
    (picture,) = own_data.image_folder(tmp_path / "shapes", 1).glob("circle/*")
    card = Server(served["mlflow"]).get("mlflow/registered-models/get", name="intern-generalist")
    (code,) = re.findall(r"```python\n(.*?)```", card["registered_model"]["description"], re.DOTALL)
    assert 'load_model("models:/intern-generalist@candidate")' in code and "picture.jpg" in code
    shutil.copy(picture, tmp_path / "picture.jpg")
    environment = clean_environment(MLFLOW_TRACKING_URI=served["mlflow"])
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = ast.literal_eval(done.stdout.splitlines()[-1])
    assert found.keys() == set(FAMILIES) and found["segment"]["size_px"] == list(own_data.SIZE_PX)


def test_lineage_leads_from_the_model_to_the_images(smoke, served):
    found = answer("lineage", "intern-flower@candidate", "--state-dir", smoke.state)
    refs = smoke.refs()
    assert found["uri"] == refs["adapt-intern-flower"].uri
    stages = Counter(node["stage"] for node in found["nodes"])
    once = dict.fromkeys(("adapt", "select", "amateur", "amateur_local", "search"), 1)
    assert stages == once | {"prepare": 2, "generalist": 2, "expert": 4}
    assert [refs["select"].uri, found["uri"]] in found["edges"]
    text = intern("lineage", "intern-flower@candidate", "--state-dir", smoke.state).stdout
    assert "flower" in text.splitlines()[0] and "(see above)" in text
    assert answer("lineage", refs["select"].uri, "--state-dir", smoke.state)["uri"] == refs["select"].uri


def test_predict_draws_every_head_of_the_generalist(smoke, served, tmp_path):
    pictures = sorted(own_data.image_folder(tmp_path / "shapes", 1).rglob("*.png"))[:2]
    out = tmp_path / "out"
    found = answer("predict", "intern-generalist", *pictures, "--out", out, "--state-dir", smoke.state)["predictions"]
    assert Counter(row["head"] for row in found) == dict.fromkeys(FAMILIES, 2)
    assert {row["drawn"] for row in found} == {str(path) for path in out.iterdir()}
    one = intern("predict", "intern-flower", pictures[0], "--out", out, "--state-dir", smoke.state).stdout
    assert one.startswith(f"{pictures[0]} classify: ") and one.rstrip().endswith(f"-> {out}/0-classify.png")
    line = error_line(
        intern("predict", "intern-flower", pictures[0], "--head", "x", "--state-dir", smoke.state, exit_code=2)
    )
    assert line == "error: head: expected one of classify, got 'x'"


def test_same_command_again_trains_nothing(smoke, served):
    started = time.monotonic()
    found = answer("run", "--preset", "smoke", "--num-ranks", "2", "--state-dir", smoke.state)
    assert time.monotonic() - started < smoke.wall_s / 2
    assert found["table"] == strict_json((smoke.run_dir / "report" / "table.json").read_text())
    events = read_events(smoke.run_dir / "events.jsonl")
    assert {event["event"] for event in events} == {"cached"}
    assert {event["stage"] for event in events} == STEPS


def test_fifty_images_are_adapted_to_in_less_than_two_minutes(adapted, record_property):
    record_property("adapt_s", round(adapted[1], 1))
    assert adapted[1] < 120


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_is_checked_first_and_the_report_shows_what_was_found(smoke, adapted, name):
    lines = adapted[0][name].stdout.splitlines()
    assert lines[0].startswith(f"data       {LAYOUTS[name][2]}: ") and any(line.startswith("plan ") for line in lines)
    page = (smoke.state / "runs" / f"adapt-{name}" / "report" / "report.html").read_text()
    assert f"{name}: {LAYOUTS[name][2]}" in page and lines[0] in page and "Worst mistakes" in page
    assert ("<h2>What more labels would buy</h2>" in page) == (name == "shapes")


@pytest.mark.parametrize("name", LAYOUTS)
def test_own_data_gives_a_registered_model_that_predicts(smoke, adapted, own, tmp_path, name):
    done = adapted[0][name]
    assert f"model      models:/intern-{name}@candidate version 1" in done.stdout
    assert f'load       model = mlflow.pyfunc.load_model("models:/intern-{name}@candidate")' in done.stdout
    assert f"serve      intern serve intern-{name}@candidate --state-dir {smoke.state}" in done.stdout
    _, picture, family = LAYOUTS[name]
    command = ["predict", f"intern-{name}", own / picture, "--out", tmp_path, "--state-dir", smoke.state]
    (row,) = answer(*command)["predictions"]
    assert row["head"] == family and cv2.imread(row["drawn"]) is not None
    if name == "shapes":
        assert row["answer"]["label"] in own_data.SHAPES


def test_unusable_image_is_kept_out_and_told(smoke, adapted):
    ref = read_ref(smoke.state / "runs" / "adapt-shapes" / "refs" / "prepare-shapes.json")
    facts = read_record(smoke.store(), ref.uri).facts
    assert facts["num_quarantined"] == 1 and sum(facts[f"num_{s}"] for s in ("train", "val", "test")) == 50
    assert "prepare-shapes: note 1 unusable images kept out" in adapted[0]["shapes"].stderr


def test_wrong_own_data_is_named(smoke, served, own, tmp_path):
    def outside(document):
        document["annotations"][3]["bbox"] = [200, 10, 20, 20]

    def unknown(document):
        document["annotations"][4]["category_id"] = 77

    cut = shutil.copytree(own / "shapes", tmp_path / "cut")
    for index in range(5):
        (cut / "square" / f"{index}.png").write_bytes(b"no picture")
    own_data.coco(tmp_path / "outside", outside)
    own_data.coco(tmp_path / "unknown", unknown)
    masks = shutil.copytree(own / "regions", tmp_path / "masks")
    mask = cv2.imread(str(masks / "masks" / "7.png"), cv2.IMREAD_UNCHANGED)
    mask[0, 0] = 9
    cv2.imwrite(str(masks / "masks" / "7.png"), mask)
    names = ("cut", "outside", "unknown", "masks")
    done = [adapt(smoke, tmp_path / name, f"bad-{name}", exit_code=2) for name in names]
    lines = dict(zip(names, map(error_line, done), strict=True))
    assert "unreadable: " in lines["cut"] and "more than 5% of 51 images: mend or remove them" in lines["cut"]
    assert "annotation 1003: box [200, 10, 20, 20]" in lines["outside"]
    assert "annotation 1004: category_id 77 is not among the categories" in lines["unknown"]
    assert f"{masks}/masks/7.png: mask value 9, but there are 3 labels (0..2)" in lines["masks"]
    line = error_line(adapt(smoke, own / "shapes", "again", "--model", "models:/intern-flower@candidate", exit_code=2))
    assert "expected a generalist, an expert or an amateur to start from, got a model of one task" in line
    models = {model["name"] for model in answer("models", "--state-dir", smoke.state)["models"]}
    assert not any("bad" in name or "again" in name for name in models)


def test_damaged_shard_on_the_store_is_named(smoke, adapted, own):
    ref = read_ref(smoke.state / "runs" / "adapt-shapes" / "refs" / "prepare-shapes.json")
    store, uri = smoke.store(), join_uri(ref.uri, "shards", "00000.tar")
    content = store.read(uri)
    digest = read_record(store, ref.uri).files["shards/00000.tar"]
    (smoke.state / "cache" / f"{digest}.tar").unlink()
    shutil.rmtree(smoke.state / "cache" / "features")  # features that are known need no images
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    store.put(bytes(damaged), uri)
    try:
        override = ["--override", '{"adapt": {"seed": 1}}']
        line = error_line(adapt(smoke, own / "shapes", "shapes", *override, exit_code=2))
        assert "run adapt-shapes was started with another config: adapt.seed: 0 -> 1" in line
        line = error_line(adapt(smoke, own / "shapes", "shapes", *override, "--no-resume", exit_code=2))
        assert uri in line and "adapt-intern-shapes: " in line
    finally:
        store.put(content, uri)


def test_a_raw_pool_becomes_a_dataset_and_tasks_with_a_registered_model(smoke, adapted, own, tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    rng = np.random.default_rng(7)
    for number in range(15):
        cv2.imwrite(str(pool / f"{number}.png"), own_data.draw(rng, own_data.SHAPES[number % 5])[0])
    settings = {"annotate": {"selection": {"num_tasks": 6, "audit_share": 0.0, "max_loss": 0.5}}}
    command = ["data", "run", own / "shapes", pool, "--model", "models:/intern-shapes@candidate"]
    command += ["--question", "label", "--override", json.dumps(settings), "--out", tmp_path / "more.json"]
    found = answer(*command, "--report", tmp_path / "page", "--state-dir", smoke.state)
    assert [ref["kind"] for ref in found["datasets"]] == ["dataset"]
    tasks = json.loads((tmp_path / "more-tasks" / "tasks.json").read_text())
    proposed = {task["data"]["proposed"] for task in tasks}
    assert len(tasks) == 6 and proposed <= set(own_data.SHAPES)
    assert "pool" in (tmp_path / "page" / "report.html").read_text()


def test_unknown_model_to_start_from_is_one_line(smoke, served, own):
    line = error_line(adapt(smoke, own / "shapes", "other", "--model", "models:/intern-none@candidate", exit_code=2))
    assert "model intern-none@candidate: not registered; registered are" in line


def test_second_command_is_refused_while_the_run_goes_on(smoke, served):
    import fcntl

    with open(smoke.run_dir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = intern("run", "--preset", "smoke", "--num-ranks", "2", "--state-dir", smoke.state, exit_code=75)
    assert "run smoke in" in error_line(done) and os.path.exists(smoke.run_dir / "refs" / "report.json")
