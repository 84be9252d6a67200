import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from helpers import commit_folder, set_environment
from running import read_events
from safetensors.torch import save_file

from intern_vision import steps
from intern_vision.errors import ConfigError, DataError, InternError, MissingObjectError, RetryableError
from intern_vision.models.public_backbones import PublicBackbone, make_public_backbone
from intern_vision.presets import resolve
from intern_vision.ref import Ref
from intern_vision.stages import base as stages_base
from intern_vision.stages.base import read_record, read_ref, read_refs
from intern_vision.store import file_sha256, open_store

TINY = json.dumps({"downstream": {"num_train": 20, "num_val": 5, "num_test": 5, "image_size_px": 32}})
TINY_RESNET = PublicBackbone(kind="resnet", num_blocks=(1, 1, 1, 1), width=8, bottleneck=False)
REF = Ref(kind="scores", name="x", uri="file:///x", digest="0" * 64, num_bytes=1, parents=())


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run's folder, as a step of a local run finds it."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {
        "INTERN_STORE": f"file://{tmp_path}/store",
        "INTERN_STATE": str(tmp_path / "state"),
        "INTERN_RUN_DIR": str(folder),
        "INTERN_EVENTS": str(folder / "events.jsonl"),
        "INTERN_OWNER_PID": str(os.getpid()),
    }
    set_environment(monkeypatch, settings)
    old = signal.getsignal(signal.SIGTERM)
    yield folder
    signal.signal(signal.SIGTERM, old)


def kinds(run_dir):
    return [event["event"] for event in read_events(run_dir / "events.jsonl")]


def test_paths_of_one_several_or_no_artifacts():
    one, two = SimpleNamespace(path="a"), SimpleNamespace(path="b")
    assert steps.paths(one) == ["a"]
    assert steps.paths([one, two]) == steps.paths((one, two)) == ["a", "b"]
    assert steps.paths(None) == steps.paths([]) == []


def test_step_writes_its_ref_and_the_run_keeps_it(run_dir, tmp_path):
    output = tmp_path / "deep" / "result"
    ref = steps.run_step("prepare", "smoke", TINY, item="flower", output=str(output))
    assert read_ref(output) == read_ref(run_dir / "refs" / "prepare-flower.json") == ref
    assert ref.kind == "dataset" and ref.uri.startswith(f"file://{tmp_path}/store/prepare/prepare-flower-")
    record = read_record(open_store(ref.uri), ref.uri)
    assert (record.facts["num_train"], record.config["dataset"]) == (20, "flower")
    assert steps.run_step("prepare", "smoke", TINY, item="flower", output=str(output)) == ref
    assert kinds(run_dir) == ["started", "done", "cached"]


@pytest.mark.parametrize(
    ("work_error", "exit_code", "note"),
    [
        (DataError("row 3: wrong"), 2, "row 3: wrong"),
        (RetryableError("away"), 75, "away"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
        (OSError(28, "No space"), 75, "the disk is full; make room, then run the same command again"),
    ],
)
def test_failure_is_told_ends_with_its_code_and_stops_the_run(run_dir, capsys, work_error, exit_code, note):
    def work():
        raise work_error

    with pytest.raises(SystemExit) as caught:
        steps.guarded("broken", work)
    assert caught.value.code == exit_code
    (event,) = read_events(run_dir / "events.jsonl")
    assert (event["event"], event["stage"], event["note"], event["exit_code"]) == ("failed", "broken", note, exit_code)
    assert ("Traceback" in capsys.readouterr().err) is not isinstance(work_error, InternError)
    with pytest.raises(SystemExit) as caught:
        steps.guarded("next", lambda: pytest.fail("a step was started in a run that stops"))
    assert caught.value.code == 75
    assert len(read_events(run_dir / "events.jsonl")) == 1


def test_wrong_overrides_fail_as_config_errors(run_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        steps.run_step("prepare", "smoke", '{"upstream": {"num_trains": 1}}', output=str(tmp_path / "x"))
    assert caught.value.code == ConfigError.exit_code
    assert "error: upstream.num_trains: unknown key" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_without_a_run_folder_a_step_stands_alone(tmp_path, monkeypatch, capsys):
    set_environment(monkeypatch, {})
    old = signal.getsignal(signal.SIGTERM)
    assert steps.guarded("alone", lambda: REF) == REF
    signal.signal(signal.SIGTERM, old)
    assert not list(tmp_path.iterdir())


def test_find_writes_the_ref_behind_an_address(run_dir, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "weights").write_bytes(b"1")
    ref = commit_folder(f"file://{tmp_path}/store", "generalist", "weights", "g", tmp_path / "w")
    steps.find_weights(ref.uri, str(tmp_path / "found"))
    assert read_ref(tmp_path / "found") == read_ref(run_dir / "refs" / "find.json") == ref
    with pytest.raises(SystemExit) as caught:
        steps.find_weights(f"file://{tmp_path}/store/none", str(tmp_path / "y"))
    assert caught.value.code == MissingObjectError.exit_code


@pytest.mark.parametrize(
    ("stage", "kind", "found"), [("adapt", "model", "a model of one task"), ("prepare", "dataset", "a dataset")]
)
def test_find_refuses_what_is_not_to_be_adapted(run_dir, tmp_path, capsys, stage, kind, found):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "weights").write_bytes(b"1")
    ref = commit_folder(f"file://{tmp_path}/store", stage, kind, "g", tmp_path / "w")
    with pytest.raises(SystemExit) as caught:
        steps.find_weights(ref.uri, str(tmp_path / "found"))
    assert caught.value.code == ConfigError.exit_code and not (tmp_path / "found").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--model {ref.uri}: expected a generalist, an expert or an amateur to start from, got {found}" in line


def ref_file(path, *names):
    refs = [REF.model_copy(update={"name": name, "uri": f"file:///{name}"}).to_dict() for name in names]
    path.write_text(json.dumps(refs[0] if len(refs) == 1 else refs))
    return str(path)


def test_gathered_refs_keep_their_order(tmp_path):
    files = [
        ref_file(tmp_path / "a", "clip"),
        ref_file(tmp_path / "b", "joint", "central"),
        ref_file(tmp_path / "c", "x"),
    ]
    steps.gather_refs(files, str(tmp_path / "deep" / "all"))
    assert [ref.name for ref in read_refs(tmp_path / "deep" / "all")] == ["clip", "joint", "central", "x"]
    (tmp_path / "bad").write_text('[{"kind": "scores"}]')
    with pytest.raises(ConfigError, match="bad.name: missing|bad.*name"):
        read_refs(tmp_path / "bad")


def test_case_takes_its_model_and_dataset_by_name(run_dir, tmp_path, monkeypatch):
    ran = []

    def run_stage(stage, config, inputs, *, name):
        assert inputs.one("model") and inputs.one("data")
        ran.append((stage, name, {key: [ref.name for ref in refs] for key, refs in inputs.items()}))
        return REF.model_copy(update={"name": f"made-by-{stage}"})

    monkeypatch.setattr(stages_base, "run_stage", run_stage)
    models = ref_file(tmp_path / "models", "intern", "clip", "expert-detect")
    datasets = ref_file(tmp_path / "datasets", "flower", "texture")
    outputs = [str(tmp_path / "result"), str(tmp_path / "scores")]
    steps.adapt_and_evaluate("smoke", "", "texture/clip", models, datasets, *outputs)
    assert ran == [
        ("adapt", "adapt-clip-texture", {"model": ["clip"], "data": ["texture"]}),
        ("evaluate", "evaluate-clip-texture", {"model": ["made-by-adapt"], "data": ["texture"]}),
    ]
    with pytest.raises(SystemExit):
        steps.adapt_and_evaluate("smoke", "", "texture/vit", models, datasets, *outputs)
    assert read_events(run_dir / "events.jsonl")[-1]["note"] == (
        "arms: expected one of intern, clip, expert-detect, got 'vit'"
    )


def test_multi_stage_fine_tuning_gets_the_codebook(run_dir, tmp_path, monkeypatch):
    given = []

    def run_stage(stage, config, inputs, *, name):
        given.append((stage, {key: [ref.name for ref in refs] for key, refs in inputs.items()}))
        return REF

    monkeypatch.setattr(stages_base, "run_stage", run_stage)
    overrides = json.dumps({"codebook": {}, "adapt": {"recipes": ["frozen", "multi_stage"]}})
    assert resolve("smoke", overrides).choices("others") == ["clip", "codebook"]
    data = {"data": SimpleNamespace(path=ref_file(tmp_path / "data", "upstream"))}
    steps.train_step("other", "smoke", overrides, "codebook", data, str(tmp_path / "codebook"))
    models = ref_file(tmp_path / "models", "clip", "codebook", "intern")
    outputs = str(tmp_path / "result"), str(tmp_path / "scores")
    steps.adapt_and_evaluate(
        "smoke", overrides, "flower/intern", models, ref_file(tmp_path / "flower", "flower"), *outputs
    )
    assert given[:2] == [
        ("represent", {"data": ["upstream"]}),
        ("adapt", {"model": ["intern"], "data": ["flower"], "codebook": ["codebook"]}),
    ]


@pytest.mark.parametrize(
    ("item", "taken"),
    [("multilabel", ["amateur"]), ("detect", ["amateur-local"]), ("joint", ["amateur-local", "amateur"])],
)
def test_dense_experts_and_generalists_start_from_the_local_amateur(run_dir, tmp_path, monkeypatch, item, taken):
    given = {}
    monkeypatch.setattr(stages_base, "run_stage", lambda stage, config, inputs, *, name: given.update(inputs) or REF)
    names = {"data": "upstream", "amateur": "amateur", "amateur_local": "amateur-local"}
    inputs = {key: SimpleNamespace(path=ref_file(tmp_path / key, name)) for key, name in names.items()}
    use = "generalist" if item == "joint" else "expert"
    steps.train_step(use, "smoke", "", item, inputs | {"experts": None}, str(tmp_path / "out"))
    assert {key: [ref.name for ref in refs] for key, refs in given.items()} == {
        "data": ["upstream"],
        "amateur": taken,
    }


def test_public_weights_stand_in_for_the_amateur(run_dir, tmp_path):
    network = make_public_backbone(TINY_RESNET)
    file = tmp_path / "resnet.safetensors"
    save_file(network.state_dict(), file)
    weights = {"backbone": TINY_RESNET.to_dict(), "path": str(file), "sha256": file_sha256(file), "image_size_px": 64}
    overrides = json.dumps({"weights": weights})
    data = {"data": SimpleNamespace(path=ref_file(tmp_path / "data", "upstream"))}
    steps.train_step("amateur", "smoke", overrides, "", data, str(tmp_path / "amateur"))
    amateur = read_ref(tmp_path / "amateur")
    store = open_store(amateur.uri)
    assert (amateur.name, amateur.parents) == ("amateur", ())
    assert read_record(store, amateur.uri).stage == "import_weights"
    inputs = data | {"amateur": SimpleNamespace(path=str(tmp_path / "amateur"))}
    steps.train_step("amateur_local", "smoke", overrides, "", inputs, str(tmp_path / "local"))
    local = read_ref(tmp_path / "local")
    assert read_record(store, local.uri).files == read_record(store, amateur.uri).files
    refused = "amateur_local.mode: expected none with public weights without a vocabulary, got 'masked'"
    with pytest.raises(ConfigError, match=refused):
        resolve("small", overrides)


def test_lists_of_a_run_are_its_presets(run_dir, capsys):
    assert steps.list_choices("smoke", '{"arms": ["clip"]}', "cases")[:2] == ["flower/clip", "det_novel/clip"]
    with pytest.raises(SystemExit) as caught:
        steps.list_choices("smok", "", "cases")
    assert caught.value.code == 2 and "error: preset: expected one of smoke" in capsys.readouterr().err


STEP = """
import os, sys, time
from intern_vision import steps

def work():
    print("working", flush=True)
    time.sleep(60)

steps.guarded("long", work)
"""


@pytest.fixture
def long_step(run_dir):
    """Starts a step that works for a minute, owned by a given process."""
    started = []

    def start(owner_pid):
        process = subprocess.Popen(
            [sys.executable, "-c", STEP],
            env=os.environ | {"INTERN_OWNER_PID": str(owner_pid)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "working\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_sigterm_ends_a_step_with_the_code_of_a_retry(run_dir, long_step):
    process = long_step(os.getpid())
    process.terminate()
    assert process.wait(5) == RetryableError.exit_code
    assert "error: asked to stop; the same command resumes" in process.stderr.read()
    assert kinds(run_dir) == ["failed"] and (run_dir / steps.STOP_FILE).exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_step_ends_soon_after_its_owner(long_step, reaped):
    owner = subprocess.Popen(["sleep", "60"])
    process = long_step(owner.pid)
    owner.kill()
    started = time.monotonic()
    if reaped:
        owner.wait()
    assert process.wait(5) == RetryableError.exit_code
    assert time.monotonic() - started < 3
    owner.wait()
