import json
from types import SimpleNamespace

import pytest
from helpers import commit_folder, set_environment
from made_manifests import commit_rows, image_row, picture

from intern_vision.data.manifest import SourceInfo
from intern_vision.data_steps import committed_refs, data_step, shard_step, stage_settings
from intern_vision.errors import ConfigError, MissingObjectError
from intern_vision.stages.base import read_ref, read_refs
from intern_vision.task import Task

CLASSES = Task(family="classify", class_names=("cat", "dog"))


@pytest.fixture
def store_root(tmp_path, monkeypatch):
    root = f"file://{tmp_path}/store"
    set_environment(monkeypatch, {"INTERN_STORE": root, "INTERN_STATE": str(tmp_path / "state")})
    return root


def artifact(path):
    return SimpleNamespace(path=str(path))


@pytest.fixture
def manifest(store_root, tmp_path):
    """An artifact with the Ref of a manifest of two sources."""
    rows = [
        image_row(tmp_path / "made", f"{source}-{n}", picture(n + 50 * number), source=source, labels=("cat",))
        for number, source in enumerate(("one", "two"))
        for n in range(8)
    ]
    sources = tuple(
        SourceInfo(name=name, uri=f"file:///{name}", tasks={"classify": CLASSES}) for name in ("one", "two")
    )
    ref = commit_rows(store_root, tmp_path / "made", rows, sources)
    (tmp_path / "manifest").write_text(ref.to_json())
    return artifact(tmp_path / "manifest")


def test_settings_of_a_stage_are_its_part_under_what_is_given():
    settings = json.dumps({"filter": {"name": "kept", "rules": []}, "shard": {"name": "x"}})
    found = stage_settings("filter", settings, {"rules": '["text"]', "name": ""})
    assert found == {"name": "kept", "rules": ["text"]} and stage_settings("label", "", {}) == {}
    with pytest.raises(ConfigError, match="settings: 'shards' is no stage; expected names such as ingest"):
        stage_settings("shard", '{"shards": {}}', {})
    with pytest.raises(ConfigError, match=r"settings.shard: expected an object, got 3"):
        stage_settings("shard", '{"shard": 3}', {})
    with pytest.raises(ConfigError, match="rules: expected JSON, got 'text'"):
        stage_settings("filter", "", {"rules": "text"})


def test_addresses_are_those_of_committed_outputs(store_root, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x").write_text("x")
    ref = commit_folder(store_root, "prepare", "dataset", "pets", tmp_path / "own")
    assert committed_refs(json.dumps([ref.uri]), "against") == (ref,) and committed_refs("", "against") == ()
    with pytest.raises(MissingObjectError):
        committed_refs(json.dumps([f"{ref.uri}-2"]), "against")
    with pytest.raises(ConfigError, match="against: expected a JSON array of addresses, got"):
        committed_refs(json.dumps(ref.uri), "against")


def test_without_rules_the_manifest_stays_as_it_is(manifest, tmp_path):
    own = {"inputs": {"manifest": manifest}, "unless_empty": "rules"}
    data_step("filter", "", str(tmp_path / "same"), given={"rules": "[]"}, **own)
    assert read_ref(tmp_path / "same") == read_ref(manifest.path)
    data_step("filter", "", str(tmp_path / "other"), given={"rules": '["size:max_px=40"]'}, **own)
    assert read_ref(tmp_path / "other").kind == "manifest" and read_ref(tmp_path / "other") != read_ref(manifest.path)


def test_a_dataset_of_all_sources_or_one_a_source(manifest, tmp_path):
    # The Ref that stands for labels is no label step's here: there are no classes to join.
    shard_step("", manifest, manifest, str(tmp_path / "all"))
    assert read_ref(tmp_path / "all").kind == "dataset"
    shard_step('{"shard": {"by_source": true}}', manifest, None, str(tmp_path / "each"))
    assert [ref.name for ref in read_refs(tmp_path / "each")] == ["one", "two"]
