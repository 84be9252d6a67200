import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SIZE_PX, StageProcess

import intern_vision
from intern_vision.errors import ConfigError, DataError, MissingObjectError
from intern_vision.ref import Ref
from intern_vision.stages import base, prepare
from intern_vision.stages.base import (
    COMMIT_MARKER,
    STAGE_NAMES,
    Inputs,
    fetch,
    flatten,
    load_stage,
    read_record,
    read_ref,
    run_stage,
    stage_key,
)
from intern_vision.store import digest_of_files, file_sha256, join_uri, open_store

CONFIG = prepare.Config(dataset="flower", num_train=12, num_test=6, image_size_px=SIZE_PX)
HEAVY = ("torch", "deepspeed", "mlflow", "daft", "grain", "cv2", "boto3")


def some_ref(digest: str = "0" * 64, name: str = "a") -> Ref:
    return Ref(kind="dataset", name=name, uri=f"file:///{name}", digest=digest, num_bytes=0, parents=())


def committed(world, name: str) -> set[str]:
    store = open_store(world.store_root)
    prefix = f"{world.store_root}/prepare/{name}-"
    return {f.uri for f in store.list(f"{world.store_root}/prepare") if f.uri.startswith(prefix)}


def test_output_is_recorded_and_its_bytes_are_those_of_the_record(world, tmp_path):
    ref = run_stage("prepare", CONFIG, Inputs(), name="recorded")
    store = open_store(world.store_root)
    record = read_record(store, ref.uri)
    assert record.ref == ref and record.stage == "prepare" and record.config == CONFIG.to_dict()
    assert ref.uri == f"{world.store_root}/prepare/recorded-{record.key[:16]}"
    assert ref.digest == digest_of_files(record.files)
    assert record.facts["num_train"] == 12 and record.wall_s > 0 and record.cpu_s > 0
    names = {file.uri.removeprefix(ref.uri + "/") for file in store.list(ref.uri)}
    assert names == record.files.keys() | {COMMIT_MARKER}
    folder = fetch(store, ref, tmp_path)
    assert {name: file_sha256(folder / name) for name in record.files} == record.files


def test_done_work_is_not_repeated_in_this_process_or_another(world, tmp_path):
    first = StageProcess(tmp_path / "1", "prepare", CONFIG, {}, "once", 1, world.environment)
    ref = first.ref()
    stamps = {file.uri: file.modified_s for file in open_store(world.store_root).list(ref.uri)}
    second = StageProcess(tmp_path / "2", "prepare", CONFIG, {}, "once", 1, world.environment)
    assert second.ref() == ref == run_stage("prepare", CONFIG, Inputs(), name="once")
    assert first.events("done") and not first.events("cached")
    assert second.events("cached") and not second.events("started")
    assert {file.uri: file.modified_s for file in open_store(world.store_root).list(ref.uri)} == stamps


@pytest.mark.parametrize("stage", [name for name in STAGE_NAMES if name not in ("export", "report")])
def test_reading_a_config_loads_no_heavy_library(stage):
    code = (
        "import sys\nfrom intern_vision.stages.base import load_stage\n"
        f"load_stage({stage!r}).Config\nprint([name for name in {HEAVY} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_key_follows_from_stage_config_and_inputs():
    config, other = CONFIG, CONFIG.with_overrides({"seed": 1})
    inputs = Inputs(data=(some_ref(),), experts=(some_ref(), some_ref("1" * 64)))
    keys = [
        stage_key("prepare", config, inputs),
        stage_key("amateur", config, inputs),
        stage_key("prepare", other, inputs),
        stage_key("prepare", config, Inputs(data=(some_ref("2" * 64),), experts=inputs["experts"])),
        stage_key("prepare", config, Inputs(data=inputs["data"], experts=inputs["experts"][::-1])),
        stage_key("prepare", config, Inputs(data=inputs["data"])),
    ]
    assert len(set(keys)) == len(keys)
    reordered = Inputs(experts=inputs["experts"], data=(some_ref(name="elsewhere"),))
    assert stage_key("prepare", config, reordered) == keys[0]  # where an input lies does not matter


def test_a_changed_config_is_new_work(world):
    one = run_stage("prepare", CONFIG, Inputs(), name="changed")
    other = run_stage("prepare", CONFIG.with_overrides({"seed": 5}), Inputs(), name="changed")
    assert one.uri != other.uri and one.digest != other.digest
    assert read_record(open_store(world.store_root), one.uri).ref == one


def test_a_changed_line_of_code_is_a_new_key(tmp_path):
    package = tmp_path / "intern_vision"
    shutil.copytree(Path(intern_vision.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from intern_vision.stages import base\nprint(base.__file__, base.code_digest())"

    def digest() -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        where, found = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split()
        assert where.startswith(str(tmp_path))
        return found

    assert digest() == digest() == base.code_digest()
    with open(package / "train" / "schedule.py", "a") as file:
        file.write("# changed\n")
    assert digest() != base.code_digest()


KILLED_AT_THE_MARKER = """
import os, signal, sys
from intern_vision import store
from intern_vision.stages import base, prepare
put = store.FileStore.put
def put_or_die(self, source, uri):
    if uri.endswith("/" + base.COMMIT_MARKER):
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, source, uri)
store.FileStore.put = put_or_die
base.run_stage("prepare", prepare.Config.from_json(sys.argv[1]), base.Inputs(), name="marker")
"""


def test_an_output_without_its_marker_is_no_output(world):
    run = subprocess.run([sys.executable, "-c", KILLED_AT_THE_MARKER, CONFIG.to_json()])
    assert run.returncode == -9
    names = {uri.rsplit("/", 1)[1] for uri in committed(world, "marker")}
    assert "dataset.json" in names and COMMIT_MARKER not in names
    uri = (
        next(iter(committed(world, "marker"))).split("/marker-")[0]
        + "/marker-"
        + stage_key("prepare", CONFIG, Inputs())[:16]
    )
    with pytest.raises(MissingObjectError):
        read_record(open_store(world.store_root), uri)
    ref = run_stage("prepare", CONFIG, Inputs(), name="marker")
    assert ref.uri == uri and read_record(open_store(world.store_root), uri).ref == ref


def test_scratch_folders_go_with_the_stage_and_those_of_killed_stages_with_the_next(world):
    scratch = Path(world.environment["INTERN_STATE"]) / "scratch"

    def folders() -> list[Path]:
        return [path for path in scratch.iterdir() if path.is_dir()]

    subprocess.run([sys.executable, "-c", KILLED_AT_THE_MARKER, CONFIG.with_overrides({"seed": 9}).to_json()])
    (left,) = folders()
    assert left.name.startswith("marker-") and (left / "output" / "dataset.json").exists()
    run_stage("prepare", CONFIG.with_overrides({"seed": 10}), Inputs(), name="next")
    assert folders() == []


def test_scratch_of_a_running_stage_is_left_alone(world):
    with base.scratch_folder("one") as one:
        (one / "file").write_text("in use")
        with base.scratch_folder("two") as two:
            assert one != two and (one / "file").read_text() == "in use"
    assert not one.exists() and not two.exists()


def test_a_failed_stage_commits_nothing(world):
    with pytest.raises(ConfigError, match="dataset: expected one of upstream, flower"):
        run_stage("prepare", prepare.Config(dataset="unknown"), Inputs(), name="failed")
    assert committed(world, "failed") == set()


def test_fetch_refuses_changed_bytes(world, tmp_path):
    ref = run_stage("prepare", CONFIG.with_overrides({"seed": 77}), Inputs(), name="tampered")
    store = open_store(world.store_root)
    store.put(b"something else", join_uri(ref.uri, "index.parquet"))
    with pytest.raises(DataError, match=r"index\.parquet"):
        fetch(store, ref, tmp_path)


def test_inputs_say_what_is_missing():
    inputs = Inputs(one=(some_ref(),), two=(some_ref(), some_ref("1" * 64)))
    assert inputs.one("one") == some_ref() == inputs.optional("one")
    assert inputs.optional("none") is None and inputs.many("none") == () and len(inputs.many("two")) == 2
    for name, count in (("two", 2), ("none", 0)):
        with pytest.raises(ConfigError, match=rf"inputs\.{name}: expected 1 Ref, got {count}"):
            inputs.one(name)


def test_unknown_stages_are_refused():
    with pytest.raises(ConfigError, match="stage: expected one of prepare, .*, got 'nothing'"):
        load_stage("nothing")
    for name in ("prepare", "amateur", "search"):
        module = load_stage(name)
        assert module.run and module.Config.model_fields


def test_refs_travel_as_files(tmp_path):
    path = tmp_path / "ref.json"
    path.write_text(some_ref().to_json())
    assert read_ref(path) == some_ref()
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"ref\.json"):
        read_ref(path)


def test_nested_settings_become_flat_names():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a/b": 1, "a/c/d": [2], "e": None}


def test_parents_are_all_inputs(world):
    data = run_stage("prepare", CONFIG, Inputs(), name="parent")
    ref = run_stage("prepare", CONFIG, Inputs(data=(data,), more=(world.flower, data)), name="child")
    assert ref.parents == (data.uri, world.flower.uri, data.uri)
